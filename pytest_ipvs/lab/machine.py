"""Where the lab's nodes live: the face that a virtual machine and this kernel's namespaces share.

A machine runs one *hand*, a small process with root rights that makes nodes, clients and pods out
of namespaces and runs commands in them. The hand is told what to do by :meth:`Machine.call`; the
operations, their arguments and answers are listed in :data:`OPERATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

__all__ = ["OPERATIONS", "Event", "HandError", "LabError", "Machine", "Progress", "choose"]

Progress = Callable[[str], None]
"""Receives one line of text for each step that takes time."""

Event = dict[str, Any]
"""What the hand tells unasked, e.g. ``{"event": "pod_exited", "uid": "…", "rc": 0}``."""


class LabError(Exception):
    """The lab can't do what was asked; the message is one sentence that says what to do."""


class HandError(LabError):
    """The hand refused or failed an operation; ``op`` is its name."""

    def __init__(self, op: str, message: str) -> None:
        super().__init__(f"lab operation {op} failed: {message}")
        self.op = op
        self.message = message


OPERATIONS: dict[str, str] = {
    # The machine
    "ping": "() -> {kernel, pid, uptime (s)}",
    "shutdown": "() -> None; the machine ends itself",
    "set_clock": "(now: Unix seconds) -> None; a virtual machine does it at its start",
    # Nodes and clients. A client is a pod-like namespace that ssh reaches under its own name; every
    # operation below that takes ``node`` takes a client's name as well, and "" for the machine.
    "node_create": (
        "(name, index: 1.., address: '10.0.2.101', pod_cidr: '10.244.1.0/24', authorized_key: str,"
        " host_key: str from machine_ssh.generate_host_key) -> {pid}"
    ),
    "node_delete": "(name) -> None; also for clients; pods on it end",
    "client_create": "(name, node, address: '10.244.1.250', authorized_key, host_key) -> {pid}",
    "exec": (
        "(node, argv: [str], stdin: str = '', timeout: float = 30, env: {} = {})"
        " -> {rc, out, err}; rc is 124 after a time-out, 127 if there is no such program,"
        " 128 + signal number if a signal ended it"
    ),
    "proc": "(node, path) -> str, the text of a file as the node sees it, e.g. /proc/net/ip_vs",
    "procs": "(node, paths: [str]) -> {path: str | None (cannot be read)}",
    "write": "(node, path, text, mode: int = 0o644) -> None; parent directories are made",
    "sysctl": "(node, values: {key: value | None}) -> {key: text after}; None only reads",
    "addresses": (
        "(node, device, add: ['10.96.0.1/32'] = [], remove: [] = []) -> [address/prefix] now on it"
    ),
    "ipvs_restore": (
        "(node, lines: ['-A -t 10.96.0.10:80 -s rr', '-a -t … -r … -m -w 1', …]) -> {applied,"
        " errors: [{line: index, text, errno: name, message}]}; ipvsadm-save's words, all lines are"
        " tried"
    ),
    "http_serve": (
        "(node, port, address: '0.0.0.0', routes: {path: {status, body, type}}) -> None; static"
        " answers; the path '*' answers what no other does"
    ),
    "http_update": "(node, port, routes) -> None; routes given replace those of the same path",
    "http_stop": "(node, port) -> None",
    "sshd_stop": "(node) -> None; open sessions end, new connections are refused",
    "sshd_start": "(node) -> None",
    # Pods
    "pod_create": (
        "(uid, node, name, address: '10.244.1.7', command: [str] | None, env: {} = {},"
        " files: {path: text} = {}, hostname: str = name, workdir: str = '/') -> {pid: int | None};"
        " again with the uid of a pod whose process ended: starts it again in the same namespace."
        " Python commands are forked from a warm interpreter."
        " Event when the process ends: {event: pod_exited, uid, rc: 0.. | 128 + signal}"
    ),
    "pod_exec": "(uid, argv, stdin = '', timeout = 30) -> {rc, out, err}",
    "pod_signal": "(uid, signal: 'TERM' | 'KILL' | …) -> {running: bool}",
    "pod_delete": "(uid) -> None; its address is gone when this returns; no event is sent",
    "pod_probe": (
        "(uid, kind: 'http' | 'tcp', port, path = '/', timeout: float = 1)"
        " -> {ok: bool, detail: str}; from the node, as a kubelet does"
    ),
    "pod_log": "(uid, tail: bytes = 65536) -> str, the end of its standard output and error",
    "pod_list": "(node) -> [{uid, name, address, pid: int | None, rc: int | None}]",
}
"""The hand's operations: arguments (by name) and answer."""


class Machine(Protocol):
    """A Linux kernel with IPVS and a hand in it."""

    kind: str
    """"vm-tcg", "vm-kvm" or "namespace"."""
    kernel: str
    """``uname -r`` inside; empty before :meth:`start`."""
    on_event: Callable[[Event], None] | None
    """Called from the machine's reader thread for each event; must not block."""

    def start(self) -> None:
        """Boots it and waits until the hand answers; raises :class:`LabError`."""

    def stop(self) -> None:
        """Ends it; may be called any number of times and leaves no process behind."""

    def call(self, op: str, /, timeout: float = 30, **arguments: Any) -> Any:
        """Runs one of :data:`OPERATIONS`; may be called from many threads at once.

        ``timeout`` (s) bounds the wait for the answer. It is passed on to operations that have a
        time limit of their own. Raises :class:`HandError` if the operation fails, and
        :class:`LabError` if the machine is gone or did not answer in time.
        """

    def ssh_endpoint(self, node: str) -> tuple[str, int]:
        """Address and port on this host at which the sshd of a node or client answers."""

    @property
    def alive(self) -> bool:
        """False before start, after stop, and once the machine ended by itself."""


def choose(
    backend: str = "auto",
    kernel: str | None = None,
    *,
    directory: Path,
    progress: Progress | None = None,
    programs: Sequence[str] = (),
    processors: int = 2,
) -> Machine:
    """The machine for ``backend``: "auto", "vm" or "namespace"; not started.

    "auto" takes namespaces of this kernel if it has IPVS and we are root, else a virtual machine.
    ``kernel`` is a series such as "6.1" and implies a virtual machine; None takes the default.
    ``programs`` of this host come into a virtual machine besides those that the lab needs;
    ``processors`` is how many it has.
    ``directory`` must exist; consoles, sockets and keys go there. Raises :class:`LabError`.
    """
    # Late, because both modules import this one.
    from pytest_ipvs.lab import namespaces, vm

    if backend not in ("auto", "vm", "namespace"):
        raise LabError(f"lab backend is {backend!r}, but auto, vm or namespace is expected")
    if backend == "namespace" and kernel is not None:
        raise LabError(f"kernel {kernel} needs backend vm: namespaces have this host's kernel")
    if backend == "namespace" or (
        backend == "auto" and kernel is None and namespaces.obstacle() is None
    ):
        return namespaces.NamespaceMachine(directory, progress=progress)
    return vm.VirtualMachine(
        directory, series=kernel, progress=progress, programs=programs, processors=processors
    )
