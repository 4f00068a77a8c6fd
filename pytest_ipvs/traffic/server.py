"""The application of the throw-away workload: one answer per connection, with the pod's name.

One file, standard library only, Python 3.8 or newer, one event loop: it is shipped to stock images
by ConfigMap and runs as ``python3 server.py``. It imports nothing of this package.

HTTP/1.0 on ``PORT``: ``GET /healthz`` answers ``ok``, any other path answers the pod's name and a
line feed. With ``CALL_TOKEN``, ``GET /call/TOKEN/ADDRESS:PORT,…`` connects to all the addresses
from one source port of the pod, asks each, and answers their names joined by dots, or 502 and what
it met; 503 where the pod itself could not. A line of digits makes that connection one of
``HOLD_PORT``. Environment:

``POD_NAME``       the name to answer with (default: the host name)
``PORT``           HTTP port (default 8080)
``ECHO_PORT``      TCP port that answers one line with "POD_NAME line" (default: none)
``HOLD_PORT``      TCP port that answers each line so, and stays open (default: none)
``UDP_PORT``       UDP port that answers a datagram with "POD_NAME datagram" (default: none)
``CALL_TOKEN``     what a path must have to make the pod connect to others (default: nothing can)
``ENDING``         how a connection ends: ``fin`` (we close first, the default), ``rst`` (we reset
                   it once the answer has arrived) or ``client`` (we wait until the client closes)
``ENDING_FILE``    a file whose text replaces ``ENDING``; read at start and again at SIGHUP
``LISTEN_DELAY``   seconds between the start and listening (default 0)
``DRAIN_SECONDS``  how long to go on serving after SIGTERM (default 0: stop listening, finish what
                   is open, exit). Negative: until killed.

Signals: SIGUSR1 switches the ending to ``rst``, SIGUSR2 back to ``ENDING``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

ENDINGS = ("fin", "rst", "client")
MAX_REQUEST = 65536
IDLE_SECONDS = 30.0
# Longer than a virtual processor stands still.
ACKNOWLEDGE_SECONDS = 2.0
# No event tells of an acknowledgement, so while one is awaited the loop looks this often.
LOOK_SECONDS = 0.001
CALL_SECONDS = 3.0
RESET = struct.pack("ii", 1, 0)


class Connection:
    """One accepted connection and what was read of its request."""

    __slots__ = ("answered", "data", "deadline", "kind", "sock")

    def __init__(self, sock: socket.socket, kind: str, deadline: float) -> None:
        self.sock = sock
        self.kind = kind
        self.data = b""
        self.deadline = deadline
        self.answered = False


class Server:
    """An event loop over the listening sockets and their connections."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.name = environ.get("POD_NAME") or socket.gethostname()
        self.port = int(environ.get("PORT") or 8080)
        self.echo_port = int(environ.get("ECHO_PORT") or 0)
        self.hold_port = int(environ.get("HOLD_PORT") or 0)
        self.udp_port = int(environ.get("UDP_PORT") or 0)
        token = environ.get("CALL_TOKEN") or ""
        self.call_path = "/call/{}/".format(token).encode() if token else b""
        self.first_ending = environ.get("ENDING") or "fin"
        if self.first_ending not in ENDINGS:
            raise SystemExit(
                "ENDING is {!r}, expected one of {}".format(self.first_ending, ", ".join(ENDINGS))
            )
        self.ending = self.first_ending
        self.ending_file = environ.get("ENDING_FILE") or ""
        self.listen_delay = float(environ.get("LISTEN_DELAY") or 0)
        self.drain_seconds = float(environ.get("DRAIN_SECONDS") or 0)
        self.epoll = select.epoll()
        self.listeners: dict[int, tuple[socket.socket, str]] = {}
        self.udp: socket.socket | None = None
        self.connections: dict[int, Connection] = {}
        self.unacknowledged: set[Connection] = set()
        self.stop_at: float | None = None
        self.read_ending_file()

    def read_ending_file(self) -> None:
        if not self.ending_file:
            return
        try:
            with open(self.ending_file) as file:
                text = file.read().strip()
        except OSError:
            return
        if text in ENDINGS:
            self.ending = text

    # A signal interrupts epoll only to be retried, so handlers write to a pipe that epoll watches.
    def watch_signals(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self.wakeup = reader
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_stop)
        signal.signal(signal.SIGHUP, lambda *_: self.read_ending_file())
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "ending", "rst"))
        signal.signal(signal.SIGUSR2, lambda *_: setattr(self, "ending", self.first_ending))
        self.epoll.register(reader, select.EPOLLIN)

    def on_stop(self, *_: object) -> None:
        if self.stop_at is None:
            seconds = self.drain_seconds
            self.stop_at = float("inf") if seconds < 0 else time.monotonic() + seconds

    def listen(self) -> None:
        ports = (("http", self.port), ("echo", self.echo_port), ("hold", self.hold_port))
        for kind, port in ports:
            if port or kind == "http":
                sock = bound(socket.SOCK_STREAM, port)
                sock.listen(1024)
                self.listeners[sock.fileno()] = (sock, kind)
                self.epoll.register(sock.fileno(), select.EPOLLIN)
                if kind == "http":
                    self.port = sock.getsockname()[1]
        if self.udp_port:
            self.udp = bound(socket.SOCK_DGRAM, self.udp_port)
            self.epoll.register(self.udp.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until SIGTERM and the drain time after it."""
        self.watch_signals()
        listen_at = time.monotonic() + self.listen_delay
        while time.monotonic() < listen_at:
            if self.stop_at is not None:
                return
            self.drain_wakeup(self.epoll.poll(max(0.0, listen_at - time.monotonic())))
        self.listen()
        print("listening on port {} as {}".format(self.port, self.name), flush=True)
        next_sweep = time.monotonic() + 1.0
        while True:
            wait = max(0.0, next_sweep - time.monotonic())
            if self.stop_at is not None and self.listeners:
                wait = max(0.0, min(wait, self.stop_at - time.monotonic()))
            elif self.stop_at is None and not self.connections:
                # Idle: sleep until something comes. Pods are many and the machine may be slow.
                wait = -1.0
            if self.unacknowledged:
                wait = LOOK_SECONDS
            for fd, _ in self.epoll.poll(wait):
                self.handle(fd)
            self.reset_acknowledged()
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + 1.0
                for connection in list(self.connections.values()):
                    if now >= connection.deadline:
                        self.close(connection)
            if self.stop_at is not None and now >= self.stop_at:
                self.stop_listening()
                if not self.connections or now >= self.stop_at + IDLE_SECONDS:
                    return

    def stop_listening(self) -> None:
        for fd, (sock, _kind) in list(self.listeners.items()):
            self.epoll.unregister(fd)
            sock.close()
            del self.listeners[fd]

    def drain_wakeup(self, events: list[tuple[int, int]]) -> None:
        if events:
            try:
                os.read(self.wakeup, 4096)
            except BlockingIOError:
                pass

    def handle(self, fd: int) -> None:
        if fd in self.listeners:
            self.accept(*self.listeners[fd])
        elif fd in self.connections:
            self.read(self.connections[fd])
        elif fd == self.wakeup:
            self.drain_wakeup([(fd, 0)])
        elif self.udp is not None and fd == self.udp.fileno():
            try:
                data, peer = self.udp.recvfrom(MAX_REQUEST)
                self.udp.sendto(self.name.encode() + b" " + data, peer)
            except OSError:
                pass

    def accept(self, listener: socket.socket, kind: str) -> None:
        for _ in range(64):
            try:
                sock, _peer = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            connection = Connection(sock, kind, time.monotonic() + IDLE_SECONDS)
            self.connections[sock.fileno()] = connection
            self.epoll.register(sock.fileno(), select.EPOLLIN)
            self.read(connection)

    def read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        if not data:
            self.close(connection)
            return
        if connection.answered:
            return
        connection.data += data
        if connection.kind == "http" and connection.data.partition(b"\n")[0].isdigit():
            connection.kind = "hold"
        if connection.kind == "hold":
            *lines, connection.data = connection.data.split(b"\n")
            connection.deadline = time.monotonic() + IDLE_SECONDS
            for line in lines:
                self.say(connection, self.name.encode() + b" " + line + b"\n")
        elif connection.kind == "echo":
            if b"\n" in connection.data:
                line = connection.data.split(b"\n", 1)[0]
                self.answer(connection, self.name.encode() + b" " + line + b"\n", self.ending)
        elif b"\r\n\r\n" in connection.data or b"\n\n" in connection.data:
            path = [*connection.data.split(b"\n", 1)[0].split(), b"", b""][1]
            if self.call_path and path.startswith(self.call_path):
                self.call(connection, path[len(self.call_path) :].decode("ascii", "replace"))
                return
            health = path.split(b"?")[0] == b"/healthz"
            # A probe says nothing about how the application ends its clients' connections.
            ending = "fin" if health else self.ending
            self.answer(connection, http("200 OK", "ok" if health else self.name), ending)
        elif len(connection.data) > MAX_REQUEST:
            self.close(connection)

    def answer(self, connection: Connection, data: bytes, ending: str) -> None:
        connection.answered = True
        if not self.say(connection, data):
            return
        if ending == "rst":
            connection.deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
            self.unacknowledged.add(connection)
            self.reset_acknowledged()
        elif ending != "client":
            self.close(connection)

    def reset_acknowledged(self) -> None:
        """Reset what has arrived: one that overtakes the answer would be a lost answer."""
        now = time.monotonic()
        for connection in list(self.unacknowledged):
            info = connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
            # tcpi_unacked (struct tcp_info, linux/tcp.h)
            if now >= connection.deadline or not int.from_bytes(info[24:28], sys.byteorder):
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.close(connection)

    def call(self, connection: Connection, targets: str) -> None:
        """Let a thread connect to the targets and answer: the loop may be one of them."""
        sock = connection.sock
        self.epoll.unregister(sock.fileno())
        del self.connections[sock.fileno()]
        sock.setblocking(True)
        threading.Thread(target=report_call, args=(sock, targets.split(",")), daemon=True).start()

    def say(self, connection: Connection, data: bytes) -> bool:
        """Send an answer; false where the connection has ended."""
        try:
            connection.sock.send(data)
        except OSError:
            if connection.sock.fileno() in self.connections:
                self.close(connection)
            return False
        return True

    def close(self, connection: Connection) -> None:
        del self.connections[connection.sock.fileno()]
        self.unacknowledged.discard(connection)
        connection.sock.close()


def http(status: str, body: str) -> bytes:
    """A whole answer."""
    head = "HTTP/1.0 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{}\n"
    return head.format(status, len(body) + 1, body).encode()


def report_call(sock: socket.socket, targets: list[str]) -> None:
    """Call the targets, and tell the client what came of it."""
    try:
        answer = http("200 OK", ".".join(call(targets)))
    except OSError as error:
        own = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
        what = error.strerror or str(error) or type(error).__name__
        answer = http("{} {}".format(503 if own else 502, what), "")
    with contextlib.suppress(OSError), sock:
        sock.sendall(answer)


def call(targets: list[str]) -> list[str]:
    """Who answers at each address; all are connected, from one port, before the first is asked."""
    names, port = [], 0
    with contextlib.ExitStack() as stack:
        socks = []
        for target in targets:
            host, _, number = target.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.settimeout(CALL_SECONDS)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            sock.connect((host.strip("[]"), int(number)))
            port = sock.getsockname()[1]
            socks.append(sock)
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            while piece := sock.recv(4096):
                data += piece
            if not data:
                raise OSError("early close")
            names.append(data.partition(b"\r\n\r\n")[2].decode().strip())
    return names


def bound(kind: int, port: int) -> socket.socket:
    """A non-blocking socket on ``port`` of every address, IPv6 too where the machine has it."""
    try:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
    except OSError:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
    sock.setblocking(False)
    return sock


if __name__ == "__main__":
    try:
        Server(dict(os.environ)).run()
    except OSError as error:
        sys.exit("cannot serve: {}".format(error))
