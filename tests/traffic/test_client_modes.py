"""Held connections, affinity, several processes, and the window of source ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from traffic_peers import CLIENT, answering, free_port, poll, reset, run_client, serving

from pytest_ipvs.traffic import client

pytestmark = pytest.mark.system


def test_held_connections_exchange_lines_and_are_ok_at_the_end() -> None:
    with serving(HOLD_PORT=str(port := free_port())):
        results, _ = run_client(port, mode="hold", hold=3, hold_every=0.05, duration=0.5)
    assert (results.due, results.classes) == (3, {"ok": 3})
    assert results.exchanges > 3
    assert set(results.pods) == {"web-1"}
    assert results.endings == {"client_fin": 3}
    assert results.broken == ()


def hold_once(connection: socket.socket) -> None:
    """Answer the first line only, wait for the second, then reset."""
    connection.send(b"web-1 hello\n")
    connection.recv(100)
    reset(connection)


def test_a_held_connection_that_breaks_says_when_how_and_with_whom() -> None:
    with answering(hold_once) as port:
        results, _ = run_client(port, mode="hold", hold=1, hold_every=0.1, duration=0.3)
    assert set(results.failures) == {"reset"}
    first = results.broken[0]
    assert (first.name, first.errno, first.pod) == ("reset", "ECONNRESET", "web-1")
    assert first.held is not None
    assert first.held > 0.05
    assert results.due == sum(results.classes.values())


def test_a_held_connection_that_the_server_closes_unasked_is_an_early_close() -> None:
    with answering(lambda c: void(c.send(b"web-1 x\n"))) as port:
        results, _ = run_client(port, mode="hold", hold=1, hold_every=5, duration=0.3)
    assert "early_close" in results.failures


def test_a_held_connection_that_falls_silent_is_a_read_timeout() -> None:
    release = threading.Event()
    with answering(lambda c: void(c.send(b"web-1 x\n") and release.wait(20))) as port:
        results, _ = run_client(
            port, mode="hold", hold=1, hold_every=0.05, read_timeout=0.2, duration=0.4
        )
        release.set()
    assert "read_timeout" in results.failures


def test_moves_of_an_affine_client_are_told() -> None:
    pods: Iterator[bytes] = iter([b"web-1", b"web-1", b"web-2"])

    def answer(connection: socket.socket) -> None:
        name = next(pods, b"web-2")
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n" + name)

    with answering(answer) as port:
        results, _ = run_client(port, moves=True, rate=50)
        others, _ = run_client(port)
    (move,) = results.moves
    assert (move.before, move.after) == ("web-1", "web-2")
    assert others.moves == ()


def test_processes_share_ports_and_schedule_and_add_up() -> None:
    with serving() as (port, _):
        results, end = run_client(port, processes=3, ports=9, rate=150, duration=0.4)
    # A busy machine may be without a port or late; nothing is lost or made twice.
    assert results.due == sum(results.classes.values()) == 60
    assert (results.finished, results.problems) == (True, ())
    assert results.failures == {}
    assert end["reason"] == "duration"
    assert sum(results.histogram.values()) == results.connections


def test_a_team_that_lost_a_process_has_not_finished() -> None:
    with serving() as (port, _):
        plan = {"host": "127.0.0.1", "port": port, "ports": 0, "processes": 2, "tick": 0.1}
        process = subprocess.Popen(
            [sys.executable, "-E", "-S", CLIENT, json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        start = json.loads(process.stdout.readline())
        children = poll(lambda: children_of(start["pid"], 2), "the processes")
        os.kill(children[0], signal.SIGKILL)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert '"k":"end"' not in output
    assert errors == "1 of 2 processes died\n"


def test_a_team_does_not_outlive_its_parent() -> None:
    with serving() as (port, _):
        plan = {"host": "127.0.0.1", "port": port, "ports": 0, "processes": 2, "tick": 0.05}
        process = subprocess.Popen(
            [sys.executable, "-E", "-S", CLIENT, json.dumps(plan)], stdout=subprocess.PIPE
        )
        children = poll(lambda: children_of(process.pid, 2), "the processes")
        process.kill()
        process.communicate()
        poll(lambda: not any(map(alive, children)), "their end")


@pytest.mark.parametrize(("order", "used"), [("rotate", 8), ("random", 8), ("recent", 1)])
def test_the_order_says_which_port_is_next(order: str, used: int) -> None:
    ports = set()
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nweb-1\n"

    def seen(connection: socket.socket) -> None:
        ports.add(connection.getpeername()[1])
        connection.send(answer)

    with answering(seen) as port:
        results, _ = run_client(port, order=order, ports=8, rate=40, duration=0.4)
    assert results.failures == {}
    # A slow answer makes "recent" take a second port.
    assert len(ports) == used if used == 8 else len(ports) < 8


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nweb-1\n\r\n"


@pytest.mark.parametrize(
    ("text", "classes"),
    [(CHUNKED + b"0\r\n\r\n", {"ok": 20}), (CHUNKED, {"short_body": 20})],
)
def test_a_chunked_answer_ends_with_its_last_chunk(text: bytes, classes: dict[str, int]) -> None:
    requests = []

    def answer(connection: socket.socket) -> None:
        requests.append(1)
        connection.send(text)

    with answering(answer) as port:
        results, _ = run_client(port, http="1.1")
    assert results.classes == classes
    assert results.pods == ({"web-1": 20} if "ok" in classes else {})


def test_windows_are_free_apart_and_not_the_kernels() -> None:
    plan = {"host": "127.0.0.1", "ports": 120, "first_port": 0}
    one, other = client.ports_of(plan), client.ports_of(plan)
    assert len(set(one)) == len(set(other)) == 120
    assert not set(one) & set(other)
    closed = client.numbers_of("/proc/sys/net/ipv4/ip_local_port_range")
    # A machine whose kernel gives away everything leaves no choice.
    if closed and closed[0][0] > client.HIGHEST:
        assert max(one + other) < closed[0][0]


def test_a_window_steps_over_ports_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = client.ports_of({"host": "127.0.0.1", "ports": 1, "first_port": 0})
    with socket.create_server(("127.0.0.1", first)):
        assert not client.is_free(socket.AF_INET, first)
    monkeypatch.setattr(client, "is_free", lambda family, port: port % 2)
    assert all(p % 2 for p in client.ports_of({"host": "h", "ports": 60, "first_port": 0}))


def test_more_ports_than_there_are_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "is_free", lambda family, port: False)
    with pytest.raises(SystemExit, match="asks for 5 source ports, but only 0 are free here"):
        client.ports_of({"host": "h", "ports": 5, "first_port": 0})


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("32768\t60999\n", [(32768, 60999)]), ("8080,9000-9010\n", [(8080, 8080), (9000, 9010)])],
)
def test_port_ranges_of_the_kernel(text: str, ranges: list[object], tmp_path: object) -> None:
    path = f"{tmp_path}/range"
    with open(path, "w") as file:  # noqa: PTH123 - as the client opens it
        file.write(text)
    assert client.numbers_of(path) == ranges


def test_ipv6_is_counted_like_ipv4() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with serving() as (port, _):
        results, _ = run_client(port, host="::1", ports=5)
    assert results.failures == {}
    assert results.pods["web-1"] == results.connections > 0


def children_of(pid: int, number: int) -> list[int]:
    """The children of a process, once there are so many."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        found = [int(word) for word in file.read().split()]
    return found if len(found) == number else []


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return ") Z " not in file.read()
    except OSError:
        return False


def void(_: object) -> None:
    """Drop a value."""
