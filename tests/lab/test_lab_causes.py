"""A cause that no check of the ready-made suite brings about, and two workloads at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from lab_suite import EMULATED

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.cluster import Cluster
from pytest_ipvs.policy import load_policy
from pytest_ipvs.rollout import Rollout, Workload, at_once

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    with lab.cluster(
        load_policy(str(EMULATED), CATALOGUE),
        ipvs_client=lab.handle.client,
        ipvs_allow_disruption=True,
        ipvs_rate="25",
        ipvs_source_ports="75",
        ipvs_baseline="5",
        ipvs_settle="6",
        ipvs_pre_stop="5",
    ) as opened:
        yield opened


def test_a_real_server_that_was_never_an_endpoint(lab: RunningLab, cluster: Cluster) -> None:
    lab.handle.fault("stale_real_server", "node-1")
    with Rollout(cluster, "demo/web", service="web") as run:
        run.restart()
    assert run.verdict == "failed"
    first = run.result.cause.causes[0]
    assert first.kind == "stale_real_server", str(run.result.cause)
    assert first.decisive
    assert "node-1 holds it in state" in first.text


def test_two_workloads_are_restarted_at_once(lab: RunningLab, cluster: Cluster) -> None:
    with ExitStack() as stack:
        webs = [stack.enter_context(Workload(cluster, replicas=2)) for _ in range(2)]
        runs = [stack.enter_context(Rollout(cluster, web, rate=15, ports=45)) for web in webs]
        at_once(*(run.restart for run in runs))
    assert [run.verdict for run in runs] == ["passed", "passed"], [run.evidence for run in runs]
    for run in runs:
        assert run.timeline.old_pods
        assert run.share_of_new_pods == pytest.approx(1.0)
