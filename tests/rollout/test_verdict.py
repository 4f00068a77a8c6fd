"""The verdict: passed only with power, never by default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rollout_records import (
    ZERO,
    failing_seconds,
    healthy_seconds,
    restart_timeline,
    results_of,
)

from pytest_ipvs.policy import Policy
from pytest_ipvs.rollout.timeline import Gap
from pytest_ipvs.rollout.verdict import baseline_problem, judge
from pytest_ipvs.traffic.results import Results, Second

POLICY = Policy(min_reused_tuples=100)


def test_a_healthy_run_passes_without_a_reason() -> None:
    assert judge(results_of(healthy_seconds()), restart_timeline(), POLICY) == ("passed", ())


def test_one_failure_fails() -> None:
    seconds = healthy_seconds(end=69) + failing_seconds(69, 70, refused=1)
    verdict, reasons = judge(results_of(seconds), restart_timeline(), POLICY)
    assert (verdict, reasons) == ("failed", ("1 of 1600 connections failed",))


def test_a_failure_fails_even_if_the_client_died_afterwards() -> None:
    results = results_of(failing_seconds(0, 2, no_route=1), finished=False)
    assert judge(results, restart_timeline(), POLICY)[0] == "failed"


def no_reuse(second: Second) -> Second:
    return replace(second, reused=0, reused_after={})


def not_met(second: Second) -> Second:
    return replace(second, reused_after={"stays": 20})


def own_limit(second: Second) -> Second:
    return replace(second, classes={"ok": 19, "no_port": 1})


def late(second: Second) -> Second:
    return replace(second, late=1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_reuse, "only 0 re-used tuples after the old pods left, expected at least 100"),
        (not_met, "only 0 re-used tuples had been answered by a pod that left"),
        (
            own_limit,
            "the client's own limits kept 80 of 1600 connections from being made (no port)",
        ),
        (late, "the client was behind its schedule for 80 of 1600 connections"),
    ],
)
def test_a_weak_client_is_inconclusive(change: Any, reason: str) -> None:
    results = results_of([change(second) for second in healthy_seconds()])
    verdict, reasons = judge(results, restart_timeline(), POLICY)
    assert verdict == "inconclusive"
    assert any(text.startswith(reason) for text in reasons), reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finished": False}, "the client did not come to its end"),
        ({"problems": ("node-1 cannot be reached: gone",)}, "node-1 cannot be reached: gone"),
    ],
)
def test_a_client_that_died_is_inconclusive(change: dict[str, Any], reason: str) -> None:
    results = results_of(healthy_seconds(), **change)
    verdict, reasons = judge(results, restart_timeline(), POLICY)
    assert verdict == "inconclusive"
    assert reasons[0].startswith(reason)


def behind(t: int, second: Second) -> Second:
    return replace(second, late=1) if second.t == int(ZERO) + t else second


@pytest.mark.parametrize(
    ("failed", "late", "verdict"),
    [
        ({"connect_timeout": 2}, 33, "inconclusive"),
        ({"read_timeout": 1}, 29, "inconclusive"),
        ({"connect_timeout": 2, "refused": 1}, 33, "failed"),
        ({"connect_timeout": 2}, 50, "failed"),
        ({"connect_timeout": 2}, 20, "failed"),
    ],
)
def test_time_outs_of_a_client_that_was_starved_are_neither_failed_nor_passed(
    failed: dict[str, int], late: int, verdict: str
) -> None:
    seconds = healthy_seconds(end=30) + failing_seconds(30, 31, **failed) + healthy_seconds(31)
    results = results_of([behind(late, second) for second in seconds])
    told, reasons = judge(results, restart_timeline(), POLICY)
    assert told == verdict
    assert verdict == "failed" or "while the client itself had fallen behind" in reasons[0]


@pytest.mark.parametrize(("end", "verdict"), [(31.0, "failed"), (30.2, "inconclusive")])
def test_time_outs_without_an_endpoint_are_not_the_starved_clients(
    end: float, verdict: str
) -> None:
    seconds = healthy_seconds(end=30) + failing_seconds(30, 31, connect_timeout=2)
    results = results_of([behind(33, second) for second in seconds + healthy_seconds(31)])
    timeline = restart_timeline(no_endpoints=((ZERO + 29, ZERO + end),))
    assert judge(results, timeline, POLICY)[0] == verdict


def test_no_connection_at_all_is_inconclusive() -> None:
    verdict, reasons = judge(Results(), restart_timeline(), POLICY)
    assert verdict == "inconclusive"
    assert "the client made no connection" in reasons


def test_few_own_limits_do_not_matter() -> None:
    seconds = [own_limit(second) for second in healthy_seconds()[:10]] + healthy_seconds()[10:]
    assert judge(results_of(seconds), restart_timeline(), POLICY) == ("passed", ())


@pytest.mark.parametrize(("end", "verdict"), [(-1.0, "passed"), (30.0, "inconclusive")])
def test_a_gap_in_the_record_matters_once_something_is_disrupted(end: float, verdict: str) -> None:
    gap = Gap(what="node-2", start=ZERO - 15, end=ZERO + end, reason="timed out")
    told, reasons = judge(results_of(healthy_seconds()), restart_timeline(gaps=(gap,)), POLICY)
    assert told == verdict
    assert verdict == "passed" or reasons == (
        "gap in the record: node-2 was not read for 45 s: timed out",
    )


@pytest.mark.parametrize(("failing", "verdict"), [({}, "inconclusive"), ({"refused": 1}, "failed")])
def test_re_used_ports_that_ipvs_does_not_see_prove_nothing(
    failing: dict[str, int], verdict: str
) -> None:
    seconds = healthy_seconds(end=69) + failing_seconds(69, 70, **failing)
    told, reasons = judge(
        results_of(seconds), restart_timeline(), POLICY, unseen="IPVS does not see the ports"
    )
    assert told == verdict
    assert reasons[-1] == "IPVS does not see the ports"


def test_without_a_disruption_nothing_is_proven() -> None:
    timeline = restart_timeline(phases=restart_timeline().phases[:1])
    verdict, reasons = judge(results_of(healthy_seconds()), timeline, POLICY)
    assert verdict == "inconclusive"
    assert "nothing was disrupted while the client ran" in reasons


def test_a_scale_up_needs_no_tuple_of_an_old_pod() -> None:
    pods = tuple(
        replace(pod, left_at=None, deleted_at=None, gone_at=None) for pod in restart_timeline().pods
    )
    results = results_of([not_met(second) for second in healthy_seconds()])
    assert judge(results, restart_timeline(pods=pods), POLICY) == ("passed", ())


def test_answers_that_name_no_pod_ask_for_re_used_tuples_only() -> None:
    seconds = [replace(s, pods={}, reused_after={}) for s in healthy_seconds()]
    assert judge(results_of(seconds), restart_timeline(), POLICY) == ("passed", ())


def test_affinity_needs_fresh_ports_too() -> None:
    fresh = results_of(healthy_seconds(end=0))
    verdict, reasons = judge(results_of(healthy_seconds()), restart_timeline(), POLICY, fresh=fresh)
    assert verdict == "inconclusive"
    assert reasons == ("no connection with a fresh source port was made after the old pods left",)


def test_a_target_that_never_answered_is_not_disrupted() -> None:
    assert baseline_problem(results_of(healthy_seconds())) == ""
    refused = results_of(failing_seconds(-10, 0, refused=20))
    assert baseline_problem(refused) == (
        "no connection succeeded before the disruption (200 refused)"
    )
    assert "none was made" in baseline_problem(Results())
