"""The one-threaded heart of the hand and its agents: descriptors, timers, children, lines.

One thread, because namespaces belong to threads and forking a process with threads is a trap.
"""

from __future__ import annotations

import array
import heapq
import itertools
import os
import selectors
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Lines", "Loop", "Timer", "forget_parent"]

_graveyard: list[object] = []


class Timer:
    """A call to come; ``cancel`` undoes it."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at = at
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Makes sure that the action is not called any more."""
        self.action = None


class Loop:
    """Waits for descriptors, timers and the end of children."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._children: dict[int, Callable[[int], None]] = {}
        self.running = True
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = read
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(read, selectors.EVENT_READ, self._woken)

    def close(self) -> None:
        """Gives back the loop's own descriptors; what it watches is the callers'."""
        self._selector.close()
        os.close(self._wake)

    def watch(self, source: Any, action: Callable[[int], None], *, write: bool = False) -> None:
        """Calls ``action`` with the selector's mask when ``source`` is ready."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        try:
            self._selector.modify(source, events, action)
        except KeyError:
            self._selector.register(source, events, action)

    def unwatch(self, source: Any) -> None:
        """Forgets a descriptor; harmless if it is not watched."""
        try:
            self._selector.unregister(source)
        except (KeyError, ValueError):
            pass

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Calls ``action`` once after that time."""
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, (timer.at, next(self._count), timer))
        return timer

    def on_exit(self, pid: int, action: Callable[[int], None]) -> None:
        """Calls ``action`` with 0.. or 128 + signal when that child ends."""
        self._children[pid] = action

    def run(self) -> None:
        """Runs until ``running`` is false."""
        while self.running:
            timeout = None
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic())
            for key, mask in self._selector.select(timeout):
                # An earlier action of this round may have closed it.
                if self._selector.get_map().get(key.fd) is key:
                    _guarded(key.data, mask)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if timer.action is not None:
                    _guarded(timer.action)

    def _woken(self, _mask: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            action = self._children.pop(pid, None)
            if action is not None:
                _guarded(action, code if code >= 0 else 128 - code)


def _guarded(action: Callable[..., None], *arguments: int) -> None:
    """Calls it; one operation's mistake must not end a node, so it is only written down."""
    try:
        action(*arguments)
    except Exception:
        traceback.print_exc()


def forget_parent(parent: object, keep: tuple[int, ...]) -> None:
    """In a forked child: closes all that the parent had open but ``keep`` and 0-2.

    The parent's objects are kept alive on purpose: a destructor would close a number that a new
    file has taken meanwhile.
    """
    _graveyard.append(parent)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kept = {0, 1, 2, *keep}
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in kept:
            try:
                os.close(int(entry.name))
            except OSError:
                pass


class Lines:
    """Lines over a stream socket or a character device, both ways, never blocking.

    ``on_line`` gets each line without its end. Descriptors that came along (SCM_RIGHTS) are kept in
    their order until ``take_descriptor``: the stream does not say to which line they belong.
    """

    def __init__(
        self,
        loop: Loop,
        source: socket.socket | int,
        on_line: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self.source = source
        self._on_line = on_line
        self._on_end = on_end
        self._partial = bytearray()
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._descriptors: deque[int] = deque()
        if isinstance(source, socket.socket):
            source.setblocking(False)
        else:
            os.set_blocking(source, False)
        loop.watch(source, self._ready)

    def send(self, line: bytes, descriptors: list[int] | None = None) -> None:
        """Sends one line; ``line`` must not contain a line feed. Descriptors are closed later."""
        self._out.append((line + b"\n", descriptors or []))
        self._flush()

    def take_descriptor(self) -> int:
        """The oldest descriptor that arrived and was not taken."""
        return self._descriptors.popleft()

    def close(self) -> None:
        """Stops and closes."""
        self._loop.unwatch(self.source)
        if isinstance(self.source, socket.socket):
            self.source.close()
        else:
            os.close(self.source)

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            self._read()

    def _read(self) -> None:
        try:
            if isinstance(self.source, socket.socket):
                data, ancillary, _, _ = self.source.recvmsg(1 << 18, socket.CMSG_SPACE(64))
                for level, kind, payload in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        numbers = array.array("i")
                        numbers.frombytes(payload[: len(payload) // 4 * 4])
                        self._descriptors += numbers
            else:
                data = os.read(self.source, 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.unwatch(self.source)
            self._on_end()
            return
        self._partial += data
        if b"\n" not in data:
            return
        *lines, rest = bytes(self._partial).split(b"\n")
        self._partial = bytearray(rest)
        for line in lines:
            self._on_line(line)

    def _flush(self) -> None:
        while self._out:
            data, descriptors = self._out[0]
            try:
                if isinstance(self.source, socket.socket):
                    if descriptors:
                        rights = array.array("i", descriptors)
                        sent = self.source.sendmsg(
                            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                        )
                    else:
                        sent = self.source.send(data)
                else:
                    sent = os.write(self.source, data)
            except BlockingIOError:
                self._loop.watch(self.source, self._ready, write=True)
                return
            except OSError:
                self._out.clear()
                return
            for number in descriptors:
                os.close(number)
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()
        self._loop.watch(self.source, self._ready)
