"""Where a lab keeps its files, how one tells that it is alive, and what is left to clean up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_ipvs.lab.machine import LabError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
Answer = dict[str, Any]


def base_directory() -> Path:
    """The directory that holds all labs of this user."""
    explicit = os.environ.get("PYTEST_IPVS_LAB_DIR")
    if explicit:
        return Path(explicit).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    return Path(runtime) / f"pytest-ipvs-lab-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The files of one lab."""

    path: Path

    @classmethod
    def of(cls, name: str) -> StateDirectory:
        """The directory of the lab called ``name``; raises :class:`LabError` on a bad name."""
        if not _NAME.fullmatch(name):
            raise LabError(
                f"lab name {name!r} is not made of letters, digits, '.', '_' and '-' (at most 41)"
            )
        return cls(base_directory() / name)

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and the plugin."""
        return self.path / "kubeconfig"

    @property
    def ssh_config(self) -> Path:
        """Host names of nodes and clients."""
        return self.path / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """The host keys of nodes and clients."""
        return self.path / "known_hosts"

    @property
    def identity(self) -> Path:
        """The private key that the nodes accept."""
        return self.path / "id_ed25519"

    @property
    def log(self) -> Path:
        """What the lab's own process says."""
        return self.path / "daemon.log"

    @property
    def record(self) -> Path:
        """Process id, kind, kernel, nodes and ports as JSON; written when the lab is ready."""
        return self.path / "lab.json"

    def make(self) -> None:
        """Make the directory for its owner only; refuse one that belongs to somebody else."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.path.parent, self.path):
            # In /tmp anybody could have made it first.
            if directory.stat().st_uid != os.getuid():
                raise LabError(f"{directory} belongs to another user: set PYTEST_IPVS_LAB_DIR")
        self.path.chmod(0o700)

    def read(self) -> Answer | None:
        """The record of a ready lab; ``None`` without one."""
        try:
            result: Answer = json.loads(self.record.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return result

    def write(self, path: Path, text: str) -> None:
        """Write a file for its owner only, whole or not at all."""
        temporary = path.with_name(path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123 - mode 0600 from the start
            file.write(text)
        temporary.replace(path)

    def lock(self) -> int | None:
        """Become this lab's owner: a descriptor to keep open, or ``None`` when it has one.

        The kernel drops the lock with its process, however that ends.
        """
        path = self.path / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A lab that ended meanwhile has removed the file that we opened.
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor

    def owner(self) -> int | None:
        """The process id of the lab that lives here; ``None`` when none does."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).decode()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)
        return None

    def clean(self) -> None:
        """Remove what a dead lab left: a machine that still runs, and all files.

        Call it only while holding the lock, or after the owner is gone.
        """
        for pid in self.machines():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def machines(self) -> Iterator[int]:
        """Processes of ours that name this directory on their command line: QEMU."""
        needle = os.fsencode(str(self.path) + "/")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if entry.stat().st_uid != os.getuid():
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"qemu-system" in Path(os.fsdecode(words[0])).name.encode() and any(
                needle in word for word in words
            ):
                yield int(entry.name)

    @contextlib.contextmanager
    def _short(self, name: str) -> Iterator[str]:
        """A path to a file here that fits into a socket's address, however deep we are."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{name}"
        finally:
            os.close(descriptor)

    def listen(self) -> socket.socket:
        """The control socket, listening."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (self.path / "control.sock").unlink(missing_ok=True)
        with self._short("control.sock") as path:
            listener.bind(path)
        (self.path / "control.sock").chmod(0o600)
        listener.listen(8)
        return listener

    def ask(self, op: str, timeout: float = 60, **arguments: object) -> Answer:
        """Ask the lab that lives here; raises :class:`LabError` when it refuses or is not there."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(timeout)
                with self._short("control.sock") as path:
                    client.connect(path)
                client.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
                with client.makefile("rb") as stream:
                    line = stream.readline()
        except (FileNotFoundError, NotADirectoryError, ConnectionError):
            raise LabError(f"no lab runs in {self.path}: start one with `up`") from None
        except TimeoutError:
            raise LabError(f"the lab in {self.path} did not answer within {timeout:g} s") from None
        if not line:
            raise LabError(f"the lab in {self.path} ended: see {self.log}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer

    def end(self, timeout: float = 30) -> bool:
        """End the lab that lives here and remove its files; whether there was one."""
        pid = self.owner()
        existed = pid is not None or self.path.exists()
        if pid:
            with contextlib.suppress(ProcessLookupError), _handle_of(pid) as process:
                try:
                    self.ask("down", timeout=5)
                except LabError:
                    # It is still starting, or it hangs.
                    os.kill(pid, signal.SIGTERM)
                if not select.select([process], [], [], timeout)[0]:
                    os.kill(pid, signal.SIGKILL)
                    select.select([process], [], [], 5)
        if self.path.exists():
            self.clean()
        return existed


@contextlib.contextmanager
def _handle_of(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ssh_config(
    directory: StateDirectory, endpoints: dict[str, tuple[str, int]], addresses: dict[str, str]
) -> str:
    """An ssh configuration: ``endpoints`` by host alias; ``addresses`` are further aliases."""
    lines = []
    for alias, (host, port) in endpoints.items():
        names = " ".join(filter(None, [alias, addresses.get(alias)]))
        lines += [
            f"Host {names}",
            f"    HostName {host}",
            f"    Port {port}",
            "    User root",
            f"    HostKeyAlias {alias}",
            f'    IdentityFile "{directory.identity}"',
            "    IdentitiesOnly yes",
            f'    UserKnownHostsFile "{directory.known_hosts}"',
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking yes",
            "    LogLevel ERROR",
            "",
        ]
    return "\n".join(lines)
