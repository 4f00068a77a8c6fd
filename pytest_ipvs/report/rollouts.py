"""A rollout's result as a row of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ipvs.report.rows import RolloutRow
from pytest_ipvs.traffic.results import spell

if TYPE_CHECKING:
    from pytest_ipvs.rollout import Result


def rollout_row(target: str, result: Result) -> RolloutRow:
    """The numbers that the final table shows, and below it what they are worth."""
    results = result.results
    note = "; ".join(result.reasons) if result.verdict == "inconclusive" else ""
    if failures := result.failures:
        note = spell(failures) + (f"; {note}" if note else "")
    lines = [note] if note else []
    return RolloutRow(
        target=target,
        verdict=result.verdict,
        connections=results.connections,
        failures=sum(failures.values()),
        reused_tuples=result.reused_tuples,
        slow_connects=results.resent,
        new_pod_share=result.share_of_new_pods,
        drained_after=result.drained_after,
        note="\n    ".join([*lines, *result.precision, *result.remarks]),
    )
