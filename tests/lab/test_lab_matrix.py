"""conn_reuse_mode x expire_nodest_conn x affinity x disruption, each cell as it is known to be.

A lab of four nodes has all four rows at once: one disruption answers for each of them. In each row
goes a client whose ports come back, and one whose ports don't. The affine clients are all bound to
the pod that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from lab_suite import EMULATED
from lab_truth import AFFINE

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.lab.client import DEPLOYMENTS, PODS
from pytest_ipvs.policy import load_policy
from pytest_ipvs.rollout import Result, Rollout, recorder, trace
from pytest_ipvs.traffic import run as traffic

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]

Settings = tuple[int, int]
"""conn_reuse_mode and expire_nodest_conn."""
ROWS: dict[Settings, str] = {(0, 0): "1", (0, 1): "2", (1, 0): "3", (1, 1): "4"}
"""The number of the node that has these settings."""
# Ports come round in 8 s: IPVS forgets a refused connection after 10 s, and with it where it went.
# A way has half the pace over half the ports of the run's own client. When one of three pods
# leaves, a third of that is scheduled anew. It must be no multiple of the fresh client's one a
# second: in step with it, that client would have the new pod's turns all to itself.
RATE, PORTS = 14, 112
ROUND = PORTS // RATE
BASELINE, SETTLE = ROUND + 2, ROUND + 6
# A connection under session affinity is never rescheduled by conn_reuse_mode (is_new_conn_expected
# of ip_vs_core.c leaves controlled ones alone): there expire_nodest_conn alone decides.
STICK: dict[str, set[Settings]] = {"web": {(0, 0)}, "web-affinity": {(0, 0), (1, 0)}}


class Scenario(NamedTuple):
    """``leaves``: whether pods leave. ``shares``: of new pods without affinity, once settled."""

    name: str
    pods: int
    disrupt: Callable[[Rollout], object]
    leaves: bool
    shares: dict[Settings, float]


def replace(run: Rollout) -> None:
    run.scale(4)
    run.scale(3)


SCENARIOS = (
    Scenario(
        # As each step of a rolling update: the new pod is ready before the old one leaves.
        name="one of three is replaced",
        pods=3,
        disrupt=replace,
        leaves=True,
        # With mode 0 a tuple is scheduled anew when its server has left, so a third of a third.
        shares={(0, 0): 0, (0, 1): 1 / 9, (1, 0): 1 / 3, (1, 1): 1 / 3},
    ),
    Scenario(
        name="restart",
        pods=3,
        disrupt=Rollout.restart,
        leaves=True,
        # With 0 and 0 there is no answer at all in the end.
        shares={(0, 1): 1, (1, 0): 1, (1, 1): 1},
    ),
    Scenario(
        name="scale up",
        pods=2,
        disrupt=lambda run: run.scale(3),
        leaves=False,
        shares={(0, 0): 0, (0, 1): 0, (1, 0): 1 / 3, (1, 1): 1 / 3},
    ),
    Scenario(
        name="scale down",
        pods=3,
        disrupt=lambda run: run.scale(2),
        leaves=True,
        shares={},
    ),
)


@pytest.fixture(autouse=True)
def _spare_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look seldom, and for no causes: forks are what an emulated processor is slowest at."""
    monkeypatch.setattr(traffic, "POLL_SECONDS", 6.0)
    monkeypatch.setattr(recorder, "TABLE_PERIOD", 5.0)
    monkeypatch.setattr(trace, "LOOK_SECONDS", 600.0)


@pytest.fixture(scope="module")
def four(start_lab: Callable[..., AbstractContextManager[RunningLab]]) -> Iterator[RunningLab]:
    with start_lab("four", nodes=4) as lab:
        for (reuse_mode, expire_nodest), number in ROWS.items():
            values = {"conn_reuse_mode": reuse_mode, "expire_nodest_conn": expire_nodest}
            lab.set_vs(f"node-{number}", values)
        yield lab


def scale(lab: RunningLab, replicas: int, eventually: Callable[..., Any]) -> set[str]:
    """So many pods, and no others in the tables; their names."""

    def in_use(node: str) -> set[str]:
        return {address for address, weight in lab.web(node).items() if weight}

    lab.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": replicas}})
    eventually(lab.rolled_out, f"{replicas} pods")
    for node in lab.handle.nodes:
        eventually(lambda node=node: in_use(node) == lab.addresses(), f"the table of {node}")
    return {pod["metadata"]["name"] for pod in lab.pods()}


def bind(lab: RunningLab, replicas: int, eventually: Callable[..., Any]) -> None:
    """So many pods, with all affine clients bound to the one that a scale-down takes first."""
    (only,) = scale(lab, 1, eventually)
    for client in clients():
        assert lab.ssh(client, "wget", "-qO-", f"http://{AFFINE}/").strip() == only
    notes = {"controller.kubernetes.io/pod-deletion-cost": "-1"}
    lab.api.patch(PODS, "demo", only, {"metadata": {"annotations": notes}})
    assert only in scale(lab, replicas, eventually)


def clients() -> list[str]:
    return ["client" if number == "1" else f"client-{number}" for number in ROWS.values()]


def measure(
    lab: RunningLab, service: str, disrupt: Callable[[Rollout], object]
) -> tuple[dict[Settings, Result], dict[Settings, Result]]:
    """What each row's client saw of a disruption, and what those without re-used ports saw."""
    first, *others = (f"ssh://root@{client}" for client in clients())
    ways = [f"cluster-ip@{client}" for client in others]
    usual: dict[str, Any] = {"service": service, "client": first, "also": ways}
    usual["fresh_ports"] = False
    with (
        lab.cluster(load_policy(EMULATED, CATALOGUE), ipvs_allow_disruption=True) as cluster,
        ExitStack() as stack,
    ):

        def run(**options: Any) -> Rollout:
            opened = Rollout(cluster, "demo/web", progress=print, **usual, **options)
            return stack.enter_context(opened)

        # They go on together: the last one's time is the first one's too.
        reused = run(rate=RATE, ports=PORTS, baseline=1, settle=0)
        fresh = run(rate=2, ports=1000, baseline=BASELINE, settle=SETTLE)
        reused.alongside(fresh)
        disrupt(reused)

    def by_row(run: Rollout) -> dict[Settings, Result]:
        assert run.result is not None
        return dict(zip(ROWS, (run.result, *map(run.through, ways)), strict=True))

    return by_row(reused), by_row(fresh)


def share(result: Result) -> float:
    """What new pods got of the last round, in which each port had its turn."""
    end = result.results.seconds[-1].t
    pods = result.results.window(end - ROUND, end).pods
    return sum(pods[pod.name] for pod in result.timeline.new_pods) / sum(pods.values())


@pytest.mark.parametrize("service", ["web", "web-affinity"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_cell_is_the_ground_truth(
    four: RunningLab, eventually: Callable[..., Any], scenario: Scenario, service: str
) -> None:
    bind(four, scenario.pods, eventually)
    results, fresh = measure(four, service, scenario.disrupt)
    for row, result in results.items():
        print(f"\n{row}: {result.evidence}")
    stuck = STICK[service] if scenario.leaves else set()
    assert {row for row, result in results.items() if result.failures} == stuck
    for row, result in results.items():
        assert result.verdict == ("failed" if row in stuck else "passed")
        assert result.reused_tuples > PORTS / 2
        if service == "web" and row in scenario.shares:
            print(f"{row}: new pods got {share(result):.1%} of the last round")
            assert share(result) == pytest.approx(scenario.shares[row], abs=0.06)
    # Where no tuple comes back nothing fails in any row, which proves nothing.
    for result in fresh.values():
        seen = result.verdict, dict(result.failures), result.results.reused
        assert seen == ("inconclusive", {}, 0)
