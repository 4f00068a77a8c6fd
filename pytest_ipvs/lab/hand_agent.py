"""What a node's first process does: runs commands, reads and writes the node's kernel, serves HTTP.

An agent lives inside its node's namespaces, so that nothing here has to enter any. The hand itself
is the agent of the machine. Operations on pods are in ``hand_pods``.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_ipvs.lab.hand_ipvs import TABLE, Ipvs, read_table
from pytest_ipvs.lab.hand_loop import Lines, Loop
from pytest_ipvs.lab.hand_netlink import Netlink
from pytest_ipvs.lab.hand_root import HOME

__all__ = ["ENVIRONMENT", "Agent", "Later", "Reply", "Request"]

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": HOME, "LC_ALL": "C.UTF-8"}
_OUTPUT_LIMIT = 16 << 20

Request = dict[str, Any]
Reply = Callable[[Any], None]


class Later:
    """An operation's answer that comes by itself, by way of the reply function."""


LATER = Later()


def memory_file(content: bytes = b"") -> int:
    """A descriptor of a file in memory, at its start. Descriptors it is dup'ed to share it."""
    number = os.memfd_create("pytest-ipvs")
    if content:
        os.write(number, content)
        os.lseek(number, 0, os.SEEK_SET)
    return number


def take_memory_file(number: int) -> str:
    """The content of a memory file, which is closed."""
    try:
        size = min(os.lseek(number, 0, os.SEEK_END), _OUTPUT_LIMIT)
        return os.pread(number, size, 0).decode(errors="replace")
    finally:
        os.close(number)


class Agent:
    """Runs operations in the namespaces in which it was made."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.lines: Lines | None = None
        self._netlink: Netlink | None = None
        self._ipvs: Ipvs | None = None
        self._servers: dict[int, _HttpServer] = {}
        self._sessions: dict[int, subprocess.Popen[bytes]] = {}
        self.operations: dict[str, Callable[..., Any]] = {
            "exec": self.execute,
            "proc": self.proc,
            "procs": self.procs,
            "write": self.write,
            "sysctl": self.sysctl,
            "addresses": self.addresses,
            "ipvs_restore": self.ipvs_restore,
            "http_serve": self.http_serve,
            "http_update": self.http_update,
            "http_stop": lambda port: self._servers.pop(port).close(),
            "end_sessions": self.end_sessions,
        }

    @staticmethod
    def proc(path: str) -> str:
        """The text of a file as the node sees it."""
        return read_table() if path == TABLE else Path(path).read_text(errors="replace")

    @property
    def netlink(self) -> Netlink:
        """This node's rtnetlink."""
        if self._netlink is None:
            self._netlink = Netlink()
        return self._netlink

    # Answers

    def handle(self, line: bytes) -> None:
        """One request: ``{id, op, args}``; the answer has ``id`` and ``ok`` or ``error``."""
        request = json.loads(line)
        if request["op"] == "ssh_session":
            assert self.lines is not None
            self.ssh_session(self.lines.take_descriptor(), request["args"]["key"])
            return
        self.perform(request)

    def perform(self, request: Request) -> None:
        """Runs the operation and sends its answer, now or later."""
        number = request["id"]

        def reply(value: Any) -> None:
            if isinstance(value, BaseException):
                self.send({"id": number, "error": _explain(value)})
            else:
                self.send({"id": number, "ok": value})

        arguments = request["args"]
        operation = self.operations.get(request["op"])
        if operation is None:
            reply(ValueError(f"there is no operation {request['op']}"))
            return
        arguments.pop("node", None)
        try:
            if getattr(operation, "replies", False):
                answer = operation(reply, **arguments)
            else:
                answer = operation(**arguments)
        except Exception as error:
            answer = error
        if not isinstance(answer, Later):
            reply(answer)

    def send(self, message: dict[str, Any]) -> None:
        """Sends an answer or an event to who is above."""
        if self.lines is not None:
            self.lines.send(json.dumps(message, separators=(",", ":")).encode())

    # Commands

    def spawn(
        self,
        argv: list[str],
        stdin: int,
        stdout: int,
        stderr: int,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a program in a session of its own."""
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=ENVIRONMENT | (env or {}),
            cwd="/",
            start_new_session=True,
        )

    def execute(
        self,
        reply: Reply,
        argv: list[str],
        stdin: str = "",
        timeout: float = 30,
        env: dict[str, str] | None = None,
    ) -> Later:
        """See ``machine.OPERATIONS``."""
        source, out, err = memory_file(stdin.encode()), memory_file(), memory_file()
        try:
            process = self.spawn(argv, source, out, err, env)
        except OSError as error:
            os.close(out)
            os.close(err)
            code = 127 if error.errno == errno.ENOENT else 126
            reply({"rc": code, "out": "", "err": f"{argv[0]}: {error.strerror}\n"})
            return LATER
        finally:
            os.close(source)
        self.await_output(process.pid, out, err, timeout, reply, process)
        return LATER

    execute.replies = True  # type: ignore[attr-defined]

    def await_output(
        self, pid: int, out: int, err: int, timeout: float, reply: Reply, process: Any = None
    ) -> None:
        """Replies with ``{rc, out, err}`` once the child ends, after killing it if it is late."""
        late = False

        def kill() -> None:
            nonlocal late
            late = True
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)

        timer = self.loop.later(timeout, kill)

        def ended(code: int) -> None:
            timer.cancel()
            if process is not None:
                process.returncode = code
            code = 124 if late else code
            reply({"rc": code, "out": take_memory_file(out), "err": take_memory_file(err)})

        self.loop.on_exit(pid, ended)

    # The kernel's files

    def procs(self, paths: list[str]) -> dict[str, str | None]:
        """See ``machine.OPERATIONS``."""
        found: dict[str, str | None] = {}
        for path in paths:
            try:
                found[path] = Path(path).read_text(errors="replace")
            except OSError:
                found[path] = None
        return found

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """See ``machine.OPERATIONS``."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def sysctl(self, values: dict[str, str | int | None]) -> dict[str, str]:
        """See ``machine.OPERATIONS``."""
        after = {}
        for key, value in values.items():
            path = Path("/proc/sys", *key.split("."))
            try:
                if value is not None:
                    path.write_text(str(value))
                after[key] = path.read_text().strip()
            except OSError as error:
                raise OSError(error.errno, f"sysctl {key}: {error.strerror}") from None
        return after

    def addresses(
        self, device: str, add: list[str] | None = None, remove: list[str] | None = None
    ) -> list[str]:
        """See ``machine.OPERATIONS``."""
        for address in add or ():
            try:
                self.netlink.change_address(device, address)
            except FileExistsError:
                pass
        for address in remove or ():
            try:
                self.netlink.change_address(device, address, remove=True)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        return self.netlink.addresses(device)

    def ipvs_restore(self, lines: list[str]) -> dict[str, Any]:
        """See ``machine.OPERATIONS``."""
        if self._ipvs is None:
            self._ipvs = Ipvs()
        return self._ipvs.restore(lines)

    # HTTP

    def http_serve(
        self, port: int, routes: dict[str, dict[str, Any]], address: str = "0.0.0.0"
    ) -> None:
        """See ``machine.OPERATIONS``."""
        old = self._servers.pop(port, None)
        if old is not None:
            old.close()
        self._servers[port] = _HttpServer(self.loop, address, port, dict(routes))

    def http_update(self, port: int, routes: dict[str, dict[str, Any]]) -> None:
        """See ``machine.OPERATIONS``."""
        if port not in self._servers:
            raise ValueError(f"nothing is served on port {port}")
        self._servers[port].routes.update(routes)

    # ssh

    def ssh_session(self, connection: int, key: str) -> None:
        """Serves one accepted connection by a dropbear of its own, as inetd would."""
        log = os.open("/run/dropbear.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        try:
            # -i: the connection is standard input, -s: no passwords, -j -k: no forwarding.
            argv = ["dropbear", "-i", "-s", "-j", "-k", "-r", key]
            process = self.spawn(argv, connection, connection, log)
        finally:
            os.close(log)
            os.close(connection)
        self._sessions[process.pid] = process

        def ended(code: int) -> None:
            process.returncode = code
            self._sessions.pop(process.pid, None)

        self.loop.on_exit(process.pid, ended)

    def end_sessions(self) -> None:
        """Kills every ssh session and what runs in it."""
        for pid in list(self._sessions):
            os.kill(pid, signal.SIGKILL)


def _explain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]}"
    return str(error) or type(error).__name__


class _HttpServer:
    """Static answers, HTTP/1.0, one short connection per request."""

    def __init__(
        self, loop: Loop, address: str, port: int, routes: dict[str, dict[str, Any]]
    ) -> None:
        self._loop = loop
        self.routes = routes
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._socket.listen(64)
        self._socket.setblocking(False)
        loop.watch(self._socket, self._accept)

    def close(self) -> None:
        self._loop.unwatch(self._socket)
        self._socket.close()

    def _accept(self, _mask: int) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        client.setblocking(False)
        received = bytearray()

        def end() -> None:
            timer.cancel()
            self._loop.unwatch(client)
            client.close()

        timer = self._loop.later(10, end)

        def ready(_mask: int) -> None:
            try:
                data = client.recv(65536)
                received.extend(data)
                if data and b"\r\n\r\n" not in received and b"\n\n" not in received:
                    return
                if received:
                    # Answers are far smaller than an empty socket buffer, so one send takes all.
                    client.send(self._answer(bytes(received)))
                    client.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                return
            except OSError:
                pass
            end()

        self._loop.watch(client, ready)

    def _answer(self, request: bytes) -> bytes:
        words = request.split(None, 2)
        path = words[1].decode(errors="replace").split("?")[0] if len(words) > 1 else ""
        missing = {"status": 404, "body": "404 page not found\n", "type": "text/plain"}
        route = self.routes.get(path) or self.routes.get("*") or missing
        body = str(route.get("body", "")).encode()
        status = route.get("status", 200)
        head = (
            f"HTTP/1.0 {status} {'OK' if status == 200 else '-'}\r\n"
            f"Content-Type: {route.get('type', 'text/plain; charset=utf-8')}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if words[:1] == [b"HEAD"] else body)
