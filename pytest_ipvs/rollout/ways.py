"""Further ways to the same pods during one disruption: other addresses, other clients."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_ipvs.rollout.target import Target
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


def parse(way: str) -> tuple[str, str | None]:
    """ "node-port@local" as ("node-port", "local"); without "@" the run's own client is meant."""
    via, at, client = way.partition("@")
    if not via or (at and not client):
        raise ValueError(
            f"also has {way!r}, expected a 'via' such as node-port, or 'via@client' such as "
            "node-port@local"
        )
    return via, client or None
