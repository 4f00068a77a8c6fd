"""What IPVS does to re-used ports, measured by our own client on a real kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from lab_truth import AFFINE, PORTS, RATE, WEB, Clients, assert_rolling_replacement, failures

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.lab.client import DEPLOYMENTS, PODS

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_alone]


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    with lab.cluster() as opened:
        yield opened


def test_rolling_replacement(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    assert_rolling_replacement(lab, eventually)


@pytest.mark.parametrize(
    ("resets", "rows", "delayed"),
    [
        (False, {"node-1": "server", "node-2": "client", "node-3": "rst"}, set()),
        (
            True,
            {"node-1": {}, "node-2": {"conn_reuse_mode": 0}, "node-3": {"conntrack": 0}},
            {"node-1"},
        ),
    ],
    ids=["endings", "server resets"],
)
def test_one_second_connects(
    lab: RunningLab,
    cluster: Cluster,
    eventually: Callable[..., Any],
    resets: bool,
    rows: Mapping[str, Any],
    delayed: set[str],
) -> None:
    """With kube-proxy's defaults, only an application that ends with RST costs a second."""
    if resets:
        lab.handle.fault("server_resets")
        for node, values in rows.items():
            lab.set_vs(node, values)
    endings = {} if resets else rows
    with Clients(lab, cluster, WEB, eventually, 80, endings) as clients:
        clients.until(5 * RATE)
        results = clients.stop()
    for node, found in results.items():
        assert not failures(found)
        if endings.get(node) != "client":
            assert found.reused > 40
        seen = f"{rows[node]} on {node}: {found.resent} resent, {found.reused} re-used"
        if node in delayed:
            assert found.resent > found.reused / 2, seen
        else:
            # A machine that stands still for a second has the connects of that moment resent.
            starved = found.starved_seconds
            assert not [
                second for second in found.seconds if second.resent and second.t not in starved
            ]
            assert found.resent < found.connections / 20, seen


def test_persistence(
    lab: RunningLab,
    cluster: Cluster,
    eventually: Callable[..., Any],
) -> None:
    """An affine client leaves a drained pod only with expire_quiescent_template=1."""
    lab.set_vs("node-1", {"expire_quiescent_template": 0})
    lab.set_vs("node-2", {"expire_quiescent_template": 1, "conn_reuse_mode": 0})
    lab.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 4}})
    eventually(lab.rolled_out, "four pods")
    with Clients(lab, cluster, AFFINE, eventually) as clients:
        clients.until(PORTS + RATE)
        bound = {node: run.results().pods for node, run in clients.runs.items()}
        assert all(len(pods) == 1 for pods in bound.values())
        victims = {name for pods in bound.values() for name in pods}
        for victim in victims:
            lab.api.delete(PODS, "demo", victim)
        eventually(
            lambda: all(lab.api.get(PODS, "demo", victim) is None for victim in victims),
            f"{victims} are gone",
        )
        clients.until(PORTS)
        results = clients.stop()
    assert sum(results["node-1"].failures.values()) > PORTS / 2
    assert len(results["node-1"].pods) == 1
    for node in ("node-2", "node-3"):
        assert not failures(results[node])
        assert len(results[node].pods) > 1
