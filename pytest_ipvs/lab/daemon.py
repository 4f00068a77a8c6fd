"""The lab's own process: starts a lab, answers on its control socket, ends when it should.

It ends on SIGTERM, on ``down``, when its machine dies, and when its owner (the pytest that asked
for it) dies, however that dies. Whatever the reason, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TextIO

from pytest_ipvs.lab.assembly import Lab
from pytest_ipvs.lab.machine import LabError, Progress
from pytest_ipvs.lab.options import LabOptions
from pytest_ipvs.lab.state import StateDirectory

log = logging.getLogger(__name__)


class Stop(BaseException):
    """The process was told to end."""


@contextlib.contextmanager
def _watched(pid: int | None) -> Iterator[int | None]:
    """A pidfd of the owner, which becomes readable when it ends."""
    if pid is None:
        yield None
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise LabError(f"process {pid}, which wanted the lab, is gone") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Control:
    """Answers requests on the control socket, one JSON line each, until told to end."""

    def __init__(self, lab: Lab, listener: socket.socket) -> None:
        self._lab = lab
        self._listener = listener
        self.ended = threading.Event()
        self._operations: dict[str, Callable[..., dict[str, Any]]] = {
            "ping": dict,
            "status": self._status,
            "fault": self._fault,
            "clear": self._clear,
            "down": self._down,
        }

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            try:
                request = json.loads(stream.readline())
                operation = self._operations.get(request.pop("op"))
                if operation is None:
                    raise LabError("the lab does not know this request; is it of another version?")
                answer = operation(**request)
            except LabError as error:
                answer = {"error": str(error)}
            except Exception as error:
                log.exception("control")
                answer = {"error": f"the lab failed: {error!r}; see {self._lab.directory.log}"}
            with contextlib.suppress(OSError):
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()

    def _status(self) -> dict[str, Any]:
        return {
            **self._lab.describe(),
            "uptime": time.time() - self._lab.started_at,
            "alive": self._lab.machine.alive,
            "faults": [asdict(fault) for fault in self._lab.active],
        }

    def _fault(self, name: str, node: str | None = None, service: str = "demo/web") -> Any:
        return asdict(self._lab.fault(name, node, service))

    def _clear(self, name: str | None = None, node: str | None = None) -> dict[str, Any]:
        return {"cleared": [asdict(fault) for fault in self._lab.clear(name, node)]}

    def _down(self) -> dict[str, Any]:
        self.ended.set()
        return {}


def serve(
    options: LabOptions,
    *,
    progress: Progress,
    ready: Callable[[Lab], None],
    owner: int | None = None,
    starter: int | None = None,
) -> None:
    """Run a lab until it is told to end; call ``ready`` once it is up.

    ``owner``: the process whose end is the lab's end. ``starter``: the same, but only until the
    lab is ready. Raises :class:`LabError` if it can't start or its machine dies.
    """
    directory = StateDirectory.of(options.name)
    directory.make()
    lock = directory.lock()
    if lock is None:
        raise LabError(f"a lab named {options.name!r} is up already")
    # The lock is ours, so what else is here belongs to a dead lab.
    _remove_leftovers(directory)
    _log_to(directory)
    with _signals_stop(), _watched(owner) as owner_fd, _watched(starter) as starter_fd:
        try:
            _run(options, directory, progress, ready, owner_fd, starter_fd)
        finally:
            # A second signal must not interrupt the cleaning.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            logging.shutdown()
            directory.clean()
            os.close(lock)


def _remove_leftovers(directory: StateDirectory) -> None:
    for pid in directory.machines():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in directory.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)


def _run(
    options: LabOptions,
    directory: StateDirectory,
    progress: Progress,
    ready: Callable[[Lab], None],
    owner: int | None,
    starter: int | None,
) -> None:
    lab = Lab(options, directory, progress)
    watching = threading.Event()
    for descriptor in (owner, starter):
        if descriptor is not None:
            _stop_with(descriptor, watching if descriptor == starter else threading.Event())
    listener = directory.listen()
    control = Control(lab, listener)
    try:
        lab.start()
        control.start()
        watching.set()
        ready(lab)
        while not control.ended.wait(1.0):
            if not lab.machine.alive:
                log.error("the machine ended")
                raise LabError("the lab's machine ended by itself")
    except Stop:
        log.info("told to end")
    finally:
        listener.close()
        lab.stop()


def _stop_with(descriptor: int, until: threading.Event) -> None:
    """End this process when the one behind the pidfd ends, unless ``until`` is set by then."""

    def wait() -> None:
        select.select([descriptor], [], [])
        if not until.is_set():
            log.info("the process that wanted the lab ended")
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="owner", daemon=True).start()


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise Stop

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    yield


def _log_to(directory: StateDirectory) -> None:
    logging.basicConfig(
        filename=directory.log,
        level=logging.INFO,
        format="%(asctime)s %(threadName)s %(levelname)s %(message)s",
        force=True,
    )
    directory.log.chmod(0o600)


def serve_detached(arguments: dict[str, Any], out: TextIO) -> int:
    """The detached process's main: reports on ``out`` as JSON lines, then is silent."""

    def tell(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    def ready(lab: Lab) -> None:
        tell(ready=lab.describe())
        # Whoever started us may go away now, and the other end of the pipe with it.
        descriptor = os.open(lab.directory.log, os.O_WRONLY | os.O_APPEND)
        for number in (out.fileno(), 2):
            os.dup2(descriptor, number)
        os.close(descriptor)

    options = LabOptions(**arguments["options"])
    try:
        serve(
            options,
            progress=lambda text: tell(progress=text),
            ready=ready,
            owner=arguments.get("owner"),
            starter=arguments.get("starter"),
        )
    except Stop:
        return 0
    except LabError as error:
        with contextlib.suppress(OSError):
            tell(error=str(error))
        return 1
    return 0
