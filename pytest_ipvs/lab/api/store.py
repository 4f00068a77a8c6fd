"""The objects in memory: one counter of revisions for all, and the history that watches read.

Objects handed to the store belong to it: nobody changes them afterwards. So readers may keep
what they got without copying, and an event can carry the object before and after.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Json = dict[str, Any]


class ExpiredError(Exception):
    """The history does not reach back to the asked-for revision."""


def clone(value: Any) -> Any:
    """A deep copy of JSON data; several times faster than ``copy.deepcopy``."""
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value


class Event:
    """One change: its revision, its type (ADDED, MODIFIED, DELETED), the object and its past."""

    __slots__ = ("_text", "object", "previous", "revision", "type")

    def __init__(self, revision: int, type_: str, object_: Json, previous: Json | None) -> None:
        self.revision = revision
        self.type = type_
        self.object = object_
        self.previous = previous
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The object as JSON; made once, however many watchers there are."""
        if self._text is None:
            self._text = json.dumps(self.object, separators=(",", ":"))
        return self._text


class _Collection:
    """All objects of one resource, with their history."""

    __slots__ = ("changed", "dropped", "floor", "history", "objects")

    def __init__(self, lock: threading.RLock, floor: int) -> None:
        self.objects: dict[tuple[str, str], Json] = {}
        self.history: deque[Event] = deque()
        # A watch may start at any revision from this one on. A running one has missed nothing
        # as long as it saw the last event that was dropped.
        self.floor = floor
        self.dropped = 0
        self.changed = threading.Condition(lock)


class Store:
    """Objects by resource ("pods", "deployments.apps"), namespace and name.

    ``window`` is how many events per resource are kept for watches that start in the past.
    ``lock`` is held by whoever needs several calls to be one step.
    """

    def __init__(self, window: int = 1024) -> None:
        self.lock = threading.RLock()
        self.revision = 1
        self._window = window
        self._compacted = 0
        self._collections: dict[str, _Collection] = {}
        self._closed = False

    def _collection(self, resource: str) -> _Collection:
        found = self._collections.get(resource)
        if found is None:
            found = self._collections[resource] = _Collection(self.lock, self._compacted)
        return found

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        """The object, or ``None``. ``namespace`` is "" for cluster-wide kinds."""
        with self.lock:
            return self._collection(resource).objects.get((namespace, name))

    def select(self, resource: str, namespace: str | None = None) -> list[Json]:
        """The objects of a resource (of one namespace, if given), by namespace and name."""
        with self.lock:
            objects = self._collection(resource).objects
            keys = sorted(key for key in objects if namespace is None or key[0] == namespace)
            return [objects[key] for key in keys]

    def list_at(self, resource: str, namespace: str | None, revision: int) -> list[Json]:
        """What ``select`` answered when ``revision`` was the newest.

        Raises ``ExpiredError`` when the history does not reach back so far.
        """
        with self.lock:
            collection = self._collection(resource)
            if revision < collection.floor:
                raise ExpiredError
            objects = dict(collection.objects)
            for event in reversed(collection.history):
                if event.revision <= revision:
                    break
                metadata = event.object["metadata"]
                key = (metadata.get("namespace", ""), metadata["name"])
                if event.previous is None:
                    objects.pop(key, None)
                else:
                    objects[key] = event.previous
            keys = sorted(key for key in objects if namespace is None or key[0] == namespace)
            return [objects[key] for key in keys]

    def put(self, resource: str, object_: Json) -> Json:
        """Store an object under its own namespace and name, with the next revision."""
        with self.lock:
            collection = self._collection(resource)
            metadata = object_["metadata"]
            key = (metadata.get("namespace", ""), metadata["name"])
            previous = collection.objects.get(key)
            self.revision += 1
            metadata["resourceVersion"] = str(self.revision)
            collection.objects[key] = object_
            type_ = "ADDED" if previous is None else "MODIFIED"
            self._record(collection, Event(self.revision, type_, object_, previous))
            return object_

    def remove(self, resource: str, object_: Json) -> Json:
        """Remove an object; answers its last state, which carries the revision of the removal."""
        with self.lock:
            collection = self._collection(resource)
            metadata = object_["metadata"]
            previous = collection.objects.pop((metadata.get("namespace", ""), metadata["name"]))
            self.revision += 1
            last = {**object_, "metadata": {**metadata, "resourceVersion": str(self.revision)}}
            self._record(collection, Event(self.revision, "DELETED", last, previous))
            return last

    def _record(self, collection: _Collection, event: Event) -> None:
        collection.history.append(event)
        while len(collection.history) > self._window:
            collection.floor = collection.dropped = collection.history.popleft().revision
        collection.changed.notify_all()

    def load(self, resource: str, objects: Iterable[Mapping[str, Any]], revision: int) -> None:
        """Take over objects as they are, with their own resourceVersions (tests, recordings).

        ``revision`` becomes the newest one. Nothing of it is seen by running watches.
        """
        with self.lock:
            collection = self._collection(resource)
            for source in objects:
                object_ = clone(dict(source))
                metadata = object_["metadata"]
                collection.objects[metadata.get("namespace", ""), metadata["name"]] = object_
            self.revision = max(self.revision, revision)
            collection.floor = self.revision

    def events_after(self, resource: str, revision: int, *, running: bool = False) -> list[Event]:
        """The changes after a revision, oldest first; ``ExpiredError`` if some are forgotten.

        ``running``: the asker has seen everything up to ``revision``, so it may be older than the
        point from which new watches may start.
        """
        with self.lock:
            collection = self._collection(resource)
            if revision < (collection.dropped if running else collection.floor):
                raise ExpiredError
            found: list[Event] = []
            for event in reversed(collection.history):
                if event.revision <= revision:
                    break
                found.append(event)
            found.reverse()
            return found

    def wait(self, resource: str, revision: int, timeout: float) -> None:
        """Return when the resource changed after ``revision``, the time is over, or on close."""
        with self.lock:
            collection = self._collection(resource)

            def changed() -> bool:
                history = collection.history
                return self._closed or bool(history and history[-1].revision > revision)

            collection.changed.wait_for(changed, timeout)

    def snapshot(self, resource: str, namespace: str | None) -> tuple[list[Json], int]:
        """``select`` and the revision that it was taken at, as one step."""
        with self.lock:
            return self.select(resource, namespace), self.revision

    def compact(self) -> None:
        """Forget all history: watches and exact lists from before now answer 410."""
        with self.lock:
            self._compacted = self.revision
            for collection in self._collections.values():
                if collection.history:
                    collection.dropped = collection.history[-1].revision
                collection.history.clear()
                collection.floor = self.revision

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Wake every waiting watch for good."""
        with self.lock:
            self._closed = True
            for collection in self._collections.values():
                collection.changed.notify_all()

    def update(
        self, resource: str, namespace: str, name: str, change: Callable[[Json], None]
    ) -> Json:
        """Change a copy of an object in place and store it; raises ``KeyError`` if absent."""
        with self.lock:
            found = self.get(resource, namespace, name)
            if found is None:
                raise KeyError(f"{resource} {namespace}/{name}")
            copy: Json = clone(found)
            change(copy)
            return self.put(resource, copy)
