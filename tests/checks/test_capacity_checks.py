"""CP: what is no finding on a healthy cluster, and what can't be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from evidence_builder import (
    configured,
    details,
    healthy,
    on_node,
    sysctl,
    tripped,
    unmeasured,
)
from faults_capacity import CT, KEEPALIVE, VS, bound, busy, counted, no_ipvsadm, use

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts
from pytest_ipvs.policy import THRESHOLDS, Policy

CONN_MAX = f"{VS}conn_max"
EST_CPULIST = f"{VS}est_cpulist"


def kernel(release: str) -> Callable[[NodeFacts], NodeFacts]:
    return lambda old: replace(old, kernel_release=release, kernel_version="")


def without_parameters(old: NodeFacts) -> NodeFacts:
    return replace(old, module_parameters={})


HEALTHY: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "conntrack is nearly at its bound": (
        "CP-01",
        lambda e: sysctl(e, {f"{CT}count": "209715"}),
    ),
    "conntrack has no limit": ("CP-01", lambda e: sysctl(e, {f"{CT}max": "0"})),
    "nf_conntrack is not loaded": (
        "CP-01",
        lambda e: on_node(
            sysctl(e, {f"{CT}{name}": None for name in ("max", "count", "buckets")}),
            lambda old: replace(old, conntrack={}),
        ),
    ),
    "no buckets where nf_conntrack is not loaded": (
        "CP-02",
        lambda e: sysctl(e, {f"{CT}{name}": None for name in ("max", "count", "buckets")}),
    ),
    "early drops make room": ("CP-01", lambda e: on_node(e, counted(early_drop=1000))),
    "a quarter, rounded down": ("CP-02", lambda e: sysctl(e, {f"{CT}max": "262147"})),
    "as many connections as wanted": ("CP-03", busy(32768)),
    "a table that grows by itself": (
        "CP-03",
        lambda e: on_node(busy(10_000_000)(e), kernel("7.1.8")),
    ),
    "far from conn_max": (
        "CP-03",
        lambda e: on_node(sysctl(busy(10_000_000)(e), {CONN_MAX: "1073741824"}), kernel("7.2.13")),
    ),
    "a client with more ports than assumed": (
        "CP-04",
        lambda e: details(e, port_use=use(30000)),
    ),
    "a node with a wide range": (
        "CP-04",
        lambda e: sysctl(
            details(e, port_use=use(28000, "192.0.2.2")),
            {"net.ipv4.ip_local_port_range": "1024 65535"},
        ),
    ),
    "a long time-out": (
        "CP-05",
        lambda e: details(sysctl(e, {KEEPALIVE: "7200"}), ipvs_timeouts=(7200, 120, 300)),
    ),
    "a long time-out of kube-proxy's, where ipvsadm is missing": (
        "CP-05",
        lambda e: configured(
            no_ipvsadm(sysctl(e, {KEEPALIVE: "7200"})), {"ipvs": {"tcpTimeout": "2h"}}
        ),
    ),
    "many addresses": ("CP-06", lambda e: on_node(e, bound(4990))),
    "rates of old kernels": (
        "CP-07",
        lambda e: on_node(sysctl(e, {f"{VS}run_estimation": None}), kernel("5.10.223")),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_state_is_no_finding(name: str) -> None:
    check, change = HEALTHY[name]
    outcome = run_check(check, change(healthy(0.0)))
    assert (outcome.findings, outcome.not_measured) == ((), ())


@pytest.mark.parametrize(
    ("checks", "fact", "change"),
    [
        ({"CP-01"}, "details.table_full", {"table_full": None}),
        ({"CP-04"}, "details.port_use", {"port_use": None}),
        ({"CP-05"}, "details.ipvs_timeouts", {"ipvs_timeouts": None}),
    ],
)
def test_details_that_were_not_read_are_no_pass(
    checks: set[str], fact: str, change: dict[str, Any]
) -> None:
    evidence = details(healthy(0.0), **change)
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {check: {fact} for check in checks}


@pytest.mark.parametrize(
    ("check", "fact", "change"),
    [
        ("CP-01", "conntrack", lambda old: replace(old, conntrack={})),
        ("CP-01", f"{CT}count", lambda old: replace(old, unread={f"{CT}count": "denied"})),
        ("CP-02", f"{CT}buckets", lambda old: replace(old, unread={f"{CT}buckets": "denied"})),
        ("CP-03", "ip_vs.conn_tab_bits", without_parameters),
        ("CP-03", "kernel", kernel("")),
    ],
)
def test_a_fact_that_one_host_hides(
    check: str, fact: str, change: Callable[[NodeFacts], NodeFacts]
) -> None:
    evidence = sysctl(on_node(healthy(0.0), change), {fact: None})
    outcome = run_check(check, evidence)
    assert outcome.findings == ()
    assert [(one.node, one.fact) for one in outcome.not_measured] == [("node-2", fact)]


def test_one_reading_of_counters_tells_nothing() -> None:
    evidence = replace(healthy(0.0), baseline=None)
    lacks = {check: {"a later reading"} for check in ("CP-01", "KP-05")}
    assert unmeasured(evidence) == lacks
    same = replace(evidence, baseline=evidence.last)
    assert unmeasured(same) == lacks
    later = replace(evidence, snapshots=healthy(0.0, 10.0).snapshots)
    assert unmeasured(later) == {}


def test_a_node_that_booted_meanwhile_counts_from_zero() -> None:
    evidence = on_node(healthy(0.0), counted(insert_failed=2))
    (finding,) = run_check("CP-01", evidence).findings
    assert finding.evidence == "2 more in 60 s"


def test_conn_max_bounds_new_kernels() -> None:
    evidence = on_node(sysctl(busy(900)(healthy(0.0)), {CONN_MAX: "1000"}), kernel("7.2.13"))
    (finding,) = run_check("CP-03", evidence).findings
    assert (finding.severity, finding.evidence) == ("warn", "900 of 1000")


def test_the_node_itself_has_its_own_range() -> None:
    evidence = details(healthy(0.0), port_use=use(20000, "192.0.2.2"))
    (finding,) = run_check("CP-04", evidence).findings
    assert finding.evidence == "20000 of 28232 ports (the node's range)"


def test_a_client_that_used_up_every_port() -> None:
    evidence = details(healthy(0.0), port_use=use(60000))
    (finding,) = run_check("CP-04", evidence).findings
    assert finding.evidence == "60000 of 64512 ports (all that a client can have)"


def test_a_policy_that_tells_how_long_connections_are_silent() -> None:
    for seconds, severities in ((600.0, set()), (1800.0, {"warn"})):
        policy = Policy(thresholds={"idle_connection": seconds})
        evidence = sysctl(healthy(0.0, policy=policy), {KEEPALIVE: "7200"})
        assert {f.severity for f in run_check("CP-05", evidence).findings} == severities


def test_very_many_addresses_on_kube_ipvs0() -> None:
    evidence = on_node(healthy(0.0), bound(5001))
    (finding,) = run_check("CP-06", evidence).findings
    assert (finding.object, finding.observed) == ("addresses on kube-ipvs0", "more than 5000")


def test_one_timer_for_very_many_servers() -> None:
    policy = Policy(thresholds={"estimated_servers": 3.0})
    evidence = healthy(0.0, policy=policy)
    assert {f.severity for f in run_check("CP-07", evidence).findings} == {"info"}
    for node in ("node-1", "node-2"):
        evidence = sysctl(evidence, {EST_CPULIST: "0-1"}, node)
    assert run_check("CP-07", evidence).findings == ()


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("conntrack_warn", 0.1, "CP-01"),
        ("conntrack_fail", 0.1, "CP-01"),
        ("conntrack_per_bucket", 1, "CP-02"),
        ("ipvs_per_bucket", -1, "CP-03"),
        ("client_ports_used", 0.1, "CP-04"),
        ("client_ports", 100, "CP-04"),
        ("virtual_servers", 2, "CP-06"),
        ("real_servers", 2, "CP-06"),
        ("virtual_addresses", -1, "CP-06"),
    ],
)
def test_the_policy_sets_thresholds(name: str, value: float, check: str) -> None:
    assert name in THRESHOLDS
    evidence = healthy(0.0, policy=Policy(thresholds={name: value}))
    assert set(tripped(evidence)) == {check}


def test_the_policy_allows_some_losses() -> None:
    policy = Policy(thresholds={"conntrack_losses": 7.0})
    assert tripped(on_node(healthy(0.0, policy=policy), counted(insert_failed=10))) == {}
