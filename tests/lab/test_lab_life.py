"""Labs that end in every way leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.lab.state import StateDirectory

pytestmark = pytest.mark.lab

OWNER = """
import os, sys
from pytest_ipvs.lab import start
handle = start(name="life", nodes=1, processors=1, owner_pid=os.getpid(), progress=print)
print("ready", flush=True)
sys.stdin.read()
"""
UP = ("up", "--processors", "1")
SMALL = (*UP, "--nodes", "1")
UNIGNORED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDirectory]:
    monkeypatch.setenv("PYTEST_IPVS_LAB_DIR", str(tmp_path / "labs"))
    directory = StateDirectory.of("life")
    yield directory
    directory.end()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest_ipvs.lab", *words, "--name", "life"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, check=False)


def ended(pid: int | None) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def gone(directory: StateDirectory) -> bool:
    return not directory.path.exists() and not list(directory.machines())


def test_up_twice_status_and_down(
    directory: StateDirectory, eventually: Callable[..., Any]
) -> None:
    first = run(*UP, "--program", "cpio")
    assert first.returncode == 0, first.stderr
    assert "the lab 'life' is ready after" in first.stdout
    again = run(*UP)
    assert again.returncode == 0
    assert "the lab 'life' is up already" in again.stdout
    status = run("status")
    assert status.returncode == 0
    assert "node-3" in status.stdout
    shell = run("shell", "node-2", "hostname")
    assert shell.stdout == "node-2\n"
    # Not busybox's, which is there without being asked for.
    assert run("shell", "client", "cpio --version").stdout.startswith("cpio (GNU cpio)")
    fault = run("fault", "conntrack_off", "--node", "node-1")
    assert fault.stdout == "conntrack_off is in force on node-1\n"
    assert "conntrack_off on node-1" in run("status").stdout
    assert run("fault", "conntrack_off", "--clear").returncode == 0
    pid = directory.owner()
    assert run("down").stdout == "the lab 'life' is down\n"
    assert gone(directory)
    # The process has ended; whoever adopted it has to collect it.
    eventually(lambda: ended(pid), "the process collected")


def test_up_cleans_after_a_killed_lab(
    directory: StateDirectory, eventually: Callable[..., Any]
) -> None:
    assert run(*SMALL).returncode == 0
    pid = directory.owner()
    assert pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: directory.owner() is None, "the lock released")
    # The machine dies with its lab.
    eventually(lambda: not list(directory.machines()), "the machine's end")
    assert run("status").returncode == 3
    assert run(*SMALL).returncode == 0
    assert run("down").returncode == 0
    assert gone(directory)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lab_ends_with_its_owner(
    directory: StateDirectory, eventually: Callable[..., Any], number: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert any(line == "ready\n" for line in owner.stdout)
        assert directory.owner() is not None
        owner.send_signal(number)
        owner.wait(20)
    eventually(lambda: gone(directory), "nothing left", 30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_broken_off_leaves_nothing(
    directory: StateDirectory, eventually: Callable[..., Any], number: int
) -> None:
    # A shell lets programs in the background ignore Ctrl-C, and they hand that on to theirs.
    words = [sys.executable, "-c", UNIGNORED, *command(*SMALL)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as up:
        eventually(lambda: list(directory.machines()), "a machine that boots")
        up.send_signal(number)
        up.communicate(timeout=60)
    assert up.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    eventually(lambda: gone(directory), "nothing left", 30)
