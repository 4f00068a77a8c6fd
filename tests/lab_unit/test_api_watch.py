"""Watches and history: selections that objects enter and leave, bookmarks, compaction, tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from api_clock import Clock

from pytest_ipvs.lab.api import Server
from pytest_ipvs.lab.api.kinds import registry
from pytest_ipvs.lab.api.messages import Request
from pytest_ipvs.lab.api.selectors import matcher
from pytest_ipvs.lab.api.store import ExpiredError, Store
from pytest_ipvs.lab.api.watch import WatchEvent, WatchRequest, stream

Json = dict[str, Any]
MAPS = registry("1.36.2").by_plural("configmaps")


def item(name: str, namespace: str = "n", **labels: str) -> Json:
    return {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
    }


def watch(
    store: Store,
    revision: int | None,
    *,
    labels: str = "",
    namespace: str | None = None,
    **more: Any,
) -> list[tuple[str, str, str]]:
    """Everything that a watch says until it has nothing more to say."""
    more.setdefault("timeout", 30)
    request = WatchRequest(
        kind=MAPS,
        namespace=namespace,
        matches=matcher(MAPS, labels, ""),
        revision=revision,
        **more,
    )
    return [shown(event) for event in stream(store, request, lambda: True)]


def shown(event: WatchEvent) -> tuple[str, str, str]:
    metadata = event.object["metadata"]
    return event.type, metadata.get("name", ""), metadata.get("resourceVersion", "")


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_watch_without_a_start_begins_with_what_is_there(store: Store) -> None:
    store.put("configmaps", item("b"))
    store.put("configmaps", item("a"))
    assert watch(store, None) == [("ADDED", "a", "3"), ("ADDED", "b", "2")]
    assert watch(store, 2) == [("ADDED", "a", "3")]
    assert watch(store, 3) == []


def test_objects_enter_and_leave_a_selection(store: Store) -> None:
    store.put("configmaps", item("a", color="red"))
    store.put("configmaps", item("a", color="blue"))
    store.put("configmaps", item("a", color="blue", more="x"))
    store.put("configmaps", item("a", color="red"))
    store.remove("configmaps", store.get("configmaps", "n", "a") or {})
    assert watch(store, 1, labels="color=blue") == [
        ("ADDED", "a", "3"),
        ("MODIFIED", "a", "4"),
        ("DELETED", "a", "5"),
    ]
    assert [type_ for type_, _, _ in watch(store, 1, labels="color=red")] == [
        "ADDED",
        "DELETED",
        "ADDED",
        "DELETED",
    ]


def test_a_watch_of_a_namespace_sees_only_that(store: Store) -> None:
    store.put("configmaps", item("a", "one"))
    store.put("configmaps", item("a", "two"))
    assert watch(store, 1, namespace="two") == [("ADDED", "a", "3")]


def test_a_deletion_carries_its_own_revision(store: Store) -> None:
    store.put("configmaps", item("a"))
    store.remove("configmaps", store.get("configmaps", "n", "a") or {})
    assert watch(store, 2) == [("DELETED", "a", "3")]


def test_history_is_limited_and_compacted(store: Store) -> None:
    small = Store(window=3)
    for index in range(6):
        small.put("configmaps", item(f"c{index}"))
    assert [name for _, name, _ in watch(small, 4)] == ["c3", "c4", "c5"]
    assert watch(small, 3) == [("ERROR", "", "")]
    with pytest.raises(ExpiredError):
        small.list_at("configmaps", None, 3)
    small.compact()
    assert watch(small, 6) == [("ERROR", "", "")]
    assert watch(small, 7) == []


def test_a_running_watch_outlives_compaction() -> None:
    store = Store()
    store.put("configmaps", item("a"))
    request = WatchRequest(
        kind=MAPS, namespace=None, matches=lambda _: True, revision=None, timeout=30
    )
    ends = threading.Event()
    events = stream(store, request, ends.is_set)
    assert shown(next(events))[:2] == ("ADDED", "a")
    store.put("pods", item("p"))
    store.compact()

    def later() -> None:
        store.put("configmaps", item("b"))

    timer = threading.Timer(0.1, later)
    timer.start()
    assert shown(next(events))[:2] == ("ADDED", "b")
    timer.join()
    ends.set()


def test_a_list_of_the_past_is_what_it_was(store: Store) -> None:
    store.put("configmaps", item("a", v="1"))
    store.put("configmaps", item("b"))
    store.put("configmaps", item("a", v="2"))
    store.remove("configmaps", store.get("configmaps", "n", "b") or {})

    def at(revision: int) -> list[tuple[str, Any]]:
        found = store.list_at("configmaps", None, revision)
        return [(one["metadata"]["name"], one["metadata"]["labels"].get("v")) for one in found]

    assert at(1) == []
    assert at(3) == [("a", "1"), ("b", None)]
    assert at(4) == [("a", "2"), ("b", None)]
    assert at(5) == [("a", "2")]


def test_closing_the_store_ends_watches(store: Store) -> None:
    request = WatchRequest(
        kind=MAPS, namespace=None, matches=lambda _: True, revision=1, timeout=600
    )
    events = stream(store, request, lambda: False)
    timer = threading.Timer(0.1, store.close)
    timer.start()
    assert list(events) == []
    timer.join()


def test_bookmarks_come_before_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(store, monkeypatch)
    store.put("pods", item("p"))
    request = WatchRequest(
        kind=MAPS,
        namespace=None,
        matches=lambda _: True,
        revision=1,
        timeout=130,
        bookmarks=True,
    )
    seen = [(clock.now, *shown(event)) for event in stream(store, request, lambda: False)]
    # Each minute, and shortly before the end.
    assert seen == [(at, "BOOKMARK", "", "2") for at in (60, 120, 128)]
    assert clock.now == 130


def test_the_end_of_the_beginning_is_marked(store: Store) -> None:
    store.put("configmaps", item("a"))
    request = WatchRequest(
        kind=MAPS,
        namespace=None,
        matches=lambda _: True,
        revision=None,
        timeout=30,
        bookmarks=True,
        initial_end=True,
    )
    *_, last = stream(store, request, lambda: True)
    assert last.type == "BOOKMARK"
    assert last.object["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(token="secret")
    yield made
    made.store.close()


def test_a_watch_of_tables_names_its_columns_once(server: Server) -> None:
    headers = {
        "authorization": "Bearer secret",
        "accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    }
    request = Request.parse("GET", "/api/v1/namespaces?watch=1", headers, b"", lambda: True)
    answer = server._routes.handle(request)
    assert answer.stream is not None
    tables = [json.loads(line)["object"] for line in answer.stream]
    assert len(tables) == 4
    assert [column["name"] for column in tables[0]["columnDefinitions"]] == [
        "Name",
        "Status",
        "Age",
    ]
    assert [table["columnDefinitions"] for table in tables[1:]] == [None] * 3
    assert tables[0]["rows"][0]["cells"][:2] == ["default", "Active"]


def test_one_object_can_be_watched(server: Server) -> None:
    headers = {"authorization": "Bearer secret"}
    path = "/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Ddefault"
    answer = server._routes.handle(Request.parse("GET", path, headers, b"", lambda: True))
    assert answer.stream is not None
    found = [json.loads(line) for line in answer.stream]
    assert [event["object"]["metadata"]["name"] for event in found] == ["default"]
