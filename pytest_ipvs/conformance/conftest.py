"""What the ready-made suite shares: its order, and one rollout for all checks that it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_ipvs.cluster.cluster import Cluster
    from pytest_ipvs.rollout import Result, Rollout, Workload

    RolloutFixture = Callable[..., AbstractContextManager[Rollout]]

HERE = Path(__file__).parent
# Through a node's port: from the client's own place, and from pytest's machine where that reaches
# the nodes by their addresses.
INSIDE, OUTSIDE = "node-port", "node-port@local"
FORBIDDEN = 403
# What explains the rest comes first, what changes the cluster last.
ORDER = (
    "nodes",
    "kube_proxy",
    "sysctls",
    "kernel",
    "tables",
    "persistence",
    "conntrack_nat",
    "capacity",
    "data_path",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [index for index, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[index] for index in own), key=_place)
    for index, item in zip(own, ordered, strict=True):
        items[index] = item


def _place(item: pytest.Item) -> int:
    return ORDER.index(item.path.stem.removeprefix("test_"))


@pytest.fixture(scope="session")
def node_port_ways(ipvs_cluster: Cluster) -> tuple[str, ...]:
    """The ways to a node's port. What is not the nodes' address there may be somebody else's."""
    by_address = "{internal_ip}" in (ipvs_cluster.settings.connect or "")
    return (INSIDE, OUTSIDE) if by_address else (INSIDE,)


@pytest.fixture(scope="session")
def load_balancer(ipvs_cluster: Cluster) -> str | None:
    """What workloads ask a load balancer for. It may cost money, so nobody gets one unasked."""
    return ipvs_cluster.settings.load_balancer


@pytest.fixture(scope="session")
def callers(
    ipvs_workload: Callable[..., Workload], load_balancer: str | None
) -> Iterator[Workload]:
    """Two pods that connect to where they are told."""
    workload = ipvs_workload(replicas=2, load_balancer=load_balancer)
    yield workload
    workload.remove()


@pytest.fixture(scope="session")
def restart(
    ipvs_workload: Callable[..., Workload],
    ipvs_rollout: RolloutFixture,
    node_port_ways: tuple[str, ...],
    load_balancer: str | None,
) -> Rollout:
    """A rolling restart under short connections with re-used ports, on several ways at once."""
    workload = ipvs_workload(replicas=3, node_port=True, load_balancer=load_balancer)
    balancer = ("load-balancer",) if workload.balancer else ()
    with ipvs_rollout(workload, also=(*node_port_ways, *balancer)) as run:
        run.restart()
    workload.remove()
    return run


@pytest.fixture(scope="session")
def restarted(restart: Rollout) -> Result:
    """What the client of the cluster IP saw of the restart."""
    return result_of(restart)


@pytest.fixture(scope="session")
def scaled_up(ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture) -> Result:
    """A scale-up under short connections with re-used ports."""
    workload = ipvs_workload(replicas=2)
    with ipvs_rollout(workload) as run:
        run.scale(4)
    workload.remove()
    return result_of(run)


@pytest.fixture(scope="session")
def scaled_in(ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture) -> Result:
    """A scale-in under short connections with re-used ports."""
    workload = ipvs_workload(replicas=4)
    with ipvs_rollout(workload) as run:
        run.scale(2)
    workload.remove()
    return result_of(run)


@pytest.fixture(scope="session")
def endpoint_left(ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture) -> Result:
    """An endpoint leaves while its pod lives, so that the kernel's own behaviour shows."""
    workload = ipvs_workload(replicas=3)
    with ipvs_rollout(workload) as run:
        run.endpoint_leaves()
    workload.remove()
    return result_of(run)


@pytest.fixture(scope="session")
def drained(
    ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture
) -> Result | Exception:
    """A node is drained; or why no node can be."""
    return shared_disruption(ipvs_workload, ipvs_rollout, lambda run: run.drain())


@pytest.fixture(scope="session")
def proxy_restarted(
    ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture
) -> Result | Exception:
    """kube-proxy restarts on the client's node; or why it can't be restarted."""
    return shared_disruption(ipvs_workload, ipvs_rollout, lambda run: run.restart_kube_proxy())


def shared_disruption(
    ipvs_workload: Callable[..., Workload],
    ipvs_rollout: RolloutFixture,
    change: Callable[[Rollout], object],
) -> Result | Exception:
    """What a change of something shared did; or why this cluster has no place for it."""
    from pytest_ipvs.cluster import ApiError
    from pytest_ipvs.rollout import NotPossibleHere

    reason: Exception | None = None
    workload = ipvs_workload(replicas=3)
    with ipvs_rollout(workload) as run:
        try:
            change(run)
        except (NotPossibleHere, ApiError) as error:
            # An answer other than "forbidden" is an error of the run.
            if getattr(error, "status", FORBIDDEN) != FORBIDDEN:
                raise
            reason = error
            run.abandon()
    workload.remove()
    return reason or result_of(run)


@pytest.fixture(scope="session")
def affine_pod_deleted(
    ipvs_workload: Callable[..., Workload], ipvs_rollout: RolloutFixture
) -> Result:
    """The pod that a client with session affinity is bound to goes away."""
    workload = ipvs_workload(replicas=2, affinity=True)
    with ipvs_rollout(workload) as run:
        # The pod that answered most goes first, and with affinity one pod gave all answers.
        run.delete_pods(1)
    workload.remove()
    return result_of(run)


def result_of(run: Rollout) -> Result:
    """The result of a run whose block has ended."""
    assert run.result is not None
    return run.result
