"""TB-07: whether the nodes' tables are alike where nothing in the API makes them differ.

What belongs here: what no node's expected table says, because kube-proxy writes it alike
everywhere: a virtual server's flags, and the netmask of its persistence. What differs from the
expected table is told by the check that is for it, so that one fault is told once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pytest_ipvs.checks.findings import NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import RESTART_PROXY, views
from pytest_ipvs.checks.tables import NodeJudgement, judged_findings, judgement
from pytest_ipvs.cluster.model import Snapshot
from pytest_ipvs.ipvs.compare import Difference
from pytest_ipvs.ipvs.overtime import Sample, Tracker
from pytest_ipvs.ipvs.tables import ServiceKey, VirtualServer

# (flags, netmask); "" stands for the mask of one address, or for no persistence: that is PS-01's.
_Value = tuple[tuple[str, ...], str]
_PLAIN: _Value = ((), "")
_ONE_ADDRESS = ("255.255.255.255", "128", None)


def alike(evidence: Evidence) -> Said:
    """Virtual servers of Services have the same flags and netmask on all nodes.

    A finding names the nodes that differ from most; of two halves, the one that differs from what
    kube-proxy writes. Everything else that may differ is judged on each node by what the API asks
    for there, so virtual servers that others program don't count.
    """
    yield from judged_findings(
        "TB-07",
        evidence,
        {
            "unlike-other-nodes": (
                "clients of the same Service are served differently from node to node",
                f"on the node: ipvsadm -D {{virtual}}; then {RESTART_PROXY}",
            )
        },
        severity="warn",
        teller=_judgement,
    )


def _judgement(evidence: Evidence, name: str) -> NodeJudgement | NotMeasured:
    memo: dict[str, NodeJudgement | NotMeasured] = evidence.memo
    key = f"likeness {name}"
    if key not in memo:
        for view in views(evidence):
            memo[f"likeness {view.name}"] = judgement(evidence, view.name)
        _compare_nodes(evidence, memo)
    return memo[key]


def _compare_nodes(evidence: Evidence, memo: dict[str, NodeJudgement | NotMeasured]) -> None:
    told = {
        view.name: one
        for view in views(evidence)
        if isinstance(one := judgement(evidence, view.name), NodeJudgement)
    }
    trackers = {name: Tracker(one.budgets) for name, one in told.items()}
    for snapshot in evidence.snapshots:
        found = _differences(snapshot, told)
        for name, tracker in trackers.items():
            facts = snapshot.facts.get(name)
            if facts is not None and facts.table is not None:
                mine = tuple(found.get(name, ()))
                tracker.add(Sample(taken_at=facts.taken_at, differences=mine))
    for name, one in told.items():
        memo[f"likeness {name}"] = NodeJudgement(
            judged=trackers[name].judge(), expected=one.expected, budgets=one.budgets
        )


def _differences(
    snapshot: Snapshot, told: Mapping[str, NodeJudgement]
) -> dict[str, list[Difference]]:
    servers = {
        name: facts.table.virtual_servers
        for name, facts in snapshot.facts.items()
        if name in told and facts.table is not None
    }
    # Most tables are plain throughout, and equal ones are one object: each is looked at once.
    by_table = {
        id(table): [v.key for v in table if _value(v) != _PLAIN] for table in servers.values()
    }
    unusual = {key for keys in by_table.values() for key in keys}
    found: dict[str, list[Difference]] = {}
    if not unusual:
        return found
    values = {
        name: {v.key: _value(v) for v in table if v.key in unusual}
        for name, table in servers.items()
    }
    for key in sorted(unusual):
        here = {
            name: mine[key]
            for name, mine in values.items()
            if key in mine and key in told[name].expected.virtual_servers
        }
        for name, usual in _odd(here):
            service = told[name].expected.virtual_servers[key].service
            if service not in snapshot.moving:
                found.setdefault(name, []).append(
                    Difference(
                        kind="unlike-other-nodes",
                        key=key,
                        real_server=None,
                        observed=_text(key, here[name]),
                        expected=f"{_text(key, usual)}, as on most other nodes",
                        service=service,
                    )
                )
    return found


def _odd(values: Mapping[str, _Value]) -> Iterator[tuple[str, _Value]]:
    """(name, what most have) of the nodes that have something else."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return
    usual = max(counts, key=lambda value: (counts[value], value == _PLAIN, value))
    for name, value in values.items():
        if value != usual:
            yield name, usual


def _value(virtual: VirtualServer) -> _Value:
    mask = virtual.netmask
    return virtual.flags, "" if mask is None or mask in _ONE_ADDRESS else mask


def _text(key: ServiceKey, value: _Value) -> str:
    flags, mask = value
    one = "128" if ":" in key.address else "255.255.255.255"
    return f"{'flags ' + ' '.join(flags) if flags else 'no flags'}, netmask {mask or one}"


CHECKS = (
    Check(
        id="TB-07",
        title="flags and netmask of a Service's virtual servers are the same on all nodes",
        group="TB",
        severity="warn",
        permission="node",
        needs=frozenset({"table", "proxy.version"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go (syncService)",
        run=alike,
    ),
)
