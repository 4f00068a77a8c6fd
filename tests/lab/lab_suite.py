"""The ready-made suite on the lab, as a user runs it; and which fault is told by which test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "example_suites"
EMULATED = EXAMPLES / "emulated.yaml"
Run = Callable[..., tuple[pytest.RunResult, dict[str, str]]]
ROW = re.compile(
    r"([A-Z]{2}-\d\d)  (passed|failed|warned|not measured|inconclusive|error) *(?:\d of \d)? *(.*)"
)
# Put in together, on different nodes and for different checks, so that one run tells them all.
READ_ONLY = (
    {
        "stale_real_server": "node-1",
        "missing_real_server": "node-2",
        "orphan_virtual_server": "node-3",
    },
    {
        "wanted_at_weight_zero": "node-1",
        "never_drains": "node-2",
        "wrong_scheduler": "node-3",
        "conntrack_off": "node-3",
    },
)
ROLLING = {
    "reuse_leftover": "test_rolling_restart",
    "server_resets": "test_rolling_restart",
    "syn_dropped": "test_rolling_restart",
    "pod_dies_early": "test_rolling_restart",
    "template_sticks": "test_affine_client",
}
ROLLING_LONG = {
    "ready_before_listening": "test_rolling_restart",
    "readiness_lag": "test_rolling_restart",
    "no_endpoints": "test_rolling_restart",
}


def verdicts_of(lines: Iterable[str]) -> dict[str, str]:
    """The verdict of every check in the final table.

    Time-outs of a client that stood still itself are no finding: they are not measured.
    """
    rows = filter(None, map(ROW.match, lines))
    behind = "while the client itself had fallen behind"
    return {row[1]: "not measured" if behind in row[3] else row[2] for row in rows}


def failed(verdicts: dict[str, str]) -> set[str]:
    return {check for check, verdict in verdicts.items() if verdict != "passed"}


def found(verdicts: dict[str, str]) -> set[str]:
    return {check for check in failed(verdicts) if verdicts[check] != "not measured"}
