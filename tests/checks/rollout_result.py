"""A good rollout's result, as little of it as the checks read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_ipvs.rollout import KernelProbe
from pytest_ipvs.rollout.paths import Path

SYSCTLS = {"net.ipv4.vs.conn_reuse_mode": "1", "net.ipv4.vs.expire_nodest_conn": "1"}
Paths = tuple[Path, ...]
PATHS: Paths = (
    Path(what="a pod to itself", node="node-1", tried=30),
    Path(what="elsewhere", tried=12),
)
GOOD_PROBE = KernelProbe(pod="web-1", exposed=400, sysctls=SYSCTLS, fix_b=True)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the clients counted."""

    connections: int = 3600


@dataclass(frozen=True, kw_only=True)
class Result:
    """As little of a rollout's result as the checks read."""

    failures: Mapping[str, int] = field(default_factory=dict)
    results: Counted = Counted()
    reused_tuples: int = 3400
    resent: int = 0
    share_of_new_pods: float | None = 0.33
    fair_share_of_new_pods: float | None = 0.33
    verdict: str = "passed"
    reasons: tuple[str, ...] = ()
    cause: str = ""
    near_lost: int = 0
    affinity: bool = True
    pods_before: Mapping[str, int] = field(default_factory=lambda: {"web-1": 200})
    wanted_at_zero: tuple[Any, ...] = ()
    probe: KernelProbe | None = GOOD_PROBE

    @property
    def resent_apart(self) -> int:
        """The resent SYNs that lost connections do not explain."""
        return self.resent - self.near_lost
