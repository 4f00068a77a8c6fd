"""From "namespace/deployment" to the address that traffic goes to."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_ipvs.ipvs.objects import EndpointSlice
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, parse_table
from pytest_ipvs.rollout import tables
from pytest_ipvs.rollout.disrupt import wait_complete
from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.target import find_target, selector_text


class NotFoundError(Exception):
    """The API's 404."""

    status = 404


class Api:
    """A namespace with one Deployment and some Services."""

    def __init__(self, *services: dict[str, Any], slices: str = "endpointslices") -> None:
        self.services = list(services)
        self.group = "/apis/discovery.k8s.io/v1" if slices == "endpointslices" else "/api/v1"
        self.kind = slices
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def get(self, path: str) -> dict[str, Any]:
        """The Deployment."""
        if path != "/apis/apps/v1/namespaces/shop/deployments/web":
            raise NotFoundError
        template = {"metadata": {"labels": {"app": "web", "tier": "front"}}}
        return {"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}}

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Services, and remembers what was asked."""
        self.asked.append((path, query))
        return iter(self.services if path.endswith("/services") else [{}])

    def endpoint_slices_path(self) -> str:
        """Where slices are."""
        return f"{self.group}/{self.kind}"

    def slices_of(self, item: Any) -> tuple[EndpointSlice, ...]:
        """One slice of the Service, one of another."""
        return tuple(
            EndpointSlice(
                namespace="shop", name=n, service=n, family="IPv4", ports=(), endpoints=()
            )
            for n in ("web", "other")
        )


def service(name: str = "web", **change: Any) -> dict[str, Any]:
    """A Service of the API."""
    spec = {
        "type": "NodePort",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10"],
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
        **change,
    }
    return {"metadata": {"namespace": "shop", "name": name}, "spec": spec}


MANY_PORTS = [
    {"name": "http", "port": 80, "protocol": "TCP"},
    {"name": "metrics", "port": 9090, "protocol": "TCP"},
    {"name": "dns", "port": 53, "protocol": "UDP"},
]


def test_the_service_is_found_by_its_selector() -> None:
    api = Api(service("other", selector={"app": "db"}), service(), service("bare", selector={}))
    target = find_target(api, "shop/web")
    assert (str(target), target.service.name) == ("shop/web", "web")
    assert (target.address, target.address_port) == ("10.96.0.10", 80)
    assert target.selector == "app=web"


@pytest.mark.parametrize(
    ("via", "expected"),
    [
        ("node-port", ("10.0.2.101", 30080)),
        ("192.0.2.7:8443", ("192.0.2.7", 8443)),
        ("[2001:db8::7]:80", ("2001:db8::7", 80)),
    ],
)
def test_other_ways_to_the_service(via: str, expected: tuple[str, int]) -> None:
    target = find_target(Api(service()), "shop/web", via=via, node_address="10.0.2.101")
    assert (target.address, target.address_port) == expected


def test_the_way_through_a_load_balancer() -> None:
    item = service() | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    target = find_target(Api(item), "shop/web", via="load-balancer")
    assert (target.address, target.address_port, target.balancer) == ("192.0.2.7", 80, "192.0.2.7")


def test_a_table_without_the_load_balancers_address_is_waited_for() -> None:
    item = service() | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    target = find_target(Api(item), "shop/web")
    real = (RealServer.at("10.244.1.5", 8080, "Masq", 1, 0, 0),)
    own, outer = (
        ServiceKey(protocol="TCP", address=address, port=80)
        for address in ("10.96.0.10", "192.0.2.7")
    )
    assert tables._not_programmed({"node-1": {own: real}}, target) == "node-1"
    assert tables._not_programmed({"node-1": {own: real, outer: real}}, target) == ""


@pytest.mark.parametrize(("via", "waits"), [("192.0.2.7:8443", False), ("192.0.2.7:80", True)])
def test_only_a_port_of_the_services_own_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, via: str, waits: bool
) -> None:
    target = find_target(Api(service()), "shop/web", via=via)
    said: list[str] = []
    monkeypatch.setattr(tables, "read_tables", lambda *_: {"node-1": {}})
    programmed = tables.wait_programmed(
        SimpleNamespace(),  # type: ignore[arg-type]
        target,
        timeout=0.01,
        say=said.append,
        pause=lambda _: None,
    )
    told = ["shop/web: waiting for node-1 to program shop/web"] if waits else []
    assert (programmed, said[:1]) == (not waits, told)


@pytest.mark.parametrize("port", ["metrics", 9090])
def test_a_port_by_name_or_number(port: object) -> None:
    target = find_target(Api(service(ports=MANY_PORTS)), "shop/web", port=port)  # type: ignore[arg-type]
    assert target.address_port == 9090


@pytest.mark.parametrize(
    ("arguments", "services", "text"),
    [
        ({"target": "web"}, [service()], "the target is 'web', expected 'namespace/deployment'"),
        ({"target": "shop/db"}, [service()], "there is no Deployment 'shop/db' in the cluster"),
        ({}, [], "no Service with an address and a TCP port selects the pods of shop/web"),
        (
            {},
            [service(), service("web2")],
            "several Services select the pods of shop/web: web, web2",
        ),
        ({"service": "x"}, [service()], "there is no Service 'x' in namespace 'shop'"),
        ({"port": 81}, [service()], "has no TCP port 81, expected one of 80 (http)"),
        ({}, [service(ports=MANY_PORTS)], "has the TCP ports 80 (http), 9090 (metrics)"),
        (
            {"via": "moon"},
            [service()],
            "via is 'moon', expected cluster-ip, node-port, load-balancer",
        ),
        ({"via": "load-balancer"}, [service()], "no load balancer gave Service shop/web an"),
        ({"via": "node-port"}, [service()], "has no node port, expected another 'via'"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    arguments: dict[str, Any], services: list[dict[str, Any]], text: str
) -> None:
    with pytest.raises(RolloutError) as told:
        find_target(Api(*services), **{"target": "shop/web", **arguments})
    assert text in str(told.value)


def test_other_errors_of_the_api_are_not_hidden() -> None:
    class Broken(Api):
        def get(self, path: str) -> dict[str, Any]:
            raise PermissionError("forbidden")

    with pytest.raises(PermissionError):
        find_target(Broken(service()), "shop/web")


@pytest.mark.parametrize(
    ("kind", "path", "query"),
    [
        (
            "endpointslices",
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices",
            {"labelSelector": "kubernetes.io/service-name=web"},
        ),
        (
            "endpoints",
            "/api/v1/namespaces/shop/endpoints",
            {"fieldSelector": "metadata.name=web"},
        ),
    ],
)
def test_slices_of_the_service_only(kind: str, path: str, query: dict[str, str]) -> None:
    api = Api(service(), slices=kind)
    target = find_target(api, "shop/web")
    assert [part.name for part in target.slices(api)] == ["web"]
    assert api.asked[-1] == (path, query)


def test_real_servers_of_all_ways_to_the_service() -> None:
    table = parse_table(
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
        "TCP  0A60000A:0050 rr  \n"
        "  -> 0AF40105:1F90      Masq    1      0          3         \n"
        "TCP  0A000265:7580 rr  \n"
        "  -> 0AF40105:1F90      Masq    0      0          0         \n"
        "TCP  0A60000B:0050 rr  \n"
        "  -> 0AF40106:1F90      Masq    1      0          0         \n"
    )
    found = find_target(Api(service()), "shop/web").real_servers(table)
    assert set(found) == {
        ServiceKey("TCP", "10.96.0.10", 80),
        ServiceKey("TCP", "10.0.2.101", 30080),
    }


def test_selectors_with_expressions() -> None:
    selector = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "zone", "operator": "NotIn", "values": ["x"]},
            {"key": "new", "operator": "Exists"},
        ],
    }
    assert selector_text(selector) == "app=web,tier in (a,b),!old,zone notin (x),new"


def states() -> list[tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """Status, pods, and what still lacks."""

    def pods(*names: str, leaving: str = "") -> list[dict[str, Any]]:
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        return [
            {
                "metadata": {"name": n, "uid": n, "deletionTimestamp": n == leaving or None},
                "status": status,
            }
            for n in names
        ]

    done = {"observedGeneration": 2, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 2}
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    two = pods("a", "b")
    return [
        ({"observedGeneration": 1}, two, "the change is not seen by the controller yet"),
        (done | {"updatedReplicas": 1}, two, "1 of 2 updated"),
        (done | {"replicas": 3}, two, "1 old ones left"),
        (done | {"availableReplicas": 1}, two, "1 of 2 available"),
        (done | {"conditions": [stuck]}, two, "no progress (ProgressDeadlineExceeded)"),
        (done, pods("a", "b", "old", leaving="old"), "1 old pods have not ended (old)"),
        (done, pods("a", "was-deleted"), "1 old pods have not ended (was-deleted)"),
        (done, pods("a"), "1 pods, 1 of them ready, 2 wanted"),
        (done, two, ""),
    ]


@pytest.mark.parametrize(("status", "pods", "lacks"), states())
def test_completion(status: dict[str, Any], pods: list[dict[str, Any]], lacks: str) -> None:
    api = SimpleNamespace(
        get=lambda path: {
            "metadata": {"generation": 2},
            "spec": {"replicas": 2},
            "status": status,
        },
        items=lambda path, **query: iter(pods),
    )
    target = find_target(Api(service()), "shop/web")
    said: list[str] = []

    def wait() -> None:
        wait_complete(
            api,  # type: ignore[arg-type]
            target,
            timeout=0.0,
            gone=("was-deleted",),
            say=said.append,
            pause=lambda _: None,
        )

    if not lacks:
        wait()
        return
    with pytest.raises(RolloutError) as told:
        wait()
    assert str(told.value).startswith("Deployment shop/web did not come to rest within 0 s: ")
    assert lacks in str(told.value)
