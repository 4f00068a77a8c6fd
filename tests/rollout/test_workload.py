"""The throw-away workload: made, told of, and gone in every case."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from rollout_world import World, wait_until

from pytest_ipvs.rollout import DisruptionNotAllowed, Workload, remove_stale
from pytest_ipvs.rollout import workload as workload_module
from pytest_ipvs.rollout.manifests import manifests
from pytest_ipvs.traffic import namespace as namespace_module
from pytest_ipvs.traffic.namespace import MANAGED_BY


@pytest.fixture(autouse=True)
def _quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks as often as in earnest, without the time between them."""
    monkeypatch.setattr(Workload, "_pause", lambda self, seconds: None)


@pytest.fixture
def world() -> Iterator[World]:
    """A cluster that takes everything."""
    world = World()
    yield world
    world.close()


def test_it_is_made_used_and_removed(world: World) -> None:
    said: list[str] = []
    with Workload(world, replicas=2, progress=said.append) as web:
        assert web.target == f"{web.namespace}/web" == str(web)
        assert (web.address, web.port, web.service) == ("127.0.0.1", world.port, "web")
        kinds = [body["kind"] for body in world.objects.values()]
        assert kinds == ["Namespace", "Lease", "ConfigMap", "Service"]
    assert world.objects == {}
    assert said[0].startswith("making namespace pytest-ipvs-")
    assert said[-1] == f"removing namespace {web.namespace}"
    assert not [t for t in threading.enumerate() if t.name == "ipvs-lease"]


def test_removing_twice_is_once(world: World) -> None:
    web = Workload(world).create()
    web.remove()
    web.remove()
    assert [method for method, _ in world.calls].count("DELETE") == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_removed_whatever_happens(world: World, error: type[BaseException]) -> None:
    with pytest.raises(error), Workload(world):
        raise error
    assert world.objects == {}


@pytest.mark.parametrize("kind", ["ConfigMap", "Service", "Deployment"])
def test_a_failure_half_way_leaves_nothing(world: World, kind: str) -> None:
    world.broken_create = kind
    with pytest.raises(PermissionError, match=f"{kind} forbidden"):
        Workload(world).create()
    assert world.objects == {}


def test_what_is_forgotten_is_removed_at_exit(world: World) -> None:
    Workload(world).create()
    assert world.objects
    namespace_module._remove_all()
    assert world.objects == {}


def test_it_needs_permission(world: World) -> None:
    world.settings.allow_disruption = False
    with pytest.raises(DisruptionNotAllowed, match="a throw-away workload changes the cluster"):
        Workload(world).create()
    assert world.calls == []


def test_its_lease_is_renewed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_module, "RENEW_SECONDS", 0.01)
    with Workload(world) as web:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{web.namespace}/leases/owner"
        first = world.objects[path]["spec"]["renewTime"]
        wait_until(lambda: world.objects[path]["spec"]["renewTime"] != first, "the renewal")


def ago(seconds: float) -> str:
    """A time of the API."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def namespace(world: World, name: str, *, renewed: float | None, created: float = 9999) -> None:
    """A namespace of ours (or not), with its lease."""
    world.objects[f"/api/v1/namespaces/{name}"] = {
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "creationTimestamp": ago(created),
            "labels": {"app.kubernetes.io/managed-by": MANAGED_BY},
        },
    }
    if renewed is not None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{name}/leases/owner"
        spec = {"leaseDurationSeconds": 120, "renewTime": ago(renewed)}
        world.objects[path] = {"kind": "Lease", "metadata": {"name": "owner"}, "spec": spec}


@pytest.mark.parametrize(
    ("name", "renewed", "created", "removed"),
    [
        ("pytest-ipvs-dead", 300, 9999, True),
        ("pytest-ipvs-alive", 30, 9999, False),
        ("pytest-ipvs-cut-short", None, 9999, True),
        ("pytest-ipvs-just-made", None, 5, False),
        ("shop", 300, 9999, False),
    ],
)
def test_only_what_a_dead_run_left_behind_is_removed(
    world: World, name: str, renewed: float | None, created: float, removed: bool
) -> None:
    namespace(world, name, renewed=renewed, created=created)
    assert remove_stale(world, pause=lambda _: None) == ([name] if removed else [])
    assert (f"/api/v1/namespaces/{name}" in world.objects) is not removed


def test_a_new_workload_removes_what_a_dead_one_left(world: World) -> None:
    namespace(world, "pytest-ipvs-dead", renewed=300)
    said: list[str] = []
    with Workload(world, progress=said.append):
        assert "/api/v1/namespaces/pytest-ipvs-dead" not in world.objects
    assert said[:2] == [
        "watching for 120 s whether pytest-ipvs-dead is in use by another run",
        "removing namespace pytest-ipvs-dead, left behind by a run that died",
    ]


def test_the_namespace_of_a_live_run_whose_clock_is_behind_stays(world: World) -> None:
    namespace(world, "pytest-ipvs-slow", renewed=300)
    namespace(world, "pytest-ipvs-dead", renewed=300)
    path = "/apis/coordination.k8s.io/v1/namespaces/pytest-ipvs-slow/leases/owner"

    def renew(_: float) -> None:
        world.objects[path]["spec"]["renewTime"] = ago(299)

    assert remove_stale(world, pause=renew) == ["pytest-ipvs-dead"]
    assert path in world.objects


def test_a_time_that_cannot_be_read_removes_nothing() -> None:
    assert workload_module.age_of("yesterday") == 0.0
    assert workload_module.age_of("2026-01-01T00:00:00") == 0.0


def objects(**change: Any) -> dict[str, dict[str, Any]]:
    """The manifests by kind."""
    fields: dict[str, Any] = {
        "namespace": "pytest-ipvs-1",
        "replicas": 3,
        "affinity": False,
        "node_port": False,
        "image": "python:3.11-slim",
        "ending": "fin",
        "pre_stop": 10,
        "grace": 30,
        "env": {},
    }
    return {body["kind"]: body for _, body in manifests(**{**fields, **change})}


def test_the_pods_run_the_shipped_server() -> None:
    made = objects(ending="rst", env={"LISTEN_DELAY": "2"})
    pod = made["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python3", "/srv/server.py"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values == {"POD_NAME": None, "PORT": "8080", "ENDING": "rst", "LISTEN_DELAY": "2"}
    assert "class Server" in made["ConfigMap"]["data"]["server.py"]
    assert made["Service"]["spec"]["type"] == "ClusterIP"
    assert "sessionAffinity" not in made["Service"]["spec"]


@pytest.mark.parametrize(("affinity", "seconds"), [(True, 10800), (60, 60)])
def test_affinity_has_its_time(affinity: bool | int, seconds: int) -> None:
    spec = objects(affinity=affinity, node_port=True)["Service"]["spec"]
    assert spec["type"] == "NodePort"
    assert spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] == seconds


@pytest.mark.parametrize(("wanted", "address"), [("auto", None), ("192.0.2.7", "192.0.2.7")])
def test_a_load_balancer_is_asked_for(wanted: str, address: str | None) -> None:
    spec = objects(load_balancer=wanted, node_port=True)["Service"]["spec"]
    assert (spec["type"], spec.get("loadBalancerIP")) == ("LoadBalancer", address)


def test_a_host_port_is_the_pods() -> None:
    pod = objects(host_port=28080)["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["ports"][0]["hostPort"] == 28080


def test_the_address_of_a_load_balancer_is_waited_for(world: World) -> None:
    web = Workload(world, load_balancer="auto", host_port=True)

    def give(_: float) -> None:
        world.balancer = "127.0.0.1"

    web.pause = give
    with web:
        assert (web.balancer, web.host_port is not None) == ("127.0.0.1", True)
        first = web.pods()[0]
        assert (first.name, first.address, first.node) == ("web-1-1", "10.244.1.1", "node-1")
        token = web.call("10.96.0.1:80", "[fd00::1]:80").split("/")
        assert (token[1], token[3]) == ("call", "10.96.0.1:80,[fd00::1]:80")


def test_without_a_load_balancer_it_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_module, "POLL_SECONDS", 0.01)
    with Workload(world, load_balancer="auto", timeout=0.2) as web:
        assert web.balancer == ""


def test_the_pause_before_the_end_is_an_option(world: World) -> None:
    world.settings.pre_stop = 2.5
    made = Workload(world)._manifests
    (deployment,) = (body for _, body in made if body["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (hook, spec["terminationGracePeriodSeconds"]) == (["sleep", "2.5"], 23)


def test_without_a_pause_there_is_no_hook() -> None:
    pod = objects(pre_stop=0)["Deployment"]["spec"]["template"]["spec"]
    assert "lifecycle" not in pod["containers"][0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"replicas": 0}, "replicas is 0, expected 1 or more"),
        ({"ending": "bang"}, "ending is 'bang', expected fin, rst or client"),
    ],
)
def test_wrong_arguments(world: World, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Workload(world, **change)
