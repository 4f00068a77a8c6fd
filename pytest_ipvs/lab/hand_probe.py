"""A kubelet's HTTP and TCP probes, without blocking the agent that sends them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from pytest_ipvs.lab.hand_loop import Loop

__all__ = ["probe"]


def probe(
    loop: Loop,
    reply: Callable[[Any], None],
    kind: str,
    address: str,
    port: int,
    path: str,
    timeout: float,
) -> None:
    """Replies ``{"ok", "detail"}``: TCP wants a connection, HTTP a status from 200 to 399."""
    if kind not in ("tcp", "http"):
        raise ValueError(f"a probe is http or tcp, not {kind}")
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    received = bytearray()
    sent = False

    def finish(ok: bool, detail: str) -> None:
        timer.cancel()
        loop.unwatch(connection)
        connection.close()
        reply({"ok": ok, "detail": detail})

    def ready(_mask: int) -> None:
        nonlocal sent
        if not sent:
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                finish(False, os.strerror(code))
                return
            if kind == "tcp":
                finish(True, "connected")
                return
            sent = True
            request = (
                f"GET {path} HTTP/1.0\r\nHost: {address}:{port}\r\n"
                "User-Agent: kube-probe/lab\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            )
            try:
                connection.send(request.encode())
            except OSError as error:
                finish(False, error.strerror or "cannot send")
                return
            loop.watch(connection, ready)
            return
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            finish(False, error.strerror or "cannot receive")
            return
        received.extend(data)
        if b"\n" in received:
            words = received.split(b"\n", 1)[0].split()
            status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
            finish(200 <= status < 400, f"HTTP status {status}")
        elif not data:
            finish(False, "the connection ended before a status line")

    timer = loop.later(timeout, lambda: finish(False, f"no answer in {timeout:g} s"))
    code = connection.connect_ex((address, port))
    if code not in (0, errno.EINPROGRESS):
        finish(False, os.strerror(code))
        return
    loop.watch(connection, ready, write=True)
