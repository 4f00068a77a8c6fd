"""Asking the nodes for the entries of failed connections while they are fresh."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pytest_ipvs.rollout.lookup import Entry, Failed, find_entries
from pytest_ipvs.traffic.results import Results

LOOK_SECONDS = 2.0
MOST_LOOKS = 30
JOIN_SECONDS = 5.0
SAME_SECONDS = 0.5
"""By less than this a failure's time changes while a client's clock is better and better known."""

Seen = tuple[Results, str, int]


class Tracer:
    """Looks every other second whether something failed, and asks the nodes where it was sent.

    An entry of a refused connection lives for ten seconds, so the end of a run is too late to ask.
    ``seen`` gives, for each client, its results so far and the address and port it goes to. While
    the run goes on the nodes are asked `MOST_LOOKS` times at most, for all clients at once; once
    some of them have answered only those.
    """

    def __init__(self, pool: Any, nodes: Sequence[str], seen: Callable[[], Iterable[Seen]]) -> None:
        self._pool = pool
        self._nodes = tuple(nodes)
        self._known: dict[tuple[str, int], set[str]] = {}
        self._seen = seen
        self._entries: list[Entry] = []
        self._asked: dict[tuple[str, int], dict[int, float]] = {}  # by way: source port and time
        self._looks = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ipvs-tracer", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a node that hangs is not waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def finish(self) -> None:
        """Look a last time, and stop."""
        self.stop()
        if not self._thread.is_alive():
            self._try_to_look()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was found, with the times at which it was read."""
        return tuple(self._entries)

    def _run(self) -> None:
        while self._looks < MOST_LOOKS and not self._stopping.wait(LOOK_SECONDS):
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except Exception:  # explaining must not cost the run
            pass

    def look(self) -> None:
        """Ask for what has failed since the last look."""
        failed: list[Failed] = []
        nodes: set[str] = set()
        for results, address, port in self._seen():
            asked = self._asked.setdefault((address, port), {})
            # By port: one that timed out is told after later ones that were refused.
            new = [s for s in results.failed if s.t > asked.get(s.source_port, 0.0) + SAME_SECONDS]
            asked |= {sample.source_port: sample.t for sample in new}
            failed += [(sample, address, port) for sample in new]
            if new:
                nodes |= self._known.get((address, port), set(self._nodes))
        if not failed:
            return
        self._looks += 1
        found = find_entries(self._pool, sorted(nodes), failed)
        self._entries += found
        for entry in found:
            way = (entry.connection.virtual, entry.connection.virtual_port)
            self._known.setdefault(way, set()).add(entry.node)
