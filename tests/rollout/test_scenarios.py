"""Scenarios on what a cluster shares: drain and kube-proxy's restart."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from api_fake import LEASE, FakeApi, StatusError

from pytest_ipvs.rollout import NotPossibleHere, RolloutError, at_once
from pytest_ipvs.rollout import scenarios as scenarios_module
from pytest_ipvs.rollout.drain import (
    CORDONED_BY,
    blockers,
    choose_node,
    cordon,
    evict,
    is_ours,
    release,
    uncordon,
    uncordon_stale,
)
from pytest_ipvs.rollout.proxies import find_proxy_pod, restart_proxy
from pytest_ipvs.rollout.run import Rollout
from pytest_ipvs.rollout.scenarios import Scenarios
from pytest_ipvs.rollout.ways import parse


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def test_cordon_says_whose_it_is_and_uncordon_takes_it_back(api: FakeApi) -> None:
    api.put_node("node-2")
    cordon(api, "node-2", "me")
    node = api.objects["/api/v1/nodes/node-2"]
    assert node["spec"] == {"unschedulable": True}
    assert node["metadata"]["annotations"] == {CORDONED_BY: "me"}
    assert is_ours("node-2")
    api.refusals["PATCH /api/v1/nodes/node-2"] = [StatusError(503), StatusError(503)]
    uncordon(api, "node-2", api.said.append, api.pauses.append)
    assert node["spec"] == {}
    assert not is_ours("node-2")
    assert api.pauses == [1.0, 2.0]


def test_an_uncordon_that_fails_for_good_is_told_loudly(api: FakeApi) -> None:
    api.put_node("node-2", unschedulable=True)
    api.refusals["PATCH /api/v1/nodes/node-2"] = [StatusError(503) for _ in range(5)]
    uncordon(api, "node-2", api.said.append, api.pauses.append)
    assert api.said == ["node node-2 is STILL CORDONED (503): kubectl uncordon node-2"]


def test_somebody_elses_cordon_is_respected(api: FakeApi) -> None:
    api.put_node("node-2", unschedulable=True)
    with pytest.raises(RolloutError, match="node node-2 is cordoned already"):
        cordon(api, "node-2", "me")
    assert not is_ours("node-2")
    assert uncordon_stale(api, api.said.append, api.pauses.append) == []


def test_what_a_dead_run_cordoned_is_uncordoned_by_the_next(api: FakeApi) -> None:
    api.put_node("node-1")
    api.put_node("node-2", unschedulable=True)
    api.objects["/api/v1/nodes/node-2"]["metadata"]["annotations"] = {CORDONED_BY: "gone/1/x"}
    left = uncordon_stale(api, api.said.append, api.pauses.append)
    assert left == ["node-2"]
    assert api.objects["/api/v1/nodes/node-2"]["spec"] == {}
    assert "left behind by a run that died" in api.said[0]


def test_a_disruption_budget_is_asked_again_until_it_allows(api: FakeApi) -> None:
    api.put_pod("web-1", "node-2")
    api.put_pod("proxy", "node-2", owner="DaemonSet")
    api.put_pod("static", "node-2", metadata={"annotations": {"kubernetes.io/config.mirror": "x"}})
    path = "/api/v1/namespaces/shop/pods/web-1/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "would violate the budget"), StatusError(429)]
    evict(api, "node-2", timeout=60, say=api.said.append, pause=api.pauses.append)
    assert [call for call in api.calls if call[0] == "POST"] == [("POST", path)] * 3
    assert api.said[0] == (
        "draining node-2: shop/web-1 may not be evicted now: would violate the budget"
    )
    assert "/api/v1/namespaces/shop/pods/proxy" in api.objects


def test_a_drain_that_takes_too_long_names_what_is_left(api: FakeApi) -> None:
    api.put_pod("web-1", "node-2")
    path = "/api/v1/namespaces/shop/pods/web-1/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "no budget") for _ in range(9)]
    with pytest.raises(RolloutError, match=r"not drained within -1 s, left are web-1: shop/web-1"):
        evict(api, "node-2", timeout=-1, say=api.said.append, pause=api.pauses.append)


def test_pods_that_would_be_lost_block_a_drain(api: FakeApi) -> None:
    api.put_pod("bare", "node-2", owner="")
    api.put_pod("scratch", "node-2", volumes=[{"name": "x", "emptyDir": {}}])
    api.put_pod("fine", "node-2", volumes=[{"name": "x", "configMap": {}}])
    pods = list(api.items("/api/v1/pods"))
    assert blockers(pods) == ["shop/bare has no controller", "shop/scratch has an emptyDir volume"]


def test_the_node_with_the_fewest_pods_is_drained(api: FakeApi) -> None:
    for number, node in enumerate(["node-1", "node-2", "node-2", "node-3", "node-4"]):
        api.put_pod(f"web-{number}", node)
    names = ["node-1", "node-2", "node-3"]
    hosts = ["node-1", "node-2", "node-3", "node-4"]
    assert choose_node(api, names, hosts, "node-1") == "node-3"
    api.put_pod("bare", "node-3", owner="")
    assert choose_node(api, names, hosts, "node-1") == "node-2"
    api.put_pod("bare-2", "node-2", owner="")
    with pytest.raises(NotPossibleHere, match="node-2: shop/bare-2 has no controller"):
        choose_node(api, names, hosts, "node-1")
    with pytest.raises(NotPossibleHere, match="no selected node but the client's own"):
        choose_node(api, names, ["node-1"], "node-1")


def put_proxy(api: FakeApi, name: str, owner: str = "DaemonSet") -> None:
    labels = {"labels": {"k8s-app": "kube-proxy"}}
    api.put_pod(name, "node-1", owner, namespace="kube-system", metadata=labels)


def test_kube_proxy_is_restarted_and_waited_for(api: FakeApi) -> None:
    put_proxy(api, "kube-proxy-a")
    pod = find_proxy_pod(api, "node-1")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        put_proxy(api, "kube-proxy-b")

    restart_proxy(api, "node-1", pod, timeout=60, say=api.said.append, pause=pause)
    assert ("DELETE", "/api/v1/namespaces/kube-system/pods/kube-proxy-a") in api.calls
    assert len(pauses) == 1


def test_kube_proxy_that_stays_away_is_told(api: FakeApi) -> None:
    put_proxy(api, "kube-proxy-a")
    pod = find_proxy_pod(api, "node-1")
    with pytest.raises(RolloutError, match="kube-proxy on node-1 has no ready pod"):
        restart_proxy(api, "node-1", pod, timeout=-1, say=api.said.append, pause=api.pauses.append)


def test_kube_proxy_that_is_no_pod_can_not_be_restarted(api: FakeApi) -> None:
    with pytest.raises(NotPossibleHere, match="is no pod of namespace kube-system"):
        find_proxy_pod(api, "node-1")
    put_proxy(api, "kube-proxy-a", owner="Node")
    with pytest.raises(NotPossibleHere, match="without a DaemonSet"):
        find_proxy_pod(api, "node-1")


def test_ways_are_a_via_and_perhaps_a_client() -> None:
    assert parse("node-port") == ("node-port", None)
    assert parse("192.0.2.7:80@node:node-2") == ("192.0.2.7:80", "node:node-2")
    for wrong in ("@local", "node-port@"):
        with pytest.raises(ValueError, match="expected a 'via'"):
            parse(wrong)


def test_changes_at_once_all_happen_and_the_first_error_is_raised() -> None:
    done: list[int] = []

    def fail() -> None:
        raise RolloutError("no")

    with pytest.raises(RolloutError, match="no"):
        at_once(lambda: done.append(1), fail, lambda: done.append(2))
    assert sorted(done) == [1, 2]


class Run(Scenarios):
    """A run whose record and client are nobody's."""

    def __init__(self, api: FakeApi, *, entry: Any = (), clients: Any = (), pods: Any = ()) -> None:
        nodes = [SimpleNamespace(name=name) for name in ("node-1", "node-2", "node-3")]
        self._cluster = SimpleNamespace(api=api, nodes=nodes)  # type: ignore[assignment]
        self._say, self.pause = api.said.append, api.pauses.append
        self._timeout = 60.0
        self._unfinished, self._doubts = [], []
        self._recorder = SimpleNamespace(read_api=int, begin=str)  # type: ignore[assignment]
        self._places = tuple(entry), frozenset(clients), frozenset(pods)
        self.path = "/apis/apps/v1/namespaces/shop/deployments/web"
        api.objects[self.path] = {"metadata": {"generation": 1}, "spec": {"replicas": 0}}
        api.objects[self.path]["status"] = {"observedGeneration": 1}

    @property
    def target(self) -> Any:
        """Its pods are those of namespace "shop"."""
        pods = "/api/v1/namespaces/shop/pods"
        return SimpleNamespace(path=self.path, pods=lambda api: api.items(pods))

    @property
    def over(self) -> bool:
        """Never."""
        return False

    @property
    def entry_nodes(self) -> tuple[str, ...]:
        """As the test says."""
        return self._places[0]

    @property
    def client_nodes(self) -> frozenset[str]:
        """As the test says."""
        return self._places[1] | self._places[2]

    @property
    def client_pod_nodes(self) -> frozenset[str]:
        """As the test says."""
        return self._places[2]


def three_nodes(api: FakeApi) -> None:
    """Nodes with one pod of the target each."""
    for number in (1, 2, 3):
        api.put_node(f"node-{number}")
        api.put_pod(f"web-{number}", f"node-{number}")


def test_a_drain_keeps_away_from_the_clients_of_all_its_runs(api: FakeApi) -> None:
    three_nodes(api)
    run, other = Run(api, pods=["node-1"]), Run(api, clients=["node-2"])
    run.alongside(other)
    with pytest.raises(NotPossibleHere, match="no selected node but the client's own"):
        Run(api, pods=["node-1", "node-2", "node-3"]).drain()
    # Its own pods have gone for good by then: the target is at rest with none.
    for name in ("web-1", "web-2"):
        del api.objects[f"/api/v1/namespaces/shop/pods/{name}"]
    assert run.drain() == "node-3"
    assert "/api/v1/namespaces/shop/pods/web-3" not in api.objects


def test_a_drain_that_would_evict_a_client_is_refused(api: FakeApi) -> None:
    three_nodes(api)
    with pytest.raises(RolloutError, match=r"without evicting a client, .* avoid=\['node-2'\]"):
        Run(api, pods=["node-2"]).drain("node-2")
    assert not [call for call in api.calls if call[0] != "LIST"]


class Restarted(Exception):  # noqa: N818 - it is what happened
    """On this node."""


@pytest.mark.parametrize(
    ("entry", "node", "expected"),
    [
        (("node-3", "node-1"), None, "node-3"),
        (("elsewhere", "node-2"), None, "node-2"),
        (("node-3",), "node-2", "node-2"),
    ],
)
def test_the_kube_proxy_that_carries_the_traffic_is_restarted(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, entry: Any, node: str | None, expected: str
) -> None:
    def found(_: Any, name: str) -> None:
        raise Restarted(name)

    monkeypatch.setattr(scenarios_module.proxies, "find_proxy_pod", found)
    with pytest.raises(Restarted, match=expected):
        Run(api, entry=entry).restart_kube_proxy(node)


def test_a_node_that_nobody_knows_has_to_be_named(api: FakeApi) -> None:
    # Where kube-proxy is no pod, naming a node would not help.
    with pytest.raises(NotPossibleHere, match="is no pod of namespace kube-system"):
        Run(api).restart_kube_proxy()
    put_proxy(api, "kube-proxy-a")
    with pytest.raises(RolloutError) as told:
        Run(api).restart_kube_proxy()
    assert str(told.value) == (
        "restart_kube_proxy() needs node=, since no node is known to carry the traffic: expected "
        "one of node-1, node-2, node-3"
    )
    with pytest.raises(RolloutError, match=r"since elsewhere is not selected: expected one of"):
        Run(api, entry=["elsewhere"]).restart_kube_proxy()
    assert not [call for call in api.calls if call[0] == "DELETE"]


def test_a_rollout_knows_the_nodes_of_its_clients() -> None:
    settings = SimpleNamespace(rate=1, source_ports=1, baseline=1, settle=1)
    nodes = [SimpleNamespace(name=f"node-{n}", internal_ips=(f"10.0.0.{n}",)) for n in (1, 2)]
    run: Any = Rollout(SimpleNamespace(settings=settings, nodes=nodes), "shop/web")  # type: ignore[arg-type]
    run._target = SimpleNamespace(address="10.96.0.10")
    run._main = SimpleNamespace()
    assert (run.entry_nodes, run.client_nodes) == ((), frozenset())
    run._main, run._fresh = SimpleNamespace(nodes=("b", "a")), SimpleNamespace(nodes=("c",))
    way = SimpleNamespace(place=SimpleNamespace(node="d"), client=None, problem="")
    run._ways = {"node-port@node:d": way}
    assert run.entry_nodes == ("b", "a")
    assert (run.client_pod_nodes, run.client_nodes) == (set("abc"), set("abcd"))
    run._client_node = "e"
    assert (run.entry_nodes, run.client_nodes) == (("e",), set("abcde"))
    # Through a node's own address the traffic goes over that node, wherever it comes from.
    run._target = SimpleNamespace(address="10.0.0.2")
    assert run.entry_nodes == ("node-2",)


def test_what_a_dead_run_cordoned_is_uncordoned_by_any_disruption(api: FakeApi) -> None:
    three_nodes(api)
    put_proxy(api, "kube-proxy-a")
    node = api.objects["/api/v1/nodes/node-3"]
    node["spec"]["unschedulable"] = True
    node["metadata"]["annotations"] = {CORDONED_BY: "gone/1/x"}
    run = Run(api, entry=["node-1"])

    def next_one(_: float) -> None:
        put_proxy(api, "kube-proxy-b")
        for number in (1, 2, 3):
            api.objects.pop(f"/api/v1/namespaces/shop/pods/web-{number}", None)

    run.pause = next_one
    assert run.restart_kube_proxy() == "node-1"
    assert "unschedulable" not in node["spec"]
    assert CORDONED_BY not in node["metadata"]["annotations"]


def test_a_drain_whose_lease_is_lost_stops_and_is_no_pass(api: FakeApi) -> None:
    three_nodes(api)
    path = "/api/v1/namespaces/shop/pods/web-3/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "no budget")]
    run, other = Run(api), Run(api)
    run.alongside(other)

    def lose(_: float) -> None:
        assert run._lease is not None
        api.taken_over("b")
        run._lease._renew_once()

    run.pause = lose
    with pytest.raises(RolloutError, match="was lost and is held by b"):
        run.drain("node-3")
    assert [call for call in api.calls if call[1] == path] == [("POST", path)]
    assert api.objects["/api/v1/nodes/node-3"]["spec"] == {}
    assert not is_ours("node-3")
    for one in (run, other):
        assert one._unfinished == ["drain node-3"]
        assert [text[:44] for text in one._doubts] == [
            "drain node-3: the Lease pytest-ipvs/disrupti"
        ]


def test_a_node_that_another_run_cordoned_since_is_left_to_it(api: FakeApi) -> None:
    api.put_node("node-2")
    cordon(api, "node-2", "me")
    node = api.objects["/api/v1/nodes/node-2"]
    node["metadata"]["annotations"] = {CORDONED_BY: "b"}
    release(api, "node-2", "me", api.said.append, api.pauses.append)
    assert node["spec"] == {"unschedulable": True}
    assert not is_ours("node-2")


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """A shell that starts us in the background has us ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_an_interrupt_ends_what_happens_at_once(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_nodes(api)
    path = "/api/v1/namespaces/shop/pods/web-3/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "no budget")]
    run = Run(api)
    go = threading.Event()
    original = scenarios_module._wait

    def pause(_: float) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert go.wait(20)

    def wait(ends: Iterable[threading.Event]) -> None:
        if sys.exc_info()[0] is KeyboardInterrupt:
            go.set()
        original(ends)

    run.pause = pause
    monkeypatch.setattr(scenarios_module, "_wait", wait)
    with pytest.raises(KeyboardInterrupt):
        at_once(lambda: run.drain("node-3"))
    assert [call for call in api.calls if call[1] == path] == [("POST", path)]
    assert "/api/v1/namespaces/shop/pods/web-3" in api.objects
    assert api.objects["/api/v1/nodes/node-3"]["spec"] == {}
    assert LEASE not in api.objects
