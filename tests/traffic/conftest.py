"""What tests of the client share: ports that one test reserved are free for the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_ipvs.traffic import client


@pytest.fixture(autouse=True)
def _give_back_ports() -> Iterator[None]:
    yield
    # A client gives them back when its process ends; this process goes on.
    while client.GUARDS:
        client.GUARDS.pop().close()
