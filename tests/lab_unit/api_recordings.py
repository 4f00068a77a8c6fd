"""Recorded requests of real API servers, and the comparison of answers with theirs."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from pytest_ipvs.lab.api import Server, User
from pytest_ipvs.lab.api.messages import Request, Response
from pytest_ipvs.lab.api.store import clone

Json = dict[str, Any]

_DATA = Path(__file__).parents[1] / "data" / "api"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_AGE = re.compile(r"\d+[smhd](\d+[smh])?")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

VIEWER = User(name="viewer", groups=("dev", "system:authenticated"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded request and the answer of the real server."""

    name: str
    method: str
    path: str
    user: str
    headers: dict[str, str]
    body: str | None
    status: int
    type: str
    answer: Any

    @property
    def title(self) -> str:
        """The name without its number, which differs between versions."""
        return self.name.partition("-")[2]


@cache
def load(version: str) -> tuple[Recording, ...]:
    """All recordings of one Kubernetes version, in the order of their making."""
    text = lzma.decompress((_DATA / f"recordings-{version}.jsonl.xz").read_bytes()).decode()
    return tuple(Recording(**json.loads(line)) for line in text.splitlines())


def seeded(version: str) -> Server:
    """A server that holds the objects that the recordings found, with their own versions."""
    server = Server(version=version, token="admin-token", users={"viewer-token": VIEWER})
    # By chance an address or port that it hands out is one that the recordings have by name.
    server.resources._allocator._random = Random(1)  # type: ignore[assignment]
    for recording in load(version):
        number, title = int(recording.name[:3]), recording.title
        if not 13 <= number <= 32 or recording.status != 200:
            continue
        answer = recording.answer
        if not str(answer.get("kind", "")).endswith("List"):
            continue
        # The whole lists; those of one namespace or node are parts of them, or all there is.
        if title.endswith(("-node-1", "-web")):
            continue
        name = answer["kind"].removesuffix("List")
        kind = next(kind for kind in server.registry.kinds if kind.kind == name)
        items = [
            {"kind": name, "apiVersion": answer["apiVersion"], **item} for item in answer["items"]
        ]
        revision = int(answer["metadata"]["resourceVersion"])
        server.store.load(kind.qualified, items, revision)
    return server


class Player:
    """Sends recorded requests to a server, with its names for what the real one made up.

    What a server chooses (uids, revisions, generated names, tokens) is learned from each answer
    and put into later requests.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._known: dict[str, str] = {}
        self._tokens = {"admin": "admin-token", "cert:viewer": "viewer-token"}

    def send(self, recording: Recording) -> Response:
        """The answer of our server to one recorded request.

        Watches end as soon as they have nothing more to say; only one that waits for a bookmark
        takes its time.
        """
        self._controllers(recording)
        headers = {name.lower(): value for name, value in recording.headers.items()}
        headers["user-agent"] = "rig-recorder"
        token = self._tokens.get(recording.user)
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        elif recording.user == "anonymous-badtoken":
            headers["authorization"] = "Bearer not-a-token"
        else:
            headers.pop("authorization", None)
        body = self._translated(recording.body or "").encode()
        path = self._path(recording.path)
        patient = recording.title.startswith("watch-timeout")
        request = Request.parse(recording.method, path, headers, body, lambda: not patient)
        # The routes are what a connection calls; going without sockets keeps this fast.
        response = self.server._routes.handle(request)
        if recording.status < 300 and isinstance(recording.answer, dict):
            self._learn(recording.answer, json.loads(response.body or b"{}"), recording)
        return response

    def _learn(self, theirs: Json, ours: Any, recording: Recording) -> None:
        if not isinstance(ours, dict):
            return
        for name in ("uid", "resourceVersion", "name"):
            here = (theirs.get("metadata") or {}).get(name)
            there = (ours.get("metadata") or {}).get(name)
            if here and there:
                self._known[f'"{name}": "{here}"'] = f'"{name}": "{there}"'
                self._known[here] = there
        if recording.title == "create-token":
            self._tokens["sa:limited"] = ours["status"]["token"]

    def _translated(self, text: str) -> str:
        for here, there in self._known.items():
            if here.startswith('"'):
                text = text.replace(here, there)
        return text

    def _path(self, path: str) -> str:
        def replace(match: re.Match[str]) -> str:
            return match[1] + self._known.get(match[2], match[2])

        path = re.sub(r"(resourceVersion=)(\d+)", replace, path)
        return re.sub(r"(timeoutSeconds=)\d+", r"\g<1>1", path)

    def _controllers(self, recording: Recording) -> None:
        """Do what the controllers of the real cluster did before the answer."""
        match = re.fullmatch(
            r"/apis/apps/v1/namespaces/rec/deployments/(\w+)(/scale)?(\?.*)?", recording.path
        )
        store = self.server.store
        if match is None or store.get("deployments.apps", "rec", match[1]) is None:
            return
        theirs = recording.answer

        def adopt(deployment: Json) -> None:
            if theirs["kind"] == "Scale":
                deployment["status"]["replicas"] = theirs["status"]["replicas"]
            elif theirs["kind"] == "Deployment":
                deployment["status"] = theirs["status"]
                deployment["metadata"]["annotations"] = theirs["metadata"]["annotations"]
            elif recording.title == "put-scale":
                # The deployment controller was faster than the recorder.
                deployment["status"]["observedGeneration"] = 99

        store.update("deployments.apps", "rec", match[1], adopt)


def events(response: Response, limit: int = 10_000) -> list[Json]:
    """The events of a watch's answer."""
    assert response.stream is not None

    def read() -> Iterator[Json]:
        for _, piece in zip(range(limit), response.stream or (), strict=False):
            yield json.loads(piece)

    return list(read())


def normal(value: Any, *, key: str = "") -> Any:
    """The value with everything that no two servers share replaced by a word for its kind."""
    if isinstance(value, dict):
        if "spec" in value and value.get("kind") == "Service" and "clusterIP" in value["spec"]:
            value = clone(value)
            _hide_allocations(value["spec"])
        return {
            name: normal(item, key=name)
            for name, item in value.items()
            if name not in {"managedFields", "storageVersionHash"}
        }
    if isinstance(value, list):
        return [normal(item, key=key) for item in value]
    if not isinstance(value, str):
        return value
    if key == "resourceVersion" and value:
        return "<revision>"
    if key == "continue":
        return "<token>"
    if key in {"token", "description"}:
        return f"<{key}>"
    if key == "name" and re.fullmatch(r"c-[a-z0-9]{5}", value):
        return "c-<generated>"
    if key == "cells" and _AGE.fullmatch(value):
        return "<age>"
    value = _TIME.sub("<time>", value)
    value = re.sub(r"(current: |version: 1 \()\d+", r"\1<revision>", value)
    return _UID.sub("<uid>", value)


def _hide_allocations(spec: Json) -> None:
    address = spec["clusterIP"]
    if not address.startswith("10.96.10."):
        spec["clusterIP"] = "<address>"
        spec["clusterIPs"] = ["<address>"]
    for port in spec.get("ports") or []:
        if port.get("nodePort") not in {None, 30080, 30081, 30090}:
            port["nodePort"] = "<port>"
