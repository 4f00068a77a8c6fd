"""The host's side: calls to the hand, children that die with us, and which machine is chosen."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.lab import machine, machine_rpc, namespaces, vm
from pytest_ipvs.lab.machine import HandError, LabError


class FakeHand(threading.Thread):
    """Answers requests as told by ``answers``: op → answer without its id, or None for silence."""

    def __init__(self, connection: socket.socket, answers: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.answers = answers
        self.requests: list[dict[str, Any]] = []

    def run(self) -> None:
        with self.connection.makefile("rwb") as stream:
            self.say({"event": "ready", "kernel": "6.1.0-test"})
            for line in stream:
                request = json.loads(line)
                self.requests.append(request)
                answer = self.answers[request["op"]]
                if answer is not None:
                    self.say({"id": request["id"]} | answer)

    def say(self, message: dict[str, Any]) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")


class Pair:
    def __init__(self, directory: Path, answers: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self.machine = machine_rpc.MachineBase(directory, None)
        self.hand = FakeHand(theirs, answers)
        self.machine._attach(ours)
        self.hand.start()
        assert self.machine._ready.wait(10)

    def close(self) -> None:
        self.machine._detach()
        self.hand.join(10)
        self.hand.connection.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    answers = {
        "ping": {"ok": {"kernel": "6.1.0-test"}},
        "proc": {"error": "no such file"},
        "silence": None,
        "exec": {"ok": {"rc": 0, "out": "", "err": ""}},
        "node_create": {"ok": {"pid": 2, "door": 3}},
        "node_delete": {"ok": None},
    }
    pair = Pair(tmp_path, answers)
    yield pair
    pair.close()


def test_answers_errors_and_kernel(pair: Pair) -> None:
    assert pair.machine.alive
    assert pair.machine.kernel == "6.1.0-test"
    assert pair.machine.call("ping") == {"kernel": "6.1.0-test"}
    with pytest.raises(HandError, match="lab operation proc failed: no such file") as caught:
        pair.machine.call("proc", node="node-1", path="/x")
    assert caught.value.op == "proc"


def test_no_answer_in_time(pair: Pair) -> None:
    with pytest.raises(LabError, match=r"did not answer silence within 0\.05 s"):
        pair.machine.call("silence", timeout=0.05)


def test_time_limits_are_passed_on_to_what_has_one(pair: Pair) -> None:
    pair.machine.call("exec", timeout=7, node="node-1", argv=["true"])
    assert pair.hand.requests[-1]["args"] == {"node": "node-1", "argv": ["true"], "timeout": 7}
    pair.machine.call("ping", timeout=7)
    assert pair.hand.requests[-1]["args"] == {}


def test_calls_under_way_end_with_the_machine(pair: Pair) -> None:
    seen: list[str] = []

    def call() -> None:
        try:
            pair.machine.call("silence", timeout=60)
        except LabError as error:
            seen.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    deadline = time.monotonic() + 10
    while not pair.hand.requests and time.monotonic() < deadline:
        time.sleep(0.005)
    pair.hand.connection.shutdown(socket.SHUT_RDWR)
    caller.join(10)
    assert seen == ["the lab's machine ended before it answered silence"]
    assert not pair.machine.alive
    with pytest.raises(LabError, match="not running"):
        pair.machine.call("ping")


def test_events_reach_their_listener(pair: Pair) -> None:
    seen: list[dict[str, Any]] = []
    arrived = threading.Event()

    def listen(event: dict[str, Any]) -> None:
        seen.append(event)
        arrived.set()

    pair.machine.on_event = listen
    pair.hand.say({"event": "pod_exited", "uid": "u", "rc": 1})
    assert arrived.wait(10)
    assert seen == [{"event": "pod_exited", "uid": "u", "rc": 1}]


def test_ssh_endpoints_follow_the_nodes(pair: Pair) -> None:
    pair.machine._ports = {3: 40003}
    with pytest.raises(LabError, match="no node or client node-1"):
        pair.machine.ssh_endpoint("node-1")
    pair.machine.call("node_create", name="node-1")
    assert pair.machine.ssh_endpoint("node-1") == ("127.0.0.1", 40003)
    pair.machine.call("node_delete", name="node-1")
    with pytest.raises(LabError):
        pair.machine.ssh_endpoint("node-1")


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


def test_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from pytest_ipvs.lab.machine_rpc import Child\n"
        "child = Child(['/bin/sleep', '600'], log=pathlib.Path(sys.argv[1]))\n"
        "print(child._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # Only once it is the program itself has it asked for the signal.
    deadline = time.monotonic() + 20
    while b"sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes()[:12]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_child_can_be_ended_twice(tmp_path: Path) -> None:
    child = machine_rpc.Child(["/bin/sleep", "600"], log=tmp_path / "log")
    assert child.returncode is None
    child.end()
    child.end()
    assert child.ended.is_set()
    assert child.returncode == -signal.SIGKILL


def test_kvm_needs_a_processor_flag_and_a_device_that_opens(tmp_path: Path) -> None:
    cpuinfo, device = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text("flags\t\t: fpu sse2 lm\n")
    device.touch()
    assert not vm.kvm_worth_a_try(cpuinfo, device)
    cpuinfo.write_text("flags\t\t: fpu svm lm\n")
    assert vm.kvm_worth_a_try(cpuinfo, device)
    device.unlink()
    assert not vm.kvm_worth_a_try(cpuinfo, device)


def test_probe_result_is_kept_for_this_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_IPVS_CACHE", str(tmp_path))
    (tmp_path / "kvm-another-boot").write_text("works")
    assert vm.known_kvm() is None
    vm.remember_kvm(False)
    assert vm.known_kvm() is False
    assert [path.name for path in tmp_path.glob("kvm-*")] == [vm._probe_file().name]


class Boots(vm.VirtualMachine):
    """A virtual machine whose boots end as told."""

    def __init__(self, directory: Path, outcomes: list[str | None], lines: list[str]) -> None:
        super().__init__(directory, progress=lines.append)
        self.outcomes = outcomes
        self.tried: list[str] = []

    def _boot(self, kernel: Any, initramfs: Path, *, kvm: bool) -> str | None:
        self.tried.append("kvm" if kvm else "tcg")
        return self.outcomes.pop(0)


@pytest.fixture
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    class Kernel:
        release = "6.1.0-test"

    monkeypatch.setenv("PYTEST_IPVS_CACHE", str(tmp_path))
    monkeypatch.setattr(vm, "missing_packages", lambda: ())
    monkeypatch.setattr(vm, "fetch_kernel", lambda series, progress: Kernel())
    monkeypatch.setattr("pytest_ipvs.lab.image.build", lambda *_: tmp_path / "image")
    monkeypatch.setattr(vm, "kvm_worth_a_try", lambda: True)
    return lambda outcomes, lines: Boots(tmp_path, outcomes, lines)


def test_a_crashed_boot_is_told_and_tried_again(boots: Any) -> None:
    vm.remember_kvm(False)
    lines: list[str] = []
    machine = boots(["QEMU ended with status 0 (kernel panic)", None], lines)
    machine.start()
    assert machine.tried == ["tcg", "tcg"]
    assert any("try 1 of 3" in line and "kernel panic" in line for line in lines)


def test_three_crashes_are_an_error(boots: Any) -> None:
    vm.remember_kvm(False)
    machine = boots(["a", "b", "c"], [])
    with pytest.raises(LabError, match=r"did not come up in 3 tries: c; see .*console\.log"):
        machine.start()


def test_kvm_that_starts_no_guest_is_not_tried_again(boots: Any) -> None:
    first = boots(["no sign of life within 15 s", None], [])
    first.start()
    assert first.tried == ["kvm", "tcg"]
    second = boots([None], [])
    second.start()
    assert second.tried == ["tcg"]
    assert second.kind == "vm-tcg"


def test_kvm_that_works_is_used(boots: Any) -> None:
    machine = boots([None], [])
    machine.start()
    assert machine.tried == ["kvm"]
    assert machine.kind == "vm-kvm"


def test_free_ports_differ() -> None:
    assert len(set(vm._free_ports(vm.DOORS))) == vm.DOORS


@pytest.mark.parametrize(
    ("backend", "kernel", "words"),
    [
        ("docker", None, "'docker', but auto, vm or namespace is expected"),
        ("namespace", "6.1", "kernel 6.1 needs backend vm"),
    ],
)
def test_choices_that_cannot_be(
    backend: str, kernel: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(LabError, match=words):
        machine.choose(backend, kernel, directory=tmp_path)


@pytest.mark.parametrize(
    ("obstacle", "kernel", "kind"),
    [
        (None, None, namespaces.NamespaceMachine),
        (None, "6.1", vm.VirtualMachine),
        ("no", None, vm.VirtualMachine),
    ],
)
def test_automatic_choice(
    obstacle: str | None,
    kernel: str | None,
    kind: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespaces, "obstacle", lambda: obstacle)
    assert isinstance(machine.choose("auto", kernel, directory=tmp_path), kind)


def test_namespaces_need_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="can't use namespaces here: namespaces need root"):
        namespaces.NamespaceMachine(tmp_path).start()
