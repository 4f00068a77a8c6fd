"""Watches: the changes of one resource as a stream of events, for one set of selectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.lab.api import errors
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.selectors import Matcher
from pytest_ipvs.lab.api.store import Event, ExpiredError, Store

Json = dict[str, Any]

# Seconds between two bookmarks, and before the end of the watch for the last one.
_BOOKMARK_PERIOD = 60.0
_LAST_BOOKMARK = 2.0
# How often a silent watch looks whether its client is still there.
_LIVENESS_PERIOD = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequest:
    """One watch. ``revision``: start after it; ``None`` = start with the present objects.

    ``timeout`` is in seconds. ``initial_end``: mark the end of the present objects by a bookmark
    (``sendInitialEvents``).
    """

    kind: Kind
    namespace: str | None
    matches: Matcher
    revision: int | None
    timeout: float
    bookmarks: bool = False
    initial_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One line of the stream. ``text`` is the object as JSON, if that is already known."""

    type: str
    object: Json
    text: str | None = None


def stream(store: Store, request: WatchRequest, gone: Callable[[], bool]) -> Iterator[WatchEvent]:
    """The events until the time is over, ``gone`` says that the client left, or the store closes.

    A start that the history does not reach gives one ERROR event with a 410 ``Status``.
    """
    resource = request.kind.qualified
    end = time.monotonic() + request.timeout
    position = request.revision
    if position is None:
        present, position = store.snapshot(resource, request.namespace)
        for object_ in present:
            if request.matches(object_):
                yield WatchEvent(type="ADDED", object=object_)
        if request.initial_end:
            annotations = {"k8s.io/initial-events-end": "true"}
            yield _bookmark(request.kind, position, annotations)
    next_bookmark = time.monotonic() + _BOOKMARK_PERIOD
    last_bookmark = end - min(_LAST_BOOKMARK, request.timeout / 2)
    bookmarked_end = not request.bookmarks
    running = request.revision is None
    while not store.closed:
        with store.lock:
            try:
                events = store.events_after(resource, position, running=running)
            except ExpiredError:
                message = f"too old resource version: {position} ({store.revision})"
                yield WatchEvent(type="ERROR", object=errors.expired(message).body)
                return
            newest = store.revision
        running = True
        for event in events:
            position = event.revision
            seen = _seen(request, event)
            if seen is not None:
                yield seen
        moment = time.monotonic()
        if moment >= end:
            return
        if request.bookmarks and moment >= next_bookmark:
            yield _bookmark(request.kind, max(position, newest))
            next_bookmark = moment + _BOOKMARK_PERIOD
        if not bookmarked_end and moment >= last_bookmark:
            yield _bookmark(request.kind, max(position, newest))
            bookmarked_end = True
        if gone():
            return
        due = [end, moment + _LIVENESS_PERIOD]
        if request.bookmarks:
            due.append(next_bookmark)
        if not bookmarked_end:
            due.append(last_bookmark)
        store.wait(resource, position, max(min(due) - moment, 0.001))


def _seen(request: WatchRequest, event: Event) -> WatchEvent | None:
    """What a watch with these selectors sees of a change; ``None`` if nothing."""
    metadata = event.object["metadata"]
    if request.namespace is not None and metadata.get("namespace", "") != request.namespace:
        return None
    now = event.type != "DELETED" and request.matches(event.object)
    before = event.previous is not None and request.matches(event.previous)
    if now:
        type_ = "MODIFIED" if before else "ADDED"
        return WatchEvent(type=type_, object=event.object, text=event.text)
    if before:
        if event.type == "DELETED":
            return WatchEvent(type="DELETED", object=event.object, text=event.text)
        # It left the selection: its old state, at the revision at which it left.
        assert event.previous is not None
        old = event.previous
        left = {**old["metadata"], "resourceVersion": str(event.revision)}
        return WatchEvent(type="DELETED", object={**old, "metadata": left})
    return None


def _bookmark(kind: Kind, revision: int, annotations: Json | None = None) -> WatchEvent:
    metadata: Json = {"resourceVersion": str(revision)}
    if annotations:
        metadata["annotations"] = annotations
    object_: Json = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
    if kind.qualified == "pods":
        # A real server sends the empty object of the type; clients of typed models rely on it.
        object_ |= {"spec": {"containers": None}, "status": {}}
    return WatchEvent(type="BOOKMARK", object=object_)
