"""The hand's parts that need neither root nor a kernel with IPVS."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_ipvs.lab import hand_ipvs, hand_netlink, hand_pods
from pytest_ipvs.lab.hand_agent import Agent
from pytest_ipvs.lab.hand_loop import Lines, Loop


def test_netlink_attributes_are_padded_and_read_back() -> None:
    data = hand_netlink.attribute(3, "eth0") + hand_netlink.attribute(4, 7)
    assert len(data) % 4 == 0
    assert list(hand_netlink.attributes(data)) == [(3, b"eth0\0"), (4, struct.pack("=I", 7))]


def service(payload: bytes) -> dict[int, bytes]:
    return dict(hand_netlink.attributes(dict(hand_netlink.attributes(payload))[1]))


def test_virtual_server_line() -> None:
    command, payload = hand_ipvs.parse_line("-A -t 10.96.0.10:80 -s rr -p 10800 -M 255.255.255.0")
    values = service(payload)
    assert command == 1
    assert values[2] == struct.pack("=H", socket.IPPROTO_TCP)
    assert values[3][:4] == socket.inet_aton("10.96.0.10")
    assert values[4] == struct.pack("!H", 80)
    assert values[6] == b"rr\0"
    assert values[7] == struct.pack("=II", 1, 0xFFFFFFFF)
    assert values[8] == struct.pack("=I", 10800)
    assert values[9] == socket.inet_aton("255.255.255.0")


def test_persistence_without_a_time_takes_ipvsadms_default() -> None:
    _, payload = hand_ipvs.parse_line("-A -f 7 -s wrr -p -b flag-2")
    values = service(payload)
    assert values[5] == struct.pack("=I", 7)
    assert values[8] == struct.pack("=I", 360)
    assert values[7] == struct.pack("=II", 0x11, 0xFFFFFFFF)


def test_real_server_line() -> None:
    command, payload = hand_ipvs.parse_line("-a -u [fd00::1]:53 -r [fd00::2]:5353 -m -w 0")
    server = dict(hand_netlink.attributes(dict(hand_netlink.attributes(payload))[2]))
    assert command == 5
    assert server[1] == socket.inet_pton(socket.AF_INET6, "fd00::2")
    assert server[2] == struct.pack("!H", 5353)
    assert server[3] == struct.pack("=I", 0)
    assert server[4] == struct.pack("=I", 0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "expected one of"),
        ("-Z -t 1.2.3.4:5", "expected one of"),
        ("-A -s rr", "expected a virtual server"),
        ("-a -t 1.2.3.4:5", "expected a real server"),
        ("-A -t 1.2.3.4:5 --what x", "unknown word --what"),
        ("-A -t", "-t needs a value"),
    ],
)
def test_lines_that_mean_nothing_are_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        hand_ipvs.parse_line(line)


class Talk:
    """An agent of this process's own namespaces in a thread, and the other end of its lines."""

    def __init__(self, loop: Loop, agent: Agent, ours: socket.socket) -> None:
        self.loop = loop
        self.agent = agent
        self._stream = ours.makefile("rwb")
        self._socket = ours

    def call(self, op: str, **arguments: Any) -> Any:
        request = {"id": 1, "op": op, "args": arguments}
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        # One thread only: a loop handles signals of children, which only the first thread gets.
        answer: list[bytes] = []
        reader = threading.Thread(target=lambda: answer.append(self._stream.readline()))
        reader.start()
        while reader.is_alive():
            self.turn(reader)
        return json.loads(answer[0])

    def turn(self, reader: threading.Thread) -> None:
        stop = self.loop.later(0.02, lambda: setattr(self.loop, "running", False))
        self.loop.running = True
        self.loop.run()
        stop.cancel()
        reader.join(0)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    before = signal.getsignal(signal.SIGCHLD)
    wakeup = signal.set_wakeup_fd(-1)
    loop = Loop()
    ours, theirs = socket.socketpair()
    agent = Agent(loop, "node-1")
    agent.lines = Lines(loop, theirs, agent.handle, lambda: None)
    talk = Talk(loop, agent, ours)
    yield talk
    talk.close()
    agent.lines.close()
    os.close(signal.set_wakeup_fd(wakeup))
    signal.signal(signal.SIGCHLD, before)
    loop.close()


def test_exec_gives_status_and_both_outputs(talk: Talk) -> None:
    script = "cat; echo problem >&2; exit 3"
    answer = talk.call("exec", argv=["sh", "-c", script], stdin="input\n")
    assert answer == {"id": 1, "ok": {"rc": 3, "out": "input\n", "err": "problem\n"}}


def test_exec_ends_what_is_late(talk: Talk) -> None:
    answer = talk.call("exec", argv=["sh", "-c", "echo begun; sleep 60"], timeout=0.3)
    assert answer["ok"] == {"rc": 124, "out": "begun\n", "err": ""}


def test_exec_of_no_such_program(talk: Talk) -> None:
    answer = talk.call("exec", argv=["/no/such/program"])
    assert answer["ok"]["rc"] == 127
    assert "No such file" in answer["ok"]["err"]


def test_exec_of_a_killed_program(talk: Talk) -> None:
    assert talk.call("exec", argv=["sh", "-c", "kill -9 $$"])["ok"]["rc"] == 128 + 9


def test_files_that_cannot_be_read(talk: Talk) -> None:
    answer = talk.call("procs", paths=["/proc/self/comm", "/proc/no/such"])
    assert answer["ok"]["/proc/no/such"] is None
    assert answer["ok"]["/proc/self/comm"]
    assert talk.call("proc", path="/proc/no/such")["error"] == (
        "/proc/no/such: No such file or directory"
    )


def test_unknown_operations_and_sysctls_are_refused(talk: Talk) -> None:
    assert talk.call("dance")["error"] == "there is no operation dance"
    assert talk.call("sysctl", values={"net.no.such": None})["error"] == (
        "sysctl net.no.such: No such file or directory"
    )


def test_static_http_answers(talk: Talk) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    routes = {"/proxyMode": {"status": 200, "body": "ipvs", "type": "text/plain"}}
    assert talk.call("http_serve", port=port, address="127.0.0.1", routes=routes)["ok"] is None

    def get(path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received: list[bytes] = []
            reader = threading.Thread(target=lambda: received.append(client.makefile("rb").read()))
            reader.start()
            while reader.is_alive():
                talk.turn(reader)
        return received[0]

    assert get("/proxyMode").endswith(b"\r\n\r\nipvs")
    assert get("/other").startswith(b"HTTP/1.0 404 ")
    talk.call("http_update", port=port, routes={"/healthz": {"status": 503, "body": "no"}})
    assert get("/healthz?x=1").startswith(b"HTTP/1.0 503 ")
    assert get("/proxyMode").startswith(b"HTTP/1.0 200 OK")
    talk.call("http_stop", port=port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_an_operations_mistake_does_not_end_the_loop(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.loop.later(0, lambda: 1 / 0)  # type: ignore[arg-type]
    assert talk.call("exec", argv=["true"])["ok"]["rc"] == 0
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_lines_carry_large_messages_and_descriptors() -> None:
    left, right = socket.socketpair()
    wakeup = signal.set_wakeup_fd(-1)
    before = signal.getsignal(signal.SIGCHLD)
    loop = Loop()
    seen: list[bytes] = []

    def arrived(line: bytes) -> None:
        seen.append(line)
        loop.running = len(seen) < 2

    sender = Lines(loop, left, lambda _line: None, lambda: None)
    receiver = Lines(loop, right, arrived, lambda: None)
    read, write = os.pipe()
    sender.send(b"x" * 3_000_000)
    sender.send(b"with a pipe", [write])
    loop.run()
    assert seen == [b"x" * 3_000_000, b"with a pipe"]
    number = receiver.take_descriptor()
    os.write(number, b"hello")
    assert os.read(read, 10) == b"hello"
    os.close(number)
    os.close(read)
    sender.close()
    receiver.close()
    os.close(signal.set_wakeup_fd(wakeup))
    signal.signal(signal.SIGCHLD, before)
    loop.close()


PYTHON_CASES: list[tuple[list[str], str, int]] = [
    (["-c", "import sys; print(sys.argv)", "a"], "['-c', 'a']\n", 0),
    (["-u", "-c", "raise SystemExit(4)"], "", 4),
    (["-c", "import sys; sys.exit('reason')"], "", 1),
    (["-c", "1 / 0"], "", 1),
    (["-m", "this_module", "x"], "module ['x'] __main__\n", 0),
    (["script.py", "y"], "script ['script.py', 'y'] __main__ here\n", 0),
]


@pytest.mark.parametrize(("words", "output", "code"), PYTHON_CASES)
def test_warm_python_behaves_as_a_fresh_one(
    words: list[str], output: str, code: int, tmp_path: Any
) -> None:
    (tmp_path / "helper.py").write_text("where = 'here'\n")
    (tmp_path / "script.py").write_text(
        "import sys, helper\nprint('script', sys.argv, __name__, helper.where)\n"
    )
    (tmp_path / "this_module.py").write_text(
        "import sys\nprint('module', sys.argv[1:], __name__)\n"
    )
    program = textwrap.dedent(
        """
        import sys
        from pytest_ipvs.lab.hand_pods import _python_plan, run_python
        sys.path.insert(0, "")
        run, argv = _python_plan(sys.argv[1:])
        run_python(run, argv, {"PATH": "/bin"})
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (output, code), done.stderr


def test_options_that_a_fork_cannot_give_need_a_new_interpreter() -> None:
    plan: Callable[[list[str]], object] = hand_pods._python_plan
    assert plan(["-X", "dev", "script.py"]) is None
    assert plan([]) is None
