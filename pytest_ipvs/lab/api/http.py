"""The sockets: HTTP/1.1 with keep-alive, one thread per connection, plain and TLS on one port.

A connection whose first byte opens a TLS handshake is served by TLS, if the server has a
certificate; any other is plain HTTP. kubectl sends credentials only over TLS; the stand-ins on
the same machine spare themselves the work.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO

from pytest_ipvs.lab.api.messages import Request, Response, text_response

if TYPE_CHECKING:
    import ssl

Handler = Callable[[Request], Response]

_MAX_BODY = 8 << 20
_MAX_LINE = 64 << 10
_MAX_HEADERS = 200
_TLS_HANDSHAKE = 0x16
# Seconds for a client to open its TLS session, and for one piece of an answer to be taken.
_PATIENCE = 30.0


class _BadRequestError(Exception):
    """The bytes are not HTTP/1.x as this server reads it."""


class HttpServer:
    """Listens, reads requests, writes what ``handler`` answers.

    ``tls`` makes the TLS context on the first TLS connection; it may answer ``None`` (no TLS).
    """

    def __init__(
        self, handler: Handler, host: str, port: int, tls: Callable[[], ssl.SSLContext | None]
    ) -> None:
        self._handler = handler
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._stopping = False
        self._listener = socket.create_server((host, port), backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="lab-api", daemon=True)

    def start(self) -> None:
        """Begin to accept connections, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection; returns when nothing is accepted any more."""
        self._stopping = True
        # shutdown() wakes a thread that waits in accept(); close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                # Out of descriptors, most likely: let connections end before the next try.
                time.sleep(0.05)
                continue
            with self._lock:
                self._connections.add(connection)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="lab-api-connection", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                # No more threads to be had: this client may try again, the others go on.
                with self._lock:
                    self._connections.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        stream: socket.socket = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = connection.recv(1, socket.MSG_PEEK)
            if not first:
                return
            if first[0] == _TLS_HANDSHAKE:
                context = self._tls()
                if context is None:
                    return
                connection.settimeout(_PATIENCE)
                stream = context.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._connections.discard(connection)
                    self._connections.add(stream)
                stream.settimeout(None)
            _Connection(stream, self._handler).serve()
        except (OSError, ValueError):
            # The client went away, or stop() closed the socket under us.
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._connections.discard(stream)
            with contextlib.suppress(OSError):
                stream.close()
            with contextlib.suppress(OSError):
                connection.close()


class _Connection:
    """One client's connection: requests one after the other."""

    def __init__(self, stream: socket.socket, handler: Handler) -> None:
        self._stream = stream
        self._reader: BinaryIO = stream.makefile("rb")
        self._handler = handler

    def serve(self) -> None:
        with self._reader:
            while True:
                try:
                    request = self._read()
                except _BadRequestError as error:
                    self._write(text_response(f"400 Bad Request: {error}", 400), close=True)
                    self._drain()
                    return
                if request is None:
                    return
                close = request.headers.get("connection", "").lower() == "close"
                response = self._handler(request)
                head_only = request.method == "HEAD"
                if not self._write(response, close=close, head_only=head_only) or close:
                    return

    def _drain(self) -> None:
        """Read what is still coming, for a while: closing before would wipe out the answer."""
        with contextlib.suppress(OSError):
            self._stream.settimeout(1.0)
            self._stream.shutdown(socket.SHUT_WR)
            for _ in range(64):
                if not self._stream.recv(65536):
                    return

    def _line(self) -> str:
        data = self._reader.readline(_MAX_LINE + 1)
        if len(data) > _MAX_LINE:
            raise _BadRequestError("a line is too long")
        return data.decode("latin-1")

    def _read(self) -> Request | None:
        line = self._line()
        while line in ("\r\n", "\n"):
            line = self._line()
        if not line:
            return None
        parts = line.split()
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise _BadRequestError("the request line is not HTTP/1.x")
        headers: dict[str, str] = {}
        for _ in range(_MAX_HEADERS):
            header = self._line()
            if header in ("\r\n", "\n"):
                break
            name, colon, value = header.partition(":")
            if not colon:
                raise _BadRequestError("a header line has no colon")
            key = name.strip().lower()
            joined = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
            headers[key] = joined
        else:
            raise _BadRequestError("too many headers")
        if parts[2] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        if headers.get("expect", "").lower() == "100-continue":
            self._stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._body(headers)
        return Request.parse(parts[0], parts[1], headers, body, self._gone)

    def _body(self, headers: dict[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            pieces: list[bytes] = []
            total = 0
            while True:
                try:
                    size = int(self._line().partition(";")[0], 16)
                except ValueError:
                    raise _BadRequestError("a chunk has no size") from None
                total += size
                if total > _MAX_BODY:
                    raise _BadRequestError("the body is too large")
                if size == 0:
                    while self._line() not in ("\r\n", "\n", ""):
                        pass
                    return b"".join(pieces)
                pieces.append(self._reader.read(size))
                self._line()
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise _BadRequestError("Content-Length is not a number")
        if int(length) > _MAX_BODY:
            raise _BadRequestError("the body is too large")
        return self._reader.read(int(length)) if int(length) else b""

    def _gone(self) -> bool:
        """Whether the client closed: nothing else is to be read during an answer."""
        poll = select.poll()
        try:
            poll.register(self._stream.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def _write(self, response: Response, *, close: bool, head_only: bool = False) -> bool:
        """Send an answer; false if the connection cannot be used any further."""
        try:
            reason = HTTPStatus(response.status).phrase
        except ValueError:
            reason = ""
        lines = [
            f"HTTP/1.1 {response.status} {reason}",
            f"Content-Type: {response.content_type}",
            "Cache-Control: no-cache, private",
            f"Date: {formatdate(usegmt=True)}",
        ]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if close:
            lines.append("Connection: close")
        if response.stream is None:
            lines.append(f"Content-Length: {len(response.body)}")
            head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
            self._stream.sendall(head if head_only else head + response.body)
            return True
        lines.append("Transfer-Encoding: chunked")
        self._stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
        if head_only:
            return False
        for piece in response.stream:
            if piece:
                self._stream.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        self._stream.sendall(b"0\r\n\r\n")
        return True
