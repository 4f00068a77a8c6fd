"""Connections that stay while a pod is removed: facts of DP-14."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.paths import Path, named
from pytest_ipvs.rollout.protocols import ApiLike, ClusterLike
from pytest_ipvs.rollout.workload import Workload
from pytest_ipvs.traffic.placement import place
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results
from pytest_ipvs.traffic.run import TrafficError, TrafficRun

HELD = 18
SLACK = 2.0
"""Seconds before the end of the grace period from which a break is that end: clocks differ."""

OWN = "held connections to the pod that leaves, until it is killed"
OTHERS = "held connections to the other pods"
SETTLED, POLL_SECONDS, PATIENCE = 3.0, 0.5, 60.0


def held(cluster: ClusterLike, workload: Workload) -> tuple[Path, ...]:
    """Hold connections to a throw-away workload, delete the pod with most of them, and look.

    The workload's pods must serve until they are killed (``DRAIN_SECONDS`` negative).
    """
    try:
        there = place(cluster)
        plan = Plan(
            host=workload.address, port=workload.port, mode="hold", hold=HELD, rate=10.0, ports=0
        )
        with TrafficRun(there.host, plan, where=there.label) as run:
            _until(workload, run, lambda: _established(run.refresh()))
            pods = {pod.name for pod in workload.pods()}
            answers = run.results().pods
            victim = max(pods, key=lambda name: (answers[name], name))
            path = f"/api/v1/namespaces/{workload.namespace}/pods/{victim}"
            workload.say(f"{workload}: {HELD} connections are held, deleting {victim}")
            asked = time.time()
            cluster.api.delete(path)
            _until(workload, run, lambda: _gone(cluster.api, path), more=workload.grace)
            workload.pause(SETTLED)
    except (TrafficError, RolloutError) as error:
        return (Path(what=OTHERS, problem=str(error)),)
    return kept(run.results(), victim, asked + workload.grace)


def kept(results: Results, victim: str, end: float) -> tuple[Path, Path]:
    """The connections to the others, and to the ``victim``, which was to be killed at ``end``.

    All of the victim's own break in the end, which is how many they were; what counts is when.
    """
    if not results.finished:
        problem = "; ".join(results.problems) or "the client did not come to its end"
        return Path(what=OTHERS, problem=problem), Path(what=OWN, problem=problem)
    end -= SLACK + results.clock_error
    own = [sample for sample in results.broken if sample.pod == victim]
    early = Counter(sample.name for sample in own if sample.t < end)
    others = Counter(sample.name for sample in results.broken if sample.pod != victim)
    return (
        Path(what=OTHERS, tried=HELD - len(own), failed=named(others)),
        Path(what=OWN, tried=len(own), failed=named(early)),
    )


def _until(
    workload: Workload, run: TrafficRun, met: Callable[[], bool], *, more: float = 0.0
) -> None:
    """Until it is so; raises `RolloutError` where that takes too long or the client has ended."""
    deadline = time.monotonic() + PATIENCE + more
    while not met():
        if time.monotonic() > deadline or not run.running:
            seen = named(run.results().classes)
            raise RolloutError(f"held connections to {run.plan.target} can't be tried: {seen}")
        workload.pause(POLL_SECONDS)


def _established(results: Results) -> bool:
    return any(second.exchanges >= HELD for second in results.seconds)


def _gone(api: ApiLike, path: str) -> bool:
    try:
        api.get(path)
    except Exception as error:
        if getattr(error, "status", None) != 404:
            raise
        return True
    return False
