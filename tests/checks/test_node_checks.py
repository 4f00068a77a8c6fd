"""SY and KM: what is no finding on a healthy cluster, and what can't be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from evidence_builder import details, healthy, of_cluster, on_node, sysctl, tripped, unmeasured
from faults_node import BRIDGE, CONF, STRICT, VS, config, dual_stack, line, load_balancer, second
from ipvs_recorded import KERNELS, vs_settings

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects, ProxyPod
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.policy import Policy

RANGE = "net.ipv4.ip_local_port_range"


def interface(name: str, address: str, pod_cidrs: tuple[str, ...] = ()) -> Callable[..., Evidence]:
    """Another bridge than cni0 on node-2, and no br_netfilter."""

    def change(evidence: Evidence) -> Evidence:
        evidence = sysctl(evidence, {BRIDGE: None})
        evidence = of_cluster(evidence, nodes=second(pod_cidrs=pod_cidrs))
        return on_node(
            evidence, lambda old: replace(old, addresses=(*old.addresses[:2], (name, address)))
        )

    return change


# Each is a state of a healthy cluster: the check named says nothing, measured or not.
HEALTHY: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "a file says what runs": (
        "SY-05",
        lambda e: details(e, sysctl_files=(line("net.ipv4.ip_forward", " 1 "),)),
    ),
    "a later line corrects an earlier one": (
        "SY-05",
        lambda e: details(
            e,
            sysctl_files=(line("net.ipv4.ip_forward", "0"), line("net.ipv4.ip_forward", "1")),
        ),
    ),
    "a file names keys that don't exist, wildcards, and what kube-proxy manages": (
        "SY-05",
        lambda e: details(
            e,
            sysctl_files=(
                line(f"{VS}no_such_key", "1"),
                line(f"{CONF}*.rp_filter", "2"),
                line(f"{CONF}all.rp_filter", ""),
                line("net.netfilter.nf_conntrack_max", "1000000"),
            ),
        ),
    ),
    "nodes of different kernels differ": (
        "SY-06",
        lambda e: on_node(
            sysctl(e, {f"{VS}nat_icmp_send": "1"}),
            lambda old: replace(old, kernel_release="6.12.107+deb13-amd64"),
        ),
    ),
    "nodes of different pools differ": (
        "SY-06",
        lambda e: of_cluster(
            sysctl(e, {f"{VS}nat_icmp_send": "1"}),
            nodes=second(labels={"eks.amazonaws.com/nodegroup": "edge"}),
        ),
    ),
    "nodes have different memory and processors": (
        "SY-06",
        lambda e: sysctl(
            sysctl(e, {f"{VS}sync_qlen_max": "7199", f"{VS}est_cpulist": "0-1"}),
            {f"{VS}sync_qlen_max": "23231", f"{VS}est_cpulist": "0-7"},
            "node-1",
        ),
    ),
    "a scheduler's module has a setting on one node only": (
        "SY-06",
        lambda e: sysctl(e, {f"{VS}lblc_expiration": "86400"}),
    ),
    "no IPv6 in the cluster": (
        "SY-07",
        lambda e: sysctl(e, {"net.ipv6.conf.all.forwarding": "0"}),
    ),
    "a dual-stack cluster with a node of IPv4 only": (
        "SY-07",
        lambda e: sysctl(
            of_cluster(dual_stack(e), nodes=second(pod_cidrs=("10.244.2.0/24",))),
            {"net.ipv6.conf.all.forwarding": "0"},
        ),
    ),
    "strictARP in force": (
        "SY-08",
        lambda e: sysctl(on_node(e, config(strictARP=True)), STRICT),
    ),
    "strictARP in force on the uplink only": (
        "SY-08",
        lambda e: sysctl(
            on_node(e, config(strictARP=True)),
            {f"{CONF}eth0.arp_ignore": "2", f"{CONF}eth0.arp_announce": "2"},
        ),
    ),
    "arp_ignore on the uplink of a load balancer's node": (
        "SY-08",
        lambda e: sysctl(
            sysctl(
                of_cluster(e, services=load_balancer("192.0.2.200")),
                {f"{CONF}eth0.arp_ignore": "1"},
            ),
            {f"{CONF}eth0.arp_ignore": "1"},
            "node-1",
        ),
    ),
    "route_localnet of kube-proxy 1.20": (
        "SY-09",
        lambda e: on_node(
            sysctl(e, {f"{CONF}all.route_localnet": "1"}),
            lambda old: replace(old, proxy=replace(old.proxy, version="v1.20.2")),
        ),
    ),
    "loose on the uplink wins": (
        "SY-09",
        lambda e: sysctl(e, {f"{CONF}all.rp_filter": "1", f"{CONF}eth0.rp_filter": "2"}),
    ),
    "loose for all wins": (
        "SY-09",
        lambda e: sysctl(e, {f"{CONF}all.rp_filter": "2", f"{CONF}eth0.rp_filter": None}),
    ),
    "a routed CNI": ("SY-10", interface("cali1234", "169.254.1.1")),
    "docker0 without pods": ("SY-10", interface("docker0", "172.17.0.1", ("10.244.2.0/24",))),
    "an older kernel without secure_tcp": (
        "SY-11",
        lambda e: sysctl(e, {f"{VS}secure_tcp": None}),
    ),
    "reserved node ports": (
        "CT-04",
        lambda e: sysctl(
            e, {RANGE: "1024 65535", "net.ipv4.ip_local_reserved_ports": "8080,30000-32767"}
        ),
    ),
    "tcp_tw_reuse of old kernels": ("SY-12", lambda e: sysctl(e, {"net.ipv4.tcp_tw_reuse": "0"})),
    "modules that the node's work shows": (
        "KM-01",
        lambda e: details(e, modules=frozenset({"ip_set"})),
    ),
    "another scheduler's module": (
        "KM-01",
        lambda e: details(
            on_node(e, config(scheduler="wrr")), modules=frozenset({"ip_set", "ip_vs_wrr"})
        ),
    ),
    "a node without iptables": (
        "KM-05",
        lambda e: details(e, tools={"ipset": "ipset v6.0, protocol version: 6"}),
    ),
    "a vendor's kernel that is new enough": (
        "KM-04",
        lambda e: of_cluster(
            e, nodes=lambda old: tuple(replace(n, kernel_release="6.8.0-45-generic") for n in old)
        ),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_state_is_no_finding(name: str) -> None:
    check, change = HEALTHY[name]
    outcome = run_check(check, change(healthy(0.0)))
    assert (outcome.findings, outcome.not_measured) == ((), ())


@pytest.mark.parametrize(
    ("check", "change", "severity"),
    [
        # Nobody on the nodes' network asks for this address.
        ("SY-08", lambda e: of_cluster(e, services=load_balancer("203.0.113.7")), "info"),
        (
            "SY-08",
            lambda e: of_cluster(
                e,
                services=load_balancer("192.0.2.200"),
                nodes=lambda old: tuple(
                    replace(n, labels={"kubernetes.azure.com/agentpool": "a"}) for n in old
                ),
            ),
            "info",
        ),
        # With one uplink replies come back where requests left.
        ("SY-09", lambda e: sysctl(e, {f"{CONF}all.rp_filter": "1"}), "info"),
        # No Service has a node port there.
        ("CT-04", lambda e: sysctl(e, {RANGE: "32000 60999"}), "info"),
        ("SY-12", lambda e: sysctl(e, {"net.ipv4.tcp_tw_reuse": "1"}), "info"),
        # kube-proxy's image has its own tools.
        (
            "KM-05",
            lambda e: of_cluster(
                details(e, tools={"iptables": "v1.4.21"}),
                proxy_objects=ProxyObjects(
                    pods=(ProxyPod(name="p", node="node-2", image="i", ready=True, restarts=0),)
                ),
            ),
            "info",
        ),
    ],
)
def test_what_may_be_right_is_information(
    check: str, change: Callable[[Evidence], Evidence], severity: str
) -> None:
    assert {f.severity for f in run_check(check, change(healthy(0.0))).findings} == {severity}


@pytest.mark.parametrize(
    ("checks", "fact", "change"),
    [
        ({"SY-05"}, "details.sysctl_files", {"sysctl_files": None}),
        ({"SY-09"}, "details.uplinks", {"uplinks": None}),
        ({"KM-01"}, "details.modules", {"modules": None}),
        ({"KM-05"}, "details.tools", {"tools": None}),
        ({"KM-05"}, "details.tools ipset", {"tools": {"ipset": "Segmentation fault"}}),
    ],
)
def test_details_that_were_not_read_are_no_pass(
    checks: set[str], fact: str, change: dict[str, Any]
) -> None:
    evidence = details(healthy(0.0), **change)
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {check: {fact} for check in checks}


def test_nodes_whose_details_nobody_read() -> None:
    evidence = on_node(healthy(0.0), lambda old: replace(old, details=None))
    lacks = unmeasured(evidence)
    assert lacks["KM-01"] == {"details.modules"}
    (one,) = run_check("KM-01", evidence).not_measured
    assert one.reason == "the node's details were not read"


def test_strict_arp_that_only_an_uplink_may_save_is_not_judged_without_it() -> None:
    evidence = on_node(healthy(0.0), config(strictARP=True))
    for change in (
        lambda e: details(e, uplinks=None),
        lambda e: sysctl(e, {f"{CONF}eth0.arp_ignore": None, f"{CONF}eth0.arp_announce": None}),
    ):
        outcome = run_check("SY-08", change(evidence))
        assert outcome.findings == ()
        assert outcome.not_measured


def test_load_balancers_need_arp_ignore_read() -> None:
    evidence = of_cluster(healthy(0.0), services=load_balancer("192.0.2.200"))
    evidence = sysctl(evidence, {f"{CONF}all.arp_ignore": None})
    lacks = run_check("SY-08", evidence).not_measured
    assert {(one.node, one.fact) for one in lacks} == {("node-2", f"{CONF}all.arp_ignore")}


def test_an_unreadable_range_is_not_judged() -> None:
    evidence = sysctl(healthy(0.0), {RANGE: "many"})
    (lack,) = run_check("CT-04", evidence).not_measured
    assert (lack.fact, lack.reason) == (RANGE, "it is 'many', expected two numbers")


def test_an_api_that_tells_no_kernel() -> None:
    evidence = of_cluster(healthy(0.0), nodes=second(kernel_release=""))
    (lack,) = run_check("KM-04", evidence).not_measured
    assert lack.fact == "status.nodeInfo.kernelVersion"


def test_a_scheduler_without_its_module() -> None:
    evidence = details(
        on_node(healthy(0.0), config(scheduler="wlc")), modules=frozenset({"ip_set", "ip_vs_rr"})
    )
    (finding,) = run_check("KM-01", evidence).findings
    assert finding.object == "module ip_vs_wlc"


def test_a_node_without_ip_vs_lacks_a_module() -> None:
    evidence = on_node(healthy(0.0), lambda old: replace(old, table=None))
    evidence = details(evidence, modules=frozenset({"ip_set"}))
    objects = [finding.object for finding in run_check("KM-01", evidence).findings]
    assert objects == ["module ip_vs", "module ip_vs_rr"]


@pytest.mark.parametrize(
    ("check", "key", "value"),
    [
        ("SY-05", f"{VS}conn_reuse_mode", "1"),
        ("SY-06", f"{VS}nat_icmp_send", "1"),
        ("SY-07", "net.ipv4.ip_forward", "0"),
        ("SY-08", f"{CONF}all.arp_ignore", "0"),
        ("SY-09", f"{CONF}all.route_localnet", "1"),
        ("SY-09", f"{CONF}all.rp_filter", "1"),
        ("SY-10", BRIDGE, "0"),
        ("SY-11", f"{VS}drop_entry", "1"),
        ("SY-12", RANGE, "1024 65535"),
        ("SY-12", "net.ipv4.tcp_tw_reuse", "1"),
        ("CP-07", f"{VS}run_estimation", "0"),
    ],
)
def test_the_policy_decides_every_judged_sysctl(check: str, key: str, value: str) -> None:
    def found(accepted: tuple[str, ...] | None) -> set[str]:
        evidence = healthy(0.0, policy=Policy(sysctls={key: accepted}))
        contradiction = line(f"{VS}conn_reuse_mode", "0")
        evidence = details(evidence, sysctl_files=(contradiction,))
        evidence = of_cluster(evidence, services=load_balancer("192.0.2.200"))
        findings = run_check(check, sysctl(evidence, {key: value})).findings
        return {f.expected for f in findings if f.node != "node-1" and f.object == key}

    assert found(None) == set()
    if check not in ("SY-05", "SY-06"):
        assert found((value,)) == set()
        assert found(("7",)) == {"7"}


def test_the_larger_pool_is_taken_to_be_right() -> None:
    evidence = healthy(0.0)
    third = replace(evidence.last.facts["node-1"], node="node-3")
    evidence = of_cluster(
        evidence,
        facts=lambda old: {**old, "node-3": third},
        nodes=lambda old: (*old, Node(name="node-3")),
    )
    evidence = sysctl(evidence, {f"{VS}nat_icmp_send": "1"}, "node-1")
    (finding,) = run_check("SY-06", evidence).findings
    assert finding.node is None
    assert finding.observed == "1 on node-1"
    assert finding.expected == "0, as on 2 of 3 nodes of the pool"


def test_a_wrong_value_is_told_once_and_not_again_as_a_difference() -> None:
    evidence = sysctl(healthy(0.0), {f"{VS}expire_nodest_conn": "0"})
    assert tripped(evidence) == {"SY-02": {"fail"}}


@pytest.mark.parametrize("kernel", KERNELS)
def test_settings_of_real_kernels(kernel: str) -> None:
    def change(old: NodeFacts) -> NodeFacts:
        others = {k: v for k, v in old.sysctls.items() if not k.startswith(VS)}
        right = {f"{VS}expire_nodest_conn": "1", f"{VS}expire_quiescent_template": "1"}
        return replace(
            old,
            kernel_release=kernel,
            kernel_version="",
            sysctls={**others, **vs_settings(kernel), **right},
        )

    evidence = on_node(on_node(healthy(0.0), change), change, "node-1")
    checks = [f"SY-{n:02}" for n in range(1, 13)] + [f"CP-{n:02}" for n in range(1, 8)]
    for check in checks:
        outcome = run_check(check, evidence)
        assert (outcome.findings, outcome.not_measured) == ((), ()), check
