"""A watch that survives what watches meet: time-outs, disconnects, 410 and bookmarks."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_ipvs.cluster.errors import ApiError, ClusterError

if TYPE_CHECKING:
    from pytest_ipvs.cluster.requests import Requests

# Seconds after which the server ends a watch; also how long `close` may take where the response
# can't be shut down from outside (urllib3 before 2.3).
WATCH_SECONDS = 60
# Seconds without any success after which a watch gives up.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One event: ``type`` is ADDED, MODIFIED, DELETED or LISTED.

    For LISTED, ``object`` is {"items": [...], "metadata": …} and replaces all that was known:
    it comes first (unless a version was given) and after each gap that events may have fallen
    into. Otherwise it is one object. ``received_at`` is Unix seconds on this machine.
    """

    type: str
    object: Mapping[str, Any]
    received_at: float


class Watch:
    """Iterate over events; `close`, from any thread, ends the iteration."""

    def __init__(
        self,
        requests: Requests,
        path: str,
        listing: Callable[[], Mapping[str, Any]],
        resource_version: str | None,
        query: Mapping[str, Any],
    ) -> None:
        self._requests = requests
        self._path = path
        self._listing = listing
        self._version = resource_version
        self._query = query
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._response: Any = None

    @property
    def open(self) -> bool:
        """Whether a stream of events is open now; false while it is looked for again."""
        return self._response is not None

    def close(self) -> None:
        """End the iteration, also one that waits for an event."""
        self._closed.set()
        with self._lock:
            if self._response is not None:
                _shut_down(self._response)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[WatchEvent]:
        last_success = time.monotonic()
        failures = 0
        while not self._closed.is_set():
            try:
                if self._version is None:
                    document = self._listing()
                    self._version = str(document["metadata"]["resourceVersion"])
                    yield WatchEvent(type="LISTED", object=document, received_at=time.time())
                for event in self._stream():
                    yield event
                    failures, last_success = 0, time.monotonic()
                failures, last_success = 0, time.monotonic()
            except _Gone:
                self._version = None
            except ApiError as error:
                if error.status not in (429, 500, 502, 503, 504):
                    raise
                failures = self._after_failure(error, failures, last_success)
            except ClusterError as error:
                failures = self._after_failure(error, failures, last_success)

    def _after_failure(self, error: ClusterError, failures: int, last_success: float) -> int:
        if self._closed.is_set():
            return failures
        if time.monotonic() - last_success > PATIENCE:
            raise error from None
        self._closed.wait(min(5.0, 0.2 * 2**failures))
        return failures + 1

    def _stream(self) -> Iterator[WatchEvent]:
        from urllib3.exceptions import HTTPError

        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": WATCH_SECONDS,
        }
        try:
            response = self._requests.open(
                "GET", self._path, query=query, read_seconds=WATCH_SECONDS + 15
            )
            if response.status >= 400:
                error = self._requests.error("GET", self._path, response.status, response.data)
                if response.status == 410:
                    raise _Gone
                raise error
            with self._lock:
                self._response = response
            if self._closed.is_set():
                return
            yield from self._events(response)
        except (HTTPError, OSError) as error:
            if not self._closed.is_set():
                raise self._requests.no_answer(error) from None
        finally:
            with self._lock:
                response, self._response = self._response, None
            if response is not None:
                response.close()

    def _events(self, response: Any) -> Iterator[WatchEvent]:
        buffered = b""
        for chunk in response.stream(65536, decode_content=True):
            # Events may be split anywhere, also inside a character: cut at line ends first.
            *lines, buffered = (buffered + chunk).split(b"\n")
            received_at = time.time()
            for line in lines:
                if line.strip():
                    yield from self._event(line, received_at)

    def _event(self, line: bytes, received_at: float) -> Iterator[WatchEvent]:
        try:
            event = json.loads(line)
            kind, item = event["type"], event["object"]
        except (ValueError, KeyError, TypeError):
            raise ClusterError(f"{self._path}: the watch sent a line that is no event") from None
        if kind == "ERROR":
            # A version that is too old is told inside the stream, with HTTP status 200.
            if item.get("code") == 410:
                raise _Gone
            message = str(item.get("message", ""))
            raise ApiError(
                int(item.get("code", 500)), str(item.get("reason", "")), message, self._path
            )
        self._version = str(item["metadata"]["resourceVersion"])
        if kind != "BOOKMARK":
            yield WatchEvent(type=kind, object=item, received_at=received_at)


class _Gone(Exception):  # noqa: N818 - not an error: the way back to a new list
    """The version that the watch goes on from is too old."""


def _shut_down(response: Any) -> None:
    """Wake a thread that reads from the response; it must not be closed under its hands."""
    if hasattr(response, "shutdown"):
        try:
            response.shutdown()
        except (OSError, RuntimeError, ValueError):
            pass
        return
    sock = getattr(getattr(response, "_connection", None), "sock", None)
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
