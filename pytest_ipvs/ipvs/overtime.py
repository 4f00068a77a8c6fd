"""Comparison over time: a difference is judged by how long it has been there.

One moment decides nothing: a table lags the API by a sync, and a real server at weight 0 may
have connections left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pytest_ipvs.ipvs.compare import Difference, Kind
from pytest_ipvs.ipvs.tables import ServiceKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """How long a difference may last, in seconds.

    ``converge``: how far the table may lag the API. ``drain``: how long a real server may stay
    at weight 0.
    """

    converge: float
    drain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A difference that the last sample has, with its history.

    ``since`` is the time (Unix seconds) of the first sample of the unbroken row that has it;
    ``age`` the seconds from there to the last sample: the least time it lasted. ``decided`` says
    that it outlasted its budget; until then ``open_for`` seconds more are needed.
    """

    difference: Difference
    since: float
    age: float
    samples: int
    decided: bool
    open_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The differences of one node at one time (Unix seconds)."""

    taken_at: float
    differences: tuple[Difference, ...]


_Identity = tuple[Kind, ServiceKey, str | None]


class Tracker:
    """Follows one node's differences from sample to sample; its memory grows with them only."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self._runs: dict[_Identity, tuple[float, int, Difference]] = {}
        self._last = 0.0

    def add(self, sample: Sample) -> None:
        """Take the next sample. Samples come in order of time."""
        self._last = sample.taken_at
        runs: dict[_Identity, tuple[float, int, Difference]] = {}
        for item in sample.differences:
            if item.kind == "foreign":
                continue
            identity = (item.kind, item.key, item.real_server)
            since, count, _ = self._runs.get(identity, (sample.taken_at, 0, item))
            runs[identity] = (since, count + 1, item)
        self._runs = runs

    def judge(self) -> tuple[Judged, ...]:
        """The differences of the last sample, each with its age and whether it is decided."""
        return tuple(self._judge(since, count, item) for since, count, item in self._runs.values())

    def _judge(self, since: float, count: int, item: Difference) -> Judged:
        age = self._last - since
        drains = item.kind == "draining"
        budget = self.budgets.drain if drains else self.budgets.converge
        # What moves is never decided: the API itself was not at rest.
        decided = item.kind != "moving" and count >= 2 and age >= budget
        if decided and drains:
            item = replace(item, kind="draining-overdue")
        return Judged(
            difference=item,
            since=since,
            age=age,
            samples=count,
            decided=decided,
            open_for=0.0 if decided else max(budget - age, 0.0),
        )


def compare_over_time(samples: Iterable[Sample], budgets: Budgets) -> tuple[Judged, ...]:
    """Judge the differences of the last sample by how long the samples before it had them."""
    tracker = Tracker(budgets)
    for sample in sorted(samples, key=lambda sample: sample.taken_at):
        tracker.add(sample)
    return tracker.judge()
