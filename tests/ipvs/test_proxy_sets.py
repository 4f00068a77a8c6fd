"""Members of ipsets and addresses of kube-ipvs0 that Services ask for."""

from __future__ import annotations

from typing import Any

import pytest
from ipvs_recorded import addresses, netfilter, nodes, services

from pytest_ipvs.ipvs.netfilter import parse_sets
from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice, Node, Service, ServicePort, SlicePort
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_sets import (
    KINDS,
    ExpectedSet,
    expected_sets,
    used_families,
    virtual_addresses,
)

NODE = Node(name="node-1", internal_ips=("192.0.2.1", "fd01::1"))
OWN = (("lo", "127.0.0.1"), ("eth0", "192.0.2.1"), ("eth0", "fd01::1"))


def service(**more: Any) -> Service:
    port = ServicePort(name="", protocol=more.pop("protocol", "TCP"), port=80, node_port=30080)
    told = {"cluster_ips": ("10.96.0.1", "fd96::1"), "ports": (port,), **more}
    return Service(namespace="demo", name="web", **told)


def sets(
    *given: Service,
    slices: tuple[EndpointSlice, ...] = (),
    family: str = "IPv4",
    version: str = "v1.36.2",
    own: tuple[tuple[str, str], ...] = OWN,
    **config: Any,
) -> dict[str, ExpectedSet]:
    found = expected_sets(
        services=given,
        slices=slices,
        node=NODE,
        addresses=own,
        rules=ProxyRules(version=version, config=config),
        family=family,
    )
    return {one.name: one for one in found}


def filled(found: dict[str, ExpectedSet]) -> dict[str, set[str]]:
    """Required members of sets that have any, without those that every Service has."""
    usual = {"KUBE-CLUSTER-IP", "KUBE-IPVS-IPS", "KUBE-NODE-PORT-TCP"}
    return {
        name: set(one.required) for name, one in found.items() if one.required and name not in usual
    }


@pytest.mark.parametrize("version", ["1.20.2", "1.36.2"])
def test_a_real_kube_proxy_has_these_sets(version: str) -> None:
    rules = ProxyRules(version=f"v{version}", config={})
    row = list(netfilter(f"{version}-A", "ipset save", "node-1"))[-1]
    actual = parse_sets(row["out"])
    listed = [one for one in services(version) if one.namespace != "rec"]
    for should in expected_sets(
        services=listed,
        slices=(),
        node=nodes(version)["node-1"],
        addresses=addresses(version, "node-1"),
        rules=rules,
        family="IPv4",
    ):
        if should.name not in actual:
            assert should.optional
            assert version == "1.20.2"
            continue
        assert actual[should.name].kind == should.kind
        if should.name != "KUBE-LOOP-BACK":
            assert actual[should.name].members == set(should.required)
    assert set(actual) <= set(KINDS)


def test_traffic_policies_choose_the_set() -> None:
    outside = {"external_ips": ("203.0.113.5",), "load_balancer_ips": ("203.0.113.6",)}
    cluster, local = "203.0.113.5,tcp:80", "203.0.113.6,tcp:80"
    assert filled(sets(service(**outside))) == {
        "KUBE-EXTERNAL-IP": {cluster},
        "KUBE-LOAD-BALANCER": {local},
    }
    told = service(
        type="LoadBalancer",
        external_traffic_policy="Local",
        health_check_node_port=31000,
        **outside,
    )
    assert filled(sets(told)) == {
        "KUBE-EXTERNAL-IP-LOCAL": {cluster},
        "KUBE-LOAD-BALANCER": {local},
        "KUBE-LOAD-BALANCER-LOCAL": {local},
        "KUBE-NODE-PORT-LOCAL-TCP": {"30080"},
        "KUBE-HEALTH-CHECK-NODE-PORT": {"31000"},
    }
    without = sets(service(**outside), featureGates={"AllowServiceExternalIPs": False})
    assert "KUBE-EXTERNAL-IP" not in filled(without)


@pytest.mark.parametrize(
    ("version", "may"), [("v1.28.5", True), ("v1.31.0", True), ("v1.32.0", False)]
)
def test_addresses_of_the_mode_proxy_may_be_programmed_until_1_31(version: str, may: bool) -> None:
    told = service(
        type="LoadBalancer",
        proxied_ips=("203.0.113.6", "fd03::6"),
        external_traffic_policy="Local",
        load_balancer_source_ranges=("198.51.100.0/24",),
    )
    found = sets(told, version=version)
    plain = sets(service(type="LoadBalancer", external_traffic_policy="Local"), version=version)
    assert {name: one.required for name, one in found.items()} == {
        name: one.required for name, one in plain.items()
    }
    member = "203.0.113.6,tcp:80"
    more = {
        "KUBE-LOAD-BALANCER": {member},
        "KUBE-LOAD-BALANCER-LOCAL": {member},
        "KUBE-LOAD-BALANCER-FW": {member},
        "KUBE-LOAD-BALANCER-SOURCE-CIDR": {f"{member},198.51.100.0/24"},
        "KUBE-IPVS-IPS": {"203.0.113.6"},
    }
    assert {name: set(one.allowed) for name, one in found.items() if one.allowed} == (
        more if may else {}
    )
    rules = ProxyRules(version=version, config={})
    bound = virtual_addresses([told], OWN, rules, "IPv4")
    assert set(bound.required) == {"10.96.0.1"}
    assert set(bound.allowed) == ({"203.0.113.6"} if may else set())


def test_source_ranges() -> None:
    told = service(
        load_balancer_ips=("203.0.113.6",),
        load_balancer_source_ranges=("192.0.2.0/24", "198.51.100.7/32", "fd02::/64"),
    )
    member = "203.0.113.6,tcp:80"
    found = sets(told)
    assert filled(found) == {
        "KUBE-LOAD-BALANCER": {member},
        "KUBE-LOAD-BALANCER-FW": {member},
        "KUBE-LOAD-BALANCER-SOURCE-CIDR": {f"{member},192.0.2.0/24", f"{member},198.51.100.7"},
    }
    # The node's own address is in a range.
    assert set(found["KUBE-LOAD-BALANCER-SOURCE-IP"].allowed) == {f"{member},203.0.113.6"}
    everything = service(
        load_balancer_ips=("203.0.113.6",), load_balancer_source_ranges=("0.0.0.0/0", "nonsense")
    )
    open_set = sets(everything)["KUBE-LOAD-BALANCER-SOURCE-CIDR"]
    assert (open_set.required, len(open_set.allowed)) == ({}, 2)


def test_node_ports_by_protocol() -> None:
    assert "KUBE-NODE-PORT-UDP" in filled(sets(service(protocol="UDP")))
    sctp = sets(service(protocol="SCTP", external_traffic_policy="Local"))
    for name in ("KUBE-NODE-PORT-SCTP-HASH", "KUBE-NODE-PORT-LOCAL-SCTP-HASH"):
        assert set(sctp[name].required) == {"192.0.2.1,sctp:30080"}
    assert not sets(service(protocol="SCTP"), own=())["KUBE-NODE-PORT-SCTP-HASH"].judged
    nowhere = sets(service(), nodePortAddresses=["203.0.113.0/24"])["KUBE-NODE-PORT-TCP"]
    assert (nowhere.required, nowhere.allowed) == ({}, {})
    unknown = sets(service(), own=())["KUBE-NODE-PORT-TCP"]
    assert (unknown.required, set(unknown.allowed)) == ({}, {"30080"})


def test_only_local_endpoints_loop_back() -> None:
    item = EndpointSlice(
        namespace="demo",
        name="web-1",
        service="web",
        family="IPv4",
        ports=(SlicePort(name="", protocol="TCP", port=8080),),
        endpoints=(
            Endpoint(addresses=("10.244.1.2",), node_name="node-1"),
            Endpoint(addresses=("10.244.1.3",), node_name="node-1", ready=False),
            Endpoint(addresses=("10.244.2.2",), node_name="node-2"),
        ),
    )
    found = sets(service(), slices=(item,))["KUBE-LOOP-BACK"]
    assert set(found.required) == {"10.244.1.2,tcp:8080,10.244.1.2"}
    assert set(found.allowed) == {"10.244.1.3,tcp:8080,10.244.1.3"}


def test_ipv6_has_sets_of_its_own() -> None:
    found = sets(service(), family="IPv6")
    assert found["KUBE-6-CLUSTER-IP"].required == {"fd96::1,tcp:80": "demo/web"}
    assert len({name for name in found if name.startswith("KUBE-6-")}) == len(KINDS)


def test_addresses_of_another_interface_may_be_left_out() -> None:
    told = service(external_ips=("192.0.2.1", "203.0.113.5"))
    rules = ProxyRules(version="v1.36.2", config={})
    found = virtual_addresses([told], OWN, rules, "IPv4")
    assert set(found.required) == {"10.96.0.1", "203.0.113.5"}
    assert set(found.allowed) == {"192.0.2.1"}
    headless = Service(namespace="demo", name="none", headless=True)
    assert virtual_addresses([headless], OWN, rules, "IPv4").required == {}


def test_the_families_in_use() -> None:
    rules = ProxyRules(version="v1.36.2", config={})
    assert used_families([service()], rules, NODE) == ("IPv4", "IPv6")
    assert used_families([service(cluster_ips=("10.96.0.1",))], rules, NODE) == ("IPv4",)
    assert used_families([service()], ProxyRules(version="v1.20.2", config={}), NODE) == ("IPv4",)


def test_source_ranges_of_the_api() -> None:
    told = Service.from_api(
        {
            "metadata": {"namespace": "demo", "name": "lb"},
            "spec": {"loadBalancerSourceRanges": [" 10.0.0.0/8", "192.0.2.0/24"]},
        }
    )
    assert told.load_balancer_source_ranges == ("10.0.0.0/8", "192.0.2.0/24")
