"""Faults that reading alone tells: each by the check that is for it, and by no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from lab_suite import READ_ONLY, ROLLING, ROLLING_LONG, ROW, Run, failed, found

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.lab.faults import FAULTS

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = pytest.mark.lab


def test_all_faults_are_covered() -> None:
    together = {fault for group in READ_ONLY for fault in group}
    others = {"node_unreachable", "deleted_at_once"}
    assert {*together, *ROLLING, *ROLLING_LONG, *others} == set(FAULTS)


@pytest.mark.parametrize("faults", READ_ONLY, ids=lambda group: "+".join(group))
def test_faults_are_told_by_their_checks_alone(
    lab: RunningLab, conformance: Run, faults: Mapping[str, str]
) -> None:
    for fault, node in faults.items():
        lab.handle.fault(fault, node)
    result, verdicts = conformance("-k", "not data_path")
    told = {check: node for fault, node in faults.items() for check in FAULTS[fault].checks}
    assert failed(verdicts) == set(told), result.stdout.str()
    notes = {row[1]: row[3] for row in filter(None, map(ROW.match, result.outlines))}
    # A finding that another node's fault brought about would name that node.
    assert {check: notes[check].partition(":")[0] for check in told} == told
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_faults_under_traffic_trip_no_other_check_that_reads(
    lab: RunningLab, conformance: Run
) -> None:
    for fault in ROLLING:
        lab.handle.fault(fault)
    result, verdicts = conformance("-k", "not data_path")
    told = {check for fault in ROLLING for check in FAULTS[fault].checks}
    reading = {check for check in told if CATALOGUE[check].judge is None}
    assert reading
    assert failed(verdicts) == reading, result.stdout.str()


def test_unreachable_node_is_told_once(lab: RunningLab, conformance: Run) -> None:
    lab.handle.fault("node_unreachable")
    result, verdicts = conformance("-k", "not data_path")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1, result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*node-2 did not answer: *"])
    assert found(verdicts) == set(), result.stdout.str()
