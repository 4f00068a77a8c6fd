"""The throw-away workload's application."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from traffic_peers import SERVER, free_port, poll, run_client, serving

from pytest_ipvs.traffic import server

pytestmark = pytest.mark.system


def get(port: int, path: str = "/") -> str:
    """The body of one answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def endings(port: int) -> set[str]:
    """How a few connections end."""
    return set(run_client(port, duration=0.02)[0].endings)


def test_it_answers_with_its_name_and_its_health() -> None:
    with serving(POD_NAME="web-7") as (port, _):
        assert (get(port), get(port, "/healthz?x")) == ("web-7\n", "ok\n")


def test_health_is_never_reset() -> None:
    with serving(ENDING="rst") as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as probe:
            probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: probe.recv(4096), b""))
        assert answer.endswith(b"\r\n\r\nok\n")
        assert endings(port) == {"server_rst"}


class Deaf:
    """A peer that acknowledges nothing before ``heard``."""

    heard = False

    def __init__(self) -> None:
        self.did: list[str] = []

    def fileno(self) -> int:
        return 5

    def send(self, _: bytes) -> None:
        self.did.append("answer")

    def getsockopt(self, *_: int) -> bytes:
        return bytes(24) + (0 if self.heard else 1).to_bytes(4, sys.byteorder)

    def setsockopt(self, *_: object) -> None:
        self.did.append("linger")

    def close(self) -> None:
        self.did.append("close")


@pytest.mark.parametrize("gone", [False, True], ids=["late", "gone"])
def test_a_reset_waits_for_the_acknowledgement_beside_the_loop(
    gone: bool,
) -> None:
    loop, peer = server.Server({}), Deaf()
    connection = server.Connection(peer, "http", 0)
    loop.connections[5] = connection
    loop.answer(connection, b"web-7", "rst")
    loop.reset_acknowledged()
    assert peer.did == ["answer"]
    if gone:
        connection.deadline = 0
    else:
        peer.heard = True
    loop.reset_acknowledged()
    assert peer.did == ["answer", "linger", "close"]
    assert not loop.connections
    assert not loop.unacknowledged


def test_signals_switch_how_connections_end() -> None:
    with serving() as (port, process):
        assert endings(port) == {"server_fin"}
        process.send_signal(signal.SIGUSR1)
        poll(lambda: endings(port) == {"server_rst"}, "the switch")
        process.send_signal(signal.SIGUSR2)
        poll(lambda: endings(port) == {"server_fin"}, "the way back")


def test_a_file_says_how_connections_end(tmp_path: Path) -> None:
    file = tmp_path / "ending"
    file.write_text("rst\n")
    with serving(ENDING_FILE=str(file)) as (port, process):
        assert endings(port) == {"server_rst"}
        file.write_text("fin")
        process.send_signal(signal.SIGHUP)
        poll(lambda: endings(port) == {"server_fin"}, "the change")


def test_it_ends_at_once_when_idle() -> None:
    with serving() as (port, process):
        get(port)
        process.terminate()
        assert process.wait(20) == 0


def test_it_finishes_what_is_open_before_it_ends() -> None:
    with serving() as (port, process), socket.create_connection(("127.0.0.1", port)) as late:
        late.sendall(b"GET / HT")
        get(port)
        process.terminate()
        poll(lambda: refused(port), "the end of listening")
        late.sendall(b"TP/1.0\r\n\r\n")
        assert late.recv(4096).endswith(b"web-1\n")
        assert process.wait(20) == 0


def test_it_serves_on_for_its_drain_time() -> None:
    with serving(DRAIN_SECONDS="-1") as (port, process):
        process.terminate()
        assert get(port) == "web-1\n"
        assert process.poll() is None


def test_a_signal_ends_the_wait_before_listening() -> None:
    process = subprocess.Popen([sys.executable, SERVER], env={"PORT": "0", "LISTEN_DELAY": "60"})
    try:
        # Before its handler is there the signal kills it, which is an end too.
        poll(lambda: process.send_signal(signal.SIGTERM) or process.poll() is not None, "the end")
    finally:
        process.kill()
        process.wait()


def test_udp_echo_and_held_lines_answer_with_the_name() -> None:
    echo, udp, hold = free_port(), free_port(), free_port()
    with serving(ECHO_PORT=str(echo), UDP_PORT=str(udp), HOLD_PORT=str(hold)):
        with socket.create_connection(("127.0.0.1", hold), timeout=20) as held:
            for word in (b"one", b"two"):
                held.sendall(word + b"\n")
                assert held.recv(100) == b"web-1 " + word + b"\n"
        with socket.create_connection(("127.0.0.1", echo), timeout=20) as line:
            line.sendall(b"hello\n")
            assert line.recv(100) == b"web-1 hello\n"
        with socket.socket(type=socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(20)
            datagram.sendto(b"ping", ("127.0.0.1", udp))
            assert datagram.recv(100) == b"web-1 ping"


def test_a_line_of_digits_is_held_on_the_http_port() -> None:
    with serving() as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as held:
            for word in (b"17", b"more"):
                held.sendall(word + b"\n")
                assert held.recv(100) == b"web-1 " + word + b"\n"
        assert get(port) == "web-1\n"


def test_it_connects_where_the_one_with_the_token_says() -> None:
    with serving(CALL_TOKEN="secret") as (port, _), serving(POD_NAME="web-2") as (other, _):
        own, next_door = f"127.0.0.1:{port}", f"127.0.0.1:{other}"
        assert get(port, f"/call/secret/{own}") == "web-1\n"
        assert get(port, f"/call/secret/{next_door},{own}") == "web-2.web-1\n"
        assert get(port, f"/call/guess/{next_door}") == "web-1\n"
        assert get(other, f"/call//{own}") == "web-2\n"


def test_both_are_connected_from_one_port_before_the_first_is_asked() -> None:
    seen: list[tuple[str, int]] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):

        def answer() -> None:
            accepted = [listener.accept() for listener in (one, two)]
            seen.extend(peer for _, peer in accepted)
            for sock, _ in accepted:
                sock.recv(100)
                sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nme\n")
                sock.close()

        thread = threading.Thread(target=answer)
        thread.start()
        ports = [listener.getsockname()[1] for listener in (one, two)]
        assert server.call([f"127.0.0.1:{port}" for port in ports]) == ["me", "me"]
        thread.join()
    assert seen[0] == seen[1]


def test_what_it_met_is_in_the_status() -> None:
    dead = free_port()
    with serving(CALL_TOKEN="secret") as (port, _):
        seen, _ = run_client(port, path=f"/call/secret/127.0.0.1:{dead}")
    assert seen.failures == {"http_error": 20}
    assert {sample.detail for sample in seen.failed} == {"HTTP/1.0 502 Connection refused"}


def test_a_port_that_is_not_free_is_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_port(_: list[str]) -> list[str]:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign")

    monkeypatch.setattr(server, "call", no_port)
    ours, theirs = socket.socketpair()
    server.report_call(theirs, [])
    with ours:
        assert ours.recv(100).startswith(b"HTTP/1.0 503 Cannot assign\r\n")


def test_an_unknown_ending_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, SERVER], env={"ENDING": "bang"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "ENDING is 'bang', expected one of fin, rst, client\n"


def refused(port: int) -> bool:
    """Whether nobody listens any more."""
    try:
        with socket.create_connection(("127.0.0.1", port)):
            return False
    except ConnectionResetError:
        # It was in the queue when the listener closed.
        return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("junk", [b"\0" * 70000, b"\n\n", b"GET\r\n\r\n"])
def test_junk_does_not_kill_it(junk: bytes) -> None:
    with serving() as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as odd:
            try:
                odd.sendall(junk)
                odd.recv(100)
            except ConnectionError:
                pass
        assert get(port) == "web-1\n"
