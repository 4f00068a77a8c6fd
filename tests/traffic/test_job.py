"""Clients as pods: a cluster of one machine, whose pods are processes of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traffic_peers import CLIENT, Answer, poll, serving

from pytest_ipvs.traffic import namespace as namespace_module
from pytest_ipvs.traffic.job import JobPlace, JobRun, manifests
from pytest_ipvs.traffic.placement import place, run_traffic
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.run import TrafficError, TrafficRun

pytestmark = pytest.mark.system


class GoneError(Exception):
    """The API's 404."""

    status = 404


class OnePod:
    """A pod of the Job: the client in a process, its output in memory."""

    def __init__(self, index: int, plan: str) -> None:
        self.name = f"client-{index}"
        self.text = b""
        self.process = subprocess.Popen(
            [sys.executable, "-E", "-S", CLIENT, plan], stdout=subprocess.PIPE
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.deleted = False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
        self.process.stdout.close()
        self.process.wait()

    @property
    def object(self) -> dict[str, Any]:
        phase = "Running" if self.reader.is_alive() else "Succeeded"
        if self.process.returncode not in (None, 0):
            phase = "Failed"
        ended = {"terminated": {"reason": "OOMKilled"}} if phase == "Failed" else {}
        return {
            "metadata": {"name": self.name},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": phase, "containerStatuses": [{"state": ended}]},
        }


class Api:
    """As much of an API server as a Job needs."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.deleted: list[str] = []
        self.pods: list[OnePod] = []
        self.cuts = 0
        self.starts = True

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.made.append(body["kind"])
        if body["kind"] == "Job" and self.starts:
            spec = body["spec"]["template"]["spec"]
            plan = spec["containers"][0]["command"][2].replace("$$", "$")
            self.pods = [OnePod(index, plan) for index in range(body["spec"]["completions"])]
        return dict(body)

    def patch(self, path: str, body: object) -> dict[str, Any]:
        return {}

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        yield from (pod.object for pod in self.pods)

    def _pod(self, path: str) -> OnePod:
        found = [pod for pod in self.pods if pod.name in path.split("/") and not pod.deleted]
        if not found:
            raise GoneError(path)
        return found[0]

    def get(self, path: str) -> dict[str, Any]:
        return self._pod(path).object

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        pod, told = self._pod(path), 0
        while True:
            alive = pod.reader.is_alive()
            if len(pod.text) > told:
                # Never whole lines: pieces of a stream are cut anywhere.
                piece = pod.text[told : told + 200]
                told += len(piece)
                yield piece
                if self.cuts and told > 500:
                    self.cuts -= 1
                    raise ConnectionResetError("the stream was cut")
            elif not alive:
                return
            else:
                time.sleep(0.005)

    def delete(self, path: str, body: object = None) -> dict[str, Any]:
        self.deleted.append(path)
        for pod in self.pods:
            pod.process.terminate()
        return {}


@pytest.fixture
def cluster() -> Iterator[SimpleNamespace]:
    api = Api()
    host = SimpleNamespace(run=lambda command: Answer(0, Path("/proc/uptime").read_bytes(), b""))
    yield SimpleNamespace(
        api=api,
        nodes=(),
        node=lambda name: SimpleNamespace(host=host),
        settings=SimpleNamespace(
            client="job:2", image="python:3", allow_disruption=True, rate=100, source_ports=20
        ),
        policy=SimpleNamespace(slow_connect_ms=900.0),
    )
    for pod in api.pods:
        pod.process.kill()
        pod.reader.join()
    assert not namespace_module._ALIVE


def test_pods_share_the_plan_and_their_results_add_up(cluster: SimpleNamespace) -> None:
    said: list[str] = []
    with serving() as (port, _):
        results = run_traffic(cluster, "127.0.0.1", port, seconds=0.4, progress=said.append)
    assert said == [f"100 connections a second to 127.0.0.1:{port} from a Job of 2 pods"]
    assert (results.classes, results.due, results.clients) == ({"ok": 40}, 40, 2)
    assert (results.finished, results.problems) == (True, ())
    assert sum(results.histogram.values()) == 40
    assert 0 < results.clock_error < 1
    assert cluster.api.made == ["Namespace", "Lease", "ConfigMap", "Job"]
    assert cluster.api.deleted[-1].startswith("/api/v1/namespaces/pytest-ipvs-")


def open_run(cluster: SimpleNamespace, port: int, **more: Any) -> TrafficRun:
    """A run that goes on until it is stopped."""
    plan = Plan(host="127.0.0.1", port=port, rate=100, tick=0.1, **more)
    there = place(cluster)
    return TrafficRun(there.host, plan, where=there.label)


def test_a_run_until_stopped_ends_in_good_order_across_cut_streams(
    cluster: SimpleNamespace,
) -> None:
    cluster.api.cuts = 3
    with serving() as (port, _):
        with open_run(cluster, port) as run:
            assert isinstance(run, JobRun)
            poll(lambda: run.refresh().connections > 10, "traffic")
            assert run.running
            assert run.nodes == ("node-1",)
        results = run.results()
    assert (results.finished, results.problems) == (True, ())
    assert set(results.classes) == {"ok"}
    assert results.due == sum(results.classes.values())


def test_a_pod_that_dies_leaves_the_run_unfinished(cluster: SimpleNamespace) -> None:
    with serving() as (port, _):
        with open_run(cluster, port) as run:
            cluster.api.pods[0].process.kill()
            poll(lambda: run.results().problems, "the death")
        results = run.results()
    assert not results.finished
    assert results.problems == ("client pod client-0 died before its end: OOMKilled",)


def test_a_pod_that_is_evicted_leaves_the_run_unfinished(cluster: SimpleNamespace) -> None:
    with serving() as (port, _):
        with open_run(cluster, port) as run:
            cluster.api.pods[1].process.terminate()
            poll(lambda: not cluster.api.pods[1].reader.is_alive(), "the eviction")
            poll(lambda: any(f.done.is_set() for f in run._followers.values()), "its end")  # type: ignore[attr-defined]
        assert not run.results().finished


def test_an_interrupt_removes_the_namespace(cluster: SimpleNamespace) -> None:
    with serving() as (port, _), pytest.raises(KeyboardInterrupt), open_run(cluster, port):
        raise KeyboardInterrupt
    assert len(cluster.api.deleted) == 1


def test_a_start_that_is_given_up_removes_the_namespace(cluster: SimpleNamespace) -> None:
    cluster.api.starts = False
    run = open_run(cluster, 80)
    run.give_up()
    with pytest.raises(TrafficError, match=r"^the start of the client on .* was given up$"):
        run.start(timeout=60.0)
    assert len(cluster.api.deleted) == 1


def test_pods_that_do_not_start_are_one_sentence(cluster: SimpleNamespace) -> None:
    cluster.api.starts = False
    with pytest.raises(TrafficError, match=r"0 of 2 client pods started within 0 s: their logs"):
        open_run(cluster, 80).start(timeout=0.0)
    assert len(cluster.api.deleted) == 1


def test_a_job_that_is_refused_is_told_as_such(
    cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RefusedError(Exception):
        status = 403

    def refuse(path: str, body: object = None) -> dict[str, Any]:
        raise RefusedError(f"no right to change {path.rpartition('/')[2]}")

    monkeypatch.setattr(cluster.api, "create", refuse)
    monkeypatch.setattr(cluster.api, "delete", refuse)
    told = r"^clients cannot run as a Job: no right to change namespaces$"
    with pytest.raises(TrafficError, match=told):
        open_run(cluster, 80).start()
    monkeypatch.setattr(
        cluster.api, "create", lambda path, body: refuse(path) if "/jobs" in path else dict(body)
    )
    with pytest.raises(TrafficError, match=r"^clients cannot run as a Job: no right to .* jobs$"):
        open_run(cluster, 80).start()
    # The namespace was made and can't be deleted: our exit tries again.
    namespace_module._ALIVE.clear()


def test_a_job_needs_the_permission_to_make_one(cluster: SimpleNamespace) -> None:
    cluster.settings.allow_disruption = False
    with pytest.raises(TrafficError, match="need --ipvs-allow-disruption"):
        open_run(cluster, 80).start()
    assert cluster.api.made == []


def test_without_the_node_the_clock_is_known_within_bounds(cluster: SimpleNamespace) -> None:
    cluster.node = lambda name: SimpleNamespace(host=SimpleNamespace())
    with serving() as (port, _):
        results = run_traffic(cluster, "127.0.0.1", port, seconds=0.2)
    assert results.clock_error > 0


def test_the_job_avoids_the_nodes_that_its_place_should(cluster: SimpleNamespace) -> None:
    cluster.nodes = (SimpleNamespace(name="node-1"), SimpleNamespace(name="node-2"))
    assert place(cluster, "job:2", avoid=["node-2"]).host.avoid == ("node-2",)
    with pytest.raises(TrafficError, match=r"avoid node 'nod-2', expected one of node-1, node-2"):
        place(cluster, "job:2", avoid=["nod-2"])


def test_the_job_keeps_away_from_nodes_and_from_shells(cluster: SimpleNamespace) -> None:
    tolerations = ({"key": "dedicated", "operator": "Exists"},)
    there = JobPlace(cluster=cluster, count=3, avoid=("b", "a"), tolerations=tolerations)
    (_, job) = manifests(there, Plan(host="h", port=80, ports=200, rate=30, path="/$(HOME)"), "ns")
    spec = job[1]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    pod = spec["template"]["spec"]
    assert pod["tolerations"] == list(tolerations)
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [field["values"] for field in term["matchFields"]] == [["a"], ["b"]]
    command = pod["containers"][0]["command"]
    assert "$$(HOME)" in command[2]
    plan = json.loads(command[2].replace("$$", "$"))
    assert (plan["rate"], plan["ports"]) == (10, 67)
