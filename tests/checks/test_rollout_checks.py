"""The checks that judge a rollout's result."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_builder import healthy
from rollout_result import PATHS, Counted, Paths, Result

from pytest_ipvs import rollout
from pytest_ipvs.checks import CATALOGUE, RolloutResult, judge_rollout, run_check
from pytest_ipvs.policy import Policy
from pytest_ipvs.report.findings import explain
from pytest_ipvs.rollout import KernelProbe
from pytest_ipvs.rollout.paths import Path

# Checks that ask for a run without failures, each of another scenario.
LOSSES = ("DP-01", "DP-02", "DP-03", "DP-05", "DP-07", "DP-12", "DP-13", "PS-02")


ROLLOUTS = [c.id for c in CATALOGUE.values() if c.data_path and not c.judges_paths]
PATH_CHECKS = [check.id for check in CATALOGUE.values() if check.judges_paths]


@pytest.mark.parametrize("check", [name for name in ROLLOUTS if name != "PS-03"])
@pytest.mark.parametrize(
    ("result", "fact"),
    [
        (Result(reused_tuples=3), "reused tuples"),
        (Result(results=Counted(connections=0)), "connections"),
        (Result(verdict="inconclusive", reasons=("the recorder has a gap",)), "rollout"),
    ],
)
def test_a_weak_rollout_proves_nothing(check: str, result: Result, fact: str) -> None:
    outcome = judge_rollout(check, result)
    assert outcome.findings == ()
    assert [lack.fact for lack in outcome.not_measured] == [fact]


@pytest.mark.parametrize(
    ("check", "result", "fact"),
    [
        ("DP-05", Result(probe=None), "endpoint that left"),
        (
            "DP-05",
            Result(probe=KernelProbe(pod="web-1", sysctls={}, problem="node-2 was not read")),
            "endpoint that left",
        ),
        ("DP-05", Result(probe=KernelProbe(pod="web-1", sysctls={})), "re-used tuples"),
        ("PS-02", Result(affinity=False), "session affinity"),
        # Its failures are no finding of affinity: DP-01 tells those.
        ("PS-02", Result(affinity=False, failures={"refused": 9}), "session affinity"),
        ("PS-03", Result(affinity=False), "session affinity"),
        ("PS-03", Result(pods_before={"web-1": 19}), "answers before the disruption"),
    ],
)
def test_what_a_scenario_did_not_show_is_not_measured(
    check: str, result: Result, fact: str
) -> None:
    outcome = judge_rollout(check, result)
    assert outcome.findings == ()
    assert [lack.fact for lack in outcome.not_measured] == [fact]


def test_failures_count_even_in_a_weak_rollout() -> None:
    weak = Result(failures={"refused": 1}, reused_tuples=0, verdict="failed")
    outcome = judge_rollout("DP-01", weak)
    assert len(outcome.findings) == 1
    assert outcome.not_measured == ()


@pytest.mark.parametrize("check", LOSSES)
def test_failures_that_may_be_the_clients_own_are_no_finding(check: str) -> None:
    starved = Result(
        failures={"connect_timeout": 25},
        verdict="inconclusive",
        reasons=("it had fallen behind",),
        cause="25 to a pod that was gone\n  kind of cause: x",
    )
    outcome = judge_rollout(check, starved)
    assert outcome.findings == ()
    assert [lack.reason for lack in outcome.not_measured] == ["it had fallen behind"]
    # What the nodes told may help all the same.
    text = explain(check, "title", outcome.findings, outcome.not_measured)
    assert text.splitlines()[2:] == [
        "  not measured on the cluster: rollout: it had fallen behind",
        "    25 to a pod that was gone",
        "      kind of cause: x",
    ]


def test_resent_syns_beside_lost_connections_are_neither_finding_nor_pass() -> None:
    beside = Result(failures={"connect_timeout": 42}, verdict="failed", resent=26, near_lost=26)
    outcome = judge_rollout("DP-04", beside)
    assert outcome.findings == ()
    assert [lack.fact for lack in outcome.not_measured] == ["resent SYNs"]
    (finding,) = judge_rollout("DP-04", replace(beside, resent=66)).findings
    assert finding.observed.startswith("40 of 3600")


def test_the_clients_own_limits_are_not_the_clusters_failures() -> None:
    limited = Result(failures={"no_port": 90, "missed_schedule": 4, "no_descriptor": 1})
    assert judge_rollout("DP-01", limited).findings == ()


def test_a_rollout_without_new_pods_has_no_share() -> None:
    (lack,) = judge_rollout("DP-06", Result(share_of_new_pods=None)).not_measured
    assert lack.fact == "share of new pods"


def test_thresholds_come_from_the_policy_or_the_caller() -> None:
    result = Result(share_of_new_pods=0.2, reused_tuples=60)
    assert judge_rollout("DP-06", result).findings == ()
    assert judge_rollout("DP-06", result, min_new_pod_share=0.9).findings
    assert judge_rollout("DP-06", result, policy=Policy(min_new_pod_share=0.9)).findings
    assert judge_rollout("DP-01", result, policy=Policy(min_reused_tuples=100)).not_measured
    many = replace(result, resent=60)
    assert (
        judge_rollout("DP-04", many, policy=Policy(severities={"DP-04": "info"}))
        .findings[0]
        .severity
        == "info"
    )


@pytest.mark.parametrize("check", [*ROLLOUTS, *PATH_CHECKS])
def test_evidence_alone_is_not_enough(check: str) -> None:
    outcome = run_check(check, healthy())
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert lack.fact == ("paths" if check in PATH_CHECKS else "rollout")


def test_a_load_balancer_may_lose_what_the_policy_accepts() -> None:
    result = Result(failures={"connect_timeout": 36}, verdict="failed")
    for accepted, severity in ((0.9, "fail"), (1, "warn")):
        policy = Policy(thresholds={"load_balancer_failures": accepted})
        (finding,) = judge_rollout("DP-03", result, policy=policy).findings
        assert finding.severity == severity


@pytest.mark.parametrize("check", PATH_CHECKS)
@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ((), "none was tried"),
        ((*PATHS, Path(what="third", problem="no python3")), "no python3"),
        (
            (*PATHS, Path(what="third", tried=4)),
            "only 4 connections met it, expected at least 5",
        ),
    ],
)
def test_a_path_that_was_not_tried_enough_is_not_measured(
    check: str, paths: Paths, reason: str
) -> None:
    outcome = judge_rollout(check, paths)
    assert outcome.findings == ()
    assert [lack.reason for lack in outcome.not_measured] == [reason]


def test_a_dead_path_counts_however_few_tried_it() -> None:
    dead = Path(what="third", tried=1, failed={"refused": 1})
    (finding,) = judge_rollout("DP-10", (*PATHS, dead)).findings
    assert (finding.object, finding.severity) == ("third", "fail")


def test_only_data_path_checks_judge_a_rollout() -> None:
    with pytest.raises(ValueError, match=r"check 'SY-01' does not judge a rollout, expected one"):
        judge_rollout("SY-01", Result())


def test_unknown_checks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"check 'XX-99': expected one of SY-01"):
        run_check("XX-99", healthy())


def test_the_rollouts_own_result_has_what_the_checks_read() -> None:
    needed = {name for name in vars(RolloutResult) if not name.startswith("_")}
    own = {*dir(rollout.Result), *rollout.Result.__dataclass_fields__}
    assert needed <= own
