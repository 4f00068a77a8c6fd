"""The affinity probe (PS-02): does a client with session affinity leave a pod that goes away?"""

from __future__ import annotations

from typing import Any

from pytest_ipvs.rollout.protocols import ClusterLike, Say, silent
from pytest_ipvs.rollout.result import Result
from pytest_ipvs.rollout.run import Rollout
from pytest_ipvs.rollout.workload import Workload


def affinity_probe(
    cluster: ClusterLike, *, replicas: int = 2, progress: Say = silent, **options: Any
) -> Result:
    """Delete the pod that an affine client is bound to; the result has both kinds of port.

    A throw-away workload with ClientIP affinity is made and removed. ``result.results`` has
    re-used source ports and fresh ones, ``result.fresh`` the fresh ones alone. ``options`` go to
    `Rollout`.
    """
    with (
        Workload(cluster, replicas=replicas, affinity=True, progress=progress) as workload,
        Rollout(cluster, workload, fresh_ports=True, progress=progress, **options) as run,
    ):
        # All answers came from one pod, and the pod that answered most is deleted first.
        run.delete_pods(1)
    result = run.result
    assert result is not None
    return result
