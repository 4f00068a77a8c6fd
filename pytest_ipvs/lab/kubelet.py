"""A stand-in for the kubelet of one node: runs the pods bound to it as processes in namespaces.

Each pod has a worker thread, like the original's pod workers. Order at the end of a pod, as
recorded: preStop, SIGTERM, wait for the rest of the grace period, SIGKILL, status without
readiness, address removed, object deleted with grace 0.
"""

from __future__ import annotations

import ipaddress
import threading
from dataclasses import dataclass

from pytest_ipvs.lab.blackout import Blackout
from pytest_ipvs.lab.client import PODS, Object
from pytest_ipvs.lab.controllers_replicaset import is_finished
from pytest_ipvs.lab.informers import Cluster
from pytest_ipvs.lab.kubelet_pod import PodSpecError, Sources
from pytest_ipvs.lab.kubelet_worker import PodWorker
from pytest_ipvs.lab.machine import Machine


@dataclass(slots=True)
class Behaviour:
    """How faults bend all pods of a node."""

    ending: str | None = None
    """How servers end connections: "rst", or ``None`` for what the pod itself asks for."""
    dies_early: bool = False
    """Kill at deletion, without preStop and grace, address removed at once."""
    report_delay: float = 0.0
    """Seconds after such a death until the API learns of it."""
    listens_late: float = 0.0
    """Seconds for which a restarted pod is called ready before it listens."""
    crash_lag: float = 0.0
    """Seconds for which a restarted pod, once in service, is dead and still called ready."""
    blackout: Blackout | None = None
    """Told of restarted pods that become ready."""


class Addresses:
    """Hands out the node's pod addresses in turn, so that none comes back soon."""

    def __init__(self, cidr: str, reserved: frozenset[str] = frozenset()) -> None:
        network = ipaddress.ip_network(cidr)
        # .1 is the gateway, the end of the range belongs to clients.
        self._pool = [
            str(address) for address in list(network.hosts())[1:190] if str(address) not in reserved
        ]
        self._used: set[str] = set()
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> str:
        """An address that is not in use."""
        with self._lock:
            for _ in self._pool:
                address = self._pool[self._next % len(self._pool)]
                self._next += 1
                if address not in self._used:
                    self._used.add(address)
                    return address
        raise PodSpecError("the node has no free pod address", "FailedCreatePodSandBox")

    def give_back(self, address: str) -> None:
        """The address is free again."""
        with self._lock:
            self._used.discard(address)


KEPT_LOG, KEPT_LOGS = 1 << 20, 20


class Kubelet:
    """The kubelet of one node."""

    def __init__(
        self, cluster: Cluster, machine: Machine, node: str, *, host: str, pod_cidr: str
    ) -> None:
        self.node = node
        self.host = host
        self.behaviour = Behaviour()
        self.cluster = cluster
        self.machine = machine
        self.sources = Sources(cluster.api)
        self.addresses = Addresses(pod_cidr)
        self._pods = cluster.informer(PODS)
        self._workers: dict[str, PodWorker] = {}
        self.logs: dict[str, str] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start to run the pods bound to this node."""
        self._pods.on_event(self._on_pod)

    def stop(self) -> None:
        """Stop looking after pods; their processes end with the machine."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        for worker in workers:
            worker.abandon()

    def _on_pod(self, kind: str, pod: Object) -> None:
        if pod["spec"].get("nodeName") != self.node:
            return
        uid = pod["metadata"]["uid"]
        with self._lock:
            worker = self._workers.get(uid)
            if worker is None:
                if kind == "DELETED" or self._closed or is_finished(pod):
                    return
                worker = self._workers[uid] = PodWorker(self, pod)
                worker.start()
                return
        worker.update(pod, gone=kind == "DELETED")

    def exited(self, uid: str, code: int) -> bool:
        """The machine says that a pod's process ended; whether it was one of ours."""
        with self._lock:
            worker = self._workers.get(uid)
        if worker is None:
            return False
        worker.exited(code)
        return True

    def keep_log(self, uid: str) -> None:
        """Keep the log of a pod whose process has ended; the machine is about to forget it."""
        text = str(self.machine.call("pod_log", uid=uid, tail=KEPT_LOG))
        with self._lock:
            self.logs[uid] = text
            while len(self.logs) > KEPT_LOGS:
                del self.logs[next(iter(self.logs))]

    def forget(self, uid: str) -> None:
        """A worker is done."""
        with self._lock:
            self._workers.pop(uid, None)

    def set_ending(self, ending: str | None) -> None:
        """Let all servers on this node end connections so; in force when this returns.

        Servers that are not ready yet learn it before they become ready.
        """
        self.behaviour.ending = ending
        for worker in self.workers():
            worker.follow_ending()

    def workers(self) -> list[PodWorker]:
        """The workers of all pods on this node."""
        with self._lock:
            return list(self._workers.values())
