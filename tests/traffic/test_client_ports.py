"""How long a tuple counts as remembered, and starts that wait for a port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from traffic_peers import answering, collected, one_client, poll, reset, serving

from pytest_ipvs.traffic import client

pytestmark = pytest.mark.system

OK = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nweb-1\n"


class Clock:
    """Stands still until it is set, so that nothing depends on how fast a machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(client, "clock", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The client's clock."""
    return Clock(monkeypatch)


def begin(tool: client.Client, now: float) -> client.Connection:
    """A connection of the only port, not yet looked at."""
    tool.start(now, now)
    (connection,) = tool.open.values()
    return connection


def connect(tool: client.Client, now: float) -> bool:
    """Make one connection and see it to its end; whether its tuple was re-used."""
    connection = begin(tool, now)

    def ended() -> bool:
        for _, events in tool.epoll.poll(0.01):
            tool.on_event(connection, events, now)
        return connection.state == client.CLOSED

    poll(ended, "the connection's end")
    return connection.reused


def answers_and_waits(connection: socket.socket) -> None:
    """Answer, and leave the end to the other side."""
    connection.send(OK)
    with suppress(ConnectionResetError):
        connection.recv(1)


def resets_at_the_end(connection: socket.socket) -> None:
    """Answer, and end with RST."""
    connection.send(OK)
    reset(connection)


@pytest.mark.parametrize(
    ("answer", "plan", "ending", "seconds"),
    [
        (lambda c: c.send(OK), {}, "server_fin", 120),
        (lambda c: c.send(OK), {"reuse_window": 60}, "server_fin", 60),
        (answers_and_waits, {"ending": "rst"}, "client_rst", 10),
        (resets_at_the_end, {}, "server_rst", 10),
        (resets_at_the_end, {"reuse_window": 4}, "server_rst", 4),
        (reset, {}, "failed", 10),
        (lambda c: c.send(b"HTTP/1.0 503 No\r\n\r\n"), {}, "failed", 10),
        (lambda c: c.send(OK[:-3]), {}, "failed", 10),
    ],
)
def test_a_tuple_is_reused_for_as_long_as_ipvs_remembers_its_last_end(
    answer: Callable[[socket.socket], None],
    plan: dict[str, Any],
    ending: str,
    seconds: float,
    clock: Clock,
) -> None:
    with answering(answer) as port, one_client(port=port, ports=1, **plan) as tool:
        assert not connect(tool, clock.now)
        clock.now += seconds
        assert connect(tool, clock.now)
        clock.now += seconds + 0.001
        assert not connect(tool, clock.now)
        assert tool.ends == {ending: 3}


def test_what_ended_with_rst_is_remembered_from_its_end_on(clock: Clock) -> None:
    release = threading.Event()

    def answer(connection: socket.socket) -> None:
        release.wait(20)
        resets_at_the_end(connection)

    with answering(answer) as port, one_client(port=port, ports=1) as tool:
        connection = begin(tool, clock.now)

        def asked() -> bool:
            for _, events in tool.epoll.poll(0.01):
                tool.on_event(connection, events, clock.now)
            return connection.state == client.READING

        poll(asked, "the request")
        clock.now += 4.0
        release.set()

        def ended() -> bool:
            for _, events in tool.epoll.poll(0.01):
                tool.on_event(connection, events, clock.now)
            return connection.state == client.CLOSED

        poll(ended, "the reset")
        clock.now += 10.0
        assert connect(tool, clock.now)


def test_a_refused_tuple_is_remembered_for_10_s_if_it_was_used_before(clock: Clock) -> None:
    with serving() as (port, process), one_client(port=port, ports=1) as tool:
        assert not connect(tool, clock.now)
        process.kill()
        process.wait()
        clock.now += 20.0
        # Each of them gives the entry 10 s more.
        assert connect(tool, clock.now)
        clock.now += 10.0
        assert connect(tool, clock.now)
        clock.now += 10.001
        assert not connect(tool, clock.now)
        # That one met nothing, and connected to nothing.
        assert not connect(tool, clock.now)


def test_a_syn_that_nothing_answered_is_remembered_for_60_s(clock: Clock) -> None:
    with serving() as (port, _), one_client(port=port, ports=1, connect_timeout=3) as tool:
        assert not connect(tool, clock.now)
        for wait, reused in ((120.0, True), (60.0, True), (60.001, False)):
            clock.now += wait
            assert begin(tool, clock.now).reused is reused
            # Its handshake is not looked at, as if there had been none.
            clock.now += 3.0
            tool.sweep(clock.now)
        assert tool.totals == {}
        assert tool.ends == {"server_fin": 1, "failed": 3}
        assert sum(second.c.get("connect_timeout", 0) for second in tool.seconds.values()) == 3


class Machine:
    """Poll and clock of a machine on which time passes only while it waits.

    It wakes some milliseconds too late, as machines do.
    """

    def __init__(self, clock: Clock, epoll: Any) -> None:
        self.clock, self.epoll = clock, epoll

    def __getattr__(self, name: str) -> Any:
        return getattr(self.epoll, name)

    def poll(self, wait: float, most: int) -> list[tuple[int, int]]:
        """What is there, or nothing after a while."""
        found: list[tuple[int, int]] = self.epoll.poll(0, most)
        if not found:
            self.clock.now += wait + 0.004
        return found


def test_a_server_that_hangs_makes_no_start_late(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ports that come back at the last moment are no sign of missing processor time."""
    plan = {"ports": 50, "rate": 50, "duration": 6.0, "read_timeout": 2.0, "connect_timeout": 60}
    with (
        socket.create_server(("127.0.0.1", 0), backlog=400) as silent,
        one_client(port=silent.getsockname()[1], **plan) as tool,
    ):
        tool.epoll = Machine(clock, tool.epoll)  # type: ignore[assignment]
        tool.run(clock.now)
    results = collected(capsys.readouterr().out)
    assert set(results.failures) == {"read_timeout"}
    assert results.classes["no_port"]
    assert sum(second.waited for second in results.seconds)
    assert sum(second.late for second in results.seconds) == 0
    assert results.starved_seconds == frozenset()


def test_time_that_a_machine_stood_still_is_late_all_the_same() -> None:
    with serving() as (port, _), one_client(port=port, ports=3) as tool:
        now = 1000.0
        # It was last seen to wait for a port 0.3 s, 0.7 s and 2 s ago.
        for ago in (0.3, 0.7, 2.0):
            tool.portless = now - ago
            tool.start(now - 1.0, now)
        counts = [second.take() for second in tool.seconds.values()]
        assert counts == [{"n": 3, "wait": 1, "late": 2}]
