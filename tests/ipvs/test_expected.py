"""The expected table: against recorded clusters, and every legitimate difference.

The numbers in the names of tests are those of the list of legitimate reasons why a node's table
differs from the endpoint slices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ipvs_oracle
import pytest
from ipvs_recorded import HZ, VERSIONS, addresses, nodes, services, slices, state
from ipvs_render import table_of

from pytest_ipvs.ipvs._places import read_place
from pytest_ipvs.ipvs.compare import compare
from pytest_ipvs.ipvs.expected import ExpectedTable, expected_table
from pytest_ipvs.ipvs.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    SlicePort,
)
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, Table, VirtualServer

VIP = ServiceKey("TCP", "10.96.0.10", 80)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_recorded_cluster_has_no_difference(version: str, node: str) -> None:
    text = state(version)[f"{node}.ipvs"]
    saved = ipvs_oracle.parse_saved(text.partition("IP Virtual Server")[0])
    # The recorder made two Services in a namespace of its own between the tables and the lists.
    expected = expected_table(
        services=[item for item in services(version) if item.namespace != "rec"],
        slices=slices(version),
        node=nodes(version)[node],
        addresses=addresses(version, node),
        rules=ProxyRules(version=f"v{version}", config={}),
    )
    assert len(expected.virtual_servers) == len(saved) > 20
    assert compare(expected, table_of(saved, HZ)) == ()


def endpoint(address: str, node: str | None = "node-1", **more: Any) -> Endpoint:
    return Endpoint(addresses=(address,), node_name=node, **more)


def slice_of(
    *endpoints: Endpoint, port: int | None = 8080, family: str = "IPv4", **more: Any
) -> EndpointSlice:
    values: dict[str, Any] = {
        "namespace": "demo",
        "name": "web-1",
        "service": "web",
        "family": family,
        "ports": (SlicePort(name="", protocol="TCP", port=port),),
        "endpoints": endpoints,
        **more,
    }
    return EndpointSlice(**values)


def service(**more: Any) -> Service:
    values: dict[str, Any] = {
        "namespace": "demo",
        "name": "web",
        "cluster_ips": ("10.96.0.10",),
        "ports": (ServicePort(name="", protocol="TCP", port=80),),
        **more,
    }
    return Service(**values)


NODE_PORT = (ServicePort(name="", protocol="TCP", port=80, node_port=30080),)
NODE = Node(name="node-1", internal_ips=("192.0.2.1",), zone="z1")
ADDRESSES = (("lo", "127.0.0.1"), ("eth0", "192.0.2.1"), ("kube-ipvs0", "10.96.0.10"))


def expect(
    *items: Service | EndpointSlice,
    version: str = "v1.36.2",
    config: dict[str, Any] | None = None,
    node: Node = NODE,
    addresses: tuple[tuple[str, str], ...] = ADDRESSES,
) -> ExpectedTable:
    return expected_table(
        services=[item for item in items if isinstance(item, Service)],
        slices=[item for item in items if isinstance(item, EndpointSlice)],
        node=node,
        addresses=addresses,
        rules=ProxyRules(version=version, config=config or {}),
    )


def real(expected: ExpectedTable, key: ServiceKey = VIP) -> set[str]:
    return {address for address, _ in expected.virtual_servers[key].real_servers}


def keys(expected: ExpectedTable) -> set[str]:
    return {str(key) for key in expected.virtual_servers}


TERMINATING = {"ready": False, "serving": True, "terminating": True}
LIVE, OTHER = endpoint("10.244.1.2"), endpoint("10.244.2.2", "node-2")
LEAVING = endpoint("10.244.1.9", **TERMINATING)


def test_01_a_terminating_endpoint_is_not_wanted_while_another_is_ready() -> None:
    assert real(expect(service(), slice_of(LIVE, LEAVING))) == {"10.244.1.2"}


@pytest.mark.parametrize(
    ("version", "found"), [("v1.25.0", set()), ("v1.26.0", {"10.244.1.9"}), ("v1.20.2", set())]
)
def test_02_serving_terminating_endpoints_stand_in(version: str, found: set[str]) -> None:
    assert real(expect(service(), slice_of(LEAVING), version=version)) == found


def test_02_terminating_endpoints_that_do_not_serve_never_stand_in() -> None:
    dead = endpoint("10.244.1.9", ready=False, serving=False, terminating=True)
    assert real(expect(service(), slice_of(dead))) == set()


def test_03_endpoints_that_are_not_ready_are_left_out() -> None:
    starting = endpoint("10.244.1.8", ready=False, serving=False)
    assert real(expect(service(), slice_of(LIVE, starting))) == {"10.244.1.2"}


def test_04_traffic_policies_differ_by_virtual_server_of_one_service() -> None:
    told = expect(
        service(
            type="LoadBalancer",
            ports=NODE_PORT,
            external_ips=("198.51.100.7",),
            load_balancer_ips=("198.51.100.8",),
            external_traffic_policy="Local",
        ),
        slice_of(LIVE, OTHER),
    )
    assert real(told) == {"10.244.1.2", "10.244.2.2"}
    for address, port in (("198.51.100.7", 80), ("198.51.100.8", 80), ("192.0.2.1", 30080)):
        assert real(told, ServiceKey("TCP", address, port)) == {"10.244.1.2"}


def test_04_internal_traffic_policy_is_for_the_cluster_address() -> None:
    told = expect(
        service(internal_traffic_policy="Local", external_ips=("198.51.100.7",)),
        slice_of(LIVE, OTHER),
    )
    assert real(told) == {"10.244.1.2"}
    assert real(told, ServiceKey("TCP", "198.51.100.7", 80)) == {"10.244.1.2", "10.244.2.2"}


def test_04_old_versions_do_not_know_the_internal_traffic_policy() -> None:
    told = expect(
        service(internal_traffic_policy="Local"), slice_of(LIVE, OTHER), version="v1.20.2"
    )
    assert real(told) == {"10.244.1.2", "10.244.2.2"}


@pytest.mark.parametrize(
    ("version", "choices"),
    [
        ("v1.23.1", [set()]),
        ("v1.25.0", [{"10.244.2.2"}, set()]),
        ("v1.27.1", [{"10.244.2.2"}]),
    ],
)
def test_05_an_empty_local_set_falls_back(version: str, choices: list[set[str]]) -> None:
    told = expect(
        service(ports=NODE_PORT, external_traffic_policy="Local"), slice_of(OTHER), version=version
    )
    found = told.virtual_servers[ServiceKey("TCP", "192.0.2.1", 30080)]
    sets = [found.wanted, *found.alternatives]
    assert [{read_place(place)[0] for place in one} for one in sets] == choices


def test_05_who_is_not_reachable_from_outside_has_nothing_to_fall_back_to() -> None:
    told = expect(service(internal_traffic_policy="Local"), slice_of(OTHER))
    assert real(told) == set()
    reachable = expect(
        service(internal_traffic_policy="Local", external_ips=("198.51.100.7",)), slice_of(OTHER)
    )
    assert real(reachable) == {"10.244.2.2"}


def test_05_local_terminating_endpoints_come_before_the_cluster_set() -> None:
    told = expect(
        service(ports=NODE_PORT, external_traffic_policy="Local"), slice_of(LEAVING, OTHER)
    )
    assert real(told, ServiceKey("TCP", "192.0.2.1", 30080)) == {"10.244.1.9"}


def test_06_zone_hints_narrow_if_every_ready_endpoint_has_them() -> None:
    near = replace(LIVE, zone_hints=("z1",))
    far = replace(OTHER, zone_hints=("z2",))
    assert real(expect(service(), slice_of(near, far))) == {"10.244.1.2"}
    assert len(real(expect(service(), slice_of(near, OTHER)))) == 2
    elsewhere = replace(NODE, zone="z3")
    assert len(real(expect(service(), slice_of(near, far), node=elsewhere))) == 2
    assert len(real(expect(service(), slice_of(near, far), version="v1.20.2"))) == 2


def test_06_zone_hints_that_may_count_leave_both_sets_right() -> None:
    near = replace(LIVE, zone_hints=("z1",))
    far = replace(OTHER, zone_hints=("z2",))
    told = expect(
        service(topology_hints="Auto", external_ips=("198.51.100.7",)),
        slice_of(near, far),
        version="v1.21.3",
        config={"featureGates": {"TopologyAwareHints": True}},
    )
    here, both = ["10.244.1.2"], ["10.244.1.2", "10.244.2.2"]
    outer = ServiceKey("TCP", "198.51.100.7", 80)
    for right in (here, both):
        assert compare(told, table({VIP: right, outer: right})) == ()
    assert compare(told, table({VIP: ["10.244.2.2"], outer: both})) != ()


def test_06_node_hints_come_before_zone_hints() -> None:
    near = replace(LIVE, zone_hints=("z1",), node_hints=("node-1",))
    far = replace(OTHER, zone_hints=("z1",), node_hints=("node-2",))
    assert real(expect(service(), slice_of(near, far))) == {"10.244.1.2"}
    assert len(real(expect(service(), slice_of(near, far), version="v1.33.0"))) == 2


def test_06_topology_keys_of_old_versions_are_not_judged() -> None:
    keyed = service(topology_keys=("kubernetes.io/hostname",))
    told = expect(keyed, slice_of(LIVE, OTHER), version="v1.20.2")
    assert not told.virtual_servers[VIP].judged
    assert compare(told, table({VIP: ["10.244.1.2"]})) == ()
    assert expect(keyed, slice_of(LIVE), version="v1.22.0").virtual_servers[VIP].judged


def test_07_each_family_is_programmed_apart() -> None:
    both = service(cluster_ips=("10.96.0.10", "fd96::10"))
    six = slice_of(endpoint("fd44::2"), family="IPv6", name="web-2")
    told = expect(both, slice_of(LIVE), six)
    assert real(told) == {"10.244.1.2"}
    assert real(told, ServiceKey("TCP", "fd96::10", 80)) == {"fd44::2"}
    assert keys(expect(both, six, version="v1.20.2")) == {"10.96.0.10:80/TCP"}


@pytest.mark.parametrize(
    "change",
    [
        {"proxy_name": "other"},
        {"proxy_name": ""},
        {"headless": True},
        {"external_name": True},
        {"cluster_ips": ()},
    ],
)
def test_08_services_that_others_answer_for_are_left_out(change: dict[str, Any]) -> None:
    assert keys(expect(service(**change), slice_of(LIVE))) == set()


@pytest.mark.parametrize("change", [{"proxy_name": "other"}, {"headless": True}])
def test_08_slices_that_others_answer_for_are_left_out(change: dict[str, Any]) -> None:
    assert real(expect(service(), slice_of(LIVE, **change))) == set()


def test_09_load_balancers_in_proxy_mode_have_no_virtual_server() -> None:
    item = {
        "metadata": {"namespace": "demo", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}], "type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8", "ipMode": "Proxy"}]}},
    }
    assert keys(expect(Service.from_api(item), slice_of(LIVE))) == {"10.96.0.10:80/TCP"}


def test_10_external_addresses_can_be_switched_off() -> None:
    told = service(external_ips=("198.51.100.7",))
    assert len(keys(expect(told, slice_of(LIVE)))) == 2
    off = {"featureGates": {"AllowServiceExternalIPs": False}}
    assert len(keys(expect(told, slice_of(LIVE), config=off))) == 1


MANY = (
    *ADDRESSES,
    ("docker0", "172.17.0.1/16"),
    ("cni0", "10.244.1.1"),
    ("eth0", "fe80::1%eth0"),
    ("eth0", "2001:db8::1"),
)


def node_port_addresses(expected: ExpectedTable) -> set[str]:
    return {key.address for key in expected.virtual_servers if key.port == 30080}


def test_11_every_address_of_the_node_has_the_node_port() -> None:
    told = expect(service(ports=NODE_PORT), slice_of(LIVE), addresses=MANY)
    assert node_port_addresses(told) == {"192.0.2.1", "172.17.0.1", "10.244.1.1"}


def test_11_node_port_addresses_select() -> None:
    for listed, found in (
        (["192.0.2.0/24", "172.17.0.0/16"], {"192.0.2.1", "172.17.0.1"}),
        (["primary"], {"192.0.2.1"}),
    ):
        told = expect(
            service(ports=NODE_PORT),
            slice_of(LIVE),
            addresses=MANY,
            config={"nodePortAddresses": listed},
        )
        assert node_port_addresses(told) == found


def test_11_ipv6_link_local_addresses_have_no_node_port() -> None:
    six = service(ports=NODE_PORT, cluster_ips=("fd96::10",))
    assert node_port_addresses(expect(six, addresses=MANY)) == {"2001:db8::1"}


@pytest.mark.parametrize(
    ("version", "must", "may"), [("v1.21.1", 2, 2), ("v1.22.0", 1, 2), ("v1.23.1", 1, 1)]
)
def test_11_loopback_has_the_node_port_until_1_21(version: str, must: int, may: int) -> None:
    told = expect(service(ports=NODE_PORT), slice_of(LIVE), version=version)
    found = [told.virtual_servers[key] for key in told.virtual_servers if key.port == 30080]
    assert len(found) == may
    assert sum(not one.optional for one in found) == must


def test_11_without_the_addresses_node_ports_are_not_judged() -> None:
    told = expect(service(ports=NODE_PORT), slice_of(LIVE), addresses=())
    assert not told.addresses_known
    here = {VIP: ["10.244.1.2"], ServiceKey("TCP", "192.0.2.9", 30080): ["10.244.1.2"]}
    assert compare(told, table(here)) == ()


def table(servers: dict[ServiceKey, list[str]], port: int = 8080) -> Table:
    return Table(
        version="1.2.1",
        size=4096,
        virtual_servers=tuple(
            VirtualServer(
                *key,
                None,
                "rr",
                (),
                None,
                None,
                tuple(RealServer.at(address, port, "Masq", 1, 0, 0) for address in real),
            )
            for key, real in servers.items()
        ),
    )


def kinds(expected: ExpectedTable, observed: Table, **more: Any) -> list[str]:
    return [item.kind for item in compare(expected, observed, **more)]


@pytest.mark.parametrize(
    ("config", "foreign"),
    [
        ({"ipvs": {"excludeCIDRs": ["203.0.113.0/24"]}}, ()),
        ({}, ("203.0.113.0/24",)),
        ({}, ("203.0.113.5",)),
        ({}, ("203.0.113.5:443/TCP",)),
        ({}, ("203.0.113.*",)),
    ],
)
def test_12_virtual_servers_of_others_are_foreign(
    config: dict[str, Any], foreign: tuple[str, ...]
) -> None:
    told = expect(service(), slice_of(LIVE), config=config)
    observed = table({VIP: ["10.244.1.2"], ServiceKey("TCP", "203.0.113.5", 443): []})
    assert kinds(told, observed, foreign=foreign) == ["foreign"]


def test_13_the_probe_of_kube_proxy_is_foreign() -> None:
    told = expect(service(), slice_of(LIVE))
    observed = table({VIP: ["10.244.1.2"], ServiceKey("TCP", "198.51.100.0", 20000): []})
    assert kinds(told, observed) == ["foreign"]


def test_14_a_service_without_endpoints_has_an_empty_virtual_server() -> None:
    assert kinds(expect(service()), table({VIP: []})) == []


def test_15_addresses_published_before_ready_are_ready_in_their_slice() -> None:
    told = expect(service(publish_not_ready=True), slice_of(LIVE))
    assert real(told) == {"10.244.1.2"}


def test_16_endpoints_without_a_node_are_never_local() -> None:
    by_hand = endpoint("192.0.2.200", None)
    told = expect(
        service(ports=NODE_PORT, external_traffic_policy="Local"), slice_of(by_hand, LIVE)
    )
    assert real(told, ServiceKey("TCP", "192.0.2.1", 30080)) == {"10.244.1.2"}


def test_17_mirrored_slices_count_as_any() -> None:
    mirrored = slice_of(endpoint("192.0.2.200", None), name="web-mirrored")
    assert real(expect(service(), mirrored)) == {"192.0.2.200"}


def test_18_several_slices_and_duplicates_are_one_set() -> None:
    told = expect(
        service(),
        slice_of(LIVE, replace(OTHER, **TERMINATING)),
        slice_of(OTHER, LIVE, name="web-2"),
    )
    assert real(told) == {"10.244.1.2", "10.244.2.2"}


def test_19_one_endpoint_behind_two_services() -> None:
    second = service(name="api", cluster_ips=("10.96.0.11",))
    told = expect(service(), second, slice_of(LIVE), slice_of(LIVE, service="api"))
    assert real(told) == real(told, ServiceKey("TCP", "10.96.0.11", 80)) == {"10.244.1.2"}


def test_19_two_services_that_claim_one_address_and_port() -> None:
    first = service(external_ips=("198.51.100.7",))
    second = service(name="api", cluster_ips=("10.96.0.11",), external_ips=("198.51.100.7",))
    told = expect(first, second, slice_of(LIVE), slice_of(OTHER, service="api"))
    both = {VIP: ["10.244.1.2"], ServiceKey("TCP", "10.96.0.11", 80): ["10.244.2.2"]}
    shared = ServiceKey("TCP", "198.51.100.7", 80)
    for found in (["10.244.1.2"], ["10.244.2.2"], ["10.244.1.2", "10.244.2.2"]):
        assert kinds(told, table({**both, shared: found})) == []
    assert kinds(told, table({**both, shared: ["10.244.3.3"]})) == ["stale"]


def test_22_a_kube_proxy_of_another_version_follows_its_own_rules() -> None:
    local = service(ports=NODE_PORT, external_traffic_policy="Local")
    key = ServiceKey("TCP", "192.0.2.1", 30080)
    new, old = (expect(local, slice_of(OTHER), version=v) for v in ("v1.36.2", "v1.23.1"))
    assert (real(new, key), real(old, key)) == ({"10.244.2.2"}, set())


def test_25_a_hostname_override_makes_endpoints_local_or_not() -> None:
    local = service(ports=NODE_PORT, external_traffic_policy="Local")
    told = expect(local, slice_of(LIVE, OTHER), config={"hostnameOverride": "Node-2"})
    assert real(told, ServiceKey("TCP", "192.0.2.1", 30080)) == {"10.244.2.2"}


def test_27_a_named_port_with_two_numbers() -> None:
    told = expect(service(), slice_of(LIVE), slice_of(OTHER, port=9090, name="web-2"))
    assert told.virtual_servers[VIP].real_servers == {("10.244.1.2", 8080), ("10.244.2.2", 9090)}


def test_28_ports_are_matched_by_name_and_protocol() -> None:
    ports = tuple(
        ServicePort(name=f"dns-{protocol}", protocol=protocol, port=53)
        for protocol in ("TCP", "UDP", "SCTP")
    )
    dns = slice_of(
        LIVE,
        ports=(
            SlicePort(name="dns-UDP", protocol="UDP", port=5353),
            SlicePort(name="dns-TCP", protocol="TCP", port=None),
            SlicePort(name="dns-SCTP", protocol="TCP", port=5353),
        ),
    )
    told = expect(service(ports=ports), dns)
    found = {key.protocol: told.virtual_servers[key].real_servers for key in told.virtual_servers}
    assert found == {"TCP": frozenset(), "UDP": {("10.244.1.2", 5353)}, "SCTP": frozenset()}


def test_affinity_and_scheduler_are_expected() -> None:
    told = expect(
        service(affinity_timeout=600), slice_of(LIVE), config={"ipvs": {"scheduler": "mh"}}
    )
    found = told.virtual_servers[VIP]
    assert (found.scheduler, found.persistence_seconds, found.service) == ("mh", 600, "demo/web")
