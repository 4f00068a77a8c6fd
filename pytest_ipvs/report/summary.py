"""The section at the end of a run: one row per check, the numbers of rollouts, the warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_ipvs.policy import Waiver
from pytest_ipvs.report.rows import CheckRow, NodeRow, RolloutRow, Row, Verdict
from pytest_ipvs.selectors import check_matches

# Verdicts of checks that saw everything they look at.
JUDGED = ("failed", "waived", "warned", "passed")
WORDS: tuple[Verdict, ...] = (
    "failed",
    "inconclusive",
    "not measured",
    "error",
    "waived",
    "warned",
    "passed",
    "not applicable",
)


def summary(rows: Iterable[Row], unused: Sequence[str] = ()) -> list[str]:
    """Lines of the section, empty where nothing was judged. ``unused`` tells of waivers."""
    # The same check may be run by several tests; what says nothing new is said once.
    rows = list(dict.fromkeys(rows))
    checks = [row for row in rows if isinstance(row, CheckRow)]
    rollouts = [row for row in rows if isinstance(row, RolloutRow)]
    unreachable = {row.node: row.reason for row in rows if isinstance(row, NodeRow)}
    lines: list[str] = []
    if checks:
        lines += _table(
            ("check", "verdict", "nodes", "note"),
            [(row.check, row.verdict, row.nodes, row.note) for row in checks],
        )
    if rollouts:
        lines += [""] if lines else []
        lines += _table(
            (
                "rollout",
                "verdict",
                "connections",
                "failed",
                "re-used",
                "slow",
                "new pods",
                "drained",
            ),
            [_rollout_cells(row) for row in rollouts],
        )
        lines += [f"  {row.target}: {row.note}" for row in rollouts if row.note]
    for row in checks:
        if row.warnings:
            label = "note" if row.verdict == "passed" else "warning"
            lines += ["", f"{label}: {row.warnings}"]
    waived = [line for row in checks for line in row.waived.splitlines()]
    lines += [""] if waived else []
    lines += [f"waived: {line}" for line in dict.fromkeys(waived)]
    if unused:
        lines += ["", *(f"unused waiver: {text}" for text in unused)]
    if unreachable:
        lines += [""] if lines else []
        lines += [f"{node} did not answer: {reason}" for node, reason in unreachable.items()]
    if checks:
        tally = Counter(row.verdict for row in checks)
        counts = ", ".join(f"{tally[word]} {word}" for word in WORDS if tally[word])
        noun = "check" if len(checks) == 1 else "checks"
        lines += ["", f"{len(checks)} {noun}: {counts}"]
    return lines


def unused_waivers(
    waivers: Iterable[Waiver], rows: Iterable[Row], checks: Iterable[str]
) -> list[str]:
    """Waivers that matched no finding though every check that they name was judged."""
    judged: set[str] = set()
    used: set[str] = set()
    for row in rows:
        if isinstance(row, CheckRow):
            judged.update([row.check] if row.verdict in JUDGED else [])
            used.update(row.waivers.splitlines())
    checks = tuple(checks)
    return [
        f"{waiver.where or 'the policy'}: {waiver.check} matched no finding, so it can go "
        f"({waiver.reason}; until {waiver.expires})"
        for waiver in waivers
        if waiver.where not in used
        and {check for check in checks if check_matches(waiver.check, check)} <= judged
    ]


def _rollout_cells(row: RolloutRow) -> tuple[str, ...]:
    share = "-" if row.new_pod_share is None else f"{row.new_pod_share:.0%}"
    drained = "-" if row.drained_after is None else f"{row.drained_after:.0f} s"
    numbers = (row.connections, row.failures, row.reused_tuples, row.slow_connects)
    counts = ["-" if number is None else f"{number:,}" for number in numbers]
    return (row.target, row.verdict, *counts, share, drained)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    columns = zip(head, *body, strict=True)
    widths = [max(len(cell) for cell in column) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
