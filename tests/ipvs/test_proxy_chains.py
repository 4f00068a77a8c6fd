"""Chains and masquerading by version and configuration, against what real kube-proxies wrote."""

from __future__ import annotations

from typing import Any

import pytest
from ipvs_recorded import netfilter

from pytest_ipvs.ipvs.netfilter import Chain, Rule, RuleSet, parse_rules
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_chains import (
    chains_by_version,
    cluster_cidrs,
    conditions,
    first_end,
    follow_mark,
    mark_and_mask,
    masquerade_bit,
    masquerade_chains,
    masquerade_form,
    masquerade_rules,
    pod_interfaces,
    set_name,
    sets_mark,
    terms,
    terms_of,
)

NODE = Node(name="node-1", pod_cidrs=("10.244.1.0/24", "fd00:1::/64"))


def rules(version: str = "v1.36.2", **config: Any) -> ProxyRules:
    return ProxyRules(version=version, config=config)


def rule(text: str) -> Rule:
    return Rule(words=tuple(text.split()))


@pytest.mark.parametrize("version", ["1.20.2", "1.36.2"])
def test_every_expected_chain_was_there(version: str) -> None:
    row = next(netfilter(f"{version}-A", "iptables-save", "node-1"))
    found = parse_rules(row["out"])
    for chain in (*masquerade_chains(), *chains_by_version(rules(f"v{version}"))):
        assert (chain.table, chain.name) in found.chains
        assert found.rules(chain.table, chain.name) or not chain.filled
        for hook in chain.hooks:
            assert chain.name in {one.target for one in found.rules(chain.table, hook)}
    # And no chain of this kube-proxy is unknown here.
    should = (*masquerade_chains(), *chains_by_version(rules(f"v{version}")))
    known = {(chain.table, chain.name) for chain in should}
    assert {key for key in found.chains if key[1].startswith("KUBE-")} <= known


@pytest.mark.parametrize("version", ["1.20.2", "1.36.2"])
def test_every_expected_rule_was_there(version: str) -> None:
    found = parse_rules(next(netfilter(f"{version}-A", "iptables-save", "node-1"))["out"])
    lacking = []
    for should in masquerade_rules("IPv4"):
        alike = [
            one
            for one in found.rules("nat", should.chain)
            if one.target == should.target and terms(one) == terms_of(should.words)
        ]
        if not alike:
            lacking.append(should.when)
        else:
            assert first_end(found, "nat", should.chain, terms(alike[0]), alike[0]) is None
    # No Service of the recorded cluster has a node port of these.
    assert lacking == ["KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-SCTP-HASH"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-m comment --comment x -j ACCEPT", set()),
        ("-m socket -m comment --comment x -j ACCEPT", {("-m", "socket")}),
        (
            "! -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j ACCEPT",
            {("!", "-s", "10.0.0.0/8"), ("-p", "tcp"), ("--dport", "80")},
        ),
        (
            "-m physdev ! --physdev-is-in -m set ! --match-set A dst,dst -g B",
            {("!", "--physdev-is-in"), ("!", "--match-set", "A", "dst,dst")},
        ),
    ],
)
def test_the_conditions_of_a_rule_one_by_one(text: str, found: set[tuple[str, ...]]) -> None:
    assert terms(rule(text)) == found


@pytest.mark.parametrize(
    ("before", "inner", "ends"),
    [
        ("-j ACCEPT", (), True),
        ("-j RETURN", (), True),
        ("-g OTHER", (), True),
        ("-p tcp -j ACCEPT", (), True),
        ("-p udp -j ACCEPT", (), False),
        ("-m socket -j ACCEPT", (), False),
        ("-j LOG", (), False),
        ("-j MASQUERADE", (), False),
        ("-j OTHER", (), False),
        ("-j OTHER", ("-p udp -j DROP", "-j ACCEPT"), True),
        ("-j OTHER", ("-p udp -j RETURN", "-j ACCEPT"), False),
        ("-j OTHER", ("-p udp -g BACK", "-j ACCEPT"), False),
        ("-j OTHER", ("-j OTHER",), False),
    ],
)
def test_what_keeps_packets_from_a_rule(before: str, inner: tuple[str, ...], ends: bool) -> None:
    last = rule("-p tcp -j KUBE-SERVICES")
    chains = {
        ("nat", "OUTPUT"): Chain(rules=(rule(before), last)),
        ("nat", "OTHER"): Chain(rules=tuple(map(rule, inner))),
    }
    found = first_end(RuleSet(chains=chains), "nat", "OUTPUT", terms(last), last)
    assert found == (rule(before) if ends else None)


@pytest.mark.parametrize(
    ("texts", "mark", "masqueraded", "left"),
    [
        (("-m mark ! --mark 0x4000/0x4000 -j RETURN", "-j MASQUERADE"), 0x4000, True, 0x4000),
        (("-m mark ! --mark 0x4000/0x4000 -j RETURN", "-j MASQUERADE"), 0, False, 0),
        (("-m mark --mark 0x4000/0x4000 -j MASQUERADE",), 0x4000, True, 0x4000),
        (("-m mark --mark 0x8000/0x8000 -j MASQUERADE",), 0x4000, False, 0x4000),
        (("-o eth0 -j MASQUERADE", "-j ACCEPT", "-j MASQUERADE"), 0x4000, False, 0x4000),
        (("-j MARK --set-xmark 0x4000/0x0",), 0x4000, False, 0),
        (("-j MARK --set-xmark 0x4000/0x4000",), 0, False, 0x4000),
        (("-j MARK --set-mark 0x8000",), 0x4000, False, 0x8000),
        (("-j MARK --or-mark 0x1", "-j MARK --xor-mark 0x4000"), 0x4000, False, 1),
        (("-j MARK --and-mark 0xffffbfff",), 0x4000, False, 0),
        (("-j MARK", "-j RETURN", "-j MARK --or-mark 0x1"), 0, False, 0),
    ],
)
def test_a_mark_is_followed(
    texts: tuple[str, ...], mark: int, masqueraded: bool, left: int
) -> None:
    assert follow_mark(map(rule, texts), mark) == (masqueraded, left)


def test_where_pods_are_by_the_configuration() -> None:
    assert cluster_cidrs(rules(clusterCIDR="10.244.0.0/16, fd00::/56")) == (
        "10.244.0.0/16",
        "fd00::/56",
    )
    assert cluster_cidrs(rules()) == ()
    local = {"bridgeInterface": "br0", "interfaceNamePrefix": "pod"}
    assert pod_interfaces(rules(detectLocal=local)) == ("", "")
    bridge = rules(detectLocalMode="BridgeInterface", detectLocal=local)
    assert pod_interfaces(bridge) == ("br0", "")
    prefix = rules(detectLocalMode="InterfaceNamePrefix", detectLocal=local)
    assert pod_interfaces(prefix) == ("", "pod")


@pytest.mark.parametrize(
    ("version", "there", "absent"),
    [
        ("v1.20.2", {"KUBE-FIREWALL", "KUBE-MARK-DROP"}, {"KUBE-IPVS-FILTER", "KUBE-NODE-PORT"}),
        ("v1.23.17", {"KUBE-FIREWALL"}, {"KUBE-IPVS-FILTER"}),
        ("v1.25.0", {"KUBE-FORWARD"}, {"KUBE-FIREWALL", "KUBE-IPVS-FILTER"}),
        ("v1.27.1", {"KUBE-IPVS-FILTER", "KUBE-PROXY-FIREWALL"}, {"KUBE-IPVS-OUT-FILTER"}),
        ("v1.32.4", {"KUBE-IPVS-FILTER"}, {"KUBE-IPVS-OUT-FILTER"}),
        ("v1.32.5", {"KUBE-IPVS-OUT-FILTER"}, {"KUBE-FIREWALL"}),
        ("v1.37.0", {"KUBE-IPVS-OUT-FILTER"}, {"KUBE-MARK-DROP"}),
    ],
)
def test_chains_follow_the_version(version: str, there: set[str], absent: set[str]) -> None:
    names = {chain.name for chain in chains_by_version(rules(version))}
    assert there <= names
    assert not absent & names


@pytest.mark.parametrize(
    ("config", "family", "form"),
    [
        ({"iptables": {"masqueradeAll": True}, "clusterCIDR": "10.0.0.0/8"}, "IPv4", "dst,dst"),
        ({"clusterCIDR": "10.244.0.0/16"}, "IPv4", "dst,dst ! -s 10.244.0.0/16"),
        ({"clusterCIDR": "fd00::/56,10.244.0.0/16"}, "IPv6", "dst,dst ! -s fd00::/56"),
        ({"clusterCIDR": "10.244.0.0/16"}, "IPv6", "src,dst"),
        ({}, "IPv4", "src,dst"),
        ({"detectLocalMode": "NodeCIDR"}, "IPv4", "dst,dst ! -s 10.244.1.0/24"),
        ({"detectLocalMode": "NodeCIDR"}, "IPv6", "dst,dst ! -s fd00:1::/64"),
        (
            {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}},
            "IPv4",
            "dst,dst ! -i cni0",
        ),
        (
            {
                "detectLocalMode": "InterfaceNamePrefix",
                "detectLocal": {"interfaceNamePrefix": "veth"},
            },
            "IPv4",
            "dst,dst ! -i veth+",
        ),
        ({"detectLocalMode": "BridgeInterface"}, "IPv4", None),
        ({"detectLocalMode": "SomethingNew"}, "IPv4", None),
    ],
)
def test_the_form_of_the_cluster_ip_rule(
    config: dict[str, Any], family: str, form: str | None
) -> None:
    found = masquerade_form(rules(**config), NODE, family)
    assert (found and " ".join((found.directions, *found.words))) == form


def test_a_node_without_pod_cidrs_leaves_the_form_open() -> None:
    told = rules(detectLocalMode="NodeCIDR")
    assert masquerade_form(told, Node(name="node-1"), "IPv4") is None


@pytest.mark.parametrize(
    ("section", "bit"),
    [({}, 14), ({"masqueradeBit": 20}, 20), ({"masqueradeBit": None}, 14), ({"other": 1}, 14)],
)
def test_the_masquerade_bit(section: dict[str, Any], bit: int) -> None:
    assert masquerade_bit(rules(iptables=section)) == bit


def test_names_of_ipv6_sets_are_cut_at_31_characters() -> None:
    assert set_name("KUBE-CLUSTER-IP", "IPv4") == "KUBE-CLUSTER-IP"
    assert set_name("KUBE-CLUSTER-IP", "IPv6") == "KUBE-6-CLUSTER-IP"
    long = set_name("KUBE-LOAD-BALANCER-SOURCE-CIDR", "IPv6")
    assert (long, len(long)) == ("KUBE-6-LOAD-BALANCER-SOURCE-CID", 31)


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("-j MARK --set-xmark 0x4000/0x4000", True),
        ("-j MARK --or-mark 0x4000", True),
        ("-j MARK --set-xmark 0x4000/0x0", True),
        ("-j MARK --set-xmark 0x8000/0x8000", False),
        ("-j MARK --and-mark 0xffffbfff", False),
        ("-m mark --mark 0x4000/0x4000 -j ACCEPT", False),
    ],
)
def test_which_rules_set_the_bit(text: str, sets: bool) -> None:
    assert sets_mark(rule(text), 14) is sets


def test_conditions_leave_out_what_decides_nothing() -> None:
    told = rule("! -s 10.244.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment x -j ACCEPT")
    assert conditions(told) == ("!", "-s", "10.244.0.0/16", "-p", "tcp", "--dport", "80")
    assert mark_and_mask("0x4000") == (0x4000, 0xFFFFFFFF)
