"""Reading the API's objects, and one sentence for each that is malformed."""

from __future__ import annotations

from typing import Any

import pytest
from ipvs_recorded import VERSIONS, nodes, services, slices

from pytest_ipvs.ipvs.objects import (
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    SlicePort,
    endpoint_slices_from_endpoints,
)


def service(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "demo", "name": "web", "uid": "u"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}], **spec},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_objects_are_read(version: str) -> None:
    found = {item.ref: item for item in services(version)}
    assert found["demo/web"].cluster_ips == ("10.96.10.1",)
    assert found["demo/web-affinity"].affinity_timeout == 10800
    assert found["demo/web-local"].external_traffic_policy == "Local"
    assert any(item.headless for item in found.values())
    web = [item for item in slices(version) if item.service == "web"]
    assert [len(item.endpoints) for item in web] == [3]
    assert {endpoint.node_name for endpoint in web[0].endpoints} == {"node-1", "node-2", "node-3"}
    assert all(endpoint.target and endpoint.ready for endpoint in web[0].endpoints)
    node = nodes(version)["node-1"]
    assert node.internal_ips == ("192.168.50.11",)
    assert node.ready
    assert node.kubelet_version == f"v{version}"


def test_defaults_of_a_service() -> None:
    read = Service.from_api(service())
    assert read.cluster_ips == ("10.96.0.1",)
    assert read.ports == (ServicePort(name="", protocol="TCP", port=80),)
    assert read.affinity_timeout is None
    assert (read.internal_traffic_policy, read.external_traffic_policy) == ("Cluster", "Cluster")


def test_affinity_without_a_timeout_has_the_default_of_three_hours() -> None:
    assert Service.from_api(service(sessionAffinity="ClientIP")).affinity_timeout == 10800


def test_load_balancer_addresses_in_proxy_mode_are_left_out() -> None:
    item = service(type="LoadBalancer")
    item["status"] = {
        "loadBalancer": {
            "ingress": [
                {"ip": "192.0.2.1", "ipMode": "VIP"},
                {"ip": "192.0.2.2", "ipMode": "Proxy"},
                {"ip": "192.0.2.3"},
                {"hostname": "lb.example"},
            ]
        }
    }
    assert Service.from_api(item).load_balancer_ips == ("192.0.2.1", "192.0.2.3")


def test_annotations_that_ask_for_zone_hints() -> None:
    item = service()
    assert Service.from_api(item).topology_hints is None
    item["metadata"]["annotations"] = {
        "service.kubernetes.io/topology-aware-hints": "auto",
        "service.kubernetes.io/topology-mode": "Auto",
    }
    read = Service.from_api(item)
    assert (read.topology_hints, read.topology_mode) == ("auto", "Auto")


def test_addresses_are_spelt_in_one_way() -> None:
    read = Service.from_api(
        service(clusterIPs=["10.96.0.1", "FD00:0::00A"], externalIPs=["010.001.0.9"])
    )
    assert read.cluster_ips == ("10.96.0.1", "fd00::a")
    assert read.external_ips == ("10.1.0.9",)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port is '80', expected an integer from 1"),
        ({"ports": [{}]}, "spec.ports[0].port is None, expected an integer"),
        ({"ports": {"port": 80}}, "spec.ports is {'port': 80}, expected a list"),
        ({"ports": ["http"]}, "spec.ports[0] is 'http', expected a mapping"),
        ({"ports": [{"port": 80, "targetPort": 1.5}]}, "spec.ports[0].targetPort is 1.5"),
        ({"externalIPs": ["10.0.0"]}, "spec.externalIPs[0] is '10.0.0', expected an IP address"),
        ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity is 'Cookie', expected None or"),
        ({"externalTrafficPolicy": "Near"}, "spec.externalTrafficPolicy is 'Near', expected"),
        ({"publishNotReadyAddresses": "yes"}, "spec.publishNotReadyAddresses is 'yes'"),
    ],
)
def test_malformed_service_is_one_sentence(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        Service.from_api(service(**spec))
    assert str(caught.value).startswith("Service demo/web: ")
    assert sentence in str(caught.value)


def test_nameless_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Service \(no name\): metadata.name is None"):
        Service.from_api({"metadata": {}})
    with pytest.raises(ValueError, match="Node: the object is 3"):
        Node.from_api(3)  # type: ignore[arg-type]


def slice_of(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "demo",
            "name": "web-abc",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"]}],
        "ports": [{"port": 8080, "name": "http"}],
        **more,
    }


def test_conditions_of_an_endpoint_default_to_ready() -> None:
    (endpoint,) = EndpointSlice.from_api(slice_of()).endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (True, True, False)


def test_both_spellings_of_node_and_zone() -> None:
    new = slice_of(
        endpoints=[
            {
                "addresses": ["10.244.1.2"],
                "nodeName": "node-1",
                "zone": "z1",
                "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "node-1"}]},
            }
        ]
    )
    old = slice_of(
        endpoints=[
            {
                "addresses": ["10.244.1.2"],
                "topology": {
                    "kubernetes.io/hostname": "node-1",
                    "topology.kubernetes.io/zone": "z1",
                },
            }
        ]
    )
    (first,), (second,) = (EndpointSlice.from_api(item).endpoints for item in (new, old))
    assert (first.node_name, first.zone) == (second.node_name, second.zone) == ("node-1", "z1")
    assert first.zone_hints == ("z1",)
    assert first.node_hints == ("node-1",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"addressType": "IPX"}, "addressType is 'IPX', expected IPv4, IPv6 or FQDN"),
        ({"endpoints": [{"addresses": []}]}, "endpoints[0].addresses is [], expected at least"),
        ({"endpoints": [{"addresses": ["fd00::1"]}]}, "is 'fd00::1', expected an IPv4 address"),
        (
            {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": 1}}]},
            "endpoints[0].conditions.ready is 1, expected true or false",
        ),
    ],
)
def test_malformed_slice_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        EndpointSlice.from_api(slice_of(**change))
    assert str(caught.value).startswith("EndpointSlice demo/web-abc: ")
    assert sentence in str(caught.value)


def test_endpoints_of_old_servers_become_slices() -> None:
    first, second = endpoint_slices_from_endpoints(
        {
            "metadata": {"namespace": "demo", "name": "web"},
            "subsets": [
                {
                    "addresses": [{"ip": "10.244.1.2", "nodeName": "node-1"}, {"ip": "fd00::1"}],
                    "notReadyAddresses": [{"ip": "10.244.1.3"}],
                    "ports": [{"name": "http", "port": 8080}],
                }
            ],
        }
    )
    assert (first.family, second.family) == ("IPv4", "IPv6")
    assert first.service == "web"
    assert first.ports == (SlicePort(name="http", protocol="TCP", port=8080),)
    assert [(e.addresses[0], e.ready) for e in first.endpoints] == [
        ("10.244.1.2", True),
        ("10.244.1.3", False),
    ]
