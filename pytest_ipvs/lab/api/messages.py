"""A request and an answer, free of sockets: what the routes take and give."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request. ``headers`` have lower-case names; ``gone`` tells if the client left."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    gone: Callable[[], bool] = lambda: False

    @staticmethod
    def parse(
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        gone: Callable[[], bool] = lambda: False,
    ) -> Request:
        """A request from its request line's target ("/api/v1/pods?limit=2")."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Request(
            method=method,
            path=unquote(parts.path),
            query=query,
            headers=headers,
            body=body,
            gone=gone,
        )

    @property
    def accepts(self) -> list[dict[str, str]]:
        """The media ranges of the Accept header; the type under "", parameters by name."""
        ranges = []
        for part in self.headers.get("accept", "*/*").split(","):
            type_, *parameters = (piece.strip() for piece in part.split(";"))
            entry = {"": type_.lower()}
            for parameter in parameters:
                name, _, value = parameter.partition("=")
                entry[name] = value
            ranges.append(entry)
        return ranges

    @property
    def content_type(self) -> str:
        """The media type of the body, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer: a body at once, or ``stream``ed piece by piece."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Iterator[bytes] | None = None


def json_response(
    body: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> Response:
    """An answer whose body is one JSON object and a line end, as a real server's."""
    data = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    return Response(status=status, body=data, content_type=content_type, headers=headers or {})


def text_response(text: str, status: int = 200) -> Response:
    """An answer in plain text."""
    return Response(status=status, body=text.encode(), content_type="text/plain; charset=utf-8")
