"""The recorder: pods, slices and events by watch, tables by reading them again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_ipvs.ipvs.objects import EndpointSlice
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey
from pytest_ipvs.rollout.protocols import WatchLike
from pytest_ipvs.rollout.record import Record
from pytest_ipvs.rollout.timeline import Cost, Gap, Phase, Timeline

API_PERIOD = 1.0
"""Seconds between two lists while a watch is lost, or where there is none."""
RELIST_PERIOD = 10.0
"""Seconds between two lists while all watches are open: a connection that died without a word
looks like a cluster in which nothing happens. Must be well below `GAP_SECONDS`."""
TABLE_PERIOD = 1.0
LONGEST_PAUSE = 4.0
RETRY_SECONDS = 1.0
GAP_SECONDS = 15.0
"""A source that was silent for this long leaves a gap in the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the recorder reads; each may raise, which is noted and tried again.

    ``pods``: the workload's pods as API objects. ``slices``: the Service's slices.
    ``tables``: node name to the real servers of the Service's virtual servers, or to one sentence
    why the node could not be read; nodes that have not answered yet are not in it.
    ``watches``: by kind ("pods", "slices", "events") what opens a watch of the same objects.
    ``slices_of``: slices in one object of a watch. ``about``: how the names of objects begin whose
    events are kept.
    """

    pods: Callable[[], Iterable[Mapping[str, Any]]]
    slices: Callable[[], Iterable[EndpointSlice]]
    tables: Callable[[], Mapping[str, Mapping[ServiceKey, Iterable[RealServer]] | str]]
    watches: Mapping[str, Callable[[], WatchLike]] = field(default_factory=dict)
    slices_of: Callable[[Mapping[str, Any]], Iterable[EndpointSlice]] = lambda _: ()
    about: str = ""


class Recorder:
    """Reads the sources from ``start`` to ``stop``; ``timeline`` at any time.

    A thread for each watch, one that lists now and then, one for the tables. A watch that is lost
    is opened again; the lists go on meanwhile, once a second, so that nothing is missed. Only when
    they fail too, the record has a gap, and says where.
    """

    def __init__(self, sources: Sources, *, clock: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._record = Record()
        self._pods: dict[str, Mapping[str, Any]] = {}
        self._slices: dict[str, tuple[EndpointSlice, ...]] = {}
        self._open: dict[str, WatchLike] = {}
        self._applied = 0
        self._last_read: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._unwatched: dict[str, str] = {}
        self._costs: dict[str, Cost] = {}
        self._gaps: list[Gap] = []
        self._phases: list[Phase] = []
        self._started = clock()

    def start(self) -> None:
        """Begin to read. The first reading of each source is done when this returns."""
        self._started = self._clock()
        self.read_api()
        self.read_tables()
        self._spawn("api", self._loop, self.read_api, self._api_period)
        self._spawn("tables", self._loop, self.read_tables, lambda: TABLE_PERIOD)
        for kind, connect in self._sources.watches.items():
            self._spawn(kind, self._follow, kind, connect)

    def _spawn(self, name: str, body: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(
            target=body, args=arguments, name=f"ipvs-recorder-{name}", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Read no more. Safe to call twice."""
        self._stopping.set()
        with self._lock:
            watches = list(self._open.values())
        for watch in watches:
            watch.close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _api_period(self) -> float:
        wanted = {"pods", "slices"}
        with self._lock:
            followed = {kind for kind, watch in self._open.items() if watch.open}
        return RELIST_PERIOD if wanted <= followed else API_PERIOD

    def _loop(self, read: Callable[[], None], period: Callable[[], float]) -> None:
        last = time.monotonic()
        pause = 0.0
        # Woken up often: the period is shorter from the moment in which a watch is lost.
        while not self._stopping.wait(min(period(), API_PERIOD) / 2):
            begun = time.monotonic()
            if begun - last < max(period(), pause):
                continue
            last = begun
            read()
            # Slow nodes are not kept busy by being read: a pause of four times what that took.
            took = time.monotonic() - begun
            pause = took + min(LONGEST_PAUSE, 4 * took)

    # Phases

    def begin(self, phase: str) -> None:
        """A phase begins; the one before ends. The first disruption decides who is old."""
        with self._lock:
            now = self._clock()
            self._end_phase(now)
            if phase != "baseline" and not any(p.name != "baseline" for p in self._phases):
                self._record.mark_old()
            self._phases.append(Phase(name=phase, start=now, end=now))

    def _end_phase(self, now: float) -> None:
        if self._phases:
            self._phases[-1] = replace(self._phases[-1], end=now)

    def release(self, uid: str) -> None:
        """The pod of this uid is about to lose the label that the target selects it by."""
        with self._lock:
            self._record.release(uid, self._clock())

    # Watches

    def _follow(self, kind: str, connect: Callable[[], WatchLike]) -> None:
        while not self._stopping.is_set():
            try:
                watch = connect()
                with self._lock:
                    self._open[kind] = watch
                if self._stopping.is_set():
                    watch.close()
                for event in watch:
                    with self._lock:
                        self._unwatched.pop(kind, None)
                        self._take(kind, event)
                reason = "the watch ended"
            except Exception as error:  # whatever it is: the lists go on
                reason = (str(error) or type(error).__name__).splitlines()[0]
            with self._lock:
                self._open.pop(kind, None)
                self._unwatched[kind] = reason
            self._stopping.wait(RETRY_SECONDS)

    def _take(self, kind: str, event: Any) -> None:
        if kind == "events":
            self._take_event(event)
            return
        self._applied += 1
        taken = self._take_pod if kind == "pods" else self._take_slice
        if event.type == "LISTED":
            (self._pods if kind == "pods" else self._slices).clear()
            for item in event.object["items"]:
                taken(item, gone=False)
        else:
            taken(event.object, gone=event.type == "DELETED")
        self._note_read("API", event.received_at)
        self._apply(event.received_at)

    def _take_pod(self, item: Mapping[str, Any], *, gone: bool) -> None:
        uid = str(item["metadata"]["uid"])
        if gone:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = item

    def _take_slice(self, item: Mapping[str, Any], *, gone: bool) -> None:
        if item.get("kind") == "Endpoints":
            # One object for the whole Service, whose parts have names of our own making.
            self._slices.clear()
        name = str(item["metadata"]["name"])
        if gone:
            self._slices.pop(name, None)
        else:
            self._slices[name] = tuple(self._sources.slices_of(item))

    def _take_event(self, event: Any) -> None:
        if event.type == "LISTED" and not self._last_read.get("events"):
            for item in event.object["items"]:
                self._record.forget_event(item)
            self._last_read["events"] = event.received_at
            return
        items = event.object["items"] if event.type == "LISTED" else [event.object]
        if event.type != "DELETED":
            for item in items:
                self._record.take_event(item, self._sources.about, event.received_at)

    def _apply(self, now: float) -> None:
        slices = [part for parts in self._slices.values() for part in parts]
        self._record.take_pods(self._pods.values(), slices, now)

    # Readings

    def read_api(self) -> None:
        """One reading of pods and endpoints, which replaces what the watches told so far."""
        before, began = self._clock(), time.monotonic()
        applied = self._applied
        try:
            pods = list(self._sources.pods())
            slices = list(self._sources.slices())
        except Exception as error:  # whatever it is, the run goes on and tells of the gap
            self._failed("API", str(error) or type(error).__name__)
            return
        with self._lock:
            self._note_read("API", before, self._clock())
            self._note_cost("API", time.monotonic() - began, self._api_period_now())
            if applied != self._applied:
                # A watch told something meanwhile that this list may be too old to know.
                return
            self._pods = {str(item["metadata"]["uid"]): item for item in pods}
            self._slices = {}
            for part in slices:
                self._slices[part.name] = (*self._slices.get(part.name, ()), part)
            # What was read may be as old as the moment of asking.
            self._apply(before)

    def _api_period_now(self) -> float:
        return RELIST_PERIOD if {"pods", "slices"} <= self._open.keys() else API_PERIOD

    def read_tables(self) -> None:
        """One reading of all nodes' tables."""
        before, began = self._clock(), time.monotonic()
        try:
            tables = self._sources.tables()
        except Exception as error:
            self._failed("tables", str(error) or type(error).__name__)
            return
        with self._lock:
            self._note_cost("tables", time.monotonic() - began, TABLE_PERIOD)
            for node, table in tables.items():
                if isinstance(table, str):
                    self._reasons[node] = table
                    self._last_read.setdefault(node, self._started)
                else:
                    self._note_read(node, before)
                    self._record.take_table(node, table, before)

    def _failed(self, what: str, reason: str) -> None:
        with self._lock:
            self._last_read.setdefault(what, self._started)
            self._reasons[what] = reason.splitlines()[0]

    def _note_read(self, what: str, now: float, answered: float | None = None) -> None:
        """A reading that was asked for ``now``; what it shows may be as new as the answer."""
        last = self._last_read.get(what, self._started)
        self._longest[what] = max(self._longest.get(what, 0.0), now - last)
        if (answered or now) - last > GAP_SECONDS:
            reason = self._reasons.get(what, "it answered slowly")
            now = answered or now
            self._gaps.append(Gap(what=what, start=last, end=now, reason=reason))
        self._last_read[what] = max(now, last)
        self._reasons.pop(what, None)

    def _note_cost(self, what: str, seconds: float, period: float) -> None:
        known = self._costs.get(what, Cost(readings=0, seconds=0.0, period=period))
        self._costs[what] = Cost(
            readings=known.readings + 1,
            seconds=known.seconds + seconds,
            period=max(known.period, period),
        )

    def timeline(self) -> Timeline:
        """The record up to now, with the gaps that last until now."""
        with self._lock:
            now = self._clock()
            self._end_phase(now)
            record = self._record
            open_gaps = [
                Gap(what=what, start=last, end=now, reason=self._reasons.get(what, "no answer"))
                for what, last in self._last_read.items()
                if now - last > GAP_SECONDS and what != "events"
            ]
            empty = [] if record.empty_since is None else [(record.empty_since, now)]
            return Timeline(
                started=self._started,
                ended=now,
                phases=tuple(self._phases),
                pods=tuple(sorted(record.pods.values(), key=lambda pod: pod.first_seen)),
                servers=tuple(
                    sorted(
                        [*record.past_servers, *record.servers.values()],
                        key=lambda s: (s.node, str(s.key), s.address, s.first_seen),
                    )
                ),
                endpoints=frozenset(record.endpoints),
                gaps=tuple(self._gaps + open_gaps),
                no_endpoints=tuple(record.no_endpoints + empty),
                periods=dict(self._longest),
                events=tuple(record.events),
                costs=dict(self._costs),
                unwatched=dict(self._unwatched),
            )
