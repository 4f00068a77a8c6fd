"""PS-04: which persistence templates of a pod that is gone are left over, and which only wait."""

from __future__ import annotations

from dataclasses import replace

from evidence_builder import details, healthy, on_node, snapshot, templates, tripped, unmeasured

from pytest_ipvs.checks import run_check


def test_templates_of_a_gone_pod_may_wait_for_their_timeout() -> None:
    # Not set again since the first reading, 300 s ago; held by a connection; younger than a sync.
    for expires in (10500, 10000, 61, 60, 1):
        evidence = replace(healthy(), baseline=None)
        assert tripped(templates(evidence, expires)) == {}
    young = replace(healthy(0.0, 50.0), baseline=None)
    assert tripped(templates(young, 10799)) == {}


def test_templates_that_outlive_their_timeout() -> None:
    evidence = templates(healthy(0.0, 10800 + 210 + 61), 5)
    assert tripped(evidence) == {"PS-04": {"warn"}}


def test_templates_of_a_living_pod_are_right() -> None:
    for real in ("10.244.1.2", "10.244.2.2"):
        assert tripped(templates(healthy(), 10800, real)) == {}


def test_the_start_of_the_run_says_since_when_a_pod_is_gone() -> None:
    one = templates(replace(healthy(300.0, 301.0), baseline=None), 10750)
    assert tripped(one) == {}
    assert tripped(replace(one, baseline=snapshot(0.0))) == {"PS-04": {"warn"}}


def test_templates_that_were_not_read_are_not_measured() -> None:
    evidence = details(healthy(), templates=None)
    assert unmeasured(evidence) == {"PS-04": {"details.templates"}}


def test_without_affinity_there_are_no_templates_to_read() -> None:
    evidence = on_node(healthy(), lambda old: replace(old, details=None))
    taken = tuple(replace(one, services=one.services[:1]) for one in evidence.snapshots)
    assert not run_check("PS-04", replace(evidence, snapshots=taken)).not_measured
