"""The nodes as testinfra hosts: one connection each, a bounded pool, a time limit around all."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_ipvs.cluster.errors import ClusterError, NodeUnreachableError
from pytest_ipvs.cluster.process import (
    Processes,
    StoppedError,
    TimeLimitError,
    known_reason,
    reason_from,
)
from pytest_ipvs.cluster.template import SSH_SCHEMES, Template, redacted
from pytest_ipvs.ipvs.objects import Node

if TYPE_CHECKING:
    from pytest_ipvs.settings import Settings

T = TypeVar("T")

# Seconds that a node found unreachable stays so: each new attempt may cost a whole time limit.
COOL_DOWN = 15.0
# Seconds for commands that tests themselves run on a host, which may take long on purpose.
COMMAND_LIMIT = 600.0
# Seconds before a command whose connection ended without a word is run again, one by one. A small
# ssh server that gets no processor time loses a session when another begins on its connection.
SILENT_PAUSES = (0.0, 0.5, 1.0)
# A path of a Unix socket has at most 104 bytes on some systems, and ssh appends 17 of its own
# while it makes the socket.
CONTROL_PATH_BYTES = 104 - 17

_PROGRAMS = {
    "ssh": "ssh",
    "safe-ssh": "ssh",
    "docker": "docker",
    "podman": "podman",
    "kubectl": "kubectl",
    "openshift": "oc",
    "lxc": "lxc",
    "chroot": "chroot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """A node that can't be reached and why, in one phrase without the node's name."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a command said: exit status and both streams, undecodable bytes replaced."""

    rc: int
    stdout: str
    stderr: str


class NodePool:
    """testinfra hosts for nodes, made on first use; `close` ends their connections."""

    def __init__(
        self,
        nodes: Iterable[Node],
        template: Template | None,
        *,
        ssh_config: str | None = None,
        jobs: int = 8,
        timeout: float = 20.0,
        kubeconfig: str | None = None,
        context: str | None = None,
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._template = template
        self._ssh_config = _existing(ssh_config)
        self._jobs = jobs
        self.timeout = timeout
        self._kubectl = {"kubeconfig": kubeconfig, "context": context}
        self._processes = Processes(COMMAND_LIMIT)
        self._hosts: dict[str, Any] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._directory: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings, nodes: Iterable[Node]) -> NodePool:
        """A pool over some nodes; checks template and files, connects to nothing."""
        template = None
        if settings.connect is not None:
            template = Template.parse(settings.connect, settings.origin("connect"))
        return cls(
            nodes,
            template,
            ssh_config=settings.ssh_config,
            jobs=settings.jobs,
            timeout=settings.timeout,
            kubeconfig=settings.kubeconfig,
            context=settings.context,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all nodes of the pool, sorted."""
        return tuple(sorted(self._nodes))

    def update(self, nodes: Iterable[Node]) -> None:
        """Take over the nodes as the API tells them now; existing connections are kept."""
        self._nodes = {node.name: node for node in nodes}

    def uri(self, name: str) -> str:
        """The testinfra URI of a node, for humans: a password in it is hidden."""
        return redacted(self._uri(name))

    def host(self, name: str) -> Any:
        """The testinfra host of a node; nothing is connected before its first command."""
        uri = self._uri(name)
        return self.open(uri, name)

    def open(self, uri: str, label: str) -> Any:
        """A testinfra host for any URI, with this pool's ssh settings and time limits."""
        with self._lock:
            if (host := self._hosts.get(uri)) is None:
                host = self._hosts[uri] = self._make(uri, label)
            return host

    def limit(self, seconds: float) -> AbstractContextManager[None]:
        """Time limit of each command that this thread runs on any host inside the block."""
        return self._processes.limit(seconds)

    def run(self, name: str, command: str, *args: str, timeout: float | None = None) -> Output:
        """Run a command on a node; ``%s`` in it are replaced by the quoted arguments.

        It must only read: a connection that ends without a word, as a shared one does when it is
        used at the moment in which it expires, is made anew and the command run again.

        Raises `NodeUnreachableError` if the node could not be asked, also for some seconds after an
        earlier attempt failed.
        """
        if failed := self._failed.get(name):
            since, reason = failed
            if time.monotonic() - since < COOL_DOWN:
                raise NodeUnreachableError(name, reason)
        for pause in (*SILENT_PAUSES, None):
            try:
                with self.limit(timeout or self.timeout):
                    result = self.host(name).run(command, *args)
                break
            except NodeUnreachableError as error:
                self._failed[name] = (time.monotonic(), error.reason)
                raise
            except RuntimeError as error:
                # testinfra's way to say "ssh exited with 255"; its argument is the result.
                said = error.args[0] if error.args else None
                stderr = getattr(said, "stderr_bytes", b"").decode(errors="replace")
                silent = not stderr and not getattr(said, "stdout_bytes", b"")
                if silent and pause is not None:
                    time.sleep(pause)
                    continue
                reason = reason_from(stderr)
                self._failed[name] = (time.monotonic(), reason)
                raise NodeUnreachableError(name, reason) from None
        self._failed.pop(name, None)
        # Not .stdout: for text that is not ASCII it runs Python on the node to ask for a locale.
        return Output(
            rc=result.rc,
            stdout=result.stdout_bytes.decode(errors="replace"),
            stderr=result.stderr_bytes.decode(errors="replace"),
        )

    def map(
        self, function: Callable[[str], T], names: Sequence[str] | None = None
    ) -> dict[str, T | Unreachable]:
        """Call a function with each node's name, `jobs` at a time; results in order of names."""
        names = self.names if names is None else tuple(names)
        if not names:
            return {}
        self.check_template(names)
        executor = ThreadPoolExecutor(min(self._jobs, len(names)), "ipvs-node")
        futures: dict[str, Future[T]] = {}
        try:
            for name in names:
                futures[name] = executor.submit(function, name)
            results: dict[str, T | Unreachable] = {}
            for name, future in futures.items():
                try:
                    results[name] = future.result()
                except NodeUnreachableError as error:
                    results[name] = Unreachable(node=name, reason=error.reason)
            return results
        except BaseException:
            # Ctrl-C, or a mistake in the function: don't wait for hung nodes, nor for what a
            # thread starts after the first kill.
            executor.shutdown(wait=False, cancel_futures=True)
            while wait(futures.values(), timeout=0.1).not_done:
                self._processes.kill_running()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def check_template(self, names: Sequence[str] | None = None) -> None:
        """Raise `ClusterError` where the template can't tell the nodes apart or fits none."""
        names = self.names if names is None else tuple(names)
        template = self._needed_template()
        if len(names) > 1 and not template.distinguishes_nodes:
            raise ClusterError(
                f"{template.origin} is {redacted(template.text)!r}, which is one machine for "
                f"{len(names)} nodes, expected {{name}} or another field in it"
            )
        reasons = []
        for name in names:
            try:
                self._uri(name)
            except NodeUnreachableError as error:
                reasons.append(f"node {name}: {error.reason}")
        if reasons and len(reasons) == len(names):
            raise ClusterError(reasons[0] + (" (nor for any other)" if len(names) > 1 else ""))

    def forgive(self) -> None:
        """Forget which nodes were unreachable, so that the next attempt is a real one."""
        self._failed.clear()

    def close(self) -> None:
        """End running commands and the shared connections; leaves no process and no file."""
        self._processes.close()
        with self._lock:
            directory, self._directory = self._directory, None
            self._hosts.clear()
        if directory is None:
            return
        sockets = [path for path in directory.iterdir() if path.is_socket()]
        if sockets:
            with ThreadPoolExecutor(min(8, len(sockets)), "ipvs-close") as executor:
                list(executor.map(_end_master, sockets))
        shutil.rmtree(directory, ignore_errors=True)

    def _needed_template(self) -> Template:
        if self._template is None:
            raise ClusterError(
                "no way to reach nodes is given, expected --ipvs-connect with a URI such as "
                "ssh://root@{internal_ip}"
            )
        return self._template

    def _uri(self, name: str) -> str:
        template = self._needed_template()
        try:
            node = self._nodes[name]
        except KeyError:
            known = ", ".join(self.names) or "none"
            raise ClusterError(
                f"node {name!r} is not in the cluster, expected one of {known}"
            ) from None
        return template.uri(node)

    def _make(self, uri: str, label: str) -> Any:
        from testinfra.backend import get_backend
        from testinfra.host import Host

        scheme = uri.partition("://")[0]
        program = _PROGRAMS.get(scheme)
        if program and shutil.which(program) is None:
            raise ClusterError(f"{scheme}:// needs the command {program}, which is not installed")
        options: dict[str, Any] = {}
        if scheme in SSH_SCHEMES:
            options = {
                "ssh_config": self._ssh_config,
                "controlpath": str(self._control_path()),
                # testinfra passes it as ConnectTimeout, whole seconds.
                "timeout": max(1, round(min(10.0, self.timeout))),
                "ssh_extra_args": _ssh_arguments(uri),
            }
        elif scheme == "kubectl":
            options = {key: value for key, value in self._kubectl.items() if value}
        try:
            # Not testinfra.get_host(): it caches hosts for the whole process, so a test's own
            # host for the same URI would get our time limits, and fail after close().
            backend = get_backend(uri, **options)
            host = Host(backend)
            backend.set_host(host)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ClusterError(
                f"{redacted(uri)!r} is no URI that testinfra takes: {error}"
            ) from None
        self._bound(backend, label, scheme)
        return host

    def _bound(self, backend: Any, label: str, scheme: str) -> None:
        """Replace how the backend starts processes: with a time limit, and classified errors."""
        first = threading.Lock()
        connected = scheme not in SSH_SCHEMES

        def run_local(command: str, *args: str) -> Any:
            nonlocal connected
            encoded = backend.quote(command, *args).encode()
            if connected:
                return finish(encoded)
            # One at a time until the connection stands: two at once would both make one.
            with first:
                result = finish(encoded)
                connected = True
                return result

        def finish(encoded: bytes) -> Any:
            try:
                rc, stdout, stderr = self._processes.run(encoded)
            except TimeLimitError as error:
                raise NodeUnreachableError(label, str(error)) from None
            except StoppedError:
                raise NodeUnreachableError(label, "the connection was closed by this run") from None
            if rc == 255 and scheme in SSH_SCHEMES:
                text = stderr.decode(errors="replace")
                if not stdout and (reason := known_reason(text)):
                    raise NodeUnreachableError(label, reason)
            return backend.result(rc, encoded, stdout, stderr)

        backend.run_local = run_local

    def _control_path(self) -> Path:
        if self._directory is None:
            self._directory = _short_directory()
        return self._directory / f"n{len(self._hosts)}"


def _existing(ssh_config: str | None) -> str | None:
    if ssh_config is None:
        return None
    path = Path(ssh_config).expanduser()
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ClusterError(f"--ipvs-ssh-config is {ssh_config!r}, expected a file that can be read")
    return str(path)


def _ssh_arguments(uri: str) -> str:
    user = uri.partition("://")[2].rpartition("@")[0]
    arguments = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    # A password in the URI goes through sshpass, which BatchMode would forbid.
    return arguments if ":" in user else f"-o BatchMode=yes {arguments}"


def _short_directory() -> Path:
    # testinfra pastes the path into a shell command unquoted, and ssh expands % in it.
    base = tempfile.gettempdir()
    plain = all(character.isalnum() or character in "/_.-" for character in base)
    if not plain or len(os.fsencode(base)) > CONTROL_PATH_BYTES - 24:
        base = "/tmp"
    return Path(tempfile.mkdtemp(prefix="ipvs-", dir=base))


def _end_master(socket: Path) -> None:
    command: Sequence[str] = ("ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "x")
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        # Nothing is lost: the master ends by itself after a minute without use.
        pass


def unreachable_reasons(results: Mapping[str, object]) -> dict[str, str]:
    """Node name to reason, of what `NodePool.map` could not reach."""
    return {n: r.reason for n, r in results.items() if isinstance(r, Unreachable)}
