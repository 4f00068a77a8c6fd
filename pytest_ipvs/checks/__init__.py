"""Conformance checks: one module per group, each check a pure function from evidence to findings.

Belongs here: metadata (id, title, severity, source), the judgement, its reason and remedy.
Does not belong here: reading anything from a cluster, pytest, printing.
"""

from pytest_ipvs.checks.catalogue import CATALOGUE, judge_rollout, run_check
from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Outcome, RolloutResult

__all__ = [
    "CATALOGUE",
    "Check",
    "Evidence",
    "Finding",
    "NotMeasured",
    "Outcome",
    "RolloutResult",
    "Severity",
    "judge_rollout",
    "run_check",
]
