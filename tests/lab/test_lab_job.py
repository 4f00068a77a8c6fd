"""Clients as pods of a Job on the lab: made, followed, stopped and removed like on any cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.traffic import Plan, TrafficRun
from pytest_ipvs.traffic.placement import place

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    with lab.cluster(ipvs_allow_disruption=True) as opened:
        yield opened


def test_pods_of_a_job_watch_a_service_and_leave_nothing(
    cluster: Cluster, eventually: Callable[..., Any]
) -> None:
    there = place(cluster, "job:2", avoid=("node-2",))
    plan = Plan(host="10.96.10.1", port=80, rate=20, ports=100)
    with TrafficRun(there.host, plan, where=there.label) as run:
        eventually(lambda: run.results().connections >= 100, "traffic", pause=0.5)
        nodes = {follower.node for follower in run._followers.values()}  # type: ignore[attr-defined]
    results = run.results()
    assert (results.finished, results.problems) == (True, ())
    assert (set(results.classes), results.clients) == ({"ok"}, 2)
    assert results.due == sum(results.classes.values()) == sum(results.histogram.values())
    assert len(results.pods) == 3
    assert results.reused > 0
    assert run.clock_problem == ""  # type: ignore[attr-defined]
    assert 0 < results.clock_error < 5
    assert "node-2" not in nodes
    eventually(
        lambda: (
            not [
                item
                for item in cluster.api.items("/api/v1/namespaces")
                if item["metadata"]["name"].startswith("pytest-ipvs-")
            ]
        ),
        "the namespace's end",
    )
