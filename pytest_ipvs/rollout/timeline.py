"""What was seen while a disruption ran: pods, endpoints, real servers, phases. Records only.

Times are Unix seconds on pytest's clock. "Left" means that an endpoint is no longer one that new
connections may go to: not ready any more, or no longer in any slice, or its pod is being deleted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_ipvs.ipvs.tables import ServiceKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTrace:
    """One pod's life as far as it was seen; ``None`` for what was not seen.

    ``old``: it was there when the first disruption began. ``deleted_at``: first seen with a
    deletion timestamp. ``stopped_at``: a container of it was first seen terminated. ``left_at``:
    see the module. ``endpoint_at``: first seen as a ready endpoint. ``restarts`` of its containers
    at the last reading. ``released``: its label was taken away on purpose, so that it left the
    Service and lives on; when such a pod is gone is not known. ``further``: its addresses of the
    other family.
    """

    name: str
    uid: str
    address: str = ""
    further: tuple[str, ...] = ()
    node: str = ""
    old: bool = False
    first_seen: float
    ready_at: float | None = None
    deleted_at: float | None = None
    stopped_at: float | None = None
    gone_at: float | None = None
    left_at: float | None = None
    endpoint_at: float | None = None
    restarts: int = 0
    released: bool = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses that it has, of either family."""
        return (self.address, *self.further) if self.address else self.further


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTrace:
    """One real server on one node, from its first to its last reading.

    ``gone_at`` is the first reading without it, ``weight_zero_at`` the first with weight 0,
    ``weighted_at`` the last with another weight: what happened in between was at some moment
    between the two. ``active`` and ``inactive`` are the last reading's counters.
    """

    node: str
    key: ServiceKey
    address: str
    port: int
    first_seen: float
    last_seen: float
    weight: int
    active: int
    inactive: int
    weighted_at: float | None = None
    weight_zero_at: float | None = None
    gone_at: float | None = None

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.key} -> {address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the run: "baseline", a disruption such as "restart", or "settle"."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTrace:
    """An Event of the API about the target: "Warning Unhealthy" of an object, and its message."""

    at: float
    kind: str
    reason: str
    object: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind} {self.reason} of {self.object}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What reading one source took: ``readings`` in number, ``seconds`` of all of them together.

    ``period``: seconds that were meant to lie between two.
    """

    readings: int
    seconds: float
    period: float

    def __str__(self) -> str:
        each = self.seconds / self.readings if self.readings else 0.0
        return f"{self.readings} readings, meant to be {self.period:g} s apart, {each:.2f} s each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time in which ``what`` ("API", "node-2") was not read, and why."""

    what: str
    start: float
    end: float
    reason: str

    def __str__(self) -> str:
        return f"{self.what} was not read for {self.end - self.start:.0f} s: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Everything the recorder saw. ``started``/``ended`` bound the record.

    ``endpoints``: all addresses that the Service's slices had, ready or not.
    ``periods``: the longest time between two readings of each source, in seconds.
    ``no_endpoints``: stretches (start, end) in which the Service had no ready endpoint.
    ``events``: what the API told of the target. ``costs``: by source, what reading took.
    ``unwatched``: by kind of object, why it was read once a second rather than watched.
    """

    started: float
    ended: float
    phases: tuple[Phase, ...] = ()
    pods: tuple[PodTrace, ...] = ()
    servers: tuple[ServerTrace, ...] = ()
    endpoints: frozenset[str] = frozenset()
    gaps: tuple[Gap, ...] = ()
    no_endpoints: tuple[tuple[float, float], ...] = ()
    periods: Mapping[str, float] = field(default_factory=dict)
    events: tuple[EventTrace, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    unwatched: Mapping[str, str] = field(default_factory=dict)

    @property
    def disrupted_at(self) -> float | None:
        """When the first disruption began."""
        return next((p.start for p in self.phases if p.name not in ("baseline", "settle")), None)

    @property
    def completed_at(self) -> float | None:
        """When the last disruption was complete."""
        ends = [p.end for p in self.phases if p.name not in ("baseline", "settle")]
        return max(ends, default=None)

    @property
    def old_pods(self) -> tuple[PodTrace, ...]:
        """Pods that were there before and left."""
        return tuple(pod for pod in self.pods if pod.old and pod.left_at is not None)

    @property
    def new_pods(self) -> tuple[PodTrace, ...]:
        """Pods that came with a disruption."""
        return tuple(pod for pod in self.pods if not pod.old)

    @property
    def strangers(self) -> tuple[ServerTrace, ...]:
        """Real servers that got new connections and that no pod and no endpoint ever had."""
        known = self.endpoints.union(*(pod.addresses for pod in self.pods))
        return tuple(
            s for s in self.servers if s.address not in known and s.weighted_at is not None
        )

    def pod_at(self, address: str, when: float = math.inf) -> PodTrace | None:
        """The last pod that had this address, of those first seen by then."""
        found = [pod for pod in self.pods if address in pod.addresses and pod.first_seen <= when]
        return max(found, key=lambda pod: pod.first_seen, default=None)

    def pod_named(self, name: str) -> PodTrace | None:
        """The pod of this name."""
        return next((pod for pod in self.pods if pod.name == name), None)

    def servers_of(self, pod: PodTrace) -> tuple[ServerTrace, ...]:
        """The pod's real servers on all nodes, from the time when the addresses were its own."""
        return tuple(
            server
            for server in self.servers
            if server.address in pod.addresses and server.last_seen >= pod.first_seen
        )

    def lines(self) -> list[str]:
        """The timeline as text, in seconds from the first disruption."""
        zero = self.disrupted_at or self.started
        events: list[tuple[float, str]] = [(p.start, f"phase {p.name}") for p in self.phases]
        for pod in self.pods:
            label = f"{'old' if pod.old else 'new'} pod {pod.name} ({pod.address or 'no address'})"
            for when, what in (
                (None if pod.old else pod.ready_at, "is ready"),
                (pod.deleted_at, "is being deleted"),
                (pod.left_at, "left the endpoints"),
                (pod.stopped_at, "has stopped"),
                (pod.gone_at, "is gone"),
            ):
                if when is not None:
                    events.append((when, f"{label} {what}"))
        for server in self.servers:
            if server.weight_zero_at is not None:
                events.append((server.weight_zero_at, f"{server.node}: {server} has weight 0"))
            if server.gone_at is not None:
                events.append((server.gone_at, f"{server.node}: {server} is removed"))
        events += [(gap.start, str(gap)) for gap in self.gaps]
        events += [(event.at, str(event)) for event in self.events]
        return [f"{when - zero:+7.1f} s  {text}" for when, text in sorted(events)]
