"""Reaching a cluster: the API (raw JSON), the nodes (testinfra hosts), and facts read from both.

Belongs here: kubeconfig and context, paginated lists and watches, one connection and one script
per node and refresh, time limits, what could not be read and why.
Does not belong here: what a value should be (that is ``ipvs`` and ``checks``), pytest.
"""

from __future__ import annotations

from pytest_ipvs.cluster.api import Api
from pytest_ipvs.cluster.cluster import Cluster, Versions
from pytest_ipvs.cluster.errors import (
    ApiError,
    ClusterError,
    FactsError,
    NodeUnreachableError,
)
from pytest_ipvs.cluster.handle import NodeHandle
from pytest_ipvs.cluster.nodes import NodePool, Output, Unreachable
from pytest_ipvs.cluster.watch import Watch, WatchEvent

__all__ = [
    "Api",
    "ApiError",
    "Cluster",
    "ClusterError",
    "FactsError",
    "NodeHandle",
    "NodePool",
    "NodeUnreachableError",
    "Output",
    "Unreachable",
    "Versions",
    "Watch",
    "WatchEvent",
]
