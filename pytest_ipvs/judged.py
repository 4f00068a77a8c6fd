"""A rollout's result as one check should see it: with the causes of what that check asks about."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipvs.rollout import Result

SLOW_KINDS = frozenset({"server_resets", "syn_dropped"})
# The check that asks about slow connects; the others ask about failed ones.
SLOW_CHECK = "DP-04"


def judged(result: Result, check: str) -> Result:
    """The result without the causes that explain something else than the check's finding."""
    if result.cause is None:
        return result
    wanted = check == SLOW_CHECK
    causes = tuple(c for c in result.cause.causes if (c.kind in SLOW_KINDS) == wanted)
    return replace(result, cause=replace(result.cause, causes=causes) if causes else None)
