"""What clients saw: counts that add up exactly, whatever number of clients there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

K = TypeVar("K")

FAILURES = (
    "refused",
    "reset",
    "no_route",
    "connect_timeout",
    "read_timeout",
    "early_close",
    "short_body",
    "http_error",
    "other_error",
)
"""Classes in which the cluster failed."""

OWN_LIMITS = ("no_port", "no_descriptor", "missed_schedule")
"""Classes in which the client itself could not do what the plan says; they say nothing else."""

TIMEOUTS = ("connect_timeout", "read_timeout")
"""Failures that a client without processor time may bring about itself."""

STARVED_BEFORE = 5
"""Seconds that a connection may have been waiting when the client falls behind."""

KEPT_SAMPLES = 200
"""Of each class, this many of the first samples and as many of the last are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """What became of the connections due in one second; ``t`` is Unix seconds, pytest's clock.

    ``classes`` maps "ok", a failure or an own limit to a count, ``pods`` the answering pod.
    ``reused``: connections on a tuple that had connected before and that IPVS may still remember;
    ``reused_after`` splits it by the pod that had answered there last, ``failed_after`` splits the
    failures in the same way. ``resent``: connects with a resent SYN, ``resent_after`` splits it by
    how the tuple's last connection ended ("server_rst" …). ``late``: starts behind schedule
    because the client had no processor time; ``waited``: because no source port was free.
    ``exchanges``: lines that were answered on connections that are held.
    """

    t: int
    due: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    pods: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    reused_after: Mapping[str, int] = field(default_factory=dict)
    failed_after: Mapping[str, int] = field(default_factory=dict)
    resent: int = 0
    resent_after: Mapping[str, int] = field(default_factory=dict)
    slow: int = 0
    late: int = 0
    waited: int = 0
    max_connect_ms: float = 0.0
    exchanges: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One connection told in full: a failure, an own limit or a slow connect.

    ``previous_pod`` answered the last time on this tuple, at ``previous_at``; that connection
    ended as ``previous_ending``. ``held``: seconds that a held connection had lived when it broke;
    ``pod`` is then the one it was with. ``resent`` counts resent SYNs, ``connect_ms``
    is ``None`` where the connect did not come to an end.
    """

    t: float
    kind: Literal["failure", "slow"]
    name: str
    errno: str
    source: str
    source_port: int
    target: str
    connect_ms: float | None
    resent: int
    reused: bool
    previous_pod: str = ""
    previous_at: float | None = None
    previous_ending: str = ""
    pod: str = ""
    detail: str = ""
    held: float | None = None

    @property
    def tuple_text(self) -> str:
        """ "10.244.1.250:20007 -> 10.96.0.10:80"."""
        source = f"[{self.source}]" if ":" in self.source else self.source
        return f"{source}:{self.source_port} -> {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The client's address was answered by another pod than before, at ``t`` (Unix seconds)."""

    t: float
    before: str
    after: str
    source_port: int
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything one or several clients saw.

    ``finished`` says whether each client told its end; without it nothing is proven.
    ``problems``: sentences about lost or contradicting output. ``clock_error``: the largest error,
    in seconds, with which a client's clock was brought to pytest's. ``moves``: with the plan's
    ``moves``, when another pod answered than before. ``windows``: the lowest and the highest
    source port of each client that chose its ports itself.
    """

    seconds: tuple[Second, ...] = ()
    samples: tuple[Sample, ...] = ()
    histogram: Mapping[int, int] = field(default_factory=dict)
    endings: Mapping[str, int] = field(default_factory=dict)
    finished: bool = False
    problems: tuple[str, ...] = ()
    clock_error: float = 0.0
    clients: int = 1
    moves: tuple[Move, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def classes(self) -> Counter[str]:
        """Connections by class, own limits included."""
        return total(second.classes for second in self.seconds)

    @property
    def due(self) -> int:
        """Connections that the schedule asked for."""
        return sum(second.due for second in self.seconds)

    @property
    def connections(self) -> int:
        """Connections that were tried: due, less the client's own limits."""
        classes = self.classes
        return sum(classes.values()) - sum(classes[name] for name in OWN_LIMITS)

    @property
    def failures(self) -> Counter[str]:
        """Failed connections by class; empty when all is well."""
        return Counter({k: v for k, v in self.classes.items() if k in FAILURES and v})

    @property
    def own_limits(self) -> Counter[str]:
        """What the client could not do, by class.

        Starts behind schedule count as missed_schedule, for whatever reason they were.
        """
        found = Counter({k: v for k, v in self.classes.items() if k in OWN_LIMITS and v})
        late = sum(second.late + second.waited for second in self.seconds)
        if late:
            found["missed_schedule"] += late
        return found

    @property
    def starved_seconds(self) -> frozenset[int]:
        """Seconds whose time-outs may be the client's own: it got no processor time meanwhile.

        Those are the seconds in which it was late, and those before, whose connections waited.
        A start that waited for a port is no sign of that: a server that hangs keeps the ports.
        """
        behind = [s.t for s in self.seconds if s.late or s.classes.get("missed_schedule")]
        return frozenset(t - before for t in behind for before in range(-1, STARVED_BEFORE + 1))

    @property
    def pods(self) -> Counter[str]:
        """Answers by pod."""
        return total(second.pods for second in self.seconds)

    @property
    def reused(self) -> int:
        """Connections on a tuple that IPVS may still have remembered."""
        return sum(second.reused for second in self.seconds)

    @property
    def reused_after(self) -> Counter[str]:
        """Re-used tuples by the pod that had answered there last."""
        return total(second.reused_after for second in self.seconds)

    @property
    def failed_after(self) -> Counter[str]:
        """Failures by the pod that had answered on that tuple last."""
        return total(second.failed_after for second in self.seconds)

    @property
    def resent(self) -> int:
        """Connects that needed a resent SYN, by the kernel's own count (TCP_INFO)."""
        return sum(second.resent for second in self.seconds)

    @property
    def resent_after(self) -> Counter[str]:
        """The same by how the tuple's last connection had ended."""
        return total(second.resent_after for second in self.seconds)

    @property
    def slow(self) -> int:
        """Connects that took the plan's ``slow_ms`` or more, by the clock."""
        return sum(second.slow for second in self.seconds)

    @property
    def exchanges(self) -> int:
        """Lines that were answered on connections that are held."""
        return sum(second.exchanges for second in self.seconds)

    @property
    def broken(self) -> tuple[Sample, ...]:
        """Samples of held connections that broke: when, how, after how many seconds."""
        return tuple(sample for sample in self.failed if sample.held is not None)

    @property
    def slow_connects(self) -> tuple[Sample, ...]:
        """Samples of connects that were slow or needed a resent SYN."""
        return tuple(sample for sample in self.samples if sample.kind == "slow")

    @property
    def failed(self) -> tuple[Sample, ...]:
        """Samples of failed connections, own limits not among them."""
        return tuple(s for s in self.samples if s.kind == "failure" and s.name in FAILURES)

    def window(self, start: float, end: float) -> Results:
        """What was due from ``start`` until before ``end``, by whole seconds.

        The histogram and the endings are not kept by time, so a window has none.
        """
        return replace(
            self,
            seconds=tuple(s for s in self.seconds if start <= s.t < end),
            samples=tuple(s for s in self.samples if start <= s.t < end),
            moves=tuple(move for move in self.moves if start <= move.t < end),
            histogram={},
            endings={},
        )

    def percentile(self, share: float) -> float | None:
        """The connect time in ms below which ``share`` (0..1) of the connects were.

        Upper edge of a histogram bucket: at most 1/16 too high. ``None`` without connects.
        """
        left = share * sum(self.histogram.values())
        for bucket in sorted(self.histogram):
            left -= self.histogram[bucket]
            if left <= 0:
                return upper_edge(bucket)
        return None

    @staticmethod
    def merge(results: Iterable[Results]) -> Results:
        """All of them as one: counts add, maxima stay, it is finished if all are."""
        parts = tuple(results)
        seconds: dict[int, Second] = {}
        for part in parts:
            for second in part.seconds:
                found = seconds.get(second.t)
                seconds[second.t] = second if found is None else add(found, second)
        return Results(
            seconds=tuple(seconds[t] for t in sorted(seconds)),
            samples=tuple(sorted((s for p in parts for s in p.samples), key=lambda s: s.t)),
            histogram=total(part.histogram for part in parts),
            endings=total(part.endings for part in parts),
            finished=bool(parts) and all(part.finished for part in parts),
            problems=tuple(problem for part in parts for problem in part.problems),
            clock_error=max((part.clock_error for part in parts), default=0.0),
            clients=sum(part.clients for part in parts),
            moves=tuple(sorted((m for p in parts for m in p.moves), key=lambda m: m.t)),
            windows=tuple(window for part in parts for window in part.windows),
        )


def total(counts: Iterable[Mapping[K, int]]) -> Counter[K]:
    """The sum of counts by key."""
    found: Counter[K] = Counter()
    for count in counts:
        found.update(count)
    return found


def spell(counts: Mapping[str, int]) -> str:
    """ "512 connect timeout, 174 no route", largest first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in ordered)


def plural(count: int, noun: str) -> str:
    """ "1 connection", "2 connections"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def add(one: Second, other: Second) -> Second:
    """Two reports on the same second as one."""
    return Second(
        t=one.t,
        due=one.due + other.due,
        classes=total((one.classes, other.classes)),
        pods=total((one.pods, other.pods)),
        reused=one.reused + other.reused,
        reused_after=total((one.reused_after, other.reused_after)),
        failed_after=total((one.failed_after, other.failed_after)),
        resent=one.resent + other.resent,
        resent_after=total((one.resent_after, other.resent_after)),
        slow=one.slow + other.slow,
        late=one.late + other.late,
        waited=one.waited + other.waited,
        max_connect_ms=max(one.max_connect_ms, other.max_connect_ms),
        exchanges=one.exchanges + other.exchanges,
    )


def upper_edge(bucket: int) -> float:
    """Where a bucket of ``client.bucket_of`` ends, in ms."""
    shift = max(0, bucket // 16 - 1)
    return ((bucket - shift * 16 + 1) << shift) / 1000
