"""One run at a time may disrupt what a whole cluster shares: nodes and kube-proxy."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.protocols import ApiLike, Say
from pytest_ipvs.rollout.times import age_of
from pytest_ipvs.traffic.namespace import MANAGED_BY, micro_time

NAMESPACE = "pytest-ipvs"
NAME = "disruption"
LABEL = "app.kubernetes.io/managed-by"
LEASE_SECONDS = 60
RENEW_SECONDS = 15.0
NAMESPACE_PATIENCE = 60.0
PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


class DisruptionLease:
    """``with DisruptionLease(api, "drain node-2", say): ...`` holds the Lease and renews it.

    Raises `RolloutError` where another live run holds it. One whose holder has died, so that it
    was not renewed for its duration, is taken over. Lease and namespace go at the end.
    """

    def __init__(
        self, api: ApiLike, what: str, say: Say, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._api = api
        self._what = what
        self._say = say
        self._pause = pause
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"

    def __enter__(self) -> DisruptionLease:
        self._make_namespace()
        deadline = time.monotonic() + NAMESPACE_PATIENCE
        while not self._take():
            # The run before is removing the namespace.
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"namespace {NAMESPACE} is being deleted for {NAMESPACE_PATIENCE:.0f} s now, "
                    "expected it to be gone: look for what holds it"
                )
            self._pause(1.0)
            self._make_namespace()
        self._renewer = threading.Thread(target=self._renew, name="ipvs-disruption", daemon=True)
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._renewer is not None:
            self._renewer.join()
        try:
            self._api.delete(f"{PATH}/{NAME}")
            path = f"/api/v1/namespaces/{NAMESPACE}"
            labels = self._api.get(path)["metadata"].get("labels") or {}
            # A name alone is too little to delete somebody's namespace by.
            if labels.get(LABEL) == MANAGED_BY:
                self._api.delete(path)
        except Exception as failure:  # what stays expires by itself
            if _status(failure) not in (404, 409):
                self._say(f"the Lease {NAMESPACE}/{NAME} was not removed: {failure}")

    def _make_namespace(self) -> None:
        labels = {LABEL: MANAGED_BY}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": labels},
        }
        try:
            self._api.create("/api/v1/namespaces", body)
        except Exception as error:
            if _status(error) != 409:
                raise

    def _take(self) -> bool:
        """False where the namespace is going away and one has to wait."""
        body: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": micro_time(),
            },
        }
        try:
            self._api.create(PATH, body)
            return True
        except Exception as error:
            if _status(error) != 409:
                if self._namespace_ends(error):
                    return False
                raise
        try:
            found = self._api.get(f"{PATH}/{NAME}")
            spec = found.get("spec") or {}
            if age_of(str(spec.get("renewTime") or "")) <= float(
                spec.get("leaseDurationSeconds") or LEASE_SECONDS
            ):
                raise self._held(spec)
            self._say(f"taking over the Lease of {spec.get('holderIdentity')}, which has died")
            body["metadata"]["resourceVersion"] = found["metadata"].get("resourceVersion")
            self._api.replace(f"{PATH}/{NAME}", body)
        except Exception as error:
            if _status(error) == 409:
                raise self._held({}) from None
            if _status(error) == 404:
                return False
            raise
        return True

    def _held(self, spec: dict[str, Any]) -> RolloutError:
        holder = spec.get("holderIdentity") or "another run"
        return RolloutError(
            f"{self._what} is refused: {holder} is disrupting this cluster (Lease "
            f"{NAMESPACE}/{NAME}), expected one run at a time"
        )

    def _namespace_ends(self, error: Exception) -> bool:
        if _status(error) not in (403, 404):
            return False
        try:
            namespace = self._api.get(f"/api/v1/namespaces/{NAMESPACE}")
        except Exception as other:
            return _status(other) == 404
        return bool(namespace["metadata"].get("deletionTimestamp"))

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._api.patch(f"{PATH}/{NAME}", {"spec": {"renewTime": micro_time()}})
            except Exception:  # the next turn tries again; the Lease outlives four of them
                continue


def _status(error: BaseException) -> int | None:
    return getattr(error, "status", None)
