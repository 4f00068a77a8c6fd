"""TB: every node's table against what the API asks for, over time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import (
    RESTART_PROXY,
    rules_of,
    silent_nodes,
    view_of,
    views,
    why_unread,
)
from pytest_ipvs.cluster.expectation import budgets_of, differences_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.compare import Difference, Kind, likely_hz
from pytest_ipvs.ipvs.expected import DUMMY_INTERFACE, ExpectedTable
from pytest_ipvs.ipvs.overtime import Budgets, Judged, Sample, Tracker
from pytest_ipvs.ipvs.tables import ServiceKey, join_host_port

NAME_OR_DELETE = (
    "name it in the policy file under foreign_virtual_servers, as {pattern}, if another program "
    "owns it; else on the node: ipvsadm -D {virtual}"
)
_NEVER_DRAINS = (
    "it has been at weight 0 for longer than any connection of a removed endpoint may last: "
    "reused client ports keep it alive, or nothing sweeps it"
)
_CHECK_OR_DELETE = (
    "check net.ipv4.vs.conn_reuse_mode and expire_nodest_conn (SY-01, SY-02); on the node: "
    "ipvsadm -d {virtual} -r {real}"
)
_SET_WEIGHT = (
    "on the node: ipvsadm -e {virtual} -r {real} -m -w 1; upgrade kube-proxy to 1.27 or later"
)

_NODE_PORT_KINDS = ("missing-node-port", "unexplained-node-port")

# What `judged_findings` asks for: a node's name to its differences over time.
Teller = Callable[[Evidence, str], "NodeJudgement | NotMeasured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJudgement:
    """One node's differences over all snapshots, and the newest table it should have."""

    judged: tuple[Judged, ...]
    expected: ExpectedTable
    budgets: Budgets


def judgement(evidence: Evidence, name: str) -> NodeJudgement | NotMeasured:
    """What the tables of one node say over time; computed once for all checks."""
    memo: dict[str, NodeJudgement | NotMeasured] = evidence.memo.setdefault("tables", {})
    if name not in memo:
        memo[name] = _judge(evidence, name)
    return memo[name]


def _judge(evidence: Evidence, name: str) -> NodeJudgement | NotMeasured:
    view = view_of(evidence, name)
    last = view.facts
    rules = rules_of("", last, view.node, evidence.last.server_version)
    if isinstance(rules, NotMeasured):
        return rules
    if last.table is None:
        reason = why_unread(last, "table", "the module ip_vs is not loaded")
        return NotMeasured(check="", node=name, fact="table", reason=reason)
    policy = view.policy
    budgets = budgets_of(policy, rules)
    tracker = Tracker(budgets)
    hz = _hz(evidence, last.kernel_release)
    expected: ExpectedTable | None = None
    for snapshot in evidence.snapshots:
        facts = snapshot.facts.get(name)
        if facts is None or facts.table is None:
            continue
        found, expected = differences_of(snapshot, facts, rules, policy, hz)
        tracker.add(Sample(taken_at=facts.taken_at, differences=found))
    assert expected is not None
    if strange := _another_namespace(last, expected):
        return NotMeasured(check="", node=name, fact="table", reason=strange)
    return NodeJudgement(judged=tracker.judge(), expected=expected, budgets=budgets)


def _another_namespace(facts: NodeFacts, expected: ExpectedTable) -> str | None:
    """Why an empty table may be that of a container: then it says nothing about the node."""
    if facts.table is None or facts.table.virtual_servers or not expected.virtual_servers:
        return None
    if any(interface == DUMMY_INTERFACE for interface, _ in facts.addresses):
        return None
    seen = "was not found" if facts.addresses else "may be absent: no address was read"
    return (
        f"the table is empty where virtual servers are expected ({len(expected.virtual_servers)}), "
        f"and {DUMMY_INTERFACE} {seen}: the reading is of another network namespace than the "
        "node's (a container without hostNetwork), or kube-proxy never ran in IPVS mode"
    )


def _hz(evidence: Evidence, release: str) -> int | None:
    """Ticks per second of a kernel release: the value that explains most of its nodes' tables."""
    memo: dict[str, int] = evidence.memo.setdefault("hz", {})
    if release not in memo:
        timeouts = {
            (port.protocol, address, port.port): service.affinity_timeout
            for service in evidence.last.services
            if service.affinity_timeout is not None
            for port in service.ports
            for address in service.cluster_ips
        }
        memo[release] = likely_hz(
            (virtual.persistence_jiffies, timeouts.get(virtual[:3]))
            for facts in evidence.last.facts.values()
            if facts.kernel_release == release and facts.table is not None and timeouts
            for virtual in facts.table.virtual_servers
            if virtual.persistence_jiffies is not None
        )
    return memo[release]


def judged_findings(
    check: str,
    evidence: Evidence,
    kinds: Mapping[Kind, tuple[str, str]],
    *,
    severity: Severity = "fail",
    nodes: Collection[str] | None = None,
    teller: Teller = judgement,
) -> Said:
    """The findings of some kinds of difference; ``kinds`` maps each to reason and remedy.

    A difference that is not decided yet is told as not measured: a later reading decides it.
    """
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        if nodes is not None and view.name not in nodes:
            continue
        told = teller(evidence, view.name)
        if isinstance(told, NotMeasured):
            yield replace(told, check=check)
            continue
        undecided: list[Judged] = []
        for judged in told.judged:
            item = judged.difference
            if item.kind in kinds and judged.decided:
                texts = kinds[item.kind]
                yield _finding(check, evidence, view.name, judged, texts, severity, told.expected)
            elif not judged.decided and _might_be(item, kinds):
                undecided.append(judged)
        if undecided:
            yield _not_decided(check, view.name, undecided, told)


def _might_be(item: Difference, kinds: Mapping[Kind, tuple[str, str]]) -> bool:
    if item.kind == "moving":
        return ("missing-virtual-server" if item.real_server is None else "missing") in kinds
    return item.kind in kinds or (item.kind == "draining" and "draining-overdue" in kinds)


def _finding(
    check: str,
    evidence: Evidence,
    node: str,
    judged: Judged,
    texts: tuple[str, str],
    severity: Severity,
    expected: ExpectedTable,
) -> Finding:
    item = judged.difference
    reason, remedy = texts
    here = _of_node_port(item, expected)
    if item.kind == "draining-overdue" and item.real_server in _living(evidence):
        # Its pod still terminates, so that connections that live long may well be left.
        severity = "warn"
    about = [f"virtual server {item.key}"] if here else []
    about += [f"Service {item.service}"] if item.service else []
    about += [item.detail] if item.detail else []
    about.append(f"so for at least {judged.age:.0f} s, in {judged.samples} readings")
    # The remedy is the same on all nodes, so that one fault on many of them is told once.
    address, port = "ADDRESS" if here else item.key.address, item.key.port
    flag = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}.get(item.key.protocol, "-f")
    place = join_host_port(address, port) if address else port
    pattern = f"*:{port}/{item.key.protocol}" if here else foreign_pattern(item.key)
    return Finding(
        check=check,
        severity=severity,
        node=node,
        object=_object(item, expected),
        observed=item.observed,
        expected=item.expected,
        reason=reason,
        remedy=remedy.format(
            virtual=f"{flag} {place}", real=item.real_server, pattern=json.dumps(pattern)
        ),
        evidence=", ".join(about),
    )


def foreign_pattern(key: ServiceKey) -> str:
    """How ``foreign_virtual_servers`` of the policy file names one virtual server."""
    return f"fwmark:{key.port}" if key.protocol == "FWM" else str(key)


def _of_node_port(item: Difference, expected: ExpectedTable) -> bool:
    """Whether it is about a virtual server at an address of the node itself."""
    should = expected.virtual_servers.get(item.key)
    return item.kind in _NODE_PORT_KINDS or (should is not None and should.node_port)


def _object(item: Difference, expected: ExpectedTable) -> str:
    """What it is about, the same on all nodes: a node port is served at other addresses on each."""
    if not _of_node_port(item, expected):
        return item.object
    name = f"node port {item.key.port}/{item.key.protocol} of {item.service}"
    return f"{name} -> {item.real_server}" if item.real_server else name


def _living(evidence: Evidence) -> frozenset[str]:
    memo: dict[str, frozenset[str]] = evidence.memo
    if "living" not in memo:
        memo["living"] = living_endpoints(evidence.last)
    return memo["living"]


def living_endpoints(snapshot: Snapshot) -> frozenset[str]:
    """ "address:port" of every endpoint that the API lists, in whatever condition."""
    return frozenset(
        join_host_port(address, port.port)
        for item in snapshot.endpoint_slices
        for port in item.ports
        if port.port is not None
        for endpoint in item.endpoints
        for address in endpoint.addresses
    )


def _not_decided(
    check: str, node: str, undecided: list[Judged], told: NodeJudgement
) -> NotMeasured:
    first = undecided[0]
    item = first.difference
    budget = told.budgets.drain if item.kind == "draining" else told.budgets.converge
    more = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
    why = (
        "the Service changed while the table was read"
        if item.kind == "moving"
        else f"seen for {first.age:.0f} s of the {budget:.0f} s that it may last"
    )
    return NotMeasured(
        check=check,
        node=node,
        fact="a later reading",
        reason=f"{_object(item, told.expected)} is {item.observed}, expected {item.expected}: not "
        f"judged yet, {why}{more}",
    )


def unconfigured(check: str, evidence: Evidence) -> dict[str, NotMeasured]:
    """By name, the nodes whose kube-proxy did not tell its configuration."""
    return {
        view.name: NotMeasured(
            check=check,
            node=view.name,
            fact="proxy.config",
            reason=why_unread(
                view.facts, "proxy.config", "kube-proxy's configuration was not read"
            ),
        )
        for view in views(evidence)
        if view.facts.proxy.config is None
    }


def configured_findings(
    check: str,
    evidence: Evidence,
    kinds: Mapping[Kind, tuple[str, str]],
    *,
    severity: Severity = "fail",
) -> Said:
    """`judged_findings` where kube-proxy's configuration decides what is right."""
    lacking = unconfigured(check, evidence)
    yield from lacking.values()
    nodes = evidence.last.facts.keys() - lacking.keys()
    yield from judged_findings(check, evidence, kinds, severity=severity, nodes=nodes)


def virtual_servers(evidence: Evidence) -> Said:
    """Every Service port has its virtual servers on every node, and there is no other.

    Those that the policy calls foreign, that excludeCIDRs names, and kube-proxy's own probe do
    not count. Those of node ports are TB-10's.
    """
    check = "TB-01"
    yield from configured_findings(
        check,
        evidence,
        {
            "missing-virtual-server": (
                "clients of this address and port are refused on the node",
                f"look into kube-proxy's log for this address, then {RESTART_PROXY}",
            ),
            "unexplained-virtual-server": (
                "traffic to this address and port goes where the API says nothing of",
                NAME_OR_DELETE,
            ),
        },
    )


def real_servers(evidence: Evidence) -> Said:
    """Every endpoint that should get traffic is a real server with weight 1.

    A virtual server without any is TB-12's, and one whose traffic policy is Local TB-08's.
    """
    yield from judged_findings(
        "TB-02",
        evidence,
        {
            "missing": (
                "a ready endpoint gets no traffic from the node",
                f"look into kube-proxy's log for this address, then {RESTART_PROXY}",
            ),
            "wrong-weight": (
                "the endpoint gets another share of the traffic than the others",
                "on the node: ipvsadm -e {virtual} -r {real} -m -w 1",
            ),
            "wrong-forward": (
                "kube-proxy masquerades always: packets reach the pod in another way",
                RESTART_PROXY,
            ),
        },
    )


def stale_real_servers(evidence: Evidence) -> Said:
    """No real server gets new connections without an endpoint that wants them.

    An endpoint that a traffic policy Local leaves out is TB-08's.
    Judged from readings as far apart as a table may lag the API.
    """
    yield from judged_findings(
        "TB-03",
        evidence,
        {
            "stale": (
                "new connections go to an address that is no endpoint of the Service any more",
                f"on the node: ipvsadm -d {{virtual}} -r {{real}}; then {RESTART_PROXY}",
            )
        },
    )


def draining(evidence: Evidence) -> Said:
    """A real server at weight 0 without an endpoint is gone within the drain budget.

    A finding warns only while the API still lists its endpoint: long connections may be left.
    UDP and SCTP are TB-06's.
    """
    yield from judged_findings(
        "TB-04",
        evidence,
        {
            "draining-overdue": (
                _NEVER_DRAINS,
                _CHECK_OR_DELETE,
            )
        },
    )


def wanted_at_weight_zero(evidence: Evidence) -> Said:
    """No endpoint that should get traffic is at weight 0.

    kube-proxy before 1.27 leaves them so when it is restarted while they drain and come back.
    """
    yield from judged_findings(
        "TB-05",
        evidence,
        {
            "quiesced-but-wanted": (
                "a ready endpoint gets no new connection from the node",
                _SET_WEIGHT,
            )
        },
    )


_CHECK = Check(
    id="TB-01",
    title="every virtual server that the API asks for is there, and no other",
    group="TB",
    severity="fail",
    permission="node",
    needs=frozenset({"table", "proxy.config", "proxy.version"}),
    source="kube-proxy pkg/proxy/ipvs/proxier.go; KEP-1860, KEP-5707",
    run=virtual_servers,
)
_TABLE_ONLY = frozenset({"table", "proxy.version"})

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="TB-02",
        title="every wanted real server is there, with weight 1",
        needs=_TABLE_ONLY,
        source="kube-proxy pkg/proxy/topology.go and pkg/proxy/ipvs/proxier.go",
        run=real_servers,
    ),
    replace(
        _CHECK,
        id="TB-03",
        title="no real server with a weight above 0 lacks an endpoint",
        needs=_TABLE_ONLY,
        source="kube-proxy pkg/proxy/topology.go; KEP-1669, KEP-1672",
        run=stale_real_servers,
    ),
    replace(
        _CHECK,
        id="TB-04",
        title="a real server at weight 0 goes away within the drain budget",
        needs=_TABLE_ONLY,
        source="kube-proxy pkg/proxy/ipvs/graceful_termination.go",
        run=draining,
    ),
    replace(
        _CHECK,
        id="TB-05",
        title="no wanted real server has weight 0",
        needs=_TABLE_ONLY,
        source="kubernetes/kubernetes issues 92019 and 108319",
        run=wanted_at_weight_zero,
    ),
)
