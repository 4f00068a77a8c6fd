"""What a kernel does with re-used tuples of a real server at weight 0, seen rather than looked up.

Fixes b and d: f0a5e4d7a594 (a re-used SYN is not dropped) and c95c07836fa4 (weight 0 reschedules
with conn_reuse_mode 0 too). Vendor kernels carry them, or not, whatever their number says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.rollout.sysctls import EXPIRE_NODEST, REUSE_MODE
from pytest_ipvs.rollout.timeline import PodTrace, Timeline
from pytest_ipvs.traffic.results import Results

CONNTRACK = "net.ipv4.vs.conntrack"
DROPPED_SHARE = 0.5
"""Without fix b the first SYN of nearly each re-used tuple is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProbe:
    """What became of re-used tuples after ``pod`` had left the Service, alive.

    ``exposed``: connections on tuples that the pod had answered last, since all nodes had it at
    weight 0; ``old_answers``: answers that it gave since then, ``resent``: connects with a resent
    SYN. ``sysctls``: the values that all nodes agree in. ``fix_b``, ``fix_d``: whether the kernels
    behave as if they had the fix; ``None`` where these settings can't show it. ``problem``: why
    nothing was measured, "" where it was.
    """

    pod: str
    exposed: int = 0
    old_answers: int = 0
    resent: int = 0
    sysctls: Mapping[str, str]
    fix_b: bool | None = None
    fix_d: bool | None = None
    problem: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{key.rpartition('.')[2]}={v}" for key, v in self.sysctls.items())
        known = {True: "present", False: "missing", None: "not shown by these settings"}
        return (
            f"{self.old_answers} answers by {self.pod} at weight 0, {self.exposed} re-used tuples "
            f"met it, {self.resent} resent SYNs; {settings or 'sysctls were not read'}; "
            f"fix b {known[self.fix_b]}, fix d {known[self.fix_d]}"
        )


def probe(results: Results, timeline: Timeline, facts: Mapping[str, Any], name: str) -> KernelProbe:
    """Judge the time since the pod called ``name`` was released; ``facts`` by node's name."""
    sysctls = _common(facts)
    pod = timeline.pod_named(name)
    since = _quiesced(timeline, pod) if pod is not None else "the pod was not seen"
    if isinstance(since, str):
        return KernelProbe(pod=name, sysctls=sysctls, problem=since)
    # A reading may be late by a second, and the client counts whole seconds.
    seconds = [second for second in results.seconds if second.t >= math.ceil(since) + 1]
    old_answers = sum(second.pods.get(name, 0) for second in seconds)
    reused = sum(second.reused for second in seconds)
    resent = sum(s.resent - s.resent_after.get("failed", 0) for s in seconds)
    exposed = sum(second.reused_after.get(name, 0) for second in seconds)
    mode, expire = sysctls.get(REUSE_MODE, ""), sysctls.get(EXPIRE_NODEST, "")
    fix_b = fix_d = None
    if exposed and mode == "0" and expire == "1":
        fix_d = not old_answers
    if reused and mode not in ("", "0") and sysctls.get(CONNTRACK) == "1":
        if resent >= DROPPED_SHARE * reused:
            fix_b = False
        elif not resent:
            fix_b = True
    return KernelProbe(
        pod=name,
        exposed=exposed,
        old_answers=old_answers,
        resent=resent,
        sysctls=sysctls,
        fix_b=fix_b,
        fix_d=fix_d,
    )


def _common(facts: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in (REUSE_MODE, EXPIRE_NODEST, CONNTRACK):
        values = {" ".join(node.sysctls.get(key, "").split()) for node in facts.values()}
        if len(values) == 1 and "" not in values:
            found[key] = values.pop()
    return found


def _quiesced(timeline: Timeline, pod: PodTrace) -> float | str:
    """When the last node had the pod at weight 0 or had removed it; else why that is not known."""
    servers = timeline.servers_of(pod)
    if not servers or pod.left_at is None:
        return "no node's table showed the pod's real servers"
    ends = [
        min(server.weight_zero_at or math.inf, server.gone_at or math.inf) for server in servers
    ]
    if max(ends) == math.inf:
        node = next(s.node for s, end in zip(servers, ends, strict=True) if end == math.inf)
        return f"{node} did not take the pod's real server to weight 0"
    return max(ends)
