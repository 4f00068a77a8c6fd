"""A clock for the embedded API: time passes only where a store waits."""

from __future__ import annotations

import pytest

from pytest_ipvs.lab.api import watch
from pytest_ipvs.lab.api.store import Store


class Clock:
    """Takes the place of ``time`` for the watches of one store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(store, "wait", self._wait)
        monkeypatch.setattr(watch, "time", self)

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def _wait(self, resource: str, revision: int, timeout: float) -> None:
        self.now += timeout
