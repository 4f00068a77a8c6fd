"""How much a run must have tried before its silence proves something: numbers of the policy."""

from __future__ import annotations

import math
from typing import Any

from pytest_ipvs.policy import Policy


def own_limit_share(policy: Any) -> float:
    """Part of the due connections that the client may lose before its silence says little."""
    return float((policy or Policy()).threshold("client_own_limit_share"))


def needed_exposed(policy: Any) -> int:
    """Of the least number of re-used tuples, so many must have met a pod that had left."""
    return math.ceil(float(policy.min_reused_tuples * policy.threshold("exposed_share")))
