"""What a check is, what it judges, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects, Snapshot
from pytest_ipvs.policy import Policy

Permission = Literal["node", "api", "proxy", "write", "disrupt"]
Said = Iterable[Finding | NotMeasured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the checks judge: snapshots, oldest first, at least one, and the policy in force.

    ``baseline`` is the reading of the run's start, for counters that must not grow. Details of
    nodes and kube-proxy's objects are in the first snapshot that has them.
    """

    snapshots: tuple[Snapshot, ...]
    policy: Policy
    baseline: Snapshot | None = None
    # What several checks need and is dear to compute; never part of what evidence says.
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.snapshots:
            raise ValueError("evidence has no snapshot, expected at least one")

    @property
    def last(self) -> Snapshot:
        """The newest snapshot."""
        return self.snapshots[-1]

    @property
    def proxy_objects(self) -> ProxyObjects | None:
        """What the API holds about kube-proxy, ``None`` where it was not asked."""
        return next((s.proxy_objects for s in self.snapshots if s.proxy_objects is not None), None)

    def detailed(self, node: str) -> NodeFacts | None:
        """The facts of a node that have its details, ``None`` where they were not read."""
        found = (s.facts[node] for s in self.snapshots if node in s.facts)
        return next((facts for facts in found if facts.details is not None), None)


class Counted(Protocol):
    """What the clients saw, counted."""

    @property
    def connections(self) -> int:
        """Connections tried, without those that the client itself could not start."""


class RolloutResult(Protocol):
    """What the data-path checks read of a rollout's result; see ``pytest_ipvs.rollout``."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed connections by class ("refused", "no_route", …)."""

    @property
    def results(self) -> Counted:
        """Everything the clients saw."""

    @property
    def reused_tuples(self) -> int:
        """Connections whose tuple had been used before within the time that IPVS remembers it."""

    @property
    def resent(self) -> int:
        """Connects that needed their SYN sent again."""

    @property
    def resent_apart(self) -> int:
        """Those of ``resent`` that nothing else explains."""

    @property
    def share_of_new_pods(self) -> float | None:
        """Share (0 to 1) of connections that new pods answered; ``None`` where none is new."""

    @property
    def fair_share_of_new_pods(self) -> float | None:
        """The share (0 to 1) they would get if all ready pods got the same."""

    @property
    def verdict(self) -> str:
        """ "passed", "failed" or "inconclusive"."""

    @property
    def reasons(self) -> Iterable[str]:
        """Why, one sentence each."""

    @property
    def affinity(self) -> bool:
        """Whether the Service has session affinity."""

    @property
    def pods_before(self) -> Mapping[str, int]:
        """Answers by pod before anything was disrupted."""

    @property
    def wanted_at_zero(self) -> Iterable[Any]:
        """Real servers (``node``, ``str``) at weight 0 at the end, though their pod is ready."""

    @property
    def probe(self) -> Any:
        """A ``rollout.KernelProbe`` where an endpoint left while its pod lived, else ``None``."""

    @property
    def cause(self) -> Any:
        """The cause in words, empty where there is none; its ``str()`` is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of the catalogue.

    ``severity`` is that of its worst finding. ``needs`` names facts ("table", "sysctls",
    "proxy.mode", …), ``source`` names where its expectation comes from: source code, a commit,
    an issue. ``run`` judges evidence; ``judge``, which only data-path checks have, what traffic
    met: the result of a rollout, or ``rollout.paths.Path``s where ``needs`` has "paths". Their
    ``run`` says that they need it.
    """

    id: str
    title: str
    group: str
    severity: Severity
    permission: Permission
    needs: frozenset[str]
    source: str
    run: Callable[[Evidence], Said]
    judge: Callable[[Any, Policy], Said] | None = None

    @property
    def data_path(self) -> bool:
        """Whether it judges traffic instead of what was read."""
        return self.judge is not None

    @property
    def judges_paths(self) -> bool:
        """Whether that is single paths, and no rollout."""
        return "paths" in self.needs

    @property
    def needs_details(self) -> bool:
        """Whether it needs what is read only on demand."""
        return any(fact.startswith(("details.", "proxy_objects")) for fact in self.needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one check said. It passed only if both are empty."""

    findings: tuple[Finding, ...]
    not_measured: tuple[NotMeasured, ...]
