"""Caches that follow the API by list and watch, and the loop that controllers are made of."""

from __future__ import annotations

import heapq
import http.client
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from pytest_ipvs.lab.client import ApiClient, ApiError, Object, Resource, Stopper

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Handler = Callable[[str, Object], None]


def version_of(item: Object) -> int:
    """The resource version as a number; the API promises that its own can be compared."""
    return int(item["metadata"].get("resourceVersion") or 0)


def key_of(item: Object) -> tuple[str, str]:
    """(namespace, name); the namespace of cluster-wide objects is ""."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


class Informer:
    """One resource's objects, kept current by list and watch.

    Handlers are called as ``handler("ADDED" | "MODIFIED" | "DELETED", object)`` in the watching
    thread; they must not block. Objects in the cache are shared: do not change them.
    """

    def __init__(self, api: ApiClient, resource: Resource) -> None:
        self._api = api
        self._resource = resource
        self._lock = threading.Lock()
        self._items: dict[tuple[str, str], Object] = {}
        self._gone: deque[str] = deque(maxlen=4096)
        self._handlers: list[Handler] = []
        self._stopper = Stopper()
        self._synced = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"watch-{resource.plural}", daemon=True
        )

    def on_event(self, handler: Handler) -> None:
        """Call ``handler`` on each later change; objects known already come as ADDED at once."""
        with self._lock:
            self._handlers.append(handler)
            known = list(self._items.values())
        for item in known:
            handler("ADDED", item)

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def close(self) -> None:
        """Stop following, without waiting for the thread's end."""
        self._stopper.stop()

    def stop(self) -> None:
        """Stop following; returns when the thread has ended."""
        self._stopper.stop()
        if self._thread.is_alive():
            self._thread.join(5)

    def wait(self, timeout: float) -> bool:
        """Whether the first list was read within ``timeout`` seconds."""
        return self._synced.wait(timeout)

    def get(self, namespace: str, name: str) -> Object | None:
        """One object of the cache."""
        with self._lock:
            return self._items.get((namespace, name))

    def items(self, namespace: str | None = None) -> list[Object]:
        """All objects of the cache, or those of one namespace, sorted by namespace and name."""
        with self._lock:
            pairs = sorted(self._items.items())
        return [item for key, item in pairs if namespace is None or key[0] == namespace]

    def learn(self, item: Object) -> None:
        """Take in the answer to our own write at once, so that the next decision sees it."""
        self._apply("MODIFIED", item)

    def forget(self, item: Object) -> None:
        """Take in that our own delete removed this object."""
        self._apply("DELETED", item)

    def _apply(self, kind: str, item: Object) -> None:
        item.setdefault("kind", self._resource.kind)
        item.setdefault("apiVersion", self._resource.api_version)
        key = key_of(item)
        uid = item["metadata"].get("uid", "")
        with self._lock:
            known = self._items.get(key)
            if kind == "DELETED":
                if uid in self._gone:
                    return
                self._gone.append(uid)
                if known is not None and known["metadata"].get("uid") == uid:
                    del self._items[key]
            else:
                # Our own writes come twice, and late events of what is gone must not revive it.
                if uid in self._gone:
                    return
                if known is not None and version_of(known) >= version_of(item):
                    return
                kind = "MODIFIED" if known is not None else "ADDED"
                self._items[key] = item
            handlers = list(self._handlers)
        for handler in handlers:
            handler(kind, item)

    def _run(self) -> None:
        stopped = self._stopper.stopped
        while not stopped.is_set():
            try:
                version = self._list()
                self._synced.set()
                while not stopped.is_set():
                    for kind, item in self._api.watch(self._resource, version, self._stopper):
                        version = item["metadata"]["resourceVersion"]
                        if kind != "BOOKMARK":
                            self._apply(kind, item)
            except ApiError as error:
                if error.status != 410:
                    log.warning("watching %s: %s", self._resource.plural, error)
                    stopped.wait(1)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not stopped.is_set():
                    log.warning("watching %s: %s", self._resource.plural, error)
                    stopped.wait(1)

    def _list(self) -> str:
        items, version = self._api.list_all(self._resource)
        present = {item["metadata"].get("uid") for item in items}
        for known in self.items():
            if known["metadata"].get("uid") not in present:
                self._apply("DELETED", known)
        for item in items:
            self._apply("MODIFIED", item)
        return version


class Cluster:
    """The API as the stand-ins see it: one shared cache per resource, and writes that feed it."""

    def __init__(self, api: ApiClient) -> None:
        self.api = api
        self._informers: dict[Resource, Informer] = {}
        self._lock = threading.Lock()

    def informer(self, resource: Resource) -> Informer:
        """The shared cache of ``resource``; started on first use, returned once it has listed."""
        with self._lock:
            informer = self._informers.get(resource)
            if informer is None:
                informer = self._informers[resource] = Informer(self.api, resource)
                informer.start()
        if not informer.wait(30):
            raise TimeoutError(f"the API did not list {resource.plural} within 30 s")
        return informer

    def create(self, resource: Resource, body: Object) -> Object:
        """Create, and let the cache know."""
        return self._learn(resource, self.api.create(resource, body))

    def update(self, resource: Resource, body: Object, sub: str = "") -> Object:
        """Replace, and let the cache know."""
        return self._learn(resource, self.api.update(resource, body, sub))

    def patch(self, resource: Resource, item: Object, body: object, sub: str = "") -> Object:
        """Merge-patch ``item``, and let the cache know."""
        namespace, name = key_of(item)
        return self._learn(
            resource, self.api.patch(resource, namespace or None, name, body, sub=sub)
        )

    def delete(
        self,
        resource: Resource,
        item: Object,
        *,
        grace: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete exactly this object (by uid), and let the cache know."""
        namespace, name = key_of(item)
        uid = item["metadata"].get("uid")
        answer = self.api.delete(
            resource, namespace or None, name, uid=uid, grace=grace, propagation=propagation
        )
        if answer is not None and answer.get("kind") == resource.kind and "metadata" in answer:
            self._learn(resource, answer)

    def _learn(self, resource: Resource, answer: Object) -> Object:
        with self._lock:
            informer = self._informers.get(resource)
        if informer is None or "uid" not in answer.get("metadata", {}):
            return answer
        if answer.get("kind", resource.kind) == resource.kind and not _finished(answer):
            informer.learn(answer)
        return answer

    def event(
        self, item: Object, *, kind: str, reason: str, message: str, source: str, warning: bool
    ) -> None:
        """Record an Event about ``item``; a failure to do so is logged only."""
        from pytest_ipvs.lab.client import EVENTS

        meta = item["metadata"]
        namespace = meta.get("namespace") or "default"
        now = timestamp()
        body: Object = {
            "metadata": {"generateName": f"{meta['name']}.", "namespace": namespace},
            "involvedObject": {
                "kind": kind,
                "apiVersion": item.get("apiVersion", "v1"),
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta.get("uid", ""),
            },
            "reason": reason,
            "message": message,
            "source": {"component": source},
            "reportingComponent": source,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": "Warning" if warning else "Normal",
        }
        try:
            self.api.create(EVENTS, body)
        except (ApiError, OSError, http.client.HTTPException) as error:
            log.warning("event %s about %s: %s", reason, meta["name"], error)

    def close(self) -> None:
        """Let all caches end soon, without waiting: the API is going away."""
        with self._lock:
            informers = list(self._informers.values())
        for informer in informers:
            informer.close()

    def stop(self) -> None:
        """Stop all caches."""
        with self._lock:
            informers = list(self._informers.values())
        for informer in informers:
            informer.stop()
        self.api.close()


def _finished(item: Object) -> bool:
    """Whether the API removed this object with the answer that we got (no watch state left)."""
    meta = item["metadata"]
    return bool(meta.get("deletionTimestamp")) and not (
        meta.get("finalizers") or meta.get("deletionGracePeriodSeconds")
    )


def timestamp(moment: float | None = None) -> str:
    """RFC 3339 with seconds, as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


class WorkQueue(Generic[Key]):
    """Keys that wait for their turn: each at most once, each not before its time."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._condition = threading.Condition()
        self._closed = False

    def add(self, key: Key, after: float = 0.0) -> None:
        """Let ``key`` come up in ``after`` seconds, or earlier if it is due earlier already."""
        due = time.monotonic() + after
        with self._condition:
            if self._due.get(key, float("inf")) <= due:
                return
            self._due[key] = due
            self._count += 1
            heapq.heappush(self._heap, (due, self._count, key))
            self._condition.notify()

    def take(self) -> Key | None:
        """The next key that is due; waits for it; ``None`` once the queue is closed."""
        with self._condition:
            while not self._closed:
                while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._condition.wait()
                    continue
                due, _, key = self._heap[0]
                left = due - time.monotonic()
                if left > 0:
                    self._condition.wait(left)
                    continue
                heapq.heappop(self._heap)
                del self._due[key]
                return key
            return None

    def close(self) -> None:
        """Let :meth:`take` return ``None`` from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class Controller:
    """A loop that brings one key after the other into the state the API asks for.

    Subclasses watch in ``__init__`` (handlers call :meth:`enqueue`) and act in :meth:`sync`,
    which may run at any time, again and again, and reads everything afresh.
    """

    name = "controller"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.queue: WorkQueue[tuple[str, str]] = WorkQueue()
        self._failures: dict[tuple[str, str], int] = {}
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def enqueue(self, namespace: str, name: str, after: float = 0.0) -> None:
        """Let :meth:`sync` run for this key."""
        self.queue.add((namespace, name), after)

    def sync(self, namespace: str, name: str) -> None:
        """Bring one key into its wanted state."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; returns when the running sync is over."""
        self.queue.close()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while (key := self.queue.take()) is not None:
            try:
                self.sync(*key)
                self._failures.pop(key, None)
            except ApiError as error:
                # A conflict only says that our cache is behind.
                self._again(key, error, quiet=error.status in (404, 409))
            except Exception as error:
                # One bad object must not stop the loop for all the others.
                self._again(key, error, quiet=False)

    def _again(self, key: tuple[str, str], error: Exception, *, quiet: bool) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if not quiet or failures > 5:
            log.warning("%s: %s/%s: %s", self.name, *key, error, exc_info=not quiet)
        self.queue.add(key, min(5.0, 0.02 * 2**failures))


def owner_of(item: Object) -> Object | None:
    """The owner reference that controls ``item``."""
    for reference in item["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def owner_reference(owner: Object) -> Object:
    """The reference that a controller puts into what it creates for ``owner``."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def selects(selector: Object | None, labels: Object | None) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects ``labels``."""
    labels = labels or {}
    if not selector:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        value = labels.get(expression["key"])
        values = expression.get("values") or []
        matched = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(expression["operator"], False)
        if not matched:
            return False
    return True
