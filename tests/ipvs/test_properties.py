"""What holds for any cluster: the expected table against an actual one, and readers on anything."""

from __future__ import annotations

import random as randoms
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ipvs_render import as_table, render

from pytest_ipvs.ipvs.compare import Difference, compare
from pytest_ipvs.ipvs.expected import ExpectedTable, expected_table
from pytest_ipvs.ipvs.kernel import KernelRelease
from pytest_ipvs.ipvs.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    SlicePort,
    endpoint_slices_from_endpoints,
)
from pytest_ipvs.ipvs.proxy import ProxyRules, parse_duration, parse_version
from pytest_ipvs.ipvs.tables import RealServer, Table, VirtualServer, parse_table

NODE = Node(name="node-1", internal_ips=("192.0.2.1",), zone="z1")
ADDRESSES = (("lo", "127.0.0.1"), ("eth0", "192.0.2.1"), ("docker0", "172.17.0.1"))
VERSIONS = ("v1.20.2", "v1.23.1", "v1.25.0", "v1.35.0", "v1.36.2")
FEW = settings(max_examples=25)
_FLAG = st.booleans()
_POLICY = st.sampled_from(["Cluster", "Local"])
_ENDPOINT = st.builds(
    Endpoint,
    addresses=st.integers(1, 4).map(lambda n: (f"10.244.1.{n}",)),
    node_name=st.sampled_from([None, "node-1", "node-2"]),
    ready=_FLAG,
    serving=_FLAG,
    terminating=_FLAG,
    zone_hints=st.sampled_from([(), ("z1",), ("z2",)]),
    node_hints=st.sampled_from([(), ("node-1",)]),
)
Objects = tuple[list[Service], list[EndpointSlice], str]


@st.composite
def clusters(draw: st.DrawFn) -> Objects:
    """Up to three Services with up to two slices each, and kube-proxy's version."""
    services, slices = [], []
    for number in range(draw(st.integers(1, 3))):
        name, protocol = f"svc-{number}", draw(st.sampled_from(["TCP", "UDP", "SCTP"]))
        node_port = draw(st.sampled_from([None, 30080 + number]))
        services.append(
            Service(
                namespace="demo",
                name=name,
                cluster_ips=(f"10.96.0.{number + 1}",),
                external_ips=draw(st.sampled_from([(), (f"198.51.100.{number + 1}",)])),
                ports=(ServicePort(name="", protocol=protocol, port=80, node_port=node_port),),
                affinity_timeout=draw(st.sampled_from([None, 10800])),
                internal_traffic_policy=draw(_POLICY),
                external_traffic_policy=draw(_POLICY),
            )
        )
        slices += [
            EndpointSlice(
                namespace="demo",
                name=f"{name}-{part}",
                service=name,
                family="IPv4",
                ports=(SlicePort(name="", protocol=protocol, port=8080),),
                endpoints=tuple(draw(st.lists(_ENDPOINT, max_size=3))),
            )
            for part in range(draw(st.integers(0, 2)))
        ]
    return services, slices, draw(st.sampled_from(VERSIONS))


def expect(cluster: Objects) -> ExpectedTable:
    services, slices, version = cluster
    return expected_table(
        services=services,
        slices=slices,
        node=NODE,
        addresses=ADDRESSES,
        rules=ProxyRules(version=version, config={}),
    )


@FEW
@given(clusters())
def test_the_expected_table_has_no_difference_to_itself(cluster: Objects) -> None:
    expected = expect(cluster)
    assert compare(expected, parse_table(render(as_table(expected)))) == ()


@FEW
@given(clusters(), st.randoms(use_true_random=False))
def test_no_order_matters(cluster: Objects, random: randoms.Random) -> None:
    services, slices, version = cluster

    def mixed(items: Any) -> list[Any]:
        return random.sample(list(items), len(items))

    again = (
        mixed(services),
        mixed([replace(one, endpoints=tuple(mixed(one.endpoints))) for one in slices]),
        version,
    )
    expected, other = expect(cluster), expect(again)
    assert other.virtual_servers == expected.virtual_servers
    assert other.node_ports == expected.node_ports
    wrong = as_table(expected)
    wrong = wrong._replace(
        virtual_servers=tuple(v._replace(scheduler="wlc") for v in wrong.virtual_servers[1:])
    )
    shuffled = tuple(
        v._replace(real_servers=tuple(mixed(v.real_servers))) for v in mixed(wrong.virtual_servers)
    )
    assert compare(other, wrong._replace(virtual_servers=shuffled)) == compare(expected, wrong)


def changed(table: Table, virtual: VirtualServer, servers: tuple[RealServer, ...]) -> Table:
    return table._replace(
        virtual_servers=tuple(
            one._replace(real_servers=servers) if one is virtual else one
            for one in table.virtual_servers
        )
    )


def told(found: tuple[Difference, ...]) -> list[tuple[str, Any, str | None]]:
    return [(one.kind, one.key, one.real_server) for one in found]


@FEW
@given(clusters(), st.data())
def test_one_real_server_more_or_less_is_exactly_that(
    cluster: Objects, data: st.DataObject
) -> None:
    expected = expect(cluster)
    table = as_table(expected)
    virtual = data.draw(st.sampled_from(table.virtual_servers))
    should = expected.virtual_servers[virtual.key]
    for weight, kind in ((1, "stale"), (0, "draining")):
        if weight == 0 and virtual.protocol != "TCP":
            kind = "datagram-at-zero"
        more = (*virtual.real_servers, RealServer.at("10.244.9.9", 8080, "Masq", weight, 0, 0))
        found = told(compare(expected, changed(table, virtual, more)))
        # Where several sets are right, one with a stranger tells nothing of which is meant.
        assert (kind, virtual.key, "10.244.9.9:8080") in found
        assert len(found) == 1 or should.alternatives
    if should.alternatives or not virtual.real_servers:
        return
    gone = data.draw(st.sampled_from(virtual.real_servers))
    rest = tuple(one for one in virtual.real_servers if one is not gone)
    place: str | None = f"{gone.address}:{gone.port}"
    kind = "missing" if should.endpoints is None else "missing-local"
    if not rest and should.endpoints is None:
        kind, place = "no-real-server", None
    assert told(compare(expected, changed(table, virtual, rest))) == [(kind, virtual.key, place)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "TCP", "None", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=3,
)
_PATHS = (
    *("metadata", "metadata.labels", "metadata.name", "spec", "spec.ports", "spec.clusterIPs"),
    *("spec.sessionAffinity", "spec.sessionAffinityConfig", "status", "status.loadBalancer"),
    *("status.addresses", "status.nodeInfo", "status.conditions", "spec.podCIDRs", "spec.taints"),
    *("addressType", "ports", "endpoints", "subsets", "spec.externalIPs", "spec.topologyKeys"),
)


@FEW
@given(
    st.dictionaries(
        st.sampled_from(_PATHS),
        _JSON
        | st.lists(
            st.dictionaries(
                st.sampled_from(
                    [
                        "port",
                        "name",
                        "protocol",
                        "addresses",
                        "conditions",
                        "hints",
                        "ip",
                        "type",
                        "address",
                        "ports",
                        "nodePort",
                        "targetRef",
                        "notReadyAddresses",
                    ]
                ),
                _JSON,
                max_size=3,
            ),
            max_size=2,
        ),
        max_size=4,
    )
)
def test_any_object_is_read_or_a_value_error(values: dict[str, Any]) -> None:
    item: dict[str, Any] = {"metadata": {"namespace": "demo", "name": "web"}, "addressType": "IPv4"}
    for path, value in sorted(values.items()):
        first, _, second = path.partition(".")
        if not second:
            item[first] = value
        elif isinstance(item.setdefault(first, {}), dict):
            item[first][second] = value
    for read in (
        Service.from_api,
        EndpointSlice.from_api,
        Node.from_api,
        endpoint_slices_from_endpoints,
    ):
        try:
            read(item)
        except ValueError:
            pass


@FEW
@given(st.binary(max_size=30))
def test_any_version_duration_or_release_is_read_or_a_value_error(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    parse_duration(text)
    for read in (parse_version, lambda given: KernelRelease.parse(given, given)):
        try:
            read(text)
        except ValueError:
            pass
