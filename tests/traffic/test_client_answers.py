"""Answers of every length and kind, and what the client keeps of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_peers import answering, one_client, run_client

from pytest_ipvs.traffic import client

pytestmark = pytest.mark.system

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nweb-1\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"

PLAIN = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
LONG = b"web-1\n" + b"x" * 1_000_000


def chunks(body: bytes, size: int) -> bytes:
    """The body in chunks of that size."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def sends(text: bytes) -> Callable[[socket.socket], None]:
    """A server that sends a text and closes."""

    def send(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(text)

    return send


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (HINTS + OK, {"ok": 20}),
        (CONTINUE + HINTS + OK, {"ok": 20}),
        (HINTS + REFUSAL, {"http_error": 20}),
        (HINTS, {"early_close": 20}),
        (HINTS + OK[:20], {"short_body": 20}),
        (SWITCH, {"http_error": 20}),
        (HINTS + SWITCH, {"http_error": 20}),
    ],
)
def test_interim_answers_are_passed_over(text: bytes, classes: dict[str, int]) -> None:
    with answering(sends(text)) as port:
        results, _ = run_client(port, http="1.1")
    assert results.classes == classes
    assert results.pods == ({"web-1": 20} if "ok" in classes else {})


def test_a_failure_after_an_interim_answer_names_the_final_status() -> None:
    with answering(sends(HINTS + REFUSAL)) as port:
        results, _ = run_client(port, http="1.1")
    assert {sample.detail for sample in results.failed} == {"HTTP/1.1 503 Service Unavailable"}


@pytest.mark.parametrize(
    "text",
    [SIZED % len(LONG) + LONG, PLAIN + LONG, CHUNKED + chunks(LONG, 7001)],
    ids=["sized", "plain", "chunked"],
)
def test_a_long_answer_is_whole_at_its_end(text: bytes) -> None:
    with answering(sends(text)) as port:
        results, _ = run_client(port, http="1.1", rate=20)
    assert (results.classes, results.pods) == ({"ok": 2}, {"web-1": 2})
    with answering(sends(text[:-1])) as port:
        results, _ = run_client(port, http="1.1", rate=20)
    # Only the end of the connection tells where a body without length ends.
    assert results.classes == {"ok" if text.startswith(PLAIN) else "short_body": 2}


@pytest.mark.parametrize(
    ("mode", "head", "more"),
    [
        ("http", PLAIN, b"x" * 65536),
        ("http", SIZED % 10**15, b"x" * 65536),
        ("http", CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        ("http", b"", CONTINUE * 1000),
        ("echo", b"", b"x" * 65536),
    ],
    ids=["plain", "sized", "chunked", "interim", "echo"],
)
def test_an_endless_answer_is_a_read_timeout(mode: str, head: bytes, more: bytes) -> None:
    def stream(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(head)
            while True:
                connection.sendall(more)

    with answering(stream) as port:
        results, end = run_client(port, mode=mode, rate=20, read_timeout=0.3)
    assert set(results.failures) == {"read_timeout"}
    assert (results.finished, end["reason"]) == (True, "duration")


class Stream:
    """A socket that has always more to read: first these pieces, then the last one again."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces: Iterator[bytes] = iter(pieces)
        self.last = pieces[-1]
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        """As much as is asked for."""
        self.asked.append(size)
        piece = next(self.pieces, self.last)
        return (piece * (size // len(piece) + 1))[:size]


@pytest.mark.parametrize(
    ("plan", "first", "more"),
    [
        ({}, PLAIN + b"web-1\n" + b"x" * 5000, b"x"),
        ({}, CHUNKED + b"ffffffff\r\nweb-1\n" + b"x" * 5000, b"x"),
        ({}, CHUNKED + b"zz\r\n" + b"x" * 5000, b"x"),
        ({}, CHUNKED + b"1" * 5000, b"1"),
        ({}, CHUNKED + b"0\r\n" + b"x" * 5000, b"x"),
        ({"mode": "echo"}, b"x", b"x"),
    ],
)
def test_little_is_read_at_once_and_little_is_kept(
    plan: dict[str, Any], first: bytes, more: bytes
) -> None:
    with one_client(**plan) as tool:
        stream = Stream(first, more)
        now = time.monotonic()
        connection = client.Connection(stream, now, tool.tally(now), 0)
        connection.state = client.READING
        for _ in range(20):
            before = len(stream.asked)
            assert tool.read(connection, client.READABLE, now)
            assert len(stream.asked) - before <= 3
        assert connection.state == client.READING
        assert len(connection.data) <= 2 * client.PIECE
        if connection.chunks is not None:
            assert len(connection.chunks.rest) <= client.PIECE


CASES = [
    (b"0\r\n\r\n", True),
    (b"3;x=1\r\nabc\r\n0\r\n\r\n", True),
    (b"0\r\nX: y\r\n\r\n", True),
    (b"A\r\n0\r\n\r\n01234\r\n1\r\nx\r\n0\r\n\r\n", True),
    (b"3\r\nab", False),
    (b"0\r\n", False),
    (b"zz\r\n0\r\n\r\n", False),
    (b"-1\r\n0\r\n\r\n", False),
    (b"\r\n0\r\n\r\n", False),
]


@given(st.sampled_from(CASES), st.data())
def test_chunks_are_followed_to_their_end_in_pieces_of_any_size(
    case: tuple[bytes, bool], data: st.DataObject
) -> None:
    body, whole = case
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1))))
    found = client.Chunks()
    pieces = [body[at:to] for at, to in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    *ended, last = [found.ended(piece) for piece in pieces]
    assert (any(ended), last) == (False, whole)


@pytest.mark.parametrize(
    ("host", "port", "given_header", "told"),
    [
        ("::1", 8080, "", b"[::1]:8080"),
        ("::1", 80, "", b"[::1]"),
        ("127.0.0.1", 8080, "", b"127.0.0.1:8080"),
        ("127.0.0.1", 80, "", b"127.0.0.1"),
        ("::1", 8080, "shop.example", b"shop.example"),
    ],
)
def test_the_host_header_is_one_a_server_can_read(
    host: str, port: int, given_header: str, told: bytes
) -> None:
    with one_client(host=host, port=port, host_header=given_header) as tool:
        assert b"\r\nHost: %b\r\n" % told in tool.request
