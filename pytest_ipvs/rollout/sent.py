"""Which failed connections the nodes had sent where: samples joined with connection entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_ipvs.rollout.lookup import Entry
from pytest_ipvs.rollout.timeline import PodTrace, Timeline
from pytest_ipvs.traffic.results import Results, Sample

ENTRY_SECONDS = 10.0
"""An entry read longer after the failure may be a later connection's."""

NEVER_ANSWERED = ("connect_timeout", "no_route")
"""Of these IPVS has seen SYNs only. All others ended with RST, the server's or our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A failed connection, the entry that says where a node had sent it, and whose address that
    was: ``None`` for a real server that is nobody's."""

    sample: Sample
    entry: Entry
    pod: PodTrace | None

    @property
    def name(self) -> str:
        """The pod, else the real server's address."""
        return self.pod.name if self.pod else self.entry.connection.real


def destinations(
    results: Results, timeline: Timeline, entries: Iterable[Entry]
) -> tuple[Sent, ...]:
    """The failed connections whose destination is known.

    A tuple's entry is its last connection's. So the state must be the one that such a failure
    leaves: an older or later connection that went well leaves another one.
    """
    strange = {(server.node, server.address) for server in timeline.strangers}
    by_port: dict[int, list[Sample]] = {}
    for sample in results.failed:
        by_port.setdefault(sample.source_port, []).append(sample)
    found: dict[tuple[float, int, str], Sent] = {}
    for entry in entries:
        connection = entry.connection
        if connection.template:
            continue
        failed = by_port.get(connection.client_port, ())
        before = [s for s in failed if 0 <= entry.at - s.t <= ENTRY_SECONDS]
        if not before:
            continue
        sample = max(before, key=lambda s: s.t)
        if connection.state != ("SYN_RECV" if sample.name in NEVER_ANSWERED else "CLOSE"):
            continue
        pod = timeline.pod_at(connection.real, sample.t)
        if pod is not None or (entry.node, connection.real) in strange:
            sent = Sent(sample=sample, entry=entry, pod=pod)
            found.setdefault((sample.t, sample.source_port, entry.node), sent)
    return tuple(found.values())
