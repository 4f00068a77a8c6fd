"""The result of a run: what the client and the recorder saw, put together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_ipvs.rollout.timeline import PodTrace, ServerTrace, Timeline
from pytest_ipvs.traffic.results import Results, Sample, Second

if TYPE_CHECKING:
    from pytest_ipvs.rollout.cause import Diagnosis
    from pytest_ipvs.rollout.probe import KernelProbe

Verdict = Literal["passed", "failed", "inconclusive"]

SEEN_LATE = 2.0
"""Seconds by which the recorder may be late to see an endpoint leave."""

SETTLED = 3.0
"""Seconds that a node may take to follow the API before its weights are judged."""

NO_NODES = ("API", "tables", "events")
"""What else than nodes has a period in the timeline."""

LOST_ON_THE_WAY = ("connect_timeout", "no_route")
LOST_NEAR = 3
"""Seconds around a lost connect in which a resent SYN may have the same reason."""


class NotObservedError(Exception):
    """A question that the record is too short to answer; one sentence says by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleServer:
    """A real server of an old pod that stayed in a node's table.

    ``age``: seconds from when the endpoint left until the server was last seen. ``drained`` says
    whether its weight was 0: it then gets no new client, but tuples that it had may come back.
    """

    server: ServerTrace
    pod: PodTrace
    age: float

    @property
    def node(self) -> str:
        """The node whose table it is."""
        return self.server.node

    @property
    def drained(self) -> bool:
        """Whether the last weight was 0."""
        return self.server.weight == 0

    def __str__(self) -> str:
        server = self.server
        return (
            f"{server.node}: {server} (pod {self.pod.name}, weight {server.weight}, "
            f"{server.active} active and {server.inactive} inactive connections) "
            f"still there {self.age:.0f} s after its endpoint left"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run says. ``verdict`` and ``reasons`` are from `verdict.judge`.

    ``results`` is everything the clients saw, ``fresh`` the part that used ports of the kernel's
    choice, so hardly ever re-used (only where the Service has affinity, or when asked for).
    ``drain_budget`` in seconds is the default of `stale_real_servers`. ``probe`` is there where an
    endpoint left while its pod lived. ``remarks`` are sentences that change no verdict, such as
    what could not be looked up.
    """

    target: str
    address: str
    results: Results
    timeline: Timeline
    verdict: Verdict
    reasons: tuple[str, ...]
    drain_budget: float
    affinity: bool = False
    fresh: Results | None = None
    cause: Diagnosis | None = None
    client: str = ""
    probe: KernelProbe | None = None
    remarks: tuple[str, ...] = ()

    @property
    def failures(self) -> Counter[str]:
        """Failed connections by class; empty when all is well."""
        return self.results.failures

    @property
    def slow_connects(self) -> tuple[Sample, ...]:
        """Connects that were slow or needed a resent SYN, as samples; ``resent`` is exact."""
        return self.results.slow_connects

    @property
    def resent(self) -> int:
        """Connects that needed a resent SYN."""
        return self.results.resent

    @property
    def resent_apart(self) -> int:
        """Connects with a resent SYN that nothing else explains: see `resent_apart`."""
        return resent_apart(self.results, self.timeline)

    @property
    def reused_tuples(self) -> int:
        """Connections on re-used tuples since the last old pod left: those that could go wrong."""
        return self.after_removal.reused

    @property
    def exposed_tuples(self) -> int | None:
        """Re-used tuples whose last answer came from a pod that had left by then.

        ``None`` where the answers do not name pods of the target.
        """
        return exposed(self.results, self.timeline)

    @property
    def after_removal(self) -> Results:
        """What was due after the last old pod left, or without any after the disruption began."""
        return since_removal(self.results, self.timeline)

    @property
    def bound(self) -> float | None:
        """The failure rate that zero failures exclude with 95 % confidence (rule of three).

        Over the connections since the disruption began; ``None`` when some failed.
        """
        began = self.timeline.disrupted_at or self.timeline.started
        tried = self.results.window(began, math.inf).connections
        return None if self.failures or not tried else min(1.0, 3 / tried)

    @property
    def precision(self) -> tuple[str, ...]:
        """What the numbers are worth, in short lines: bound, clock, how often what was read."""
        parts = []
        if (bound := self.bound) is not None:
            parts.append(f"failure rate below {bound:.{2 if bound < 0.1 else 0}%} (95 % bound)")
        parts.append(clock_text(self.results.clock_error))
        read = readings(self.timeline)
        return ("; ".join(parts), f"read {'; '.join(read)}") if read else ("; ".join(parts),)

    @property
    def share_of_new_pods(self) -> float | None:
        """The part of all answers that came from new pods since the last of them was ready.

        ``None`` without new pods, or when no answer came since then.
        """
        ready = [pod.ready_at for pod in self.timeline.new_pods if pod.ready_at is not None]
        if not ready:
            return None
        pods = self.results.window(math.ceil(max(ready)) + 1, math.inf).pods
        total = sum(pods.values())
        new = sum(pods[pod.name] for pod in self.timeline.new_pods)
        return new / total if total else None

    @property
    def fair_share_of_new_pods(self) -> float | None:
        """The part of the pods in service at the end that is new."""
        serving = [p for p in self.timeline.pods if p.ready_at is not None and p.left_at is None]
        new = [pod for pod in serving if not pod.old]
        return len(new) / len(serving) if new else None

    @property
    def pods_before(self) -> Mapping[str, int]:
        """Answers by pod before the first disruption."""
        began = self.timeline.disrupted_at or math.inf
        return self.results.window(-math.inf, math.floor(began)).pods

    @property
    def wanted_at_zero(self) -> tuple[ServerTrace, ...]:
        """Real servers with weight 0 at the end whose pod is a ready endpoint since a while."""
        ended = self.timeline.ended
        return tuple(
            server
            for pod in self.timeline.pods
            if pod.left_at is None
            and pod.endpoint_at is not None
            and pod.endpoint_at < ended - SETTLED
            for server in self.timeline.servers_of(pod)
            if server.gone_at is None
            and server.weight_zero_at is not None
            and server.weight_zero_at < ended - SETTLED
        )

    @property
    def drained_after(self) -> float | None:
        """Seconds from an endpoint's leaving until its last real server was removed, the longest.

        ``None`` when no old pod left, or some real server was still there at the end.
        """
        ages = []
        for pod, server in self._old_servers():
            if server.gone_at is None:
                return None
            ages.append(max(0.0, server.gone_at - (pod.left_at or server.gone_at)))
        return max(ages, default=None)

    def stale_real_servers(self, after: float | None = None) -> tuple[StaleServer, ...]:
        """Old pods' real servers that were still in a table ``after`` seconds after they left.

        ``after`` defaults to the drain budget. Raises `NotObservedError` where the record ends
        earlier than that and an old real server is still there: neither answer would be true.
        """
        budget = self.drain_budget if after is None else after
        stale, open_ages = [], []
        for pod, server in self._old_servers():
            age = (server.gone_at or server.last_seen) - (pod.left_at or server.last_seen)
            if server.gone_at is None and age < budget:
                open_ages.append((age, server))
            elif age > budget:
                stale.append(StaleServer(server=server, pod=pod, age=age))
        if open_ages and not stale:
            age, server = min(open_ages, key=lambda pair: pair[0])
            raise NotObservedError(
                f"stale_real_servers(after={budget:g}) can't be told: {server} on {server.node} "
                f"was still there when the record ended {age:.0f} s after its endpoint left, "
                f"expected a settle phase of at least {budget:g} s or a smaller 'after'"
            )
        return tuple(stale)

    def left_servers(self) -> tuple[StaleServer, ...]:
        """Old pods' real servers that were in a table at the last reading, whatever their age."""
        return tuple(
            StaleServer(server=server, pod=pod, age=server.last_seen - (pod.left_at or 0.0))
            for pod, server in self._old_servers()
            if server.gone_at is None
        )

    def _old_servers(self) -> list[tuple[PodTrace, ServerTrace]]:
        return [
            (pod, server)
            for pod in self.timeline.old_pods
            for server in self.timeline.servers_of(pod)
            # A new pod may have got the address of an old one.
            if self.timeline.pod_at(server.address) is pod
        ]

    @property
    def evidence(self) -> str:
        """Numbers, timeline and samples as text, for the report of a failure."""
        results = self.results
        share, fair = self.share_of_new_pods, self.fair_share_of_new_pods
        lines = [
            f"{self.target} through {self.address}, client on {self.client}: {self.verdict}",
            *(f"  {reason}" for reason in self.reasons),
            f"connections {results.connections}, failures {sum(self.failures.values())}",
            f"re-used tuples since the old pods left {self.reused_tuples}",
            f"connects with a resent SYN {results.resent}",
        ]
        lines += [self.precision[0], *self.remarks]
        if share is not None and fair is not None:
            lines.append(f"new pods got {share:.0%} of the connections, fair share {fair:.0%}")
        if results.own_limits:
            own = ", ".join(f"{n} {name}" for name, n in sorted(results.own_limits.items()))
            lines.append(f"the client's own limits: {own}")
        if self.probe is not None:
            lines.append(f"kernel: {self.probe.problem or self.probe}")
        for what, cost in self.timeline.costs.items():
            longest = longest_gap(self.timeline, what)
            lines.append(f"reading the {what}: {cost}, at most {longest:.1f} s apart")
        lines += [f"{kind} not watched: {why}" for kind, why in self.timeline.unwatched.items()]
        lines += ["timeline:", *(f"  {line}" for line in self.timeline.lines())]
        left = self.left_servers()
        if left:
            lines += ["old real servers at the end:", *(f"  {server}" for server in left)]
        if self.cause is not None:
            lines += ["cause:", *(f"  {line}" for line in self.cause.text.splitlines())]
        return "\n".join(lines)


def clock_text(error: float) -> str:
    """How far the client's times may be from pytest's; 0.0 stands for "nobody knows"."""
    return f"client's clock known to {error:.2f} s" if error else "client's clock not compared"


def readings(timeline: Timeline) -> list[str]:
    """At what period and cost each source was read, and the longest time between two readings."""
    told = []
    for what, cost in timeline.costs.items():
        each = cost.seconds / cost.readings if cost.readings else 0.0
        apart = f"up to {longest_gap(timeline, what):.1f} s apart"
        told.append(f"{what} every {cost.period:g} s in {each:.2f} s, {apart}")
    return told


def longest_gap(timeline: Timeline, what: str) -> float:
    """The longest time between two readings of the "API", or of any node's "tables"."""
    if what != "tables":
        return timeline.periods.get(what, 0.0)
    return max((t for who, t in timeline.periods.items() if who not in NO_NODES), default=0.0)


def resent_apart(results: Results, timeline: Timeline) -> int:
    """Connects with a resent SYN that nothing else explains: `unexplained`, less failed tuples.

    The entries of a lost connection are not in TIME_WAIT, so that the next SYN on its tuple is
    dropped once. That does not say that the cluster drops SYNs of its own accord.
    """
    seconds = unexplained(results, timeline)
    return sum(s.resent - s.resent_after.get("failed", 0) for s in seconds)


def unexplained(results: Results, timeline: Timeline) -> tuple[Second, ...]:
    """The seconds in which nothing but its tuple's past explains a resent SYN.

    A SYN to a pod that is gone is sent again too, and may meet a live one the next time; so is
    one that comes while the Service has no endpoint. On a machine that stands still for a second,
    a SYN is sent again because its answer waits, and starts are late.
    """
    seconds = results.seconds
    lost = {s.t for s in seconds if any(s.classes.get(name) for name in LOST_ON_THE_WAY)}
    for start, end in timeline.no_endpoints:
        lost |= {s.t for s in seconds if start <= s.t + 1 and s.t <= end}
    near = {t + d for t in lost for d in range(-LOST_NEAR, LOST_NEAR + 1)}
    behind = {s.t for s in seconds if s.late or s.classes.get("missed_schedule")}
    near |= {t + d for t in behind for d in (-1, 0, 1)}
    return tuple(s for s in seconds if s.t not in near)


def since_removal(results: Results, timeline: Timeline) -> Results:
    """What was due after the last old pod left, or without any after the disruption began."""
    left = [pod.left_at for pod in timeline.old_pods if pod.left_at is not None]
    began = max(left, default=timeline.disrupted_at or timeline.started)
    return results.window(math.ceil(began), math.inf)


def exposed(results: Results, timeline: Timeline) -> int | None:
    """Re-used tuples whose last answer came from a pod that had left; ``None`` if not known.

    Counted from a little before the leaving was seen: readings are a second apart, and a small
    window of ports comes round within that second.
    """
    if not set(results.pods) & {pod.name for pod in timeline.pods}:
        return None
    return sum(
        second.reused_after.get(pod.name, 0)
        for pod in timeline.old_pods
        for second in results.seconds
        if pod.left_at is not None and second.t >= math.floor(pod.left_at - SEEN_LATE)
    )
