"""One run at a time may disrupt what a whole cluster shares: nodes and kube-proxy."""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pytest_ipvs.rollout import drain
from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.protocols import ApiLike, Say
from pytest_ipvs.rollout.times import age_of
from pytest_ipvs.traffic.namespace import MANAGED_BY, micro_time

NAMESPACE = "pytest-ipvs"
NAME = "disruption"
LABEL = "app.kubernetes.io/managed-by"
LEASE_SECONDS = 60
RENEW_SECONDS = 15.0
WATCH_SECONDS = 5.0
"""Between two looks at a Lease that seems to be a dead run's."""

RENEW_TRIES = 3
NAMESPACE_PATIENCE = 60.0
PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


class DisruptionLease:
    """``with DisruptionLease(api, "drain node-2", say): ...`` holds the Lease and renews it.

    Raises `RolloutError` where another live run holds it. One whose holder has died is taken over:
    it is older than its duration, and was not renewed while we watched it for as long. What the
    dead run cordoned is uncordoned. Lease and namespace go at the end, unless they are another
    run's by then: ``lost`` says so.
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
        self.lost = ""
        """Why the Lease is no longer ours, as a sentence for the user; "" while it is."""
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"

    def __enter__(self) -> DisruptionLease:
        self._make_namespace()
        waited = 0.0
        while not self._take():
            # The run before is removing the namespace.
            if waited >= NAMESPACE_PATIENCE:
                raise RolloutError(
                    f"namespace {NAMESPACE} is being deleted for {NAMESPACE_PATIENCE:.0f} s now, "
                    "expected it to be gone: look for what holds it"
                )
            self._pause(1.0)
            waited += 1.0
            self._make_namespace()
        self._renewer = threading.Thread(target=self._renew, name="ipvs-disruption", daemon=True)
        self._renewer.start()
        try:
            self._tidy()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _tidy(self) -> None:
        """Uncordon what a dead run left. Who may not look for it can still do what it came for."""
        try:
            drain.uncordon_stale(self._api, self._say, self._pause)
        except Exception as error:
            if _status(error) is None:
                raise
            self._say(f"nodes that a dead run may have left cordoned were not looked for: {error}")

    def _release(self) -> None:
        self._stop.set()
        if self._renewer is not None:
            self._renewer.join()
        try:
            # Renewed, it can't be taken over between this look and its removal.
            if (found := self._renew_once()) is not None:
                self._remove(found)
        except Exception as failure:  # what stays expires by itself
            if _status(failure) not in (404, 409):
                self._say(f"the Lease {NAMESPACE}/{NAME} was not removed: {failure}")

    def _remove(self, lease: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}"
        try:
            # Before the Lease: nobody must come into a namespace that we are about to delete.
            namespace = self._api.get(path)["metadata"]
            # A name alone is too little to delete somebody's namespace by.
            if (namespace.get("labels") or {}).get(LABEL) == MANAGED_BY:
                self._api.delete(path, body=_only(namespace, "uid"))
        finally:
            body = _only(lease["metadata"], "uid", "resourceVersion")
            self._api.delete(f"{PATH}/{NAME}", body=body)

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
            if age_of(str(spec.get("renewTime") or "")) <= _duration(spec):
                raise self._held(spec)
            found = self._watch(found)
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

    def _watch(self, found: dict[str, Any]) -> dict[str, Any]:
        """The Lease after its duration, if nobody renewed it; its holder's clock may not be ours.

        Pauses are counted, not time: a machine that stood still has not watched.
        """
        spec = found.get("spec") or {}
        duration = _duration(spec)
        self._say(
            f"the Lease {NAMESPACE}/{NAME} of {spec.get('holderIdentity')} was last renewed "
            f"{spec.get('renewTime')}; watching for {duration:.0f} s whether it still lives"
        )
        for _ in range(math.ceil(duration / WATCH_SECONDS)):
            self._pause(WATCH_SECONDS)
            found = self._api.get(f"{PATH}/{NAME}")
            now = found.get("spec") or {}
            if any(now.get(key) != spec.get(key) for key in ("holderIdentity", "renewTime")):
                raise self._held(now)
        return found

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
        while not self.lost and not self._stop.wait(RENEW_SECONDS):
            try:
                self._renew_once()
            except Exception:  # the next turn tries again; the Lease outlives four of them
                continue

    def _renew_once(self) -> dict[str, Any] | None:
        """The renewed Lease; None where it is no longer ours, which ``lost`` then tells."""
        for attempt in range(1, RENEW_TRIES + 1):
            try:
                found = self._api.get(f"{PATH}/{NAME}")
            except Exception as error:
                if _status(error) != 404:
                    raise
                self._lose("nobody, it was removed")
                return None
            holder = (found.get("spec") or {}).get("holderIdentity")
            if holder != self.holder:
                self._lose(str(holder or "nobody"))
                return None
            try:
                return self._api.patch(
                    f"{PATH}/{NAME}",
                    {
                        # Somebody may take it over between the two requests.
                        "metadata": _marks(found["metadata"], "resourceVersion"),
                        "spec": {"renewTime": micro_time()},
                    },
                )
            except Exception as error:
                if _status(error) != 409 or attempt == RENEW_TRIES:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _lose(self, holder: str) -> None:
        if not self.lost:
            self.lost = (
                f"{self._what}: the Lease {NAMESPACE}/{NAME} was lost and is held by {holder}, so "
                "another run may have disrupted the cluster at the same time"
            )
            self._say(self.lost)


def _duration(spec: dict[str, Any]) -> float:
    return float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)


def _marks(metadata: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: metadata[name] for name in names if metadata.get(name)}


def _only(metadata: dict[str, Any], *names: str) -> dict[str, Any]:
    """DeleteOptions for this very object: another one of its name stays."""
    return {"preconditions": _marks(metadata, *names)}


def _status(error: BaseException) -> int | None:
    return getattr(error, "status", None)
