"""One local process with a time limit, and what its last words say about a node.

testinfra starts its transports (ssh, docker, kubectl …) without a time limit; a hung one would
hang the run. What doesn't belong here: which node, which command.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeLimitError(Exception):
    """The process was killed; ``seconds`` is the limit it exceeded."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")
        self.seconds = seconds


class StoppedError(Exception):
    """The process was killed because its owner is closing."""


class Processes:
    """Runs processes with a time limit per thread; `kill_running` ends those still running."""

    def __init__(self, default_limit: float) -> None:
        self._default_limit = default_limit
        self._limits = threading.local()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._killed: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Time limit of each process that this thread starts inside the block."""
        before = getattr(self._limits, "seconds", self._default_limit)
        self._limits.seconds = seconds
        try:
            yield
        finally:
            self._limits.seconds = before

    def run(self, command: bytes) -> tuple[int, bytes, bytes]:
        """Run a local shell command: exit status, stdout, stderr. Raises `TimeLimitError`."""
        seconds = getattr(self._limits, "seconds", self._default_limit)
        # stderr goes to a file: the background master of older ssh versions keeps it open, and
        # waiting for the end of a pipe would mean waiting for the end of the shared connection.
        with tempfile.TemporaryFile() as stderr:
            with self._lock:
                if self._closed:
                    raise StoppedError("closed")
                # Its own session, so that a kill also reaches what the shell started, and so
                # that Ctrl-C reaches pytest only, which then ends the processes in order.
                process = subprocess.Popen(
                    command,
                    shell=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                stdout, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise TimeLimitError(seconds) from None
            except BaseException:
                _kill(process)
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
                    stopped = process in self._killed
                    self._killed.discard(process)
            if stopped:
                raise StoppedError("killed")
            stderr.seek(0)
            return process.returncode, stdout, stderr.read()

    def kill_running(self) -> None:
        """End every process that runs now; their callers get `StoppedError`."""
        with self._lock:
            self._killed |= self._running
            running = tuple(self._running)
        for process in running:
            _kill_group(process)

    def close(self) -> None:
        """End every process and refuse new ones."""
        with self._lock:
            self._closed = True
        self.kill_running()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _kill(process: subprocess.Popen[bytes]) -> None:
    _kill_group(process)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


_REASONS: tuple[tuple[str, str], ...] = (
    (r"could not resolve hostname ([^\s:]+)", "no such host name or ssh alias: {1}"),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "its ssh host key is not the one in known_hosts"),
    (r"host key verification failed", "its ssh host key is not known"),
    (r"no matching (host key type|key exchange method|cipher)", "ssh has no {1} in common with it"),
    (r"permission denied[^(]*\(([^)]*)\)", "permission denied (it accepts {1})"),
    (r"too many authentication failures", "permission denied (too many keys were offered)"),
    (r"connection refused", "connection refused"),
    (r"no route to host", "no route to host"),
    (r"network is unreachable", "network is unreachable"),
    (r"(connection|operation) timed out", "no answer to the connection attempt"),
    (r"timeout, server .* not responding", "it stopped answering"),
    (r"connection (reset|closed) by|kex_exchange_identification", "it closed the connection"),
    (r"bad configuration option: (\S+)", "the ssh configuration has an unknown option {1}"),
    (r"bad owner or permissions on (\S+)", "ssh refuses {1}, whose permissions are too open"),
    (r"no such container:? (\S+)", "no such container: {1}"),
    (r"container (\S+) is not running", "container {1} is not running"),
    (r"cannot connect to the docker daemon", "the docker daemon does not answer"),
    (r"pods? \"([^\"]+)\" not found", "no such pod: {1}"),
    (r"sudo: a (terminal|password) is required", "sudo asks for a password"),
)


def known_reason(stderr: str) -> str | None:
    """Why a transport failed, in one phrase, where its words are known ones."""
    for pattern, phrase in _REASONS:
        if found := re.search(pattern, stderr, re.IGNORECASE):
            group = found.group(1) if found.re.groups else ""
            return phrase.replace("{1}", (group or "").strip("\"'"))
    return None


def reason_from(stderr: str) -> str:
    """Why a transport failed, in one phrase: known words, else the last line it wrote."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = "".join(c if c.isprintable() else " " for c in lines[-1])[:200] if lines else ""
    return known_reason(stderr) or last or "the connection ended without a word"
