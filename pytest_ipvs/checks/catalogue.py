"""All checks by id, and running one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from pytest_ipvs.checks import (
    agreement,
    capacity,
    capacity_conntrack,
    datapath,
    kernel,
    likeness,
    modules,
    network,
    paths,
    persistence,
    placement,
    ports,
    proxy,
    scenarios,
    sets,
    sysctl,
    tables,
    translation,
)
from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Outcome, RolloutResult, Said
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.policy import Policy

if TYPE_CHECKING:
    from pytest_ipvs.rollout.paths import Path

_GROUPS = ("SY", "KM", "KP", "TB", "CT", "DP", "PS", "CP", "UG")
_MODULES = (
    sysctl,
    agreement,
    network,
    ports,
    kernel,
    modules,
    proxy,
    tables,
    placement,
    likeness,
    sets,
    translation,
    datapath,
    scenarios,
    paths,
    persistence,
    capacity_conntrack,
    capacity,
)

CATALOGUE: Mapping[str, Check] = MappingProxyType(
    {
        check.id: check
        for check in sorted(
            (check for module in _MODULES for check in module.CHECKS),
            key=lambda check: (_GROUPS.index(check.group), check.id),
        )
    }
)


def _check(name: str) -> Check:
    if name not in CATALOGUE:
        raise ValueError(f"check {name!r}: expected one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def run_check(check: str, evidence: Evidence) -> Outcome:
    """Run one check over evidence. Raises ``ValueError`` for an unknown id."""
    policy, nodes = evidence.policy, {node.name: node for node in evidence.last.nodes}

    def on(name: str | None) -> Policy:
        return policy if name is None else policy.for_node(nodes.get(name, Node(name=name)))

    return _outcome(check, _check(check).run(evidence), on)


def judge_rollout(
    check: str,
    result: RolloutResult | Sequence[Path],
    *,
    policy: Policy | None = None,
    min_new_pod_share: float | None = None,
) -> Outcome:
    """Run one data-path check over a rollout's result, or over the paths that it judges.

    ``min_new_pod_share`` (0 to 1) takes the place of the policy's. Raises ``ValueError`` for an
    id that is no data-path check.
    """
    judge = _check(check).judge
    if judge is None:
        known = ", ".join(name for name, entry in CATALOGUE.items() if entry.data_path)
        raise ValueError(f"check {check!r} does not judge a rollout, expected one of {known}")
    policy = policy or Policy()
    if min_new_pod_share is not None:
        policy = replace(policy, min_new_pod_share=min_new_pod_share)
    in_force = policy
    return _outcome(check, judge(result, in_force), lambda _: in_force)


def _outcome(check: str, said: Said, policy: Callable[[str | None], Policy]) -> Outcome:
    findings: list[Finding] = []
    lacks: list[NotMeasured] = []
    for one in said:
        if isinstance(one, Finding):
            override = policy(one.node).severities.get(check)
            findings.append(replace(one, severity=cast(Severity, override)) if override else one)
        else:
            lacks.append(one)
    return Outcome(findings=tuple(findings), not_measured=tuple(lacks))
