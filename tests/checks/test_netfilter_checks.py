"""Checks of netfilter's rules and sets: what they can't know, and what real clusters say."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from evidence_builder import details, healthy, of_cluster, on_node, proxy, tripped, unmeasured
from faults_datagrams import datagrams_go_to_a_dead_pod
from faults_netfilter import (
    a_cluster_ip_is_not_bound,
    a_pod_does_not_reach_itself,
    a_set_has_a_member_too_many,
    a_set_is_gone,
    a_set_lacks_a_member,
    nothing_leads_to_the_masquerading,
    the_set_of_addresses_lacks_one,
)
from faults_tables import missing_real_server, with_dns
from ipvs_recorded import netfilter
from netfilter_builder import recorded_rules
from netfilter_changes import chain_changed, rule
from test_recorded_runs import snapshots

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.configz import KEY, normalise
from pytest_ipvs.cluster.model import NodeDetails, NodeFacts
from pytest_ipvs.ipvs.netfilter import Chain, RuleSet, parse_rules, parse_sets
from pytest_ipvs.ipvs.objects import Service, ServicePort
from pytest_ipvs.policy import Policy
from pytest_ipvs.report.findings import group

CHECKS = ("TB-09", "TB-11", *(f"CT-0{n}" for n in range(1, 9)))
QUEUED = 'kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}'
SYNCED = 'kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}'
DURATION = "kubeproxy_sync_proxy_rules_duration_seconds"


def measured(values: dict[str, float]) -> Callable[[NodeFacts], NodeFacts]:
    """Other metrics of kube-proxy."""
    return lambda old: replace(old, proxy=replace(old.proxy, metrics=values))


@pytest.mark.parametrize(
    ("field", "checks"),
    [
        ("iptables", {"CT-01", "CT-02", "CT-03", "CT-05", "CT-06", "CT-07"}),
        ("ipsets", {"TB-09", "TB-11"}),
        ("syn_sent", {"CT-08"}),
        ("udp_sent", {"CT-08"}),
    ],
)
def test_details_that_were_not_read_are_never_a_pass(field: str, checks: set[str]) -> None:
    evidence = details(healthy(), **{field: None})
    told = {f"details.{field}": "permission denied"}
    evidence = on_node(evidence, lambda old: replace(old, unread=told))
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {check: {f"details.{field}"} for check in checks}
    lacks = [lack for check in checks for lack in run_check(check, evidence).not_measured]
    assert {lack.reason for lack in lacks} == {"permission denied"}


def test_without_details_nothing_is_judged() -> None:
    evidence = on_node(healthy(), lambda old: replace(old, details=None))
    for check in set(CHECKS) - {"CT-04"}:
        assert [lack.node for lack in run_check(check, evidence).not_measured] == ["node-2"]


def test_a_version_of_iptables_from_the_rules_themselves() -> None:
    assert run_check("CT-03", details(healthy(), tools={})).not_measured == ()
    assert run_check("CT-03", details(healthy(), tools=None)).not_measured == ()


def test_old_iptables_can_not_pick_ports_at_random() -> None:
    bare = rule("-j MASQUERADE")
    evidence = chain_changed("nat", "KUBE-POSTROUTING", lambda old: (*old[:-1], bare))(healthy())
    old = details(evidence, tools={"iptables": "v1.6.1"})
    assert run_check("CT-03", old).findings == ()
    assert run_check("CT-03", old).not_measured == ()


@pytest.mark.parametrize(
    "fault", [a_set_lacks_a_member, a_set_has_a_member_too_many, a_set_is_gone]
)
@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({}, "proxy.metrics"),
        ({QUEUED: 250.0, SYNCED: 200.0}, "a later reading"),
        # The sync that ended last may have begun before the change came in.
        ({QUEUED: 190.0, SYNCED: 200.0}, "a later reading"),
        (
            {
                QUEUED: 190.0,
                SYNCED: 200.0,
                f'{DURATION}_bucket{{ip_family="IPv4",le="8"}}': 4.0,
                f'{DURATION}_bucket{{ip_family="IPv4",le="16"}}': 5.0,
                f'{DURATION}_bucket{{ip_family="IPv4",le="+Inf"}}': 5.0,
                f'{DURATION}_count{{ip_family="IPv4"}}': 5.0,
            },
            "a later reading",
        ),
        ({QUEUED: 0.0, SYNCED: 0.0}, "a later reading"),
    ],
)
def test_what_may_be_lag_is_not_measured(
    fault: Callable[[Evidence], Evidence], values: dict[str, float], fact: str
) -> None:
    evidence = on_node(fault(healthy()), measured(values))
    outcome = run_check("TB-11", evidence)
    assert outcome.findings == ()
    assert [lack.fact for lack in outcome.not_measured] == [fact]


def test_a_sync_that_ran_after_the_change_decides() -> None:
    values = {
        QUEUED: 190.0,
        SYNCED: 200.0,
        f'{DURATION}_bucket{{ip_family="IPv4",le="8"}}': 5.0,
        f'{DURATION}_count{{ip_family="IPv4"}}': 5.0,
    }
    evidence = on_node(a_set_lacks_a_member(healthy()), measured(values))
    assert len(run_check("TB-11", evidence).findings) == 1


def test_a_moving_service_is_not_judged_by_its_sets() -> None:
    for fault, check in (
        (a_set_lacks_a_member, "TB-11"),
        (the_set_of_addresses_lacks_one, "TB-09"),
    ):
        evidence = fault(healthy())
        moving = frozenset({"demo/web", "demo/sticky"})
        evidence = replace(
            evidence, snapshots=tuple(replace(one, moving=moving) for one in evidence.snapshots)
        )
        outcome = run_check(check, evidence)
        assert outcome.findings == ()
        assert [lack.fact for lack in outcome.not_measured] == ["a later reading"]


def test_a_table_that_differs_leaves_its_sets_open() -> None:
    evidence = missing_real_server(a_set_lacks_a_member(healthy()))
    (lack,) = run_check("TB-11", evidence).not_measured
    assert "the node's table differed as well" in lack.reason


def test_the_device_gets_its_time() -> None:
    evidence = a_cluster_ip_is_not_bound(healthy(0.0, 30.0))
    outcome = run_check("TB-09", evidence)
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert "seen for 30 s of the 60 s" in lack.reason


def test_a_kube_proxy_that_starts_has_no_chains_yet() -> None:
    evidence = nothing_leads_to_the_masquerading(healthy())
    outcome = run_check("CT-01", on_node(evidence, measured({SYNCED: 0.0})))
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert lack.reason.startswith("nat POSTROUTING -> KUBE-POSTROUTING: no jump, expected a jump")
    assert lack.reason.endswith("not judged, kube-proxy had not synced yet")
    # Without metrics the rules themselves count.
    assert run_check("CT-01", on_node(evidence, measured({}))).findings


@pytest.mark.parametrize(
    "text",
    ["-s 10.244.0.0/16 -j ACCEPT", "-m mark --mark 0x4000/0x4000 -j ACCEPT", "-i eth+ -j ACCEPT"],
)
def test_a_firewall_that_accepts_some_clients_needs_a_probe(text: str) -> None:
    accept = rule(text)
    fault = chain_changed("filter", "INPUT", lambda old: (*old, accept), policy="DROP")
    outcome = run_check("CT-07", fault(healthy()))
    assert outcome.findings == ()
    assert [lack.fact for lack in outcome.not_measured] == ["a probe of a ClusterIP"]


@pytest.mark.parametrize("hook", ["INPUT", "FORWARD"])
@pytest.mark.parametrize(
    "text",
    [
        "-s 10.244.2.2/32 -j DROP",
        "-m set --match-set BLOCKED src -j DROP",
        "-i cali+ -j DROP",
        "-m limit --limit 5/sec -j REJECT",
        "-m mark ! --mark 0x40000/0x40000 -j DROP",
        "-p tcp -m tcp --sport 1024:5000 -j DROP",
    ],
)
def test_a_drop_that_may_hit_pods_needs_a_probe(hook: str, text: str) -> None:
    fault = chain_changed("filter", hook, lambda old: (*old, rule(text)))
    evidence = fault(healthy())
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {"CT-07": {"a probe of a ClusterIP"}}
    (lack,) = run_check("CT-07", evidence).not_measured
    assert lack.reason.startswith(f"filter {hook}: '-A {hook} ")
    assert "a probe must tell" in lack.reason


@pytest.mark.parametrize(
    ("hook", "texts"),
    [
        # Nobody can tell from here whom the first rule accepts.
        ("INPUT", ("-m mark --mark 0x1/0x1 -j ACCEPT", "-s 10.244.0.0/16 -j DROP")),
        ("INPUT", ("-m recent --update -j RETURN", "-p tcp -j DROP")),
        ("FORWARD", ("-m mark --mark 0x10000/0x10000 -j ACCEPT", "-j REJECT")),
        ("FORWARD", ("! -i cni0 -j DROP",)),
        ("FORWARD", ("-p tcp -m set --match-set KUBE-CLUSTER-IP dst,dst -j DROP",)),
    ],
)
def test_what_rules_before_leave_open_needs_a_probe(hook: str, texts: tuple[str, ...]) -> None:
    fault = chain_changed("filter", hook, lambda old: (*old, *map(rule, texts)))
    evidence = fault(healthy())
    assert tripped(evidence) == {}
    assert unmeasured(evidence) == {"CT-07": {"a probe of a ClusterIP"}}


def test_a_node_without_pods_may_forward_nothing() -> None:
    fault = chain_changed("filter", "FORWARD", lambda old: (*old, rule("-j REJECT")))
    evidence = of_cluster(fault(healthy()), endpoint_slices=lambda old: ())
    outcome = run_check("CT-07", evidence)
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert lack.reason.endswith("no endpoint on the node takes tcp: it may have no pods")


def test_a_policy_counts_where_a_rule_leaves_the_chain() -> None:
    leave = rule("-p tcp -j RETURN")
    fault = chain_changed("filter", "INPUT", lambda old: (*old, leave), policy="DROP")
    (finding,) = run_check("CT-07", fault(healthy())).findings
    assert finding.observed.startswith("policy DROP, and no rule before")


def test_nothing_is_certain_where_no_pods_are_known() -> None:
    """Without a cluster CIDR, CIDRs of nodes and endpoints, no address is plainly no pod's."""
    evidence = chain_changed("filter", "INPUT", lambda old: (*old, rule("-s 10.9.0.0/16 -j DROP")))(
        healthy()
    )
    assert run_check("CT-07", evidence).not_measured == ()
    evidence = on_node(evidence, proxy(config={"mode": "ipvs"}))
    evidence = of_cluster(evidence, endpoint_slices=(), proxy_objects=None)
    lacks = run_check("CT-07", evidence).not_measured
    assert [lack.fact for lack in lacks] == ["a probe of a ClusterIP"]


def test_a_rule_of_a_set_may_be_missing_while_its_service_is_new() -> None:
    evidence = a_pod_does_not_reach_itself(healthy())
    evidence = of_cluster(evidence, moving=frozenset({"demo/web", "demo/sticky"}))
    outcome = run_check("CT-01", evidence)
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert lack.reason.startswith("nat KUBE-POSTROUTING -> MASQUERADE of KUBE-LOOP-BACK: no rule")


def test_each_nodes_own_cidr_makes_one_finding() -> None:
    evidence = of_cluster(
        healthy(),
        nodes=lambda old: tuple(
            replace(node, pod_cidrs=(f"10.244.{n}.0/24",)) for n, node in enumerate(old, 1)
        ),
    )
    for number, name in enumerate(("node-1", "node-2"), 1):
        config = {"mode": "ipvs", "detectLocalMode": "NodeCIDR"}
        evidence = on_node(evidence, proxy(config=config), name)
        # The "!" was lost.
        wrong = f"-s 10.244.{number}.0/24 -m set --match-set KUBE-CLUSTER-IP dst,dst"
        chains = dict(recorded_rules("1.36.2").chains)
        chains["nat", "KUBE-SERVICES"] = Chain(rules=(rule(f"{wrong} -j KUBE-MARK-MASQ"),))
        evidence = details(evidence, name, iptables=RuleSet(chains=chains))
    findings = run_check("CT-02", evidence).findings
    assert len(findings) == 2
    (one,) = group(findings)
    assert one.finding.expected.startswith("! -s NODE-POD-CIDR --match-set KUBE-CLUSTER-IP dst,dst")
    assert {finding.evidence for finding in findings} == {
        "NODE-POD-CIDR is 10.244.1.0/24, the node's own",
        "NODE-POD-CIDR is 10.244.2.0/24, the node's own",
    }


def test_ipv6_counts_where_services_have_it() -> None:
    dual = Service(
        namespace="demo",
        name="six",
        cluster_ips=("fd96::1",),
        ports=(ServicePort(name="", protocol="TCP", port=80),),
    )
    evidence = healthy()
    evidence = replace(
        evidence,
        snapshots=tuple(replace(one, services=(*one.services, dual)) for one in evidence.snapshots),
    )
    lacks = run_check("CT-01", evidence).not_measured
    assert {lack.fact for lack in lacks} == {"details.ip6tables"}


def at(run: str, what: str, facts: NodeFacts) -> str:
    """What the node had said last."""
    rows = list(netfilter(run, what, facts.node))
    index = max(bisect_right([row["t"] for row in rows], facts.taken_at) - 1, 0)
    told: str = rows[index]["out"]
    return told


def test_datagrams_of_a_service_that_changes_are_not_judged() -> None:
    evidence = of_cluster(with_dns(healthy()), moving=frozenset({"demo/dns"}))
    assert tripped(datagrams_go_to_a_dead_pod(evidence)) == {}
    assert unmeasured(datagrams_go_to_a_dead_pod(evidence))["CT-08"] == {"a later reading"}


def synced(run: str, facts: NodeFacts) -> dict[str, float]:
    """kube-proxy's metrics as they were, at the worst: they were read each 20 s only."""
    told = dict(line.rsplit(" ", 1) for line in at(run, "GET :10249/metrics", facts).splitlines())
    values = {name: float(value) for name, value in told.items()}
    rows = netfilter(run, "GET :10249/metrics", facts.node)
    later = next((row["out"] for row in rows if row["t"] > facts.taken_at), "")
    for name, value in (line.rsplit(" ", 1) for line in later.splitlines()):
        if "timestamp" in name and float(value) <= facts.taken_at:
            values[name] = float(value)
        elif "queued" in name:
            values[name] = facts.taken_at
    return values


def full(run: str, facts: NodeFacts) -> NodeFacts:
    """The facts with what netfilter said."""
    said = partial(at, run, facts=facts)
    bound = tuple(("kube-ipvs0", address) for address in said("ip addr show kube-ipvs0").split())
    return replace(
        facts,
        addresses=(*(pair for pair in facts.addresses if pair[0] != "kube-ipvs0"), *bound),
        sysctls={**facts.sysctls, "net.ipv4.ip_local_port_range": "32768 60999"},
        proxy=replace(
            facts.proxy,
            metrics=synced(run, facts),
            config=normalise({KEY: dict(facts.proxy.config or {})}),
        ),
        details=NodeDetails(
            iptables=parse_rules(said("iptables-save")),
            ipsets=parse_sets(said("ipset save")),
            syn_sent=json.loads(said("conntrack -L")),
            # Not recorded.
            udp_sent={},
            tools={"iptables": "v1.8.9", "ipset": "v7.17"},
        ),
    )


@pytest.mark.parametrize(
    ("run", "true"),
    [
        ("1.36.2-A", set()),
        ("1.36.2-B", {"CT-08"}),
        # It sets conn_reuse_mode to 0, and the machine was busy: 62 SYNs went to a dead pod.
        ("1.20.2-A", {"CT-08"}),
        ("1.20.2-B", {"CT-08"}),
    ],
)
def test_real_kube_proxies_trip_what_is_true_only(run: str, true: set[str]) -> None:
    found: set[str] = set()
    settled = 0
    for one in list(snapshots(run))[::2]:
        facts = {name: full(run, told) for name, told in one.facts.items()}
        evidence = Evidence(snapshots=(replace(one, facts=facts),), policy=Policy())
        outcomes = {check: run_check(check, evidence) for check in CHECKS}
        found |= {check for check, outcome in outcomes.items() if outcome.findings}
        lacks = [lack for outcome in outcomes.values() for lack in outcome.not_measured]
        assert {lack.fact for lack in lacks} <= {"a later reading"}
        settled += not lacks
    assert found == true
    assert settled >= 3
