"""Every check that judges evidence: a fault trips it and only it, a healthy cluster none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from evidence_builder import (
    CONNTRACK_SYSCTLS,
    PROXY_CONFIG,
    WEB,
    add_real,
    configured,
    healthy,
    kernel,
    on_node,
    outcomes,
    proxy,
    snapshot,
    sysctl,
    table,
    text_of,
    tripped,
    unmeasured,
    virtual,
)
from fault_registry import Change
from faults_settings import VS, another_scheduler
from faults_tables import (
    GONE,
    ORPHAN,
    missing_real_server,
    missing_virtual_server,
    no_persistence,
    orphan_virtual_server,
    real_server_that_never_drains,
    stale_real_server,
    wanted_real_server_at_weight_0,
)
from proxy_builder import mapped

from pytest_ipvs.checks import CATALOGUE, Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyFacts, ProxyObjects
from pytest_ipvs.ipvs.objects import Endpoint
from pytest_ipvs.ipvs.tables import ServiceKey
from pytest_ipvs.policy import Policy


def test_a_healthy_cluster_trips_nothing() -> None:
    assert tripped(healthy()) == {}
    assert unmeasured(healthy()) == {}


def test_the_same_fault_on_two_nodes_reads_the_same() -> None:
    evidence = healthy()
    for number, name in ((1, "node-1"), (2, "node-2")):
        server = GONE._replace(active=number)
        evidence = virtual(evidence, WEB, name, real_servers=add_real(server))
    first, second = run_check("TB-03", evidence).findings
    assert replace(first, node=None, evidence="") == replace(second, node=None, evidence="")


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (missing_virtual_server, "TB-01"),
        (orphan_virtual_server, "TB-01"),
        (missing_real_server, "TB-02"),
        (stale_real_server, "TB-03"),
        (real_server_that_never_drains, "TB-04"),
        (wanted_real_server_at_weight_0, "TB-05"),
        (another_scheduler, "KM-03"),
        (no_persistence, "PS-01"),
    ],
)
@pytest.mark.parametrize("times", [(0.0,), (0.0, 59.0)])
def test_what_may_still_change_is_not_measured(
    fault: Change, check: str, times: tuple[float, ...]
) -> None:
    evidence = fault(healthy(*times))
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {check: {"a later reading"}}


def test_draining_within_its_budget_is_not_a_finding() -> None:
    evidence = real_server_that_never_drains(healthy(0.0, 100.0, 209.0))
    assert tripped(evidence) == {}
    (lack,) = run_check("TB-04", evidence).not_measured
    assert "10.244.9.9:8080 is weight 0" in lack.reason
    assert "seen for 209 s of the 210 s" in lack.reason


def test_a_real_server_that_drained_is_no_finding() -> None:
    draining, gone = real_server_that_never_drains(healthy(0.0, 250.0)), healthy(260.0)
    evidence = replace(draining, snapshots=(*draining.snapshots, *gone.snapshots))
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {})


def test_a_pod_that_still_terminates_may_drain_for_longer() -> None:
    leaving = Endpoint(addresses=("10.244.9.9",), ready=False, terminating=True)
    evidence = real_server_that_never_drains(healthy())
    evidence = replace(
        evidence,
        snapshots=tuple(
            replace(
                one,
                endpoint_slices=(
                    replace(
                        one.endpoint_slices[0],
                        endpoints=(*one.endpoint_slices[0].endpoints, leaving),
                    ),
                    *one.endpoint_slices[1:],
                ),
            )
            for one in evidence.snapshots
        ),
    )
    assert tripped(evidence) == {"TB-04": {"warn"}}


def test_a_kube_proxy_that_resyncs_hourly_gets_its_hour() -> None:
    old = proxy(version="v1.34.1")
    assert unmeasured(on_node(stale_real_server(healthy()), old)) == {"TB-03": {"a later reading"}}
    assert tripped(on_node(stale_real_server(healthy(0.0, 3600.0)), old)) == {
        "KP-06": {"warn"},
        "TB-03": {"fail"},
    }


def test_a_slow_sync_period_gets_its_time() -> None:
    slow = {"ipvs": {"syncPeriod": "10m0s"}}
    young, old = (mapped(stale_real_server(healthy(0.0, at)), slow) for at in (300.0, 1200.0))
    assert unmeasured(configured(young, slow)) == {"TB-03": {"a later reading"}}
    assert tripped(configured(old, slow)) == {"TB-03": {"fail"}}


def test_the_policy_sets_the_budgets() -> None:
    policy = Policy(converge_budget=10.0, drain_budget=20.0)
    for fault, check in ((stale_real_server, "TB-03"), (real_server_that_never_drains, "TB-04")):
        assert tripped(fault(healthy(0.0, 20.0, policy=policy))) == {check: {"fail"}}


def test_a_moving_service_is_not_judged() -> None:
    evidence = stale_real_server(healthy())
    evidence = replace(
        evidence,
        snapshots=tuple(replace(one, moving=frozenset({"demo/web"})) for one in evidence.snapshots),
    )
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {"TB-02": {"a later reading"}}


def unread(*names: str, **facts: object) -> Callable[[NodeFacts], NodeFacts]:
    return lambda old: replace(
        old,
        unread=dict.fromkeys(names, "permission denied"),
        **facts,  # type: ignore[arg-type]
    )


SIZE_CHECKS = {"CP-03", "CP-06", "CP-07"}
CONFIGURED = {"KM-03", "TB-01", "TB-08", "TB-10"}
TABLE_CHECKS = {
    *CONFIGURED,
    *("TB-02", "TB-03", "TB-04", "TB-05", "TB-06", "TB-07", "TB-12", "PS-01", "PS-04"),
}


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (
            unread("table", table=None),
            {check: {"table"} for check in TABLE_CHECKS | SIZE_CHECKS | {"CT-08"}},
        ),
        (
            unread("sysctls", sysctls={}),
            {
                "SY-01": {f"{VS}conn_reuse_mode"},
                "SY-02": {f"{VS}expire_nodest_conn"},
                "SY-03": {f"{VS}expire_quiescent_template"},
                "SY-04": {f"{VS}conntrack"},
                "SY-05": {"sysctls"},
                "SY-06": {f"{VS}*"},
                "SY-07": {"net.ipv4.ip_forward"},
                "SY-09": {
                    "net.ipv4.conf.all.route_localnet",
                    "net.ipv4.conf.all.rp_filter",
                },
                "SY-10": {"net.bridge.bridge-nf-call-iptables"},
                "SY-11": {f"{VS}drop_entry"},
                "SY-12": {"net.ipv4.tcp_tw_reuse"},
                "CP-01": {"net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_count"},
                "CP-02": {
                    "net.netfilter.nf_conntrack_max",
                    "net.netfilter.nf_conntrack_buckets",
                },
                "CP-03": {f"{VS}conn_max"},
                "CP-05": {"net.ipv4.tcp_keepalive_time"},
                "CP-07": {f"{VS}run_estimation"},
                "KP-09": set(CONNTRACK_SYSCTLS),
                "CT-04": {"net.ipv4.ip_local_port_range"},
            },
        ),
        (
            unread("addresses", addresses=()),
            {check: {"addresses"} for check in ("TB-09", "TB-10", "SY-10", "CP-06")},
        ),
        (
            unread("kernel", kernel_release=""),
            {check: {"kernel"} for check in ("SY-01", "KM-02", "CP-03")},
        ),
        (
            unread("proxy", proxy=ProxyFacts(), sysctls=healthy().last.facts["node-1"].sysctls),
            {
                "KP-01": {"proxy.mode"},
                "KP-02": {"proxy.config"},
                "KP-03": {"proxy.healthz"},
                "KP-04": {"proxy.metrics"},
                "KP-05": {"proxy.metrics"},
            },
        ),
    ],
)
def test_a_missing_fact_is_never_a_pass(
    change: Callable[[NodeFacts], NodeFacts], lacks: dict[str, set[str]]
) -> None:
    evidence = on_node(healthy(), change)
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == lacks
    for outcome in outcomes(evidence).values():
        for lack in outcome.not_measured:
            assert (lack.node, lack.reason) == ("node-2", "permission denied")


def test_no_version_at_all_is_not_measured() -> None:
    evidence = on_node(healthy(), proxy(version=None))
    evidence = replace(
        evidence,
        snapshots=tuple(
            replace(
                one,
                server_version="",
                nodes=tuple(replace(node, kubelet_version="") for node in one.nodes),
                proxy_objects=ProxyObjects(config_maps={"kube-system/kube-proxy": PROXY_CONFIG}),
            )
            for one in evidence.snapshots
        ),
    )
    checks = {"SY-01", "SY-09", "KP-04", "KP-09", *TABLE_CHECKS, "TB-09", "TB-11"}
    checks |= {f"CT-0{n}" for n in range(1, 9) if n != 4}
    assert unmeasured(evidence) == {
        "KP-06": {"api"},
        **{check: {"proxy.version"} for check in checks},
    }


def test_an_absent_module_explains_absent_sysctls() -> None:
    evidence = on_node(healthy(), lambda old: replace(old, sysctls={}, table=None))
    (lack,) = run_check("SY-02", evidence).not_measured
    assert "ip_vs is not loaded" in lack.reason


def test_a_silent_node_is_never_a_pass() -> None:
    one = healthy(0.0).last
    evidence = Evidence(
        snapshots=(
            replace(
                one, facts={"node-1": one.facts["node-1"]}, unreachable={"node-2": "no route to it"}
            ),
        ),
        policy=Policy(),
        baseline=snapshot(-60.0),
    )
    assert tripped(evidence) == {}
    checks = {check.id for check in CATALOGUE.values() if not check.data_path}
    assert unmeasured(evidence) == {check: {"node"} for check in checks}


def test_no_node_at_all_is_never_a_pass() -> None:
    evidence = Evidence(snapshots=(replace(snapshot(0.0), facts={}),), policy=Policy())
    assert all(outcome.not_measured for outcome in outcomes(evidence).values())


def test_a_virtual_server_at_an_address_the_node_lost() -> None:
    lost = ORPHAN._replace(address="192.0.2.77", port=30080)
    (finding,) = run_check("TB-10", table(healthy(), lambda old: (*old, lost))).findings
    assert finding.expected == "absent: no such address of the node"


def test_the_policy_names_foreign_virtual_servers() -> None:
    policy = Policy(foreign_virtual_servers=("10.96.9.9:80/TCP",))
    evidence = orphan_virtual_server(healthy(policy=policy))
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {})


def test_the_policy_says_what_a_sysctl_is() -> None:
    policy = Policy(sysctls={f"{VS}conn_reuse_mode": ("0",), f"{VS}expire_nodest_conn": None})
    evidence = sysctl(healthy(policy=policy), {f"{VS}expire_nodest_conn": "0"})
    (one, two) = run_check("SY-01", evidence).findings
    assert (one.expected, two.node) == ("0", "node-2")
    assert run_check("SY-02", evidence).findings == ()


def test_the_policy_sets_severities() -> None:
    policy = Policy(severities={"SY-04": "warn"})
    evidence = sysctl(healthy(policy=policy), {f"{VS}conntrack": "0"})
    assert tripped(evidence) == {"SY-04": {"warn"}}


def test_without_affinity_sticking_templates_only_warn() -> None:
    evidence = sysctl(healthy(), {f"{VS}expire_quiescent_template": "0"})
    last = evidence.last
    evidence = replace(evidence, snapshots=(replace(last, services=last.services[:1]),))
    assert run_check("SY-03", evidence).findings[0].severity == "warn"


@pytest.mark.parametrize(
    ("release", "severity", "lacks"),
    [
        ("4.18.0-513.el8.x86_64", set(), {"kernel fixes b and c and d"}),
        ("5.14.0-362.el9.x86_64", {"info"}, set()),
        ("5.15.0-91-generic", {"info"}, set()),
    ],
)
def test_a_vendor_kernel_is_no_false_alarm(
    release: str, severity: set[str], lacks: set[str]
) -> None:
    evidence = on_node(healthy(), kernel(release))
    outcome = run_check("KM-02", evidence)
    assert {finding.severity for finding in outcome.findings} == severity
    assert {lack.fact for lack in outcome.not_measured} == lacks
    texts = [text_of(f) for f in outcome.findings] + [n.reason for n in outcome.not_measured]
    assert all("kernel_fixes" in text and "DP-01" in text for text in texts)
    known = Policy(kernel_fix_overrides=((r"\.el\d|generic", {"b": True, "c": True, "d": True}),))
    evidence = replace(evidence, policy=known)
    assert run_check("KM-02", evidence) == run_check("KM-02", healthy())


def test_an_old_kernel_has_no_reuse_mode() -> None:
    evidence = on_node(sysctl(healthy(), {f"{VS}conn_reuse_mode": None}), kernel("3.16.0"))
    (finding,) = run_check("SY-01", evidence).findings
    assert (finding.severity, finding.observed) == ("warn", "absent")


def test_an_old_kube_proxy_on_a_new_kernel_is_told_of() -> None:
    evidence = on_node(sysctl(healthy(), {f"{VS}conn_reuse_mode": "0"}), proxy(version="v1.20.2"))
    (finding,) = run_check("SY-01", evidence).findings
    assert finding.severity == "warn"
    assert "upgrade kube-proxy to 1.22" in finding.remedy


def test_one_node_is_like_itself() -> None:
    evidence = virtual(healthy(), WEB, flags=("ops",))
    taken = tuple(replace(one, facts={"node-2": one.facts["node-2"]}) for one in evidence.snapshots)
    assert tripped(replace(evidence, snapshots=taken)) == {}


def test_services_that_other_nodes_drain_are_apart() -> None:
    key = ServiceKey("TCP", "192.0.2.1", 30080)
    evidence = virtual(healthy(), key, "node-1", real_servers=add_real(GONE))
    (finding,) = run_check("TB-03", evidence).findings
    assert finding.node == "node-1"
