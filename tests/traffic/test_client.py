"""The client against servers of every kind."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_peers import (
    CLIENT,
    SERVER,
    answering,
    free_port,
    full_listener,
    poll,
    reset,
    run_client,
    serving,
)

from pytest_ipvs.traffic import client
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import upper_edge

pytestmark = pytest.mark.system

OK = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nweb-1\n"
IMPORTED = "import sys; sys.path.insert(0, sys.argv[1]); import client; "
# As with many starts at once: requests are sent without waiting for an event.
HURRIED = ("-c", IMPORTED + "client.HURRY = 0; client.main(sys.argv[2])", CLIENT.parent)


def test_every_connection_is_judged_and_counted() -> None:
    with serving() as (port, _):
        results, end = run_client(port)
    assert results.classes == {"ok": 20}
    assert results.due == results.connections == 20
    assert results.pods == {"web-1": 20}
    assert results.endings == {"server_fin": 20}
    assert (results.finished, results.problems, end["reason"]) == (True, (), "duration")
    assert sum(results.histogram.values()) == 20


def test_ports_rotate_and_their_return_is_counted_with_who_answered_before() -> None:
    with serving() as (port, _):
        results, _ = run_client(port, ports=5)
    assert results.classes == {"ok": 20}
    assert results.reused == 15
    assert results.reused_after == {"web-1": 15}


def test_a_port_that_returns_after_the_window_is_not_reused() -> None:
    with serving() as (port, _):
        results, _ = run_client(port, ports=5, reuse_window=-1)
    assert results.reused == 0


def test_refused_names_errno_and_tuple() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        results, _ = run_client(port, ports=3)
    # A busy machine may miss the schedule; what was made was refused, and nothing is lost.
    assert set(results.failures) == {"refused"}
    assert results.failures["refused"] + sum(results.own_limits.values()) == results.due == 20
    sample = results.failed[0]
    assert (sample.errno, sample.source) == ("ECONNREFUSED", "127.0.0.1")
    assert client.LOWEST <= sample.source_port <= client.HIGHEST
    assert sample.tuple_text == f"127.0.0.1:{sample.source_port} -> 127.0.0.1:{port}"
    # The tuple was never used, but what comes next on it must know what it meets.
    assert results.reused == 0
    assert (sample.previous_ending, results.failed[-1].previous_ending) == ("", "failed")


def test_an_unanswered_syn_is_a_connect_timeout() -> None:
    with full_listener() as listener:
        results, _ = run_client(
            listener.getsockname()[1], rate=20, duration=0.15, connect_timeout=0.2
        )
    assert set(results.failures) == {"connect_timeout"}


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (reset, "reset"),
        (lambda connection: None, "early_close"),
        (lambda connection: connection.send(OK[:-3]), "short_body"),
        (lambda connection: connection.send(OK[:20]), "short_body"),
        (lambda connection: connection.send(b"HTTP/1.0 503 No\r\n\r\nbusy"), "http_error"),
        (lambda connection: connection.send(b"220 mail ready\r\n\r\n"), "http_error"),
    ],
)
def test_broken_answers_have_their_class(answer: object, name: str) -> None:
    with answering(answer) as port:  # type: ignore[arg-type]
        results, _ = run_client(port)
    assert results.failures == {name: 20}


@pytest.mark.parametrize(
    ("answer", "classes"),
    [
        (lambda connection: connection.send(OK), {"ok": 20}),
        (lambda connection: connection.send(OK[:20]), {"short_body": 20}),
        (reset, {"reset": 20}),
    ],
)
def test_a_client_in_a_hurry_judges_as_one_that_is_not(
    answer: object, classes: dict[str, int]
) -> None:
    with answering(answer) as port:  # type: ignore[arg-type]
        results, _ = run_client(port, program=HURRIED, ports=5)
    assert results.classes == classes
    assert results.reused == 15
    assert sum(results.histogram.values()) == 20


def test_a_client_in_a_hurry_tells_what_a_connect_met() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        results, _ = run_client(closed.getsockname()[1], program=HURRIED)
    assert set(results.failures) == {"refused"}
    assert {sample.errno for sample in results.failed} == {"ECONNREFUSED"}
    assert not results.histogram
    with full_listener() as listener:
        port = listener.getsockname()[1]
        results, _ = run_client(port, program=HURRIED, duration=0.05, connect_timeout=0.2)
    assert set(results.failures) == {"connect_timeout"}


def test_an_answer_that_is_there_needs_no_event() -> None:
    with serving() as (port, _):
        tool = client.Client({"host": "127.0.0.1", "port": port, "ports": 0})
        tool.hurried = True
        # A busy kernel may end the handshake later than connect.
        poll(lambda: tool.start(now := time.monotonic(), now) or tool.asked, "a connection")
        connection = tool.asked[0]
        ended = select.poll()
        ended.register(connection.fd, select.POLLRDHUP)
        assert ended.poll(30_000)
        tool.look(connection, time.monotonic())
        assert connection.state == client.CLOSED
        assert (connection.pod, tool.ends) == ("web-1", {"server_fin": 1})
        for other in tool.open.values():
            other.sock.close()
        tool.epoll.close()


def test_a_failure_is_told_to_the_next_user_of_its_tuple() -> None:
    answers = iter([OK])

    def first_only(connection: socket.socket) -> None:
        connection.send(next(answers, b""))

    with answering(first_only) as port:
        results, _ = run_client(port, ports=1, duration=0.15, rate=20)
    assert [sample.previous_ending for sample in results.failed] == ["server_fin", "failed"]


def test_a_server_that_says_nothing_is_a_read_timeout() -> None:
    release = threading.Event()
    with answering(lambda _: void(release.wait(20))) as port:
        results, _ = run_client(port, read_timeout=0.2, rate=50)
        release.set()
    assert set(results.failures) == {"read_timeout"}


def test_a_body_without_length_ends_with_the_connection() -> None:
    with answering(lambda c: void(c.send(b"HTTP/1.0 200 OK\r\n\r\nweb-2\n"))) as port:
        results, _ = run_client(port)
    assert results.pods == {"web-2": 20}


def test_the_pod_can_be_told_by_a_header() -> None:
    text = b"HTTP/1.1 200 OK\r\nX-Pod: web-3\r\nContent-Length: 2\r\n\r\nhi"
    with answering(lambda c: void(c.send(text))) as port:
        results, _ = run_client(port, pod_header="x-pod")
    assert results.pods == {"web-3": 20}


def test_a_whole_answer_is_ok_even_if_a_reset_follows() -> None:
    with serving(ENDING="rst") as (port, _):
        results, _ = run_client(port)
    assert results.classes == {"ok": 20}
    assert results.endings == {"server_rst": 20}


@pytest.mark.parametrize(("ending", "told"), [("client", "client_fin"), ("rst", "client_rst")])
def test_the_client_closes_first_when_told(ending: str, told: str) -> None:
    with serving(ENDING="client") as (port, _):
        results, _ = run_client(port, ending=ending)
    assert (results.classes, results.endings) == ({"ok": 20}, {told: 20})


def test_a_server_that_never_closes_is_left_after_a_while() -> None:
    with serving(ENDING="client") as (port, _):
        results, _ = run_client(port, close_wait=0.1)
    assert (results.classes, results.endings) == ({"ok": 20}, {"client_gave_up": 20})


def test_plain_tcp_needs_no_answer() -> None:
    with serving() as (port, _):
        results, _ = run_client(port, mode="tcp", ending="rst")
    assert results.classes == {"ok": 20}


def test_echo_answers_one_line() -> None:
    with serving(ECHO_PORT=str(port := free_port())):
        results, _ = run_client(port, mode="echo")
    assert results.pods == {"web-1": 20}


def test_a_busy_port_is_the_clients_own_limit() -> None:
    release = threading.Event()
    with answering(lambda _: void(release.wait(20))) as port:
        results, _ = run_client(port, ports=1, rate=50, late_tolerance=0.1, read_timeout=1)
        release.set()
    assert results.classes == {"read_timeout": 1, "no_port": 4}
    assert results.connections == 1
    assert results.own_limits == {"no_port": 4}


def test_a_port_that_somebody_listens_on_is_the_clients_own_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving() as (port, _):
        results, _ = run_client(port, ports=1, first_port=taken.getsockname()[1])
    assert results.classes == {"no_port": 20}
    assert not results.failures


def test_a_resent_syn_is_known_from_the_kernel() -> None:
    with full_listener() as listener:
        port = listener.getsockname()[1]
        found: list[object] = []
        thread = threading.Thread(
            target=lambda: found.append(run_client(port, rate=5, duration=0.1, slow_ms=900))
        )
        thread.start()
        poll(lambda: syn_sent(port), "the SYN")
        peers = [listener.accept()[0]]
        peers.append(listener.accept()[0])
        peers[1].recv(4096)
        peers[1].send(OK)
        for peer in peers:
            peer.close()
        thread.join()
    results, _ = found[0]  # type: ignore[misc]
    assert (results.classes, results.resent, results.slow) == ({"ok": 1}, 1, 1)
    assert results.resent_after == {"none": 1}
    (sample,) = results.slow_connects
    assert sample.resent == 1
    assert sample.connect_ms > 900


@pytest.mark.parametrize(("quick", "counted"), [(1e9, 0), (0.0, 20)])
def test_a_syn_that_is_sent_again_at_once_was_not_lost(quick: float, counted: int) -> None:
    """A listener that comes back within milliseconds can't be had, so its connect is pretended."""
    code = (
        IMPORTED
        + f"client.resent_of = lambda _: 1; client.QUICK_MS = {quick}; client.main(sys.argv[2])"
    )
    with serving() as (port, _):
        results, _ = run_client(port, program=["-c", code, str(CLIENT.parent)])
    assert (results.classes, results.resent) == ({"ok": 20}, counted)


def test_late_starts_are_counted_and_hopeless_ones_not_made() -> None:
    with serving() as (port, _):
        tool = client.Client({"host": "127.0.0.1", "port": port, "ports": 0, "sample": 1})
        now = time.monotonic()
        tool.start(now - 1.0, now)
        tool.start(now - 100.0, now)
        seconds = [second.take() for second in tool.seconds.values()]
        assert seconds == [{"n": 1, "late": 1}, {"n": 1, "c": {"missed_schedule": 1}}]
        for connection in tool.open.values():
            connection.sock.close()
        tool.epoll.close()


@pytest.mark.parametrize("how", ["stop", "signal", "heartbeat"])
def test_the_client_ends_when_told_or_left_alone(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "heartbeat").touch()
    with serving() as (port, _):
        plan = {
            "host": "127.0.0.1",
            "port": port,
            "ports": 0,
            "stop_file": str(folder / "stop"),
            "heartbeat_file": str(folder / "heartbeat"),
            "heartbeat_age": 0.5 if how == "heartbeat" else 60,
            "cleanup": [str(folder / "heartbeat"), str(folder)],
        }
        process = subprocess.Popen(
            [sys.executable, CLIENT, json.dumps(plan)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if how == "stop":
            (folder / "stop").touch()
        elif how == "signal":
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    end = json.loads(output.splitlines()[-1])
    assert end["reason"] == {"stop": "stopped"}.get(how, how)
    assert folder.exists() == (how != "heartbeat")


def test_the_plan_and_the_clients_defaults_are_the_same() -> None:
    plan = Plan(host="10.96.0.10", port=80)
    for field in dataclasses.fields(plan):
        if field.name not in ("host", "port"):
            assert client.DEFAULTS[field.name] == getattr(plan, field.name), field.name
    own = {"stop_file", "heartbeat_file", "heartbeat_age", "cleanup"}
    assert set(client.DEFAULTS) - own == set(plan.to_dict())


def test_an_unknown_key_in_the_plan_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown key in the plan: speed"):
        client.Client({"speed": 3})


@pytest.mark.parametrize("path", [CLIENT, SERVER], ids=lambda path: path.name)
def test_shipped_files_are_python_3_8_and_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        assert set(names) <= set(sys.stdlib_module_names) | {"__future__"}


# Names of Python 3.9 and newer that a parser takes for any other name; not all, but the likely.
NEWER = {
    *("removeprefix", "removesuffix", "bit_count", "is_relative_to", "readlink", "add_note"),
    *("cache", "pairwise", "batched", "lcm", "randbytes", "to_thread", "file_digest", "UTC"),
    *("waitstatus_to_exitcode", "pidfd_open", "pidfd_send_signal", "recv_fds", "send_fds"),
    *("tomllib", "zoneinfo", "graphlib", "unparse", "ExceptionGroup", "BaseExceptionGroup"),
    *("aiter", "anext", "EncodingWarning", "StrEnum", "orig_argv", "stdlib_module_names"),
    *("TypeAlias", "Self", "ParamSpec", "Annotated", "assert_never", "override"),
}
NEWER_ARGUMENTS = {"strict", "slots", "kw_only", "process_group", "root_dir"}
GENERIC = {"dict", "list", "tuple", "set", "frozenset", "type", "deque", "Counter", "Popen"}


@pytest.mark.parametrize("path", [CLIENT, SERVER], ids=lambda path: path.name)
def test_shipped_files_use_nothing_that_python_3_8_has_not(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        # With annotations as texts, any may stand there.
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, None if name == "returns" else ast.Constant(None))
    for node in ast.walk(tree):
        line = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in NEWER, line
        elif isinstance(node, ast.Name):
            assert node.id not in NEWER, line
        elif isinstance(node, ast.alias):
            assert not NEWER & {node.name, node.name.split(".")[0]}, line
        elif isinstance(node, ast.keyword):
            assert node.arg not in NEWER_ARGUMENTS, line
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in GENERIC, line


@pytest.mark.parametrize("path", [CLIENT, SERVER], ids=lambda path: path.name)
def test_shipped_files_compile_on_an_old_python(path: Path, tmp_path: Path) -> None:
    old = shutil.which("python3.8")
    if old is None or subprocess.run([old, "-V"], capture_output=True).returncode:
        pytest.skip("no python3.8 on the PATH")
    subprocess.run([old, "-c", f"compile(open({str(path)!r}).read(), 'x', 'exec')"], check=True)


def test_the_shipped_files_are_found_as_resources() -> None:
    assert importlib.util.find_spec("pytest_ipvs.traffic.client") is not None


@given(st.floats(min_value=0, max_value=1e6))
def test_a_bucket_holds_its_time(milliseconds: float) -> None:
    edge = upper_edge(client.bucket_of(int(milliseconds * 1000)))
    assert milliseconds < edge <= max(milliseconds * 17 / 16, milliseconds + 0.001) + 0.001


def syn_sent(port: int) -> bool:
    """Whether some socket here waits for an answer to its SYN to ``port``."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[2].endswith(f":{port:04X}") and words[3] == "02":
            return True
    return False


def void(_: object) -> None:
    """Drop a value."""
