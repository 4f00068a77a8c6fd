"""Recorded rolling updates of real Kubernetes, replayed through recorder, verdict and cause.

Each file holds one run through one Service: 30 connections a second over 200 source ports, the
pods, the ready endpoints and three nodes' real servers, in seconds from the restart.
"""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey
from pytest_ipvs.policy import Policy
from pytest_ipvs.rollout.cause import diagnose
from pytest_ipvs.rollout.recorder import Recorder, Sources
from pytest_ipvs.rollout.result import Result
from pytest_ipvs.rollout.verdict import judge
from pytest_ipvs.traffic.collect import Collector
from pytest_ipvs.traffic.results import Results

DATA = Path(__file__).parent.parent / "data" / "rollout"
KEY = ServiceKey("TCP", "10.96.10.1", 80)
ZERO = 1_000_000.0


class Replay:
    """The recorder's sources and clock, moved by a recording."""

    def __init__(self, name: str) -> None:
        text = lzma.decompress((DATA / f"{name}.jsonl.xz").read_bytes()).decode()
        self.now = 0.0
        self.pods: dict[str, dict[str, Any]] = {}
        self.ready: list[str] = []
        self.tables: dict[str, Any] = {}
        self.read: dict[str, Any] = {}
        self.history: dict[int, tuple[float, str]] = {}
        self.collector = Collector("10.96.10.1:80")
        self.totals: dict[str, int] = {}
        rows = [json.loads(line) for line in text.splitlines()]
        self.now = ZERO + rows[0][0]
        self.recorder = Recorder(
            Sources(
                pods=lambda: self.pods.values(),
                slices=lambda: [self._slice()],
                tables=lambda: self.read,
            ),
            clock=lambda: self.now,
        )
        self.recorder.begin("baseline")
        for t, kind, *values in rows:
            self.now = ZERO + t
            getattr(self, kind.partition("-")[0])(kind, *values)
        self._tell(k="end", reason="duration", totals=self.totals)

    def _slice(self) -> EndpointSlice:
        return EndpointSlice(
            namespace="demo",
            name="web-1",
            service="web",
            family="IPv4",
            ports=(),
            endpoints=tuple(Endpoint(addresses=(address,)) for address in self.ready),
        )

    def _tell(self, **line: Any) -> None:
        self.collector.feed(json.dumps(line) + "\n")

    def phase(self, _: str, name: str) -> None:
        """The restart begins or is complete."""
        self.recorder.begin(name)

    def pod(self, _: str, name: str, uid: str, ip: str, node: str, *flags: bool) -> None:
        """A pod has changed."""
        is_ready, deleting, stopped, gone = flags
        self.pods[uid] = {
            "metadata": {"name": name, "uid": uid, "deletionTimestamp": deleting or None},
            "spec": {"nodeName": node},
            "status": {
                "podIP": ip,
                "conditions": [{"type": "Ready", "status": str(is_ready)}],
                "containerStatuses": [{"state": {"terminated": {}} if stopped else {}}],
            },
        }
        if gone:
            del self.pods[uid]
        self.recorder.read_api()

    def endpoints(self, _: str, addresses: list[str]) -> None:
        """The ready endpoints have changed."""
        self.ready = addresses
        self.recorder.read_api()

    def node(self, name: str, servers: list[list[Any]] | None) -> None:
        """A node was read; nothing new is None."""
        if servers is not None:
            self.tables[name] = {
                KEY: tuple(RealServer.at(a, p, "Masq", w, x, y) for a, p, w, x, y in servers)
            }
        self.read = {name: self.tables[name]}
        self.recorder.read_tables()
        self.recorder.read_api()

    def client(self, _: str, sport: int, name: str, err: str, ms: float | None, pod: str) -> None:
        """One connection, counted as the client counts it."""
        at, previous = self.history.get(sport, (-math.inf, ""))
        reused = self.now - at <= 120
        second: dict[str, Any] = {"t": int(self.now), "n": 1, "c": {name: 1}}
        self.totals[name] = self.totals.get(name, 0) + 1
        if pod:
            second["p"] = {pod: 1}
        if reused:
            second |= {"r": 1, "rp": {previous: 1}}
        if name == "ok":
            self.history[sport] = (self.now, pod)
        else:
            second["fp"] = {previous: 1} if previous else {}
            self._tell(
                k="f",
                t=self.now,
                cls=name,
                err=err,
                src="10.244.1.2",
                sport=sport,
                reused=reused,
                ms=None,
                resent=0,
                prev=previous,
                prev_t=at if previous else None,
            )
        if ms is not None and ms >= 900:
            second["slow"] = 1
        self._tell(k="s", **second)

    def results(self) -> Results:
        """What the client saw."""
        return self.collector.results()


def replayed(name: str, reuse_mode: str, expire_nodest: str) -> Result:
    """The result that a run with this recording would have."""
    replay = Replay(name)
    results, timeline = replay.results(), replay.recorder.timeline()
    policy = Policy()
    facts = SimpleNamespace(
        kernel_release="6.1.0-56-amd64",
        kernel_version="#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-11-01)",
        sysctls={
            "net.ipv4.vs.conn_reuse_mode": reuse_mode,
            "net.ipv4.vs.expire_nodest_conn": expire_nodest,
        },
        proxy=SimpleNamespace(version="v1.36.2", config={}),
    )
    known = {f"node-{number}": facts for number in (1, 2, 3)}
    verdict, reasons = judge(results, timeline, policy)
    return Result(
        target="demo/web",
        address="10.96.10.1:80",
        results=results,
        timeline=timeline,
        verdict=verdict,
        reasons=reasons,
        drain_budget=policy.drain_budget,
        cause=diagnose(results, timeline, facts=known, policy=policy),
        client="client",
    )


def test_a_healthy_rolling_update_passes() -> None:
    result = replayed("healthy", "1", "1")
    assert (result.verdict, result.reasons) == ("passed", ())
    assert result.results.classes == {"ok": 3600}
    assert result.cause is None
    # Old pods serve on for some seconds after the last new one is ready.
    assert result.share_of_new_pods == pytest.approx(0.96, abs=0.01)
    assert result.reused_tuples > 2000
    assert result.exposed_tuples is not None
    assert result.exposed_tuples > 100
    assert result.stale_real_servers(after=60) == ()
    assert result.drained_after is not None
    assert 30 < result.drained_after < 60


def test_both_sysctls_zero_fails_by_re_used_tuples() -> None:
    result = replayed("both_zero", "0", "0")
    assert result.verdict == "failed"
    assert sum(result.failures.values()) == 2318
    assert result.cause is not None
    first = result.cause.causes[0]
    assert (first.kind, first.nodes) == ("reuse_leftover", ("node-1",))
    assert first.count > 2000
    assert first.classes["connect_timeout"] > 2000
    assert len(first.pods) == 3
    assert "net.ipv4.vs.conn_reuse_mode is 0, expected 1" in first.text
    assert "on node-1: sysctl -w" in first.remedy
    assert {cause.kind for cause in result.cause.causes} <= {"reuse_leftover", "pod_dies_early"}
    assert result.share_of_new_pods == 0.0
    assert {stale.node for stale in result.stale_real_servers(after=60)} == {"node-1"}


def test_a_kube_proxy_slower_than_the_pods_fails_by_pods_that_died_early() -> None:
    result = replayed("slow_kube_proxy", "1", "1")
    assert result.verdict == "failed"
    assert sum(result.failures.values()) == 207
    assert result.cause is not None
    (cause,) = result.cause.causes
    assert (cause.kind, cause.count, len(cause.pods)) == ("pod_dies_early", 207, 3)
    assert "node-1: weight 0 at +25 s" in cause.text
