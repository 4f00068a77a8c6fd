"""Chains and masquerading by version and configuration, against what real kube-proxies wrote."""

from __future__ import annotations

from typing import Any

import pytest
from ipvs_recorded import netfilter

from pytest_ipvs.ipvs.netfilter import Rule, parse_rules
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_chains import (
    chains_by_version,
    conditions,
    mark_and_mask,
    masquerade_bit,
    masquerade_chains,
    masquerade_form,
    set_name,
    sets_mark,
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
    known = {c.name for c in (*masquerade_chains(), *chains_by_version(rules(f"v{version}")))}
    others = {"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT"}
    assert {name for _, name in found.chains if name.startswith("KUBE-")} <= known | others


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
