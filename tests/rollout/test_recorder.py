"""The recorder: what changes between readings, and where nothing was read."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey
from pytest_ipvs.rollout import recorder as recorder_module
from pytest_ipvs.rollout.recorder import Recorder, Sources

KEY = ServiceKey("TCP", "10.96.0.10", 80)


class World:
    """What the sources show, and a clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pods: list[dict[str, Any]] = []
        self.ready: list[str] = []
        self.tables: dict[str, Any] = {}
        self.api_error = ""
        self.slow = 0.0  # seconds until a list is answered
        self.recorder = Recorder(
            Sources(pods=self._pods, slices=self._slices, tables=lambda: self.tables),
            clock=lambda: self.now,
        )

    def _pods(self) -> list[dict[str, Any]]:
        self.now += self.slow
        if self.api_error:
            raise RuntimeError(self.api_error)
        return self.pods

    def _slices(self) -> list[EndpointSlice]:
        endpoints = tuple(Endpoint(addresses=(address,)) for address in self.ready)
        return [
            EndpointSlice(
                namespace="shop",
                name="w",
                service="web",
                family="IPv4",
                ports=(),
                endpoints=endpoints,
            )
        ]

    def read(self, seconds: float = 1.0) -> None:
        """One reading of everything, some time later."""
        self.now += seconds
        self.recorder.read_api()
        self.recorder.read_tables()


def pod(name: str, address: str, *, ready: bool = True, **metadata: str) -> dict[str, Any]:
    """A pod of the API."""
    status = "True" if ready else "False"
    return {
        "metadata": {"name": name, "uid": name, **metadata},
        "spec": {"nodeName": "node-1"},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": status}]},
    }


def real(address: str, weight: int, inactive: int = 0) -> RealServer:
    """A real server."""
    return RealServer.at(address, 8080, "Masq", weight, 0, inactive)


def test_the_life_of_a_pod() -> None:
    world = World()
    world.pods, world.ready = [pod("a", "10.0.0.1")], ["10.0.0.1"]
    world.read()
    world.recorder.begin("baseline")
    world.recorder.begin("restart")
    world.pods.append(pod("b", "10.0.0.2", ready=False))
    world.read()
    world.pods[1] = pod("b", "10.0.0.2")
    world.ready.append("10.0.0.2")
    world.read()
    world.pods[0] = pod("a", "10.0.0.1", deletionTimestamp="now")
    world.read()
    world.pods[0]["status"]["containerStatuses"] = [{"state": {"terminated": {"exitCode": 0}}}]
    world.ready.remove("10.0.0.1")
    world.read()
    world.pods.pop(0)
    world.read()
    old, new = world.recorder.timeline().pods
    assert (old.old, old.node, old.address) == (True, "node-1", "10.0.0.1")
    assert (old.ready_at, old.deleted_at, old.left_at) == (101.0, 104.0, 104.0)
    assert (old.stopped_at, old.gone_at) == (105.0, 106.0)
    assert (new.old, new.first_seen, new.ready_at, new.left_at) == (False, 102.0, 103.0, None)


def test_an_endpoint_that_leaves_and_comes_back_has_not_left() -> None:
    world = World()
    world.pods, world.ready = [pod("a", "10.0.0.1")], ["10.0.0.1"]
    world.read()
    world.ready.clear()
    world.read()
    assert world.recorder.timeline().pods[0].left_at == 102.0
    assert world.recorder.timeline().no_endpoints == ((102.0, 102.0),)
    world.ready.append("10.0.0.1")
    world.read()
    timeline = world.recorder.timeline()
    assert timeline.pods[0].left_at is None
    assert timeline.no_endpoints == ((102.0, 103.0),)


def test_a_pod_that_is_not_ready_yet_has_not_left() -> None:
    world = World()
    world.pods = [pod("a", "10.0.0.1", ready=False)]
    world.read()
    assert world.recorder.timeline().pods[0].left_at is None


def test_a_pod_that_was_leaving_before_the_disruption_is_not_old() -> None:
    world = World()
    world.pods = [pod("a", "10.0.0.1", deletionTimestamp="now"), pod("b", "10.0.0.2")]
    world.read()
    world.recorder.begin("restart")
    assert [p.old for p in world.recorder.timeline().pods] == [False, True]


def test_a_second_disruption_does_not_make_new_pods_old() -> None:
    world = World()
    world.pods = [pod("a", "10.0.0.1")]
    world.read()
    world.recorder.begin("restart")
    world.pods.append(pod("b", "10.0.0.2"))
    world.read()
    world.recorder.begin("scale to 5")
    timeline = world.recorder.timeline()
    assert [p.old for p in timeline.pods] == [True, False]
    assert [p.name for p in timeline.phases] == ["restart", "scale to 5"]
    assert timeline.phases[0].end == timeline.phases[1].start == 102.0


def test_the_life_of_a_real_server() -> None:
    world = World()
    world.tables = {"node-1": {KEY: (real("10.0.0.1", 1), real("10.0.0.2", 1))}}
    world.read()
    world.tables = {"node-1": {KEY: (real("10.0.0.1", 0, 67), real("10.0.0.2", 1))}}
    world.read()
    world.read()
    world.tables = {"node-1": {KEY: (real("10.0.0.2", 1),)}}
    world.read()
    gone, stays = world.recorder.timeline().servers
    assert (gone.weight_zero_at, gone.gone_at, gone.last_seen) == (102.0, 104.0, 103.0)
    assert (gone.weight, gone.inactive) == (0, 67)
    assert (stays.weight_zero_at, stays.gone_at, stays.last_seen) == (None, None, 104.0)


def test_a_real_server_that_is_wanted_again_is_not_at_zero() -> None:
    world = World()
    for weight in (1, 0, 1):
        world.tables = {"node-1": {KEY: (real("10.0.0.1", weight),)}}
        world.read()
    (server,) = world.recorder.timeline().servers
    assert server.weight_zero_at is None


def test_a_node_that_is_not_read_keeps_its_servers_and_leaves_a_gap() -> None:
    world = World()
    table = {KEY: (real("10.0.0.1", 1),)}
    world.tables = {"node-1": table, "node-2": table}
    world.read()
    world.tables = {"node-1": table, "node-2": "no route to host"}
    for _ in range(20):
        world.read()
    timeline = world.recorder.timeline()
    (gap,) = timeline.gaps
    assert str(gap) == "node-2 was not read for 20 s: no route to host"
    assert [s.gone_at for s in timeline.servers] == [None, None]
    world.tables = {"node-1": table, "node-2": table}
    world.read()
    (gap,) = world.recorder.timeline().gaps
    assert (gap.start, gap.end) == (101.0, 122.0)
    assert world.recorder.timeline().periods["node-2"] == pytest.approx(21.0)


def test_a_node_that_was_never_read_leaves_a_gap() -> None:
    world = World()
    world.tables = {"node-1": "no route to host"}
    for _ in range(17):
        world.read()
    (gap,) = world.recorder.timeline().gaps
    assert gap.what == "node-1"


def test_an_api_that_is_away_leaves_a_gap_and_its_reason() -> None:
    world = World()
    world.read()
    world.api_error = "the API server says 503\nand more"
    world.read(8)
    world.read(8)
    (gap,) = world.recorder.timeline().gaps
    assert str(gap) == "API was not read for 16 s: the API server says 503"


@pytest.mark.parametrize(("slow", "gaps"), [(20.0, 1), (10.0, 0)])
def test_what_an_answer_shows_may_be_as_new_as_the_answer(slow: float, gaps: int) -> None:
    """What happened while a list was on its way can't be dated, however soon it was asked for."""
    world = World()
    world.read()
    world.slow = slow
    world.read()
    world.slow = 0.0
    world.read()
    told = world.recorder.timeline().gaps
    assert len(told) == gaps
    assert {str(gap) for gap in told} <= {"API was not read for 21 s: it answered slowly"}


def test_short_silences_are_no_gap() -> None:
    world = World()
    world.read()
    world.api_error = "away"
    world.read(4)
    world.api_error = ""
    world.read(4)
    assert world.recorder.timeline().gaps == ()


def test_it_reads_by_itself_until_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "API_PERIOD", 0.01)
    monkeypatch.setattr(recorder_module, "TABLE_PERIOD", 0.01)
    reads = {"pods": 0, "tables": 0}

    def pods() -> list[Any]:
        reads["pods"] += 1
        return []

    def tables() -> dict[str, Any]:
        reads["tables"] += 1
        raise RuntimeError("always away")

    recorder = Recorder(Sources(pods=pods, slices=list, tables=tables))
    recorder.start()
    deadline = time.monotonic() + 20
    while min(reads.values()) < 3:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    recorder.stop()
    recorder.stop()
    before = dict(reads)
    assert before == reads
    assert not [t for t in threading.enumerate() if t.name.startswith("ipvs-recorder")]


def test_a_service_of_the_pods_other_family_is_followed() -> None:
    world = World()
    old, new = pod("old", "10.0.0.1"), pod("new", "10.0.0.2")
    for number, item in enumerate((old, new), 1):
        item["status"]["podIPs"] = [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number}"}]
    world.pods, world.ready = [old], ["fd00::1"]
    world.tables = {"node-1": {KEY: (real("fd00::1", 1), real("fd00::9", 1))}}
    world.read()
    world.recorder.begin("restart")
    world.pods, world.ready = [old, new], ["fd00::2"]
    world.read()
    left = world.now
    world.pods = [new]
    world.read()
    timeline = world.recorder.timeline()
    (gone,) = timeline.old_pods
    assert (gone.name, gone.addresses) == ("old", ("10.0.0.1", "fd00::1"))
    assert (gone.endpoint_at, gone.left_at) == (101.0, left)
    (followed,) = timeline.servers_of(gone)
    assert followed.address == "fd00::1"
    assert timeline.pod_at("fd00::1") is gone
    assert [server.address for server in timeline.strangers] == ["fd00::9"]
