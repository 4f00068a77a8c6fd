"""Lists: selectors, the moment that is asked for, pages; and what a watch request asks for."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from typing import Any

from pytest_ipvs.lab.api import errors
from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.selectors import Matcher, matcher
from pytest_ipvs.lab.api.store import ExpiredError, Store
from pytest_ipvs.lab.api.watch import WatchRequest

Json = dict[str, Any]
Query = Mapping[str, str]

_TOO_OLD = "The resourceVersion for the provided list is too old."
_CONTINUE_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can "
    "start a new list without the continue parameter, or use the continue token in this response "
    "to retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)
# Seconds to wait for a revision that is still to come.
_FUTURE_WAIT = 3.0


def _flag(query: Query, name: str) -> bool:
    return query.get(name, "").lower() in {"1", "true", "t"}


def wants_watch(query: Query) -> bool:
    """Whether a GET of a collection asks for a watch."""
    return _flag(query, "watch")


def _number(text: str, field: str) -> int:
    if not text.isdigit():
        message = (
            f'{field}: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
        raise ApiError(500, "", message)
    return int(text)


def _integer(query: Query, name: str, default: int) -> int:
    text = query.get(name) or ""
    try:
        return int(text) if text else default
    except ValueError:
        raise errors.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def selection(kind: Kind, query: Query) -> Matcher:
    """The selectors of a list, watch or deletecollection."""
    return matcher(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def answer(store: Store, kind: Kind, namespace: str | None, query: Query) -> Json:
    """The list object that a GET of a collection asks for; its items are whole objects."""
    matches = selection(kind, query)
    limit = _integer(query, "limit", 0)
    revision = query.get("resourceVersion", "")
    token = query.get("continue", "")
    start = ""
    if token:
        items, at, start = _continued(store, kind, namespace, token)
    elif query.get("resourceVersionMatch") == "Exact":
        at = _number(revision, "resourceVersion")
        _reached(store, kind, at, query)
        items = _at(store, kind, namespace, at)
    else:
        if revision:
            _reached(store, kind, _number(revision, "resourceVersion"), query)
        if revision == "0":
            # A list from the cache is never paged.
            limit = 0
        items, at = store.snapshot(kind.qualified, namespace)
    found = [item for item in items if matches(item)]
    if start:
        found = [item for item in found if _key(item, namespace) >= start]
    metadata: Json = {"resourceVersion": str(at)}
    if 0 < limit < len(found):
        page, rest = found[:limit], found[limit:]
        metadata["continue"] = _token(at, _key(page[-1], namespace) + "\0")
        if not query.get("labelSelector") and not query.get("fieldSelector"):
            metadata["remainingItemCount"] = len(rest)
        found = page
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": kind.api_version,
        "metadata": metadata,
        "items": found,
    }


def _at(store: Store, kind: Kind, namespace: str | None, revision: int) -> list[Json]:
    try:
        return store.list_at(kind.qualified, namespace, revision)
    except ExpiredError:
        raise errors.expired(_TOO_OLD) from None


def _reached(store: Store, kind: Kind, revision: int, query: Query) -> None:
    """Wait a little for a revision that is still to come; then 504."""
    if revision <= store.revision:
        return
    timeout = _integer(query, "timeoutSeconds", int(_FUTURE_WAIT))
    store.wait(kind.qualified, revision - 1, min(timeout, _FUTURE_WAIT))
    if revision > store.revision:
        message = f"Timeout: Too large resource version: {revision}, current: {store.revision}"
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        details = {"causes": [cause], "retryAfterSeconds": 1}
        raise ApiError(504, "Timeout", message, details, {"Retry-After": "1"})


def _key(item: Json, namespace: str | None) -> str:
    metadata = item["metadata"]
    if namespace is None and metadata.get("namespace"):
        # "/" sorts before every character of a name but "-" and "."; \1 sorts before all.
        return f"{metadata['namespace']}\1{metadata['name']}"
    return str(metadata["name"])


def _token(revision: int, start: str) -> str:
    value = {"v": "meta.k8s.io/v1", "rv": revision, "start": start.replace("\1", "/")}
    text = json.dumps(value, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _continued(
    store: Store, kind: Kind, namespace: str | None, token: str
) -> tuple[list[Json], int, str]:
    """The objects, their revision and the key to go on from, for a continue token."""
    value = _read_token(token)
    start = str(value["start"]).removeprefix("/").replace("/", "\1", 1)
    revision = int(value["rv"])
    if revision < 0:
        items, at = store.snapshot(kind.qualified, namespace)
        return items, at, start
    try:
        return store.list_at(kind.qualified, namespace, revision), revision, start
    except ExpiredError:
        fresh = ApiError(410, "Expired", _CONTINUE_TOO_OLD)
        raise _ResumableError(fresh, _token(-1, str(value["start"]))) from None


class _ResumableError(ApiError):
    """410 with a token that continues the list at the newest revision."""

    def __init__(self, error: ApiError, token: str) -> None:
        super().__init__(error.status, error.reason, error.message)
        self._token = token

    @property
    def body(self) -> Json:
        return super().body | {"metadata": {"continue": self._token}}


def _read_token(token: str) -> Json:
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        raise errors.bad_request(
            "invalid continue token: continue key is not valid: illegal base64 data"
        ) from None
    try:
        value = json.loads(data)
        if value["v"] != "meta.k8s.io/v1" or not isinstance(value["rv"], int):
            raise ValueError
        value["start"] = str(value["start"])
        return dict(value)
    except (ValueError, KeyError, TypeError):
        first = chr(data[0]) if data else ""
        shown = first if first.isprintable() else f"\\u{ord(first):04x}" if first else ""
        raise errors.bad_request(
            "invalid continue token: continue key is not valid: invalid character "
            f"'{shown}' looking for beginning of value"
        ) from None


def watch_request(
    store: Store, kind: Kind, namespace: str | None, name: str, query: Query, *, minor: int
) -> WatchRequest:
    """The watch that a GET with ``watch`` asks for."""
    matches = selection(kind, query)
    if name:
        selected = matches

        def matches(item: Json) -> bool:
            return item["metadata"]["name"] == name and selected(item)

    revision_text = query.get("resourceVersion", "")
    initial = query.get("sendInitialEvents", "")
    initial_end = False
    start: int | None = None
    if revision_text not in {"", "0"}:
        start = _number(revision_text, "resourceVersion")
    if minor >= 27 and initial:
        if query.get("resourceVersionMatch") != "NotOlderThan":
            raise ApiError(
                422,
                "Invalid",
                'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: '
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to "
                "NotOlderThan",
                {},
            )
        if initial in {"true", "1"}:
            start = None
            initial_end = _flag(query, "allowWatchBookmarks")
        elif start is None:
            start = store.revision
    seconds = _integer(query, "timeoutSeconds", 0)
    return WatchRequest(
        kind=kind,
        namespace=namespace,
        matches=matches,
        revision=start,
        # As on a real server, half an hour to an hour, so that clients do not come back together.
        timeout=seconds or random.uniform(1800, 3600),
        bookmarks=_flag(query, "allowWatchBookmarks"),
        initial_end=initial_end,
    )
