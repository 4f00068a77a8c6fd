"""Whether checks apply to a cluster at all: kube-proxy in IPVS mode, another mode, or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_ipvs.checks.model import Evidence
from pytest_ipvs.checks.nodes import view_of
from pytest_ipvs.cluster.facts import NOTHING_ANSWERS
from pytest_ipvs.cluster.model import NodeFacts

# Interfaces that the replacements of kube-proxy make; each holds an address on every node.
_REPLACEMENTS = {
    "cilium_host": "Cilium",
    "cilium_net": "Cilium",
    "kube-dummy-if": "kube-router",
    "ovn-k8s-mp0": "OVN-Kubernetes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplicable:
    """Why no check applies. ``parts`` pairs a state with the sorted names of nodes in it.

    ``kind`` "absent": no node has a kube-proxy, and each has something else instead, so KP-01 does
    not apply either. ``kind`` "mode": kube-proxy runs in other modes than ipvs. ``kind``
    "unknown": neither a kube-proxy nor what is known to stand in for it shows. KP-01 still judges
    these two.
    """

    kind: Literal["mode", "absent", "unknown"]
    parts: tuple[tuple[str, tuple[str, ...]], ...]


def not_applicable(evidence: Evidence) -> NotApplicable | None:
    """Why no check applies to this cluster; ``None`` where they do, or where it is not certain.

    Modes that were not read decide nothing, and neither does a kube-proxy that is silent.
    """
    modes: dict[str, list[str]] = {}
    for name in sorted(evidence.last.facts):
        modes.setdefault(view_of(evidence, name).facts.proxy.mode or "", []).append(name)
    if not modes:
        return None
    if modes.keys().isdisjoint({"", "ipvs"}):
        parts = tuple((f"mode {mode}", tuple(names)) for mode, names in sorted(modes.items()))
        return NotApplicable(kind="mode", parts=parts)
    return _absent(evidence)


def _absent(evidence: Evidence) -> NotApplicable | None:
    objects = evidence.proxy_objects
    if objects is None or objects.pods or "proxy_objects.pods" in objects.unread:
        return None
    parts: dict[str, list[str]] = {}
    explained = True
    switched_off = _switched_off(evidence)
    for name, facts in sorted(evidence.last.facts.items()):
        if not _silent(facts) or (_process(evidence, name) and not switched_off):
            return None
        instead = {_REPLACEMENTS[i] for i, _ in facts.addresses if i in _REPLACEMENTS}
        no_table = "table" not in facts.unread and not (facts.table and facts.table.virtual_servers)
        if instead:
            state = f"{' and '.join(sorted(instead))} instead"
        elif switched_off:
            state = "k3s was told to disable it"
        elif no_table:
            # Maybe nothing proxies there at all, and that must not look like a good end.
            explained = False
            state = "no IPVS table, and nothing known instead"
        else:
            return None
        parts.setdefault(state, []).append(name)
    return NotApplicable(
        kind="absent" if explained else "unknown",
        parts=tuple((state, tuple(names)) for state, names in sorted(parts.items())),
    )


def _silent(facts: NodeFacts) -> bool:
    """Whether neither the metrics' port nor that of health has somebody who listens."""
    heard = (facts.proxy.mode, facts.proxy.version, facts.proxy.healthz, facts.proxy.livez)
    reasons = (facts.unread.get("proxy.mode", ""), facts.unread.get("proxy.healthz", ""))
    return not any(heard) and all(reason.startswith(NOTHING_ANSWERS) for reason in reasons)


def _process(evidence: Evidence, name: str) -> bool:
    facts = evidence.detailed(name)
    return bool(facts is not None and facts.details is not None and facts.details.proxy_command)


def _switched_off(evidence: Evidence) -> bool:
    """Whether a k3s server runs without kube-proxy; its agents do the same without saying so."""
    for name in evidence.last.facts:
        facts = evidence.detailed(name)
        command = facts.details.proxy_command if facts is not None and facts.details else None
        if command and any(
            word in ("--disable-kube-proxy", "--disable-kube-proxy=true") for word in command
        ):
            return True
    return False
