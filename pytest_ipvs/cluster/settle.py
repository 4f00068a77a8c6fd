"""Whether anything in a row of snapshots may still change by itself: when to stop looking.

What belongs here: waiting. What doesn't: judging; checks decide with the same comparison and the
same budgets whether what is left is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_ipvs.cluster.expectation import budgets_of, differences_of, rules_of
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects, Snapshot
from pytest_ipvs.ipvs.compare import Kind
from pytest_ipvs.ipvs.overtime import Judged, Sample, Tracker
from pytest_ipvs.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the last snapshot leaves open.

    ``settled``: nothing may still change by itself. ``equal``: every node was read and its table
    is what the API asks for. ``wait``: seconds until the next difference is decided. ``text``:
    what is waited for.
    """

    settled: bool
    equal: bool
    wait: float
    text: str


class Settling:
    """Follows snapshots; its memory grows with differences, not with snapshots."""

    def __init__(self, policy: Policy, *, drain: bool = True) -> None:
        self._policy = policy
        self._drain = drain
        self._trackers: dict[str, Tracker] = {}
        self._first: float | None = None
        self._objects: ProxyObjects | None = None
        self._detailed: dict[str, NodeFacts] = {}

    def add(self, snapshot: Snapshot) -> State:
        """Take the next snapshot, in order of time."""
        if self._first is None:
            self._first = snapshot.taken_at
        # Read once per run: the first snapshot that has them.
        self._objects = self._objects or snapshot.proxy_objects
        for name, one in snapshot.facts.items():
            if one.details is not None:
                self._detailed.setdefault(name, one)
        equal = bool(snapshot.facts) and not snapshot.unreachable
        open_differences: list[Judged] = []
        longest, drain = self._policy.converge_budget, self._policy.drain_budget
        for node in snapshot.nodes:
            facts = snapshot.facts.get(node.name)
            if facts is None or facts.proxy.mode not in (None, "ipvs"):
                continue
            try:
                rules = rules_of(
                    facts,
                    node,
                    snapshot.server_version,
                    objects=self._objects,
                    detailed=self._detailed.get(node.name),
                )
            except ValueError:
                equal = False
                continue
            if facts.table is None:
                equal = False
                continue
            policy = self._policy.for_node(node)
            budgets = budgets_of(policy, rules)
            if not rules.hourly_resync:
                longest = max(longest, budgets.converge)
            drain = max(drain, budgets.drain)
            tracker = self._trackers.setdefault(node.name, Tracker(budgets))
            found, _ = differences_of(snapshot, facts, rules, policy)
            counted = tuple(item for item in found if self._counts(item.kind))
            tracker.add(Sample(taken_at=facts.taken_at, differences=counted))
            for judged in tracker.judge():
                equal = False
                # A kube-proxy that resyncs once an hour is not waited for: what it leaves open
                # is told as not measured.
                hopeless = rules.hourly_resync and judged.age >= policy.converge_budget
                if not judged.decided and not hopeless:
                    open_differences.append(judged)
        # A busy cluster always has something young: what keeps coming must end too.
        limit = 2 * longest + (drain if self._drain else 0.0)
        expired = snapshot.taken_at - self._first >= limit
        return State(
            settled=expired or not open_differences,
            equal=equal,
            wait=min((item.open_for for item in open_differences), default=0.0),
            text=_text(open_differences),
        )

    def _counts(self, kind: Kind) -> bool:
        return kind != "foreign" and (self._drain or kind != "draining")


def _text(judged: list[Judged]) -> str:
    if not judged:
        return "tables follow the API"
    counts: dict[str, int] = {}
    for item in judged:
        counts[item.difference.kind] = counts.get(item.difference.kind, 0) + 1
    return "waiting: " + ", ".join(f"{n} {kind.replace('-', ' ')}" for kind, n in counts.items())
