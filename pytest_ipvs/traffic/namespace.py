"""A namespace of our own, marked and leased so that a later run can remove it."""

from __future__ import annotations

import atexit
import datetime
import secrets
import threading
import time
from typing import Any

# By these marks a later run removes what a run that died has left (`rollout.workload`).
PREFIX = "pytest-ipvs-"
MANAGED_BY = "pytest-ipvs"
LABELS = {"app.kubernetes.io/managed-by": MANAGED_BY}
LEASE = "owner"
LEASE_SECONDS = 120
RENEW_SECONDS = 20.0
DELETE_PAUSES = (1.0, 3.0, 9.0)
"""Seconds between the tries to delete a namespace from an API server that is away."""

_ALIVE: set[OwnNamespace] = set()


class OwnNamespace:
    """Made by `create`, gone with all that is in it after `remove`, at the latest at our exit.

    ``api`` is `cluster.api.Api`, or what has its ``create``, ``patch`` and ``delete``.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self.name = f"{PREFIX}{secrets.token_hex(4)}"
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="ipvs-lease", daemon=True)

    def create(self) -> None:
        """Make the namespace and its lease, and go on renewing that."""
        _ALIVE.add(self)
        metadata = {"name": self.name, "labels": LABELS}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        made = False
        try:
            self._api.create("/api/v1/namespaces", body)
            made = True
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": LEASE, "namespace": self.name},
                "spec": {
                    "holderIdentity": self.name,
                    "leaseDurationSeconds": LEASE_SECONDS,
                    "renewTime": micro_time(),
                },
            }
            self._api.create(self._leases, lease)
        except BaseException as error:
            if not made and isinstance(error, Exception) and not may_pass(error):
                # The server refused: there is nothing of ours to delete.
                _ALIVE.discard(self)
            self.remove_after(error)
            raise
        self._renewer.start()

    @property
    def exists(self) -> bool:
        """Whether it was made, or may have been, and was not removed."""
        return self in _ALIVE

    @property
    def _leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.name}/leases"

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._api.patch(f"{self._leases}/{LEASE}", {"spec": {"renewTime": micro_time()}})
            except Exception:  # the next turn tries again; the lease outlives five of them
                continue

    def remove(self) -> None:
        """Delete it with all that is in it. Safe to call twice."""
        if not self.exists:
            return
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()
        delete_namespace(self._api, self.name)
        _ALIVE.discard(self)

    def remove_after(self, error: BaseException) -> None:
        """Remove it because of an error, which stays the one that is told."""
        try:
            self.remove()
        except Exception as failure:  # at our exit it is tried again
            error.add_note(f"namespace {self.name} was not removed: {failure}")


def delete_namespace(api: Any, name: str) -> None:
    """Delete a namespace; one that is gone, or is being deleted, is no error.

    What stays is somebody's to clean up, so a server that is away for a moment is asked again.
    """
    for pause in (*DELETE_PAUSES, None):
        try:
            api.delete(f"/api/v1/namespaces/{name}")
        except Exception as error:
            # 409: it is being deleted already.
            if getattr(error, "status", None) in (404, 409):
                return
            if pause is None or not may_pass(error):
                raise
            time.sleep(pause)
        else:
            return


def may_pass(error: Exception) -> bool:
    """Whether a request may go well a little later: no answer came, or one that says so."""
    status = getattr(error, "status", None)
    return status is None or status == 429 or status >= 500


@atexit.register
def _remove_all() -> None:
    for namespace in list(_ALIVE):
        try:
            namespace.remove()
        except Exception:  # nobody is left to hear of it; the lease tells the next run
            continue


def micro_time() -> str:
    """Now, as the API writes a MicroTime."""
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
