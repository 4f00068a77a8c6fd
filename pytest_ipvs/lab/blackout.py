"""The fault in which a Service has no ready endpoint for a while, in the middle of a rollout."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipvs.lab.kubelet_worker import PodWorker

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"


class Blackout:
    """Calls all pods of a namespace unready for ``seconds``, once for each restart of it.

    It begins when the first restarted pod becomes ready. Pods that become ready or are made while
    it lasts are called unready as well. ``workers`` gives those of all nodes.
    """

    def __init__(self, workers: Callable[[], Iterable[PodWorker]], seconds: float) -> None:
        self._workers = workers
        self._seconds = seconds
        self._seen: set[tuple[str, str]] = set()
        self._dark: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def hides(self, namespace: str) -> bool:
        """Whether pods of this namespace are to be called unready now."""
        with self._lock:
            return namespace in self._dark

    def became_ready(self, namespace: str, restarted_at: str) -> None:
        """A pod of this restart has become ready."""
        with self._lock:
            if (namespace, restarted_at) in self._seen or self._over.is_set():
                return
            self._seen.add((namespace, restarted_at))
            self._dark.add(namespace)
        threading.Thread(
            target=self._run, args=(namespace,), name="lab-blackout", daemon=True
        ).start()

    def _run(self, namespace: str) -> None:
        self._tell(namespace)
        self._over.wait(self._seconds)
        with self._lock:
            self._dark.discard(namespace)
        self._tell(namespace)

    def _tell(self, namespace: str) -> None:
        for worker in self._workers():
            if worker.namespace == namespace:
                worker.report_readiness()

    def lift(self) -> None:
        """End what goes on, and begin no more."""
        self._over.set()
