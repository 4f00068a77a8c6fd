"""Timelines and results made by hand. Seconds count from the disruption at 1000."""

from __future__ import annotations

from typing import Any

from pytest_ipvs.ipvs.tables import ServiceKey
from pytest_ipvs.rollout.timeline import Phase, PodTrace, ServerTrace, Timeline
from pytest_ipvs.traffic.results import Results, Sample, Second

ZERO = 1000.0
KEY = ServiceKey("TCP", "10.96.0.10", 80)


def pod(name: str, address: str, **times: Any) -> PodTrace:
    """A pod; times are relative to the disruption."""
    old = times.pop("old", name.startswith("old"))
    uid = times.pop("uid", f"uid-{name}")
    times = {"first_seen": -20.0, "ready_at": -20.0} | times
    return PodTrace(
        name=name,
        uid=uid,
        address=address,
        node="node-1",
        old=old,
        **{key: None if value is None else ZERO + value for key, value in times.items()},
    )


def server(
    node: str,
    address: str,
    *,
    zero: float | None,
    gone: float | None,
    last: float = 70.0,
    n: int = 0,
) -> ServerTrace:
    """A real server; times are relative to the disruption."""
    return ServerTrace(
        node=node,
        key=KEY,
        address=address,
        port=8080,
        first_seen=ZERO - 20,
        last_seen=ZERO + (last if gone is None else gone - 1),
        weight=1 if zero is None else 0,
        active=0,
        inactive=n,
        weight_zero_at=None if zero is None else ZERO + zero,
        gone_at=None if gone is None else ZERO + gone,
    )


def restart_timeline(**change: Any) -> Timeline:
    """One of two pods replaced: deleted at 5, weight 0 at 6, gone at 16, settled until 70."""
    fields: dict[str, Any] = {
        "started": ZERO - 20,
        "ended": ZERO + 70,
        "phases": (
            Phase(name="baseline", start=ZERO - 10, end=ZERO),
            Phase(name="restart", start=ZERO, end=ZERO + 18),
            Phase(name="settle", start=ZERO + 18, end=ZERO + 70),
        ),
        "pods": (
            pod("old-1", "10.244.1.5", deleted_at=5.0, left_at=5.0, gone_at=16.0),
            pod("stays", "10.244.2.5", old=True),
            pod("new-1", "10.244.1.6", first_seen=1.0, ready_at=4.0),
        ),
        "servers": (
            server("node-1", "10.244.1.5", zero=6.0, gone=20.0),
            server("node-2", "10.244.1.5", zero=6.0, gone=15.0),
            server("node-1", "10.244.2.5", zero=None, gone=None),
            server("node-1", "10.244.1.6", zero=None, gone=None),
        ),
    }
    return Timeline(**{**fields, **change})


def healthy_seconds(start: int = -10, end: int = 70) -> list[Second]:
    """20 connections a second: all ok, all re-used from 0 on, fair to the new pod from 5 on."""
    return [
        Second(
            t=int(ZERO) + t,
            due=20,
            classes={"ok": 20},
            pods={"stays": 10, "old-1": 10} if t < 5 else {"stays": 10, "new-1": 10},
            reused=20 if t >= 0 else 0,
            reused_after={"old-1": 10, "stays": 10} if 0 <= t < 15 else {"stays": 20},
        )
        for t in range(start, end)
    ]


def failing_seconds(start: int, end: int, after: str = "old-1", **classes: int) -> list[Second]:
    """Seconds in which some of 20 connections failed on tuples that ``after`` had answered."""
    failed = sum(classes.values())
    return [
        Second(
            t=int(ZERO) + t,
            due=20,
            classes={"ok": 20 - failed, **classes},
            pods={"stays": 20 - failed},
            reused=20,
            reused_after={"old-1": 10, "stays": 10},
            failed_after={after: failed} if after else {},
        )
        for t in range(start, end)
    ]


def sample(t: float, name: str = "no_route", **change: Any) -> Sample:
    """A failure on a tuple that old-1 had answered."""
    fields: dict[str, Any] = {
        "t": ZERO + t,
        "kind": "failure",
        "name": name,
        "errno": "EHOSTUNREACH",
        "source": "10.244.1.250",
        "source_port": 20007,
        "target": "10.96.0.10:80",
        "connect_ms": None,
        "resent": 0,
        "reused": True,
        "previous_pod": "old-1",
        "previous_at": ZERO + t - 10,
        "previous_ending": "server_fin",
    }
    return Sample(**{**fields, **change})


def results_of(seconds: list[Second], **change: Any) -> Results:
    """Results of a client that finished."""
    return Results(**{"seconds": tuple(seconds), "finished": True, **change})
