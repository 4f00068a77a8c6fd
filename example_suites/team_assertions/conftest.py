"""What a team shares between its tests: a helper of its own, and a hook."""

import csv
import os
from pathlib import Path

import pytest


@pytest.fixture
def assert_room_for_connections():
    """A helper as a fixture, so that no test has to import it."""

    def check(node, *, limit):
        servers = [real for virtual in node.table.virtual_servers for real in virtual.real_servers]
        entries = sum(real.active + real.inactive for real in servers)
        assert entries <= limit, (
            f"{node.name} holds {entries} connections, expected {limit} or less"
        )

    return check


def pytest_ipvs_rollout_finished(target, result):
    """Keep a history of rollouts, if ROLLOUT_HISTORY names a file."""
    path = os.environ.get("ROLLOUT_HISTORY")
    if path is None:
        return
    with Path(path).open("a", encoding="utf-8", newline="") as history:
        csv.writer(history).writerow([target, result.verdict])
