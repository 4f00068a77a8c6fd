"""The recorder's watches: events count at once, and a lost watch leaves no silent gap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_world import wait_until
from test_recorder import pod

from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice
from pytest_ipvs.rollout import recorder as recorder_module
from pytest_ipvs.rollout.recorder import Recorder, Sources
from pytest_ipvs.rollout.tables import TableReader
from pytest_ipvs.rollout.timeline import Timeline

pytestmark = pytest.mark.system


class Feed:
    """A watch that says what it is told."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.open = True

    def tell(self, type_: str, item: Any, at: float) -> None:
        """One event."""
        self.events.put(SimpleNamespace(type=type_, object=item, received_at=at))

    def break_(self, error: Exception) -> None:
        """The watch is lost."""
        self.events.put(error)

    def close(self) -> None:
        """The end."""
        self.events.put(None)

    def __iter__(self) -> Iterator[Any]:
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class World:
    """Lists, watches and a clock, each as the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pods: list[Any] = [pod("a", "10.0.0.1")]
        self.ready = ["10.0.0.1"]
        self.feeds: dict[str, list[Feed]] = {"pods": [], "slices": [], "events": []}
        self.error = ""
        self.lists = 0
        self.recorder = Recorder(
            Sources(
                pods=self._pods,
                slices=lambda: [self.slice(*self.ready)],
                tables=dict,
                watches={kind: self._opener(kind) for kind in self.feeds},
                slices_of=lambda item: [self.slice(*item["ready"])],
                about="web",
            ),
            clock=lambda: self.now,
        )

    def _pods(self) -> list[Any]:
        self.lists += 1
        if self.error:
            raise RuntimeError(self.error)
        return list(self.pods)

    def _opener(self, kind: str) -> Callable[[], Feed]:
        def connect() -> Feed:
            if self.error:
                raise RuntimeError(self.error)
            self.feeds[kind].append(Feed())
            return self.feeds[kind][-1]

        return connect

    @staticmethod
    def slice(*ready: str) -> EndpointSlice:
        """The Service's slice."""
        return EndpointSlice(
            namespace="shop",
            name="web-1",
            service="web",
            family="IPv4",
            ports=(),
            endpoints=tuple(Endpoint(addresses=(address,)) for address in ready),
        )

    def tell(self, kind: str, type_: str, item: Any, at: float) -> None:
        """An event of the newest watch."""
        wait_until(lambda: self.feeds[kind], f"a watch of {kind}")
        self.feeds[kind][-1].tell(type_, item, at)

    def until(self, condition: Callable[[Timeline], Any]) -> Timeline:
        """The timeline, once it is so."""
        wait_until(lambda: condition(self.recorder.timeline()), "the record")
        return self.recorder.timeline()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(recorder_module, "API_PERIOD", 0.02)
    monkeypatch.setattr(recorder_module, "TABLE_PERIOD", 0.02)
    monkeypatch.setattr(recorder_module, "RETRY_SECONDS", 0.01)
    made = World()
    made.recorder.start()
    yield made
    made.recorder.stop()


def slice_item(*ready: str) -> dict[str, Any]:
    return {"metadata": {"name": "web-1"}, "ready": ready}


def test_events_have_the_time_at_which_they_came(world: World) -> None:
    world.tell("pods", "ADDED", pod("b", "10.0.0.2"), 100.5)
    world.until(lambda t: len(t.pods) == 2)
    world.tell("slices", "MODIFIED", slice_item("10.0.0.1", "10.0.0.2"), 100.7)
    world.until(lambda t: t.pods[1].endpoint_at)
    world.tell("pods", "MODIFIED", pod("a", "10.0.0.1", deletionTimestamp="now"), 101.25)
    world.until(lambda t: t.pods[0].left_at)
    world.tell("pods", "DELETED", pod("a", "10.0.0.1"), 102.5)
    old, new = world.until(lambda t: t.pods[0].gone_at).pods
    assert (new.first_seen, new.endpoint_at) == (100.5, 100.7)
    assert (old.deleted_at, old.left_at, old.gone_at) == (101.25, 101.25, 102.5)


def test_a_list_after_a_lost_watch_tells_what_it_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tell("pods", "LISTED", {"items": [pod("a", "10.0.0.1")]}, 100.2)
    wait_until(lambda: world.feeds["pods"][-1].events.empty(), "the list")
    world.pods = [pod("b", "10.0.0.2")]
    world.now = 105.0
    monkeypatch.setattr(recorder_module, "RELIST_PERIOD", 0.1)
    world.feeds["pods"][-1].break_(ConnectionError("reset by peer"))
    timeline = world.until(lambda t: len(t.pods) == 2 and t.pods[0].gone_at)
    assert [p.name for p in timeline.pods] == ["a", "b"]
    assert timeline.gaps == ()
    wait_until(lambda: len(world.feeds["pods"]) > 1, "a second watch")


def test_without_watch_and_lists_the_gap_is_told_with_its_reason(world: World) -> None:
    wait_until(lambda: all(world.feeds.values()), "all watches")
    world.error = "the API server says 503"
    for feeds in world.feeds.values():
        feeds[-1].break_(ConnectionError("reset by peer"))
    before = world.lists
    wait_until(lambda: world.lists > before, "a failed list")
    world.now = 130.0
    timeline = world.until(lambda t: t.unwatched)
    (gap,) = timeline.gaps
    assert str(gap) == "API was not read for 30 s: the API server says 503"
    assert set(timeline.unwatched.values()) <= {"reset by peer", world.error}
    world.error = ""
    world.now = 131.0
    wait_until(lambda: len(world.feeds["pods"]) > 1, "a watch again")
    world.tell("pods", "LISTED", {"items": world.pods}, 131.0)
    wait_until(lambda: world.feeds["pods"][-1].events.empty(), "its list")
    world.now = 140.0
    (gap,) = world.until(lambda t: t.gaps and t.gaps[0].end < 140.0).gaps
    assert gap.start == 100.0


def test_a_forbidden_watch_is_said_and_costs_nothing_else(world: World) -> None:
    wait_until(lambda: world.feeds["events"], "the watch of events")
    world.feeds["events"][-1].break_(PermissionError("events is forbidden"))
    wait_until(lambda: len(world.feeds["events"]) > 1, "another try")
    timeline = world.recorder.timeline()
    assert timeline.unwatched["events"] == "events is forbidden"
    assert timeline.gaps == ()


def event(uid: str, name: str, count: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "name": uid},
        "involvedObject": {"kind": "Pod", "name": name},
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed\nand more",
        "count": count,
    }


def test_events_of_the_target_are_kept_once(world: World) -> None:
    world.tell("events", "LISTED", {"items": [event("old", "web-1")]}, 100.0)
    world.tell("events", "ADDED", event("e1", "web-1"), 100.5)
    world.tell("events", "MODIFIED", event("e1", "web-1", count=2), 101.5)
    world.tell("events", "ADDED", event("e2", "other-1"), 102.0)
    relisted = [event("old", "web-1"), event("e1", "web-1", count=2), event("e3", "web-2")]
    world.tell("events", "LISTED", {"items": relisted}, 103.0)
    timeline = world.until(lambda t: len(t.events) == 3)
    assert [(e.at, e.object) for e in timeline.events] == [
        (100.5, "Pod web-1"),
        (101.5, "Pod web-1"),
        (103.0, "Pod web-2"),
    ]
    assert str(timeline.events[0]) == "Warning Unhealthy of Pod web-1: Readiness probe failed"
    assert any("Unhealthy" in line for line in timeline.lines())


def test_a_released_pod_is_not_gone(world: World) -> None:
    world.recorder.release("a")
    world.tell("pods", "DELETED", pod("a", "10.0.0.1"), 104.0)
    world.pods = []
    world.tell("pods", "ADDED", pod("b", "10.0.0.2"), 104.5)
    released = world.until(lambda t: len(t.pods) == 2).pods[0]
    assert (released.released, released.gone_at, released.left_at) == (True, None, 100.0)


def test_what_reading_costs_is_said(world: World) -> None:
    timeline = world.until(lambda t: t.costs.get("tables") and t.costs["API"].readings > 0)
    assert str(timeline.costs["tables"]).endswith("s each")


def test_a_hanging_node_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_ipvs.rollout import tables as tables_module

    monkeypatch.setattr(tables_module, "PATIENCE", 0.05)
    let_go = threading.Event()

    class Pool:
        @staticmethod
        def map(function: Callable[[str], Any], names: list[str]) -> dict[str, Any]:
            return {name: function(name) for name in names}

        @staticmethod
        def run(name: str, *_: str) -> Any:
            if name == "node-2":
                let_go.wait(20)
                raise TimeoutError("no answer from node-2")
            return SimpleNamespace(rc=1, stdout="", stderr="no such file")

    nodes = [SimpleNamespace(name="node-1"), SimpleNamespace(name="node-2")]
    reader = TableReader(SimpleNamespace(nodes=nodes, pool=Pool()), SimpleNamespace())  # type: ignore[arg-type]
    assert reader() == {"node-1": "no such file"}
    assert reader() == {"node-1": "no such file"}
    let_go.set()
    seen: dict[str, Any] = {}
    wait_until(lambda: seen.update(reader()) or "node-2" in seen, "the late answer")
    assert seen["node-2"] == "no answer from node-2"
    reader.close()


def test_a_short_reading_counts_only_with_all_virtual_servers_that_were_there() -> None:
    head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
    head += "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
    web, other = "TCP  0A600A01:0050 rr  \n", "TCP  0A000265:7580 rr  \n"
    answers = {"cat": head + web, "/bin/sh": head + web + other}
    asked: list[str] = []

    class Pool:
        @staticmethod
        def map(function: Callable[[str], Any], names: list[str]) -> dict[str, Any]:
            return {name: function(name) for name in names}

        @staticmethod
        def run(_: str, command: str, *__: str) -> Any:
            asked.append(command.split()[0])
            return SimpleNamespace(rc=0, stdout=answers[asked[-1]], stderr="")

    target = SimpleNamespace(real_servers=lambda table: {s.key: () for s in table.virtual_servers})
    cluster = SimpleNamespace(nodes=[SimpleNamespace(name="node-1")], pool=Pool())
    reader = TableReader(cluster, target)  # type: ignore[arg-type]
    assert len(reader()["node-1"]) == len(reader()["node-1"]) == 2
    assert asked == ["/bin/sh", "cat", "/bin/sh"]
    # Once it is seen that the Service lost one, nobody looks for it again and again.
    answers["/bin/sh"] = head + web
    assert len(reader()["node-1"]) == len(reader()["node-1"]) == 1
    assert asked[3:] == ["cat", "/bin/sh", "cat"]
    reader.close()
