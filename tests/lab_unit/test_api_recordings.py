"""Recorded requests of real API servers, replayed against the embedded API, answer by answer."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from api_clock import Clock
from api_recordings import Player, Recording, events, load, normal, seeded

VERSIONS = ("1.36.2", "1.20.2")

# Recordings whose answer the embedded API cannot give, each with its reason.
NOT_SUPPORTED = {
    "watch-rv1-before-compaction": "replays changes from before the recorded lists were made",
    "watch-rv1-cached-after-compaction": "as above, and from a cache that outlives compaction",
    "list-exact-rv2-cached-after-compaction": "needs the state at revision 2, as above",
    "continue-rv5-cached-after-compaction": "needs the state at revision 5, as above",
    "readyz": "lists the real server's own start-up hooks",
}
# Parts of an answer that differ by nature, each with its reason.
DIFFERENT: dict[str, tuple[str, ...]] = {
    # The stand-in does not pretend to be a build of Kubernetes.
    "version": ("gitCommit", "goVersion", "compiler"),
    "api": ("serverAddressByClientCIDRs",),
    # Users prove themselves by tokens here, not by certificates.
    "selfsubjectreview": ("status.userInfo.extra",),
    # It also offers YAML and protobuf.
    "406-accept": ("message",),
    # Events are not cached by a real server, so etcd's own words appear.
    "410-watch-events-rv1": ("0.object.message",),
    # Written by the namespace controller.
    "get-namespace-after-delete": ("status.conditions",),
}
# More of them, only for 1.20.2.
DIFFERENT_IN_OLD: dict[str, tuple[str, ...]] = {
    # Restarts was a number before 1.22; kubectl prints it the same.
    "pods-table": ("columnDefinitions.3.type",),
}
# Answers that list more kinds or groups than the embedded API serves: ours must be among theirs.
SUBSETS = ("apis", "api-v1", "apis-apps-v1", "apis-aggregated", "openapi-v3-root")
# Old servers answer these in the order of a hash table.
UNORDERED = ("list-rv0", "watch-initial-events-rv0", "watch-no-rv")


@cache
def replay(version: str) -> dict[str, tuple[Recording, int, Any]]:
    """Every recording with the status and body that our server gave, sent in their order."""
    server = seeded(version)
    player = Player(server)
    answers = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        Clock(server.store, monkeypatch)
        for recording in load(version):
            if recording.title in NOT_SUPPORTED:
                continue
            if recording.name.startswith("911"):
                # From here on the recordings are from after a compaction and a restart.
                server.store.compact()
            response = player.send(recording)
            if response.stream is not None:
                body: Any = events(response)
            elif response.content_type.startswith("application/json"):
                body = json.loads(response.body)
            else:
                body = response.body.decode()
            answers[recording.name] = (recording, response.status, body)
    return answers


def names() -> list[Any]:
    return [
        pytest.param(version, recording.name, id=f"{version}-{recording.name}")
        for version in VERSIONS
        for recording in load(version)
        if recording.title not in NOT_SUPPORTED
    ]


def without(value: Any, path: str) -> None:
    *parents, last = path.split(".")
    for part in parents:
        if isinstance(value, list) and len(value) > int(part):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return
    if isinstance(value, dict):
        value.pop(last, None)


def entries(value: Any, title: str) -> list[Any]:
    """The entries of a discovery answer, by themselves, without what is left out on purpose."""
    if title == "openapi-v3-root":
        return sorted(value.get("paths", {}))
    if title == "apis-aggregated" and value["kind"] == "APIGroupDiscoveryList":
        found = []
        for group in value["items"]:
            for version in group["versions"]:
                for resource in version["resources"]:
                    name = (group["metadata"]["name"], version["version"])
                    subresources = resource.pop("subresources", [])
                    found.append((name, resource))
                    found += [(name, resource["resource"], sub) for sub in subresources]
        return found
    if value["kind"] == "APIGroupList":
        # Old servers also know beta versions of the groups.
        return [(group["name"], group["preferredVersion"]) for group in value["groups"]]
    return list(value["resources"])


@pytest.mark.parametrize(("version", "name"), names())
def test_the_answer_is_that_of_the_real_server(version: str, name: str) -> None:
    recording, status, body = replay(version)[name]
    assert status == recording.status
    theirs, ours = normal(recording.answer), normal(body)
    title = recording.title
    old = version.startswith("1.20")
    if old and title == "openapi-v3-root":
        # A real server adds a list of its paths to this 404.
        return
    if title in SUBSETS:
        known = entries(theirs, title)
        assert [entry for entry in entries(ours, title) if entry not in known] == []
        return
    if title.startswith("watch-timeout"):
        # How many bookmarks come in that time is chance; old servers send at least one.
        assert ours[-1]["type"] == "BOOKMARK"
        assert ours[-1]["object"]["kind"] == "Pod"
        assert set(ours[-1]["object"]["metadata"]) == {"resourceVersion"}
        return
    if isinstance(recording.answer, dict) and isinstance(ours, list):
        theirs = [theirs]
    for path in (*DIFFERENT.get(title, ()), *(DIFFERENT_IN_OLD.get(title, ()) if old else ())):
        without(theirs, path)
        without(ours, path)
    if title == "pods-table" and old:
        for row in theirs["rows"]:
            row["cells"][3] = str(row["cells"][3])
    theirs, ours = _without_root_certificates(theirs), _without_root_certificates(ours)
    if title in UNORDERED:
        theirs, ours = _sorted(theirs), _sorted(ours)
    assert ours == theirs


def _without_root_certificates(answer: Any) -> Any:
    """Both servers give namespaces a ConfigMap with their CA; what is in it is their own."""

    def own(item: Any) -> bool:
        return item.get("metadata", {}).get("name", "").endswith("-ca.crt")

    if isinstance(answer, list):
        return [event for event in answer if not own(event.get("object", {}))]
    if isinstance(answer, dict) and answer.get("kind") == "ConfigMapList":
        return {**answer, "items": [item for item in answer["items"] if not own(item)]}
    return answer


def _sorted(answer: Any) -> Any:
    if isinstance(answer, list):
        return sorted(answer, key=lambda event: str(event["object"]["metadata"].get("name")))
    return {**answer, "items": sorted(answer["items"], key=lambda item: item["metadata"]["name"])}


def test_only_few_recordings_are_left_out() -> None:
    for version in VERSIONS:
        recordings = load(version)
        titles = {recording.title for recording in recordings}
        left_out = titles & NOT_SUPPORTED.keys()
        assert len(replay(version)) >= len(recordings) - len(NOT_SUPPORTED)
        # A reason without a recording is a leftover.
        assert left_out == NOT_SUPPORTED.keys()
