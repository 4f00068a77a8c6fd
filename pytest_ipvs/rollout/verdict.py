"""Passed, failed or inconclusive: a run without power never passes."""

from __future__ import annotations

from typing import Any

from pytest_ipvs.rollout.power import needed_exposed, own_limit_share
from pytest_ipvs.rollout.result import Verdict, exposed, since_removal
from pytest_ipvs.rollout.timeline import Timeline
from pytest_ipvs.traffic.results import FAILURES, TIMEOUTS, Results, plural


def judge(
    results: Results,
    timeline: Timeline,
    policy: Any,
    *,
    fresh: Results | None = None,
    unseen: str = "",
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, the worst first. ``policy`` is a `policy.Policy`.

    ``unseen``: why the ports that the client used again are no re-used tuples to IPVS (see
    `PortWatch`), "" where nothing says so.
    """
    weak = [*client_reasons(results, own_limit_share(policy)), *_record_reasons(timeline)]
    weak += [unseen] if unseen else []
    weak += _power_reasons(results, timeline, policy)
    if fresh is not None and not since_removal(fresh, timeline).connections:
        weak.append("no connection with a fresh source port was made after the old pods left")
    failures = results.failures
    number = sum(failures.values())
    if number and number == starved_timeouts(results, timeline):
        # Neither is true: that the cluster lost them, nor that nothing was lost.
        lost = f"{plural(number, 'connection')} timed out"
        why = f"{lost}, all while the client itself had fallen behind"
        return "inconclusive", (why, *weak)
    if failures:
        return "failed", (f"{number} of {results.connections} connections failed", *weak)
    return ("inconclusive", tuple(weak)) if weak else ("passed", ())


def starved_timeouts(results: Results, timeline: Timeline) -> int:
    """Time-outs in seconds in which the client did not get its processor time.

    While the record shows that there was no endpoint, a time-out needs no other explanation.
    """
    starved = {
        t
        for t in results.starved_seconds
        if not any(start <= t + 0.5 <= end for start, end in timeline.no_endpoints)
    }
    return sum(
        s.classes.get(name, 0) for s in results.seconds if s.t in starved for name in TIMEOUTS
    )


def client_reasons(results: Results, share: float) -> list[str]:
    """Why what a client saw proves little; ``share`` of its connections may be its own limits."""
    reasons = list(results.problems)
    if not results.finished:
        reasons.append("the client did not come to its end, so its last words are missing")
    due, own = results.due, results.own_limits
    missed = own.pop("missed_schedule", 0)
    limits = sum(own.values())
    if due and limits / due > share:
        named = " and ".join(sorted(own)).replace("_", " ")
        reasons.append(
            f"the client's own limits kept {limits} of {due} connections from being made ({named})"
        )
    if due and missed / due > share:
        reasons.append(f"the client was behind its schedule for {missed} of {due} connections")
    if not results.connections:
        reasons.append("the client made no connection")
    return reasons


def _record_reasons(timeline: Timeline) -> list[str]:
    began = timeline.disrupted_at
    if began is None:
        return ["nothing was disrupted while the client ran"]
    return [f"gap in the record: {gap}" for gap in timeline.gaps if gap.end > began]


def _power_reasons(results: Results, timeline: Timeline, policy: Any) -> list[str]:
    reasons = []
    least = policy.min_reused_tuples
    after = since_removal(results, timeline)
    if after.reused < least:
        reasons.append(
            f"only {after.reused} re-used tuples after the old pods left, expected at least "
            f"{least}: without them zero failures prove nothing"
        )
    met = exposed(results, timeline)
    needed = needed_exposed(policy)
    if timeline.old_pods and met is not None and met < needed:
        reasons.append(
            f"only {met} re-used tuples had been answered by a pod that left, expected at least "
            f"{needed}"
        )
    return reasons


def baseline_problem(results: Results) -> str:
    """Why a target is not fit to be disrupted, judged by its baseline; "" when it is."""
    if results.classes["ok"]:
        return ""
    failures = ", ".join(
        f"{number} {name.replace('_', ' ')}"
        for name, number in results.classes.most_common()
        if name in FAILURES
    )
    return f"no connection succeeded before the disruption ({failures or 'none was made'})"
