"""PS: session affinity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from pytest_ipvs.checks.datapath import (
    affinity_moves,
    data_path_check,
    needs_traffic,
    no_affinity,
)
from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, RolloutResult, Said
from pytest_ipvs.checks.nodes import RESTART_PROXY, NodeView, detail, silent_nodes, views
from pytest_ipvs.checks.tables import NodeJudgement, judged_findings, judgement, living_endpoints
from pytest_ipvs.ipvs.connections import Connection
from pytest_ipvs.ipvs.tables import ServiceKey, join_host_port
from pytest_ipvs.policy import Policy

# The kernel keeps an expired template for another minute while connections hang on it.
_HELD = 60


def persistence(evidence: Evidence) -> Said:
    """A Service with session affinity has persistent virtual servers with its timeout.

    The kernel tells the timeout in ticks, whose length is taken to be the one that explains most
    virtual servers of all nodes with the same kernel.
    """
    yield from judged_findings(
        "PS-01",
        evidence,
        {
            "wrong-persistence": (
                "clients stay with their pod for another time than the Service says",
                RESTART_PROXY,
            )
        },
    )


def templates(evidence: Evidence) -> Said:
    """No persistence template leads to a pod that has been gone for longer than it may.

    A template whose pod is gone waits for its timeout, unused: that is right. It is wrong that it
    was set again after the table had time to follow the pod's end, or that it is still there when
    timeout and drain budget are over. Both are counted from the first reading of this run without
    the endpoint, so a run that begins after the pod's end can only see templates set since.
    """
    check = "PS-04"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        told = judgement(evidence, view.name)
        if isinstance(told, NotMeasured):
            yield replace(told, check=check)
            continue
        if all(v.persistence_seconds is None for v in told.expected.virtual_servers.values()):
            continue
        listed = detail(check, evidence, view, "templates")
        if isinstance(listed, NotMeasured):
            yield listed
            continue
        yield from _left_templates(check, evidence, view, told)


def _left_templates(
    check: str, evidence: Evidence, view: NodeView, told: NodeJudgement
) -> Iterable[Finding]:
    read_at, listed = _newest_templates(evidence, view.name)
    budgets = told.budgets
    gone_since = _Gone(evidence, read_at)
    left: Counter[tuple[str, int]] = Counter()
    for template in listed:
        key = ServiceKey(template.protocol, template.virtual, template.virtual_port)
        should = told.expected.virtual_servers.get(key)
        if should is None or should.persistence_seconds is None:
            continue
        timeout = should.persistence_seconds
        real = join_host_port(template.real, template.real_port)
        since = gone_since.of(real)
        if since is None:
            continue
        set_at = read_at - (timeout - template.expires)
        again = _HELD < template.expires <= timeout and set_at > since + budgets.converge
        outlived = read_at - since > timeout + budgets.drain + budgets.converge
        if again or outlived:
            left[f"{key} -> {real}", timeout] += 1
    for (place, timeout), count in sorted(left.items()):
        yield Finding(
            check=check,
            severity="warn",
            node=view.name,
            object=place,
            observed="templates still in use, or kept beyond their timeout",
            expected=f"none once the pod is gone, at most {timeout} s after its last client",
            reason="clients with session affinity are sent to a pod that is gone",
            remedy="sysctl -w net.ipv4.vs.expire_quiescent_template=1 and "
            "net.ipv4.vs.expire_nodest_conn=1 on the node (SY-02, SY-03)",
            evidence=f"{count} templates",
        )


def _newest_templates(evidence: Evidence, name: str) -> tuple[float, tuple[Connection, ...]]:
    for snapshot in reversed(evidence.snapshots):
        facts = snapshot.facts.get(name)
        if facts is not None and facts.details is not None and facts.details.templates is not None:
            return facts.taken_at, facts.details.templates
    return 0.0, ()


class _Gone:
    """Since when (Unix seconds) endpoints are known to be gone, as of one time."""

    def __init__(self, evidence: Evidence, until: float) -> None:
        baseline = (evidence.baseline,) if evidence.baseline is not None else ()
        until = max(until, evidence.snapshots[0].taken_at)
        # Newest first.
        self._readings = [
            (snapshot.taken_at, living_endpoints(snapshot))
            for snapshot in sorted((*baseline, *evidence.snapshots), key=lambda s: -s.taken_at)
            if snapshot.taken_at <= until
        ]

    def of(self, real: str) -> float | None:
        """The first reading of the unbroken row without it; ``None`` while it is listed."""
        since = None
        for taken_at, living in self._readings:
            if real in living:
                break
            since = taken_at
        return since


def affine_client_stays(result: RolloutResult, policy: Policy) -> Said:
    """A client with session affinity stays on its pod while nothing changes.

    It judges what was answered before the disruption, by one client on many source ports.
    """
    check = "PS-03"
    before = {name: number for name, number in result.pods_before.items() if number}
    answers = sum(before.values())
    least = policy.threshold("min_affine_answers")
    if not result.affinity:
        yield no_affinity(check)
    elif answers < least:
        yield NotMeasured(
            check=check,
            node=None,
            fact="answers before the disruption",
            reason=f"only {answers} answers came, expected at least {least:g}: use a longer "
            "baseline or a higher rate",
        )
    elif len(before) > 1:
        shares = ", ".join(str(number) for number in sorted(before.values(), reverse=True))
        yield Finding(
            check=check,
            severity="warn",
            node=None,
            object="answers to one client with session affinity",
            observed=f"{len(before)} pods answered ({shares} answers)",
            expected="1 pod",
            reason="sessions that live in one pod break although nothing was changed",
            remedy="compare the Service's affinity with its virtual servers (PS-01), and look for "
            "something on the way that changes the client's address",
        )


CHECKS = (
    Check(
        id="PS-01",
        title="a Service with session affinity has persistence, with its timeout",
        group="PS",
        severity="fail",
        permission="node",
        needs=frozenset({"table", "proxy.version"}),
        source="Service spec.sessionAffinityConfig; kube-proxy pkg/proxy/ipvs/proxier.go",
        run=persistence,
    ),
    Check(
        id="PS-02",
        title="a client with session affinity moves to a live pod, without a failure",
        group="PS",
        severity="fail",
        permission="write",
        needs=frozenset({"rollout"}),
        source="kubernetes/kubernetes issues 71809 and 81587",
        run=needs_traffic("PS-02", affinity_moves),
        judge=affinity_moves,
    ),
    data_path_check(
        "PS-03",
        "a client with session affinity stays on its pod while nothing changes",
        "warn",
        "Service spec.sessionAffinity; Linux ip_vs_core.c, ip_vs_sched_persist",
        affine_client_stays,
    ),
    Check(
        id="PS-04",
        title="persistence templates to a pod that is gone go away with their timeout",
        group="PS",
        severity="warn",
        permission="node",
        needs=frozenset({"table", "proxy.version", "details.templates"}),
        source="Linux net/netfilter/ipvs/ip_vs_core.c (ip_vs_sched_persist), ip_vs_conn.c",
        run=templates,
    ),
)
