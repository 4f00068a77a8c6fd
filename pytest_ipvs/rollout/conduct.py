"""What each pod did while connections failed, as the client and the recorder saw it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytest_ipvs.rollout.timeline import PodTrace, ServerTrace, Timeline
from pytest_ipvs.traffic.results import Results

MARGIN = 2.0
"""Seconds by which the client's whole seconds and the recorder's readings may be apart."""

READING = 1.0
"""Seconds that it takes to read a table."""

LATE = 1.5
"""Seconds from the real server's entry to the pod's first answer that a serving pod stays below."""

EXPECTED_ANSWERS = 4.0
"""So many answers a pod must have failed to give, at its usual pace, to be called silent."""


class Conduct:
    """Answers of one client, joined with the lives of pods and real servers.

    ``nodes``: those known to have sent the client's traffic; without any, all count.
    """

    def __init__(self, results: Results, timeline: Timeline, nodes: Iterable[str] = ()) -> None:
        self.timeline = timeline
        self.nodes = frozenset(nodes)
        self._due = {second.t: second.due for second in results.seconds}
        self._answered: dict[str, set[int]] = {}
        for second in results.seconds:
            for name, number in second.pods.items():
                if number:
                    self._answered.setdefault(name, set()).add(second.t)
        self._pace = {
            name: results.pods[name] / len(seconds) for name, seconds in self._answered.items()
        }
        # The last node counts. Infinite: some node sends new clients there to the last.
        self.left = {pod.name: pod.left_at or math.inf for pod in timeline.old_pods}
        self.quiesced = {
            pod.name: max([self.left[pod.name], *map(out_at, self.servers_of(pod))])
            for pod in timeline.old_pods
        }
        self.late = dict(filter(None, map(self._late_window, timeline.pods)))

    def servers_of(self, pod: PodTrace) -> list[ServerTrace]:
        """The pod's real servers on the nodes that count."""
        servers = self.timeline.servers_of(pod)
        return [s for s in servers if s.node in self.nodes] or list(servers)

    def first_answer(self, name: str) -> float:
        """The second in which a pod answered first; infinite if never."""
        return min(self._answered.get(name, ()), default=math.inf)

    def last_answer(self, name: str) -> float:
        """The second in which a pod answered last."""
        return max(self._answered.get(name, ()), default=-math.inf)

    def in_service_since(self, name: str) -> float:
        """When a node was first seen with the pod's real server, else when it was an endpoint."""
        pod = self.timeline.pod_named(name)
        assert pod is not None
        servers = (server.first_seen for server in self.servers_of(pod))
        return min(servers, default=pod.endpoint_at or pod.first_seen)

    def was_out(self, pod: PodTrace, node: str, at: float) -> bool:
        """Whether the node had the pod's real server at weight 0, or had removed it, by then."""
        servers = [s for s in self.timeline.servers_of(pod) if s.node == node]
        # A reading bears the time at which it was asked for.
        return bool(servers) and max(map(out_at, servers)) + READING <= at

    def listens_later(self, pod: PodTrace, t: int) -> bool:
        """Whether a new pod had not answered yet in second ``t``."""
        return not pod.old and self.first_answer(pod.name) >= t

    def has_died(self, pod: PodTrace, at: float) -> bool:
        """Whether a pod that had answered was on its way out and answered no more."""
        ends = (pod.deleted_at, pod.stopped_at, pod.gone_at)
        leaving = any(end is not None and end <= at + MARGIN for end in ends)
        return leaving and self.first_answer(pod.name) <= at and self.last_answer(pod.name) <= at

    def is_back_later(self, pod: PodTrace, t: int) -> bool:
        """Whether a pod had answered before second ``t`` and goes on later, or may."""
        if self.first_answer(pod.name) >= t:
            return False
        alive = pod.deleted_at is None or pod.deleted_at > t + 1 + MARGIN
        return alive or self.last_answer(pod.name) > t

    def is_silent(self, name: str, t: int) -> bool:
        """Whether second ``t`` lies in a stretch in which a pod should have answered often."""
        answered = self._answered.get(name, set())
        if not answered or t < min(answered):
            return False
        start = next((s for s in (t, t + 1, t - 1) if self._missed(answered, s)), None)
        if start is None:
            return False
        first = last = start
        while self._missed(answered, first - 1):
            first -= 1
        while self._missed(answered, last + 1):
            last += 1
        return self._pace[name] * (last - first + 1) >= EXPECTED_ANSWERS

    def _missed(self, answered: set[int], t: int) -> bool:
        return self._due.get(t, 0) > 0 and t not in answered

    # What fits a second by the times alone

    def nothing_there(self, at: float) -> bool:
        """Whether the Service had no endpoint then."""
        gaps = self.timeline.no_endpoints
        return any(start - MARGIN <= at <= end + MARGIN for start, end in gaps)

    def late_at(self, at: float) -> set[str]:
        """New pods that got connections then and did not answer yet."""
        return {n for n, (start, end) in self.late.items() if start - 1.0 <= at <= end + 1.0}

    def silent_at(self, t: int) -> set[str]:
        """Pods that were endpoints in second ``t`` and did not answer for a while."""
        at = t + 0.5
        return {
            pod.name
            for pod in self.timeline.pods
            if pod.endpoint_at is not None
            and pod.endpoint_at <= at
            and (pod.deleted_at is None or pod.deleted_at > at + 0.5)
            and (pod.left_at is None or pod.left_at > at - MARGIN)
            and self.is_silent(pod.name, t)
        }

    def never_left(self, at: float) -> set[str]:
        """Old pods that had left by then, and that some node never took out of service."""
        return {n for n, left in self.left.items() if left <= at and self.quiesced[n] == math.inf}

    def strange_at(self, at: float) -> set[str]:
        """Addresses of nobody that some node sent new connections to then."""
        return {
            server.address
            for server in self.timeline.strangers
            if server.first_seen - MARGIN <= at <= (server.gone_at or math.inf)
        }

    def dead_at(self, at: float) -> set[str]:
        """Old pods that had died by then and were not, or only just, out of service."""
        return {
            pod.name
            for pod in self.timeline.old_pods
            if self.has_died(pod, at) and at <= self.quiesced[pod.name] + MARGIN < math.inf
        }

    def surely_early(self, name: str, at: float) -> bool:
        """Whether a pod had stopped by then, to the recorder's or the client's eyes, in use."""
        pod = self.timeline.pod_named(name)
        if pod is None:
            return False
        stopped = min(pod.stopped_at or math.inf, pod.gone_at or math.inf)
        used = [s.weighted_at for s in self.servers_of(pod) if s.weighted_at is not None]
        missed = max(used, default=-math.inf) - self.last_answer(name) - 1
        return stopped <= at + MARGIN or self._pace.get(name, 0.0) * missed >= EXPECTED_ANSWERS

    def _late_window(self, pod: PodTrace) -> tuple[str, tuple[float, float]] | None:
        """From when a new pod got connections until it answered, where that took too long."""
        if pod.old or pod.endpoint_at is None:
            return None
        servers, first = self.servers_of(pod), self.first_answer(pod.name)
        # A pod that got no connection at all is no proof: re-used tuples may pass it by.
        asked = any(server.active + server.inactive for server in servers)
        soon = first - self.in_service_since(pod.name) <= LATE
        if soon or (first == math.inf and servers and not asked):
            return None
        # Tables are read seldom: what fails before the first reading with it may be its doing.
        return pod.name, (pod.endpoint_at, min(first, pod.left_at or math.inf))


def out_at(server: ServerTrace) -> float:
    """When a real server was first seen at weight 0 or was missing; infinite if never."""
    return min(server.weight_zero_at or math.inf, server.gone_at or math.inf)
