"""Which fault trips which check: the one list that the tests of the catalogue run and count.

How to add a check's proof
--------------------------
Write a function in a module ``tests/checks/faults_<something>.py`` (every module of that name is
found by itself) that takes the evidence of a healthy cluster and gives it back with one fault::

    @trips("SY-02", words=("net.ipv4.vs.expire_nodest_conn", "sysctl -w"))
    def expire_nodest_conn_is_0(evidence: Evidence) -> Evidence:
        return sysctl(evidence, {"net.ipv4.vs.expire_nodest_conn": "0"})

``trips("SY-02")`` means: this check, with its severity of the catalogue, and no other check of the
catalogue. Another severity is named behind the id: ``trips("SY-01 warn")``. Faults that can't help
tripping two checks name both, but each check needs at least one fault that trips it alone.
``words`` must be in the text of the first check's finding.

Where the healthy cluster of ``evidence_builder`` lacks what the check is about (a UDP Service, a
ConfigMap …), say how it gets there; the state before the fault is then judged too, and must be
healthy::

    @trips("TB-06", given=with_dns)

``test_faults.py`` runs all checks over each fault, and over the healthy state before it: the fault
trips exactly what it names and leaves nothing unmeasured, the healthy state trips nothing. So a
fault is both proofs that a check needs.

A state that looks odd and is healthy (a vendor's kernel, a policy that accepts a value) is told
with ``@passes("SY-01")``: nothing trips, and the named checks measured everything.

Checks that judge a rollout have ``@spoils("DP-01")`` on functions from a good result to a bad one,
and those that judge single paths on functions from good paths to bad ones.

``tests/test_catalogue_completeness.py`` fails for a check without a fault of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_ipvs.checks import CATALOGUE, Evidence

HERE = Path(__file__).parent
Change = Callable[[Evidence], Evidence]


def _as_it_is(evidence: Evidence) -> Evidence:
    return evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to break what checks judge; ``trips`` maps check ids to severities."""

    name: str
    trips: Mapping[str, str]
    words: tuple[str, ...]
    change: Callable[[Any], Any]
    given: Change = _as_it_is

    @property
    def first(self) -> str:
        """The check that the fault is about."""
        return next(iter(self.trips))


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthy:
    """One state that looks odd and in which the named checks find nothing."""

    name: str
    checks: tuple[str, ...]
    change: Change


FAULTS: dict[str, Fault] = {}
"""Faults of evidence, by module and function name."""

ROLLOUT_FAULTS: dict[str, Fault] = {}
"""Faults of a rollout's result, or of paths."""

HEALTHY: dict[str, Healthy] = {}
"""Healthy states beside that of ``evidence_builder.healthy``."""


def trips(
    *checks: str, words: tuple[str, ...] = (), given: Change = _as_it_is
) -> Callable[[Change], Change]:
    """Register a fault of evidence; see this module's docstring."""

    def register(change: Change) -> Change:
        name = _new_name(change, FAULTS)
        FAULTS[name] = Fault(
            name=name, trips=_severities(checks), words=words, change=change, given=given
        )
        return change

    return register


def spoils(
    *checks: str, words: tuple[str, ...] = ()
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a fault of a rollout's result, or of paths."""

    def register(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        name = _new_name(change, ROLLOUT_FAULTS)
        ROLLOUT_FAULTS[name] = Fault(
            name=name, trips=_severities(checks), words=words, change=change
        )
        return change

    return register


def passes(*checks: str) -> Callable[[Change], Change]:
    """Register a healthy state."""

    def register(change: Change) -> Change:
        name = _new_name(change, HEALTHY)
        HEALTHY[name] = Healthy(name=name, checks=tuple(_severities(checks)), change=change)
        return change

    return register


def load() -> None:
    """Import every module that registers something; may be called more than once."""
    sys.path[:0] = [path for path in (str(HERE), str(HERE.parent / "ipvs")) if path not in sys.path]
    for path in sorted(HERE.glob("faults_*.py")):
        importlib.import_module(path.stem)


def _new_name(change: Callable[[Any], Any], known: Mapping[str, object]) -> str:
    name = f"{change.__module__.removeprefix('faults_')}-{change.__name__}"
    if name in known:
        raise ValueError(f"{name} is registered already, expected another name for the function")
    return name


def _severities(checks: tuple[str, ...]) -> dict[str, str]:
    """ "SY-01" or "SY-01 warn" to {check id: severity}."""
    told: dict[str, str] = {}
    for text in checks:
        check, _, severity = text.partition(" ")
        if check not in CATALOGUE:
            raise ValueError(f"{check!r} is no check, expected one of {', '.join(CATALOGUE)}")
        if severity not in ("", "fail", "warn", "info"):
            raise ValueError(f"{text!r} has no severity, expected fail, warn or info behind the id")
        told[check] = severity or CATALOGUE[check].severity
    if not told:
        raise ValueError("no check is named, expected at least one id")
    return told
