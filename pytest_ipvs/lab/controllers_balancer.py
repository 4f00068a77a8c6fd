"""A stand-in for a load balancer of the cluster: it gives Services addresses, and nothing else.

The nodes have these addresses on kube-ipvs0, so a client in the lab reaches them through its node.
"""

from __future__ import annotations

import itertools

from pytest_ipvs.lab.client import SERVICES, Object
from pytest_ipvs.lab.informers import Cluster, Controller
from pytest_ipvs.lab.proxy_model import balancer_addresses

# The demo's own Service has the one before.
FIRST, LAST = 211, 250


class BalancerController(Controller):
    """Writes an address into the status of each Service of type LoadBalancer that has none."""

    name = "load-balancer"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._next = itertools.cycle(range(FIRST, LAST + 1))
        self.services = cluster.informer(SERVICES)
        self.services.on_event(self._on_service)

    def _on_service(self, kind: str, service: Object) -> None:
        if kind != "DELETED" and service["spec"].get("type") == "LoadBalancer":
            self.enqueue(service["metadata"]["namespace"], service["metadata"]["name"])

    def sync(self, namespace: str, name: str) -> None:
        service = self.services.get(namespace, name)
        if service is None or balancer_addresses(service):
            return
        address = service["spec"].get("loadBalancerIP") or f"192.168.50.{next(self._next)}"
        status = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}
        self.cluster.api.patch(SERVICES, namespace, name, {"status": status}, sub="status")
