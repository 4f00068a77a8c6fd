"""Starting a lab from another process, and the handle by which that process uses it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_ipvs.lab.machine import LabError, Progress
from pytest_ipvs.lab.options import LabOptions
from pytest_ipvs.lab.state import StateDirectory

FAULT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabHandle:
    """A lab that is up; ``owned`` tells whether this call of :func:`start` started it.

    ``connect`` is the URI template of its nodes, ``client`` the URI of its first client.
    """

    name: str
    kubeconfig: Path
    ssh_config: Path
    connect: str
    client: str
    kind: str
    kernel: str
    nodes: tuple[str, ...]
    pid: int
    owned: bool

    def fault(self, name: str, node: str | None = None, service: str = "demo/web") -> None:
        """Put a fault in force; returns when it is. Raises :class:`LabError`."""
        directory = StateDirectory.of(self.name)
        directory.ask("fault", FAULT_SECONDS, name=name, node=node, service=service)

    def clear(self, name: str | None = None, node: str | None = None) -> None:
        """Undo a fault (on one node), or all of them."""
        StateDirectory.of(self.name).ask("clear", FAULT_SECONDS, name=name, node=node)

    def status(self) -> dict[str, Any]:
        """What the lab says of itself: kind, kernel, nodes, ports, uptime (s), faults."""
        return StateDirectory.of(self.name).ask("status")

    def down(self) -> None:
        """End the lab and remove its files; nothing happens if it is down already."""
        StateDirectory.of(self.name).end()
        if self.owned:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def handle(record: dict[str, Any], *, owned: bool) -> LabHandle:
    """The handle of a lab from its record."""
    return LabHandle(
        name=record["name"],
        kubeconfig=Path(record["kubeconfig"]),
        ssh_config=Path(record["ssh_config"]),
        connect="ssh://root@{name}",
        client="ssh://root@client",
        kind=record["kind"],
        kernel=record["kernel"],
        nodes=tuple(record["nodes"]),
        pid=record["pid"],
        owned=owned,
    )


def start(
    *,
    name: str = "default",
    kernel: str | None = None,
    backend: str = "auto",
    owner_pid: int | None = None,
    progress: Progress | None = None,
    nodes: int = 3,
    version: str = "1.36.2",
    sweep_period: float = 5.0,
    programs: Sequence[str] = (),
    processors: int = 2,
) -> LabHandle:
    """The lab of that name: the one that is up, or a new one in a process of its own.

    ``programs`` of this host are on nodes and clients too. A virtual machine has ``processors``.
    ``owner_pid``: the lab ends when that process does; without it, it stays until :meth:`down`.
    ``progress`` gets one line per step. Raises :class:`LabError` with one sentence.
    """
    directory = StateDirectory.of(name)
    if directory.owner() is not None:
        return _join(directory, kernel, backend, programs)
    options = LabOptions(
        name=name,
        backend=backend,
        kernel=kernel or None,
        nodes=nodes,
        version=version,
        sweep_period=sweep_period,
        programs=tuple(programs),
        processors=processors,
    )
    arguments = {"options": asdict(options), "owner": owner_pid, "starter": os.getpid()}
    return _launch(directory, arguments, progress or (lambda _text: None))


def _join(
    directory: StateDirectory, kernel: str | None, backend: str, programs: Sequence[str]
) -> LabHandle:
    record = directory.read()
    if record is None:
        raise LabError(f"a lab in {directory.path} is just starting: wait, or give another name")
    kind = "namespace" if record["kind"] == "namespace" else "vm"
    if backend not in ("auto", kind):
        raise LabError(
            f"lab {record['name']!r} is up as {kind}, but backend {backend!r} is asked for:"
            " take it down first, or give another name"
        )
    if kernel and not record["kernel"].startswith(kernel):
        raise LabError(
            f"lab {record['name']!r} is up with kernel {record['kernel']}, but {kernel!r} is asked"
            " for: take it down first, or give another name"
        )
    if lacking := sorted({*programs} - {*record["programs"]}):
        raise LabError(
            f"lab {record['name']!r} is up without the programs {' '.join(lacking)}: take it down"
            " first, or give another name"
        )
    return handle(record, owned=False)


def _launch(directory: StateDirectory, arguments: dict[str, Any], progress: Progress) -> LabHandle:
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_ipvs.lab", "_serve", json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        # Ctrl-C is for us; we decide what becomes of the lab.
        start_new_session=True,
    )
    try:
        record = _follow(process, progress)
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()
        directory.end()
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()
    # It may outlive us: this object shall not complain that nobody waited for it.
    process.returncode = 0
    return handle(record, owned=True)


def _follow(process: subprocess.Popen[str], progress: Progress) -> dict[str, Any]:
    """Read what the starting lab reports; its record once it is ready."""
    other: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            other.append(line.strip())
            continue
        if "progress" in message:
            progress(message["progress"])
        elif "error" in message:
            raise LabError(message["error"])
        elif "ready" in message:
            record: dict[str, Any] = message["ready"]
            return record
    process.wait()
    last = other[-1] if other else f"exit status {process.returncode}"
    raise LabError(f"the lab's process ended while it was starting: {last}")
