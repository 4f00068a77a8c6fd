"""Waivers take out what they cover, for as long as they count."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import yaml
from evidence_builder import healthy
from faults_tables import stale_real_server

from pytest_ipvs.checks import Finding, run_check
from pytest_ipvs.checks.waiving import expiry, waive
from pytest_ipvs.policy import Waiver
from pytest_ipvs.report.findings import group, waived_lines, waiver_line

TODAY = date(2026, 11, 25)
FINDING = Finding(
    check="TB-03",
    severity="fail",
    node="node-1",
    object="[fd00::1]:80/TCP -> [fd00::2]:8080",
    observed="weight 1",
    expected="absent",
    reason="…",
    remedy="…",
)
WAIVER = Waiver(check="TB-03", reason="moving", expires=TODAY, where="ipvs.yaml:7")


def test_a_waiver_covers_its_check_node_and_object_until_its_day() -> None:
    exact = replace(WAIVER, node="node-?", object=FINDING.object)
    told = waive([FINDING, replace(FINDING, node="edge-1")], [exact], TODAY)
    assert told.waived == ((FINDING, exact),)
    assert [finding.node for finding in told.left] == ["edge-1"]
    assert (told.expired, told.used) == ((), (exact,))


def test_an_expired_waiver_is_named_and_covers_nothing() -> None:
    old = replace(WAIVER, expires=date(2026, 11, 24))
    told = waive([FINDING], [old], TODAY)
    assert (told.left, told.waived, told.expired) == ((FINDING,), (), (old,))
    assert expiry(old) == "the waiver at ipvs.yaml:7 of TB-03 expired on 2026-11-24 (moving)"


def test_a_waiver_that_still_counts_comes_before_one_that_expired() -> None:
    old = replace(WAIVER, expires=date(2026, 11, 24))
    told = waive([FINDING], [old, WAIVER], TODAY)
    assert (told.left, told.expired) == ((), ())
    assert told.waived == ((FINDING, WAIVER),)


def test_waived_findings_of_many_nodes_are_one_line() -> None:
    findings = [replace(FINDING, node=f"node-{n}") for n in range(1, 6)]
    (line,) = waived_lines(waive(findings, [WAIVER], TODAY).waived)
    assert line == (
        "TB-03 on 5 nodes (node-1, node-2, node-3, …): [fd00::1]:80/TCP -> [fd00::2]:8080: "
        "weight 1 (expected absent); waived until 2026-11-25 by ipvs.yaml:7: moving"
    )


def test_the_line_of_a_finding_that_says_how_to_waive_it_does() -> None:
    findings = run_check("TB-03", stale_real_server(healthy())).findings
    text = waiver_line(group(findings)[0]).replace("YYYY-MM-DD", str(TODAY))
    (entry,) = yaml.safe_load(text)["waivers"]
    assert entry["node"] == "node-2"
    assert waive(findings, [Waiver(**entry)], TODAY).left == ()
