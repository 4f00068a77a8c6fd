"""The rows of the final table, and how they travel from a pytest-xdist worker to the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal[
    "passed",
    "warned",
    "waived",
    "failed",
    "inconclusive",
    "not measured",
    "not applicable",
    "error",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """What one check said. ``nodes`` is "3 of 3", or "" where a check is not about nodes.

    ``warnings`` is the explanation of findings that don't fail the run, "" where there is none.
    ``waived`` has one line per accepted finding, ``waivers`` the places of waivers that matched.
    """

    check: str
    verdict: Verdict
    nodes: str = ""
    note: str = ""
    warnings: str = ""
    waived: str = ""
    waivers: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """The numbers of one scripted disruption; ``None`` = not known.

    ``new_pod_share`` is a fraction of all connections of the settle phase (0 to 1);
    ``drained_after`` is seconds from weight 0 to the removal of the slowest real server.
    """

    target: str
    verdict: str
    connections: int | None = None
    failures: int | None = None
    reused_tuples: int | None = None
    slow_connects: int | None = None
    new_pod_share: float | None = None
    drained_after: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node that did not answer, and one sentence why."""

    node: str
    reason: str


Row = CheckRow | RolloutRow | NodeRow
_KINDS: Mapping[str, type[Row]] = {"check": CheckRow, "rollout": RolloutRow, "node": NodeRow}


def to_plain(row: Row) -> dict[str, Any]:
    """Builtin types only, as a pytest report may carry them between processes."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(row, cls))
    return {"kind": kind, **asdict(row)}


def from_plain(plain: Mapping[str, Any]) -> Row:
    """The row that `to_plain` made."""
    values = dict(plain)
    return _KINDS[values.pop("kind")](**values)
