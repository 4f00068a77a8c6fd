"""SY: the node's IPVS settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, kernel_of, rules_of, silent_nodes, views
from pytest_ipvs.checks.values import (
    ABSENT,
    Rule,
    by_policy,
    each_node,
    judge,
    lack,
    value_of,
    waived,
)
from pytest_ipvs.ipvs.kernel import FIRST_WITH_REUSE_MODE, fixes
from pytest_ipvs.ipvs.proxy import expected_conn_reuse_mode

REUSE = "net.ipv4.vs.conn_reuse_mode"
NODEST = "net.ipv4.vs.expire_nodest_conn"
QUIESCENT = "net.ipv4.vs.expire_quiescent_template"
CONNTRACK = "net.ipv4.vs.conntrack"


def conn_reuse_mode(evidence: Evidence) -> Said:
    """A new connection from a port used before goes to a live real server, without delay.

    What is right depends on the kernel's fixes and on kube-proxy's version. With
    expire_nodest_conn=0 a 0 loses connections on every kernel.
    """
    yield from each_node("SY-01", evidence, _conn_reuse_mode)


def _conn_reuse_mode(check: str, evidence: Evidence, view: NodeView) -> Said:
    kernel = kernel_of(check, view.facts)
    rules = rules_of(check, view.facts, view.node, evidence.last.server_version)
    if waived(view, REUSE):
        return
    value = value_of(check, view, REUSE)
    if isinstance(kernel, NotMeasured):
        yield kernel
        return
    old = kernel.release_number < FIRST_WITH_REUSE_MODE
    if isinstance(value, NotMeasured) and not old:
        yield value
        return
    if value is None and not old:
        yield lack(check, view, REUSE)
        return
    observed = value if isinstance(value, str) else ABSENT
    answer = by_policy(check, view, REUSE, observed)
    if answer is not None:
        yield from answer
        return
    if isinstance(rules, NotMeasured):
        yield rules
        return
    known = fixes(kernel, view.policy.kernel_fix_overrides)
    nodest = view.facts.sysctls.get(NODEST, "").strip()
    verdict = expected_conn_reuse_mode(kernel, rules, known, expire_nodest_conn=nodest != "0")
    if observed in map(str, verdict.accepted):
        return
    # 2 and 3 behave as 1 does with NAT; who sets them knows why.
    expected = "1" if 1 in verdict.accepted else "0" if verdict.accepted else "a newer kernel"
    yield Finding(
        check=check,
        severity=verdict.severity,
        node=view.name,
        object=REUSE,
        observed=observed,
        expected=expected,
        reason=verdict.reason,
        remedy=verdict.remedy,
        evidence=f"kernel {kernel}, kube-proxy {rules.version}, {NODEST}={nodest or '?'}",
    )


def _always_one(
    check: str, key: str, why: str, severity: Callable[[Evidence], Severity], doc: str
) -> Callable[[Evidence], Said]:
    def run(evidence: Evidence) -> Said:
        yield from silent_nodes(check, evidence)
        for view in views(evidence):
            wrong = view.facts.sysctls.get(key, "").strip()
            rule = Rule(
                key=key,
                accepted=("1",),
                severity=severity(evidence),
                reason=why,
                remedy=f"sysctl -w {key}=1, and remove what sets it to {wrong}: kube-proxy "
                "writes it at its start only",
            )
            yield from judge(check, view, rule)

    run.__doc__ = doc
    return run


def _fail(_: Evidence) -> Severity:
    return "fail"


def _fail_with_affinity(evidence: Evidence) -> Severity:
    used = any(service.affinity_timeout is not None for service in evidence.last.services)
    return "fail" if used else "warn"


_CHECK = Check(
    id="SY-02",
    title="expire_nodest_conn is 1",
    group="SY",
    severity="fail",
    permission="node",
    needs=frozenset({"sysctls"}),
    source="kubernetes/kubernetes PR 71834; Linux ipvs-sysctl.rst, expire_nodest_conn",
    run=_always_one(
        "SY-02",
        NODEST,
        "connections to a removed real server are kept instead of expired, so their packets and "
        "reused client ports are lost",
        _fail,
        "Connections to a real server that is gone are expired, and their packets rescheduled.",
    ),
)

CHECKS = (
    replace(
        _CHECK,
        id="SY-01",
        title="conn_reuse_mode is right for the node's kernel and kube-proxy",
        needs=frozenset({"sysctls", "kernel", "proxy.version"}),
        source="kubernetes/kubernetes PR 102122; Linux commits f0a5e4d7a594 and c95c07836fa4",
        run=conn_reuse_mode,
    ),
    _CHECK,
    replace(
        _CHECK,
        id="SY-03",
        title="expire_quiescent_template is 1",
        source="kubernetes/kubernetes PR 71834; Linux ipvs-sysctl.rst, expire_quiescent_template",
        run=_always_one(
            "SY-03",
            QUIESCENT,
            "a client with session affinity stays with a real server at weight 0, also after its "
            "pod is gone",
            _fail_with_affinity,
            "Session affinity lets go of a real server at weight 0. A finding fails where a "
            "Service uses session affinity, and warns elsewhere.",
        ),
    ),
    replace(
        _CHECK,
        id="SY-04",
        title="net.ipv4.vs.conntrack is 1",
        source="kube-proxy pkg/proxy/ipvs/proxier.go; Linux ipvs-sysctl.rst, conntrack",
        run=_always_one(
            "SY-04",
            CONNTRACK,
            "without connection tracking of IPVS, kube-proxy's masquerading does not work",
            _fail,
            "IPVS connections are tracked, as kube-proxy's masquerading needs.",
        ),
    ),
)
