"""The host's side of the hand: requests and answers as JSON lines over one connection."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_ipvs.lab.machine import Event, HandError, LabError, Progress

__all__ = ["Child", "MachineBase"]

# These have a time limit of their own inside; the answer then needs some time to come.
_TIMED = {"exec", "pod_exec", "pod_probe"}
_MARGIN = 15.0

# PR_SET_PDEATHSIG by the child itself, before it becomes the program: no fork handler is safe in a
# process with threads. If the parent ended meanwhile, the signal would never come.
_LAUNCH = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9,0,0,0);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);os.execv(sys.argv[2],sys.argv[2:])"
)


class Child:
    """A process that dies with this one, even if this one is killed.

    The kernel ties that to the thread that started the child, so a thread of its own starts the
    child and stays until it ended.
    """

    def __init__(
        self, argv: Sequence[str], *, log: Path, pass_fds: Sequence[int] = (), env: Any = None
    ) -> None:
        self._argv = [sys.executable, "-S", "-E", "-c", _LAUNCH, str(os.getpid()), *argv]
        self._log = log
        self._fds = tuple(pass_fds)
        self._env = env
        self._started = threading.Event()
        self.ended = threading.Event()
        self._error: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="lab-child", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise LabError(f"{argv[0]} cannot be started: {self._error.strerror}")

    def _run(self) -> None:
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=self._fds,
                    env=self._env,
                    start_new_session=True,
                )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self.ended.set()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process else None

    def end(self) -> None:
        """Kills it and waits for its end."""
        if self._process is not None and not self.ended.is_set():
            self._process.kill()
        self._thread.join()


class _Waiter:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: dict[str, Any] | None = None


class MachineBase:
    """What both machines share: calls, events and the doors to the nodes' sshd."""

    kind = ""

    def __init__(self, directory: Path, progress: Progress | None) -> None:
        self.directory = directory
        self.kernel = ""
        self.on_event: Callable[[Event], None] | None = None
        self._progress: Progress = progress or (lambda _line: None)
        self._connection: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._waiters: dict[int, _Waiter] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self._gone = threading.Event()
        self._doors: dict[str, int] = {}
        self._ports: dict[int, int] = {}

    @property
    def alive(self) -> bool:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        return self._ready.is_set() and not self._gone.is_set()

    def call(self, op: str, /, timeout: float = 30, **arguments: Any) -> Any:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        wait = timeout
        if op in _TIMED:
            arguments["timeout"] = timeout
            wait += _MARGIN
        number = next(self._numbers)
        waiter = _Waiter()
        line = json.dumps({"id": number, "op": op, "args": arguments}) + "\n"
        with self._lock:
            connection = self._connection
            if connection is None or self._gone.is_set():
                raise LabError(f"the lab's machine is not running, so {op} cannot be done")
            self._waiters[number] = waiter
            try:
                connection.sendall(line.encode())
            except OSError as error:
                self._waiters.pop(number, None)
                raise LabError(f"the lab's machine is gone: {error.strerror}") from None
        answered = waiter.done.wait(wait)
        with self._lock:
            self._waiters.pop(number, None)
        if waiter.answer is None:
            if answered:
                raise LabError(f"the lab's machine ended before it answered {op}")
            raise LabError(f"the lab's machine did not answer {op} within {wait:g} s")
        if "error" in waiter.answer:
            raise HandError(op, waiter.answer["error"])
        value = waiter.answer["ok"]
        if op in ("node_create", "client_create"):
            self._doors[arguments["name"]] = value["door"]
        elif op == "node_delete":
            self._doors.pop(arguments["name"], None)
        return value

    def ssh_endpoint(self, node: str) -> tuple[str, int]:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        if node not in self._doors:
            raise LabError(f"the lab has no node or client {node}")
        return "127.0.0.1", self._ports[self._doors[node]]

    # For the machines

    def _attach(self, connection: socket.socket) -> None:
        self._ready.clear()
        self._gone.clear()
        self._doors.clear()
        with self._lock:
            self._connection = connection
        self._reader = threading.Thread(
            target=self._read, args=(connection,), name="lab-hand", daemon=True
        )
        self._reader.start()

    def _detach(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if self._reader is not None and self._reader is not threading.current_thread():
                self._reader.join()
            connection.close()

    def _read(self, connection: socket.socket) -> None:
        partial = b""
        while True:
            try:
                data = connection.recv(1 << 18)
            except OSError:
                data = b""
            if not data:
                break
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                self._arrived(line)
        self._gone.set()
        with self._lock:
            waiters = list(self._waiters.values())
        for waiter in waiters:
            waiter.done.set()

    def _arrived(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        if "event" not in message:
            with self._lock:
                waiter = self._waiters.get(message.get("id"))
            if waiter is not None:
                waiter.answer = message
                waiter.done.set()
        elif message["event"] == "ready":
            self.kernel = message["kernel"]
            self._ready.set()
        elif message["event"] == "door":
            self._ports[message["door"]] = message["port"]
        elif self.on_event is not None:
            self.on_event(message)
