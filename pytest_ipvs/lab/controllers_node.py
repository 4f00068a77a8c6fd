"""The heartbeat of the lab's nodes: their leases, as kubelets renew them."""

from __future__ import annotations

import logging
import time

from pytest_ipvs.lab.client import LEASES, NODES, ApiError, Object
from pytest_ipvs.lab.informers import Cluster, Controller

log = logging.getLogger(__name__)

NAMESPACE = "kube-node-lease"
RENEW_SECONDS = 10.0
LEASE_SECONDS = 40


def micro_time() -> str:
    """RFC 3339 with microseconds, as leases have it."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"


class Heartbeat(Controller):
    """Renews the lease of each node every ten seconds."""

    name = "node-heartbeat"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.nodes = cluster.informer(NODES)
        self.nodes.on_event(self._on_node)

    def _on_node(self, kind: str, node: Object) -> None:
        if kind == "ADDED":
            self.enqueue("", node["metadata"]["name"])

    def sync(self, namespace: str, name: str) -> None:
        if self.nodes.get("", name) is None:
            return
        self.enqueue(namespace, name, RENEW_SECONDS)
        api = self.cluster.api
        spec: Object = {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": micro_time(),
        }
        try:
            api.patch(LEASES, NAMESPACE, name, {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            api.create(LEASES, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
