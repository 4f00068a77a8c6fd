"""Further ways to the same pods during one disruption: other addresses, other clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.rollout.target import Target
from pytest_ipvs.rollout.trace import PortWatch, watch_ports
from pytest_ipvs.traffic.placement import Place
from pytest_ipvs.traffic.run import TrafficRun


@dataclass(slots=True, kw_only=True)
class Way:
    """One client on one way. ``problem`` says why it could not be measured, "" where it was."""

    name: str
    target: Target
    place: Place
    client: TrafficRun
    problem: str = ""

    def watch_ports(self, pool: Any, nodes: Sequence[str]) -> PortWatch | None:
        """See `watch_ports`."""
        return watch_ports(
            pool,
            nodes,
            self.target,
            self.place,
            self.client.plan,
            lambda: self.client.results().windows,
        )


def remarks(client: Any, watch: PortWatch | None, others: Iterable[Way]) -> tuple[str, ...]:
    """What a client's result does not show and its verdict does not depend on."""
    found = [watch.remark] if watch else []
    if problem := getattr(client, "clock_problem", ""):
        found.append(f"the client's clock is known by bounds only: {problem}")
    found += [f"{way.name} was not measured: {way.problem}" for way in others if way.problem]
    return tuple(filter(None, found))


def parse(way: str) -> tuple[str, str | None]:
    """ "node-port@local" as ("node-port", "local"); without "@" the run's own client is meant."""
    via, at, client = way.partition("@")
    if not via or (at and not client):
        raise ValueError(
            f"also has {way!r}, expected a 'via' such as node-port, or 'via@client' such as "
            "node-port@local"
        )
    return via, client or None
