"""Servers of all kinds on loopback, and a client run against them."""

from __future__ import annotations

import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_ipvs.traffic
from pytest_ipvs.traffic import client
from pytest_ipvs.traffic.collect import Collector
from pytest_ipvs.traffic.results import Results

CLIENT = Path(pytest_ipvs.traffic.__file__).with_name("client.py")
SERVER = Path(pytest_ipvs.traffic.__file__).with_name("server.py")
PATIENCE = 20.0


def poll(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` returns once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.01)
    return found


def run_client(
    port: int, *, program: Sequence[str | Path] = (CLIENT,), **plan: Any
) -> tuple[Results, dict[str, Any]]:
    """Results, and the client's last line, of a run to its own end."""
    # A busy machine may stop the client or its peer for seconds: that is nothing to be counted.
    patient = {"late_tolerance": PATIENCE, "give_up": PATIENCE, "close_wait": PATIENCE}
    usual = {"host": "127.0.0.1", "port": port, "rate": 200, "duration": 0.1, "ports": 0}
    plan = usual | patient | {"read_timeout": PATIENCE} | plan
    done = subprocess.run(
        [sys.executable, "-E", "-S", *program, json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=True,
    )
    collector = Collector(f"127.0.0.1:{port}")
    collector.feed(done.stdout)
    return collector.results(), json.loads(done.stdout.splitlines()[-1])


@contextmanager
def one_client(**plan: Any) -> Iterator[client.Client]:
    """A client in this process, whose connections a test makes and watches one by one."""
    tool = client.Client({"host": "127.0.0.1", "port": 80, "ports": 0} | plan)
    try:
        yield tool
    finally:
        for connection in tool.open.values():
            connection.sock.close()
        tool.epoll.close()


def collected(text: str) -> Results:
    """What the lines of a client on this machine come to."""
    collector = Collector("127.0.0.1:80")
    collector.feed(text)
    return collector.results()


def free_port() -> int:
    """A port that nobody else takes while this process lives: not one the kernel gives away."""
    return client.ports_of({"host": "127.0.0.1", "ports": 1, "first_port": 0})[0]


@contextmanager
def serving(**environment: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """server.py in a process of its own, on a free port."""
    process = subprocess.Popen(
        [sys.executable, SERVER],
        env={"POD_NAME": "web-1", "PORT": "0"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        yield int(words[3]), process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose connections, with the request read, are given to ``answer`` one by one."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        # Closing alone does not wake a thread that waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reset(connection: socket.socket) -> None:
    """End a connection with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def full_listener() -> Iterator[socket.socket]:
    """A listening socket whose queue is full, so that it drops SYNs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            yield listener


@dataclass
class Answer:
    """What testinfra's ``host.run`` returns, as far as it is used."""

    rc: int
    stdout_bytes: bytes
    stderr_bytes: bytes


class ShellHost:
    """A testinfra-like host: this machine. ``broken`` makes it unreachable."""

    def __init__(self) -> None:
        self.broken = ""
        self.scripts: list[str] = []

    def run(self, command: str, *args: str) -> Answer:
        """As testinfra: %s are replaced by quoted arguments."""
        if self.broken:
            raise RuntimeError(self.broken)
        self.scripts.append(args[0] if args else command)
        text = command % tuple(map(shlex.quote, args)) if args else command
        done = subprocess.run(text, shell=True, capture_output=True, env=dict(os.environ))
        return Answer(done.returncode, done.stdout, done.stderr)
