"""Single paths: what is tried, and what the answers say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pytest_ipvs.cluster import ApiError
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.rollout import NotPossibleHere, held, paths
from pytest_ipvs.rollout.workload import PodPlace
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results, Sample, Second
from pytest_ipvs.traffic.run import TrafficError

A = PodPlace(name="web-a", address="10.244.1.5", node="node-1", host="10.0.2.101")
B = PodPlace(name="web-b", address="10.244.2.5", node="node-2", host="10.0.2.102")


def sample(name: str, **change: Any) -> Sample:
    """A failed connection."""
    usual: dict[str, Any] = {"t": 5.0, "kind": "failure", "errno": "", "source": "10.244.1.250"}
    usual |= {"source_port": 20000, "target": "10.96.0.10:80", "connect_ms": 1.0}
    return Sample(name=name, **(usual | {"resent": 0, "reused": False} | change))


def seen(
    pods: dict[str, int] | None = None, *lost: Sample, finished: bool = True, resent: int = 0
) -> Results:
    """What a client saw in one second."""
    answers = pods or {}
    classes = {"ok": sum(answers.values())}
    for one in lost:
        classes[one.name] = classes.get(one.name, 0) + 1
    second = Second(t=5, due=sum(classes.values()), classes=classes, pods=answers, resent=resent)
    return Results(seconds=(second,), samples=lost, finished=finished)


class Fake:
    """A cluster of two nodes, a workload, and the client's answers."""

    def __init__(self, answer: Callable[[dict[str, Any]], Results]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.placed = [A, B]
        self.address, self.port, self.balancer, self.host_port = "10.96.0.10", 80, "", 28080
        self.settings = SimpleNamespace(load_balancer=None)
        self.nodes = [Node(name="node-1", ready=True), Node(name="node-2", ready=True)]
        self.pool = self
        self.rules = "0\n"
        self.say = lambda _: None

    def run_traffic(self, _: Any, address: str, port: int, **options: Any) -> Results:
        self.asked.append({"to": f"{address}:{port}", **options})
        return self.answer(options)

    def pods(self) -> list[PodPlace]:
        return self.placed

    def call(self, *targets: str) -> str:
        return f"/call/token/{','.join(targets)}"

    def map(self, function: Callable[[str], Any], names: list[str]) -> dict[str, Any]:
        return {name: function(name) for name in names}

    def run(self, _: str, __: str, address: str) -> Any:
        assert address.endswith(":8080")
        return SimpleNamespace(stdout=self.rules)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Results]], Any]:
    """Makes the fake that answers so."""

    def make(answer: Callable[[dict[str, Any]], Results]) -> Any:
        made = Fake(answer)
        monkeypatch.setattr(paths, "run_traffic", made.run_traffic)
        return made

    return make


BAD = sample("http_error", detail="HTTP/1.0 502 timed out")
OWN_LIMIT = sample("http_error", detail="HTTP/1.0 503 Cannot assign requested address")


def test_only_what_met_the_same_pod_tells_of_one_source_port(fake: Any) -> None:
    world = fake(lambda _: seen({"web-b.web-b": 15, "web-a.web-b": 9}, OWN_LIMIT))
    one, other = paths.same_port(world, world)
    assert (one.tried, one.failed, other.tried) == (15, {}, 15)
    both = {path["path"] for path in world.asked}
    virtual, direct = "10.96.0.10:80", "10.244.2.5:8080"
    assert both == {f"/call/token/{virtual},{direct}", f"/call/token/{direct},{virtual}"}
    assert {path["to"] for path in world.asked} == {"10.244.1.5:8080"}


def test_a_pod_that_can_not_reach_itself(fake: Any) -> None:
    world = fake(lambda _: seen({"web-b": 16}, *[BAD] * 15))
    one, other = paths.own_addresses(world, world)
    assert (one.node, one.tried, one.failed) == ("node-1", 15, {"timed out": 15})
    assert (other.node, other.tried) == ("node-2", 31)


@pytest.mark.parametrize("balancer", ["", "192.0.2.7"])
def test_the_load_balancer_is_tried_where_one_was_asked_for(fake: Any, balancer: str) -> None:
    world = fake(lambda _: seen({"web-b": 16, "web-a": 14}))
    world.settings.load_balancer, world.balancer = "auto", balancer
    own, _, outer = paths.own_addresses(world, world)
    assert (own.tried, outer.tried) == (14, 30 if balancer else 0)
    assert bool(outer.problem) is not bool(balancer)


def broken(_: Any) -> Results:
    raise TrafficError("there is no python3")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (broken, "there is no python3"),
        (lambda _: seen({"web-b": 9}, finished=False), "did not come to its end"),
        (lambda _: seen(None, sample("connect_timeout")), "{'connect timeout': 1}"),
        (lambda _: seen({"web-b": 9}, OWN_LIMIT), "no connection met it"),
    ],
)
def test_what_says_nothing_is_a_problem(fake: Any, answer: Any, problem: str) -> None:
    world = fake(answer)
    path = paths.own_addresses(world, world)[0]
    assert problem in path.problem
    assert path.tried == 0


def test_each_node_is_asked_for_pods_of_others(fake: Any) -> None:
    lost = sample("connect_timeout")
    world = fake(
        lambda options: (
            seen({"web-a": 20, "web-b": 10}, resent=3)
            if options["where"] == "node:node-1"
            else seen({"web-a": 5, "web-b": 25}, lost)
        )
    )
    one, two = paths.cross_node(world, world)
    assert (one.node, one.tried, one.failed) == ("node-1", 10, {"with a resent SYN": 3})
    assert (two.node, two.tried, two.failed) == ("node-2", 6, {"connect timeout": 1})


def test_a_node_out_of_reach_is_a_problem(fake: Any) -> None:
    world = fake(lambda _: seen({"web-a": 5, "web-b": 25}))
    silent = SimpleNamespace(reason="no route to host")
    world.map = lambda function, names: {n: silent if n == "node-2" else function(n) for n in names}
    one, two = paths.cross_node(world, world)
    assert (one.problem, two.node, two.problem) == ("", "node-2", "no route to host")


def test_without_another_node_nothing_crosses(fake: Any) -> None:
    world = fake(lambda _: seen())
    world.placed, world.nodes = [A], world.nodes[:1]
    with pytest.raises(NotPossibleHere, match="no ready node has a pod"):
        paths.cross_node(world, world)


def test_a_host_port_is_called_from_another_node(fake: Any) -> None:
    world = fake(lambda _: seen({"web-b": 30}))
    exposed = SimpleNamespace(pods=lambda: [B], host_port=28080)
    (path,) = paths.host_port(world, world, exposed)  # type: ignore[arg-type]
    assert (path.tried, path.failed, path.node) == (30, {}, "node-1")
    assert world.asked[0]["path"] == "/call/token/10.0.2.102:28080"


def test_a_dead_host_port_counts_where_the_node_has_a_rule(fake: Any) -> None:
    world = fake(lambda _: seen(None, *[BAD] * 9))
    with pytest.raises(NotPossibleHere, match="node-2 has no rule for one"):
        paths.host_port(world, world, SimpleNamespace(pods=lambda: [B], host_port=28080))
    world.rules = "2\n"
    (path,) = paths.host_port(world, world, SimpleNamespace(pods=lambda: [B], host_port=28080))
    assert path.failed == {"timed out": 9}
    world.rules = ""
    (path,) = paths.host_port(world, world, SimpleNamespace(pods=lambda: [B], host_port=28080))
    assert path.problem == "it is dead, and the rules of node-2 could not be read"


def broke(pod: str, t: float) -> Sample:
    return sample("reset", pod=pod, t=t, held=9.0)


@pytest.mark.parametrize(
    ("lost", "others", "own"),
    [
        ([broke("web-a", 99.0)] * 6, {}, {}),
        ([broke("web-a", 97.0)] * 2 + [broke("web-a", 100.0)] * 4, {}, {"reset": 2}),
        ([broke("web-a", 100.0)] * 6 + [broke("web-b", 91.0)], {"reset": 1}, {}),
    ],
)
def test_a_held_connection_breaks_in_time_or_early(
    lost: list[Sample], others: dict[str, int], own: dict[str, int]
) -> None:
    results = seen({"web-a": 50, "web-b": 100}, *lost)
    first, second = held.kept(results, "web-a", 100.0)
    assert (first.tried, first.failed) == (12, others)
    assert (second.tried, second.failed) == (6, own)


def test_a_client_that_died_tells_nothing_of_what_it_held() -> None:
    told = held.kept(seen(finished=False), "web-a", 100.0)
    assert all(path.problem and not path.tried for path in told)


class Holding:
    """A client whose connections are there at once; it is alive until the test says so."""

    seconds: tuple[Second, ...] = (Second(t=5, exchanges=18, pods={"web-a": 10, "web-b": 8}),)
    plans: ClassVar[list[Plan]] = []

    def __init__(self, _: Any, plan: Plan, *, where: str) -> None:
        self.plan = plan
        self.running = bool(self.seconds)
        self.plans.append(plan)

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False

    def results(self) -> Results:
        return Results(seconds=self.seconds, samples=(broke("web-a", 1e12),) * 10, finished=True)

    refresh = results


class Deleting:
    """An API in which a pod is gone when it was looked for once."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def delete(self, path: str) -> None:
        self.calls.append(f"DELETE {path}")

    def get(self, path: str) -> None:
        self.calls.append(f"GET {path}")
        if self.calls.count(f"GET {path}") > 1:
            raise ApiError(404, "NotFound", "gone", path)


@pytest.mark.parametrize("alive", [True, False])
def test_the_pod_with_most_connections_is_deleted(
    fake: Any, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    world = fake(lambda _: seen())
    world.api, world.namespace, world.grace = Deleting(), "own", 12
    world.pause = lambda _: None
    monkeypatch.setattr(held, "place", lambda _: SimpleNamespace(host=None, label="here"))
    monkeypatch.setattr(held, "TrafficRun", Holding)
    monkeypatch.setattr(Holding, "seconds", Holding.seconds if alive else ())
    told = held.held(world, world)
    assert Holding.plans[-1].mode == "hold"
    if not alive:
        assert "can't be tried" in told[0].problem
        assert world.api.calls == []
        return
    path = "/api/v1/namespaces/own/pods/web-a"
    assert world.api.calls == [f"DELETE {path}", f"GET {path}", f"GET {path}"]
    assert [(one.tried, one.failed) for one in told] == [(8, {}), (10, {})]
