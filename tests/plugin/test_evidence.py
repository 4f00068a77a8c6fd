"""What the session reads for its checks: once, details only on demand, counters twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from plugin_fakes import FakeCluster

from pytest_ipvs.policy import Policy
from pytest_ipvs.session import IpvsSession


class Counting(FakeCluster):
    """Remembers every reading, and whether it had details."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.readings: list[bool] = []

    def snapshot(self, nodes: Any = None, *, details: bool = False) -> Any:
        self.readings.append(details)
        return super().snapshot(nodes, details=details)


@pytest.fixture
def session() -> IpvsSession:
    made = IpvsSession(
        cast(pytest.Config, SimpleNamespace()), cast(Any, None), Policy(), lambda _: None
    )
    made._cluster = cast(Any, Counting())
    return made


def readings(session: IpvsSession) -> list[bool]:
    return cast(Counting, session._cluster).readings


def test_details_are_read_only_where_a_check_needs_them(session: IpvsSession) -> None:
    assert session.evidence(tables=False).detailed("node-1") is None
    assert session.evidence().detailed("node-1") is None
    assert readings(session) == [False] * 4


@pytest.mark.parametrize("order", ["details first", "tables first", "together", "late"])
def test_details_are_read_once_per_refresh(session: IpvsSession, order: str) -> None:
    if order == "details first":
        session.evidence(tables=False, details=True)
    elif order == "tables first":
        session.evidence()
    elif order == "late":
        session.evidence(tables=False)
        session.evidence()
        session.evidence(tables=False, details=True)
    evidence = session.evidence(details=True)
    assert evidence is session.evidence(tables=False, details=True)
    assert evidence is session.evidence(tables=False)
    assert evidence.proxy_objects is not None
    assert evidence.detailed("node-1") is not None
    assert len(evidence.snapshots) == 2
    assert readings(session).count(True) == 1
    # What is judged over time is not mixed with what was read apart from it.
    moments = [snapshot.taken_at for snapshot in evidence.snapshots]
    assert moments == sorted(moments)
    session.forget()
    assert session.evidence(tables=False, details=True).detailed("node-1") is not None
    assert readings(session).count(True) == 2


@pytest.mark.parametrize("tables", [True, False])
def test_counters_have_two_moments(session: IpvsSession, tables: bool) -> None:
    evidence = session.evidence(tables=tables)
    assert evidence.baseline is session.first()
    assert evidence.baseline is not evidence.last
    assert evidence.baseline.taken_at <= evidence.snapshots[0].taken_at
    session.forget()
    assert session.evidence(tables=tables).baseline is evidence.baseline
