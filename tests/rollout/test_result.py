"""The numbers of a result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rollout_records import (
    ZERO,
    failing_seconds,
    healthy_seconds,
    pod,
    restart_timeline,
    results_of,
    server,
)

from pytest_ipvs.report.rollouts import rollout_row
from pytest_ipvs.rollout.result import NotObservedError, Result
from pytest_ipvs.rollout.timeline import Cost


def result(**change: Any) -> Result:
    """The result of a healthy restart."""
    fields: dict[str, Any] = {
        "target": "shop/web",
        "address": "10.96.0.10:80",
        "results": results_of(healthy_seconds()),
        "timeline": restart_timeline(),
        "verdict": "passed",
        "reasons": (),
        "drain_budget": 210.0,
        "client": "node-1",
    }
    return Result(**{**fields, **change})


def test_power_and_bound() -> None:
    told = result()
    assert told.reused_tuples == 65 * 20
    assert told.exposed_tuples == 12 * 10
    assert told.bound == pytest.approx(3 / 1400)


READINGS = {
    "costs": {
        "API": Cost(readings=10, seconds=0.5, period=10.0),
        "tables": Cost(readings=70, seconds=8.4, period=1.0),
    },
    "periods": {"API": 10.42, "node-1": 1.2, "node-2": 2.31, "tables": 90.0, "events": 90.0},
}
READ = (
    "read API every 10 s in 0.05 s, up to 10.4 s apart; "
    "tables every 1 s in 0.12 s, up to 2.3 s apart"
)


def test_what_the_numbers_are_worth_is_told() -> None:
    results = results_of(healthy_seconds(), clock_error=0.023)
    told = result(results=results, timeline=restart_timeline(**READINGS), remarks=("a remark",))
    worth = "failure rate below 0.21% (95 % bound); client's clock known to 0.02 s"
    assert len(f"    {READ}") <= 100
    assert told.precision == (worth, READ)
    assert rollout_row("shop/web", told).note == "\n    ".join([worth, READ, "a remark"])
    lines = told.evidence.splitlines()
    assert {worth, "a remark"} <= set(lines)
    assert any("70 readings" in line and "at most 2.3 s apart" in line for line in lines)


def test_reasons_come_before_what_the_numbers_are_worth() -> None:
    weak = rollout_row("shop/web", result(verdict="inconclusive", reasons=("too little", "gap")))
    worth = "client's clock not compared"
    assert weak.note == f"too little; gap\n    failure rate below 0.21% (95 % bound); {worth}"
    lost = result(results=results_of(failing_seconds(0, 5, refused=2)), verdict="failed")
    assert rollout_row("shop/web", lost).note == f"10 refused\n    {worth}"
    few = result(results=results_of(healthy_seconds(0, 1)))
    assert few.precision == (f"failure rate below 15% (95 % bound); {worth}",)


def test_failures_leave_no_bound() -> None:
    told = result(results=results_of(failing_seconds(0, 5, refused=2)))
    assert told.bound is None
    assert told.failures == {"refused": 10}


def test_resent_syns_near_lost_connects_are_told_apart() -> None:
    healthy = [replace(second, resent=1) for second in healthy_seconds(20, 30)]
    lost = [replace(second, resent=2) for second in failing_seconds(10, 15, connect_timeout=3)]
    told = result(results=results_of([*healthy_seconds(0, 10), *lost, *healthy]))
    assert (told.resent, told.resent_apart) == (20, 10)
    after = [replace(second, resent_after={"failed": 1}) for second in healthy]
    assert result(results=results_of([*lost, *after])).resent_apart == 0
    refused = [replace(second, resent=2) for second in failing_seconds(10, 15, refused=3)]
    told = result(results=results_of([*refused, *healthy]))
    assert told.resent_apart == told.resent == 20


def test_resent_syns_of_a_client_that_stood_still_are_told_apart() -> None:
    healthy = [replace(second, resent=1) for second in healthy_seconds(0, 10)]
    late = [replace(s, late=3) if s.t == int(ZERO) + 5 else s for s in healthy]
    told = result(results=results_of(late))
    assert (told.resent, told.resent_apart) == (10, 7)


def test_resent_syns_while_there_is_no_endpoint_are_told_apart() -> None:
    healthy = [replace(second, resent=1) for second in healthy_seconds(0, 20)]
    gap = ((ZERO + 10.2, ZERO + 11.8),)
    told = result(results=results_of(healthy), timeline=restart_timeline(no_endpoints=gap))
    # Three seconds on either side: the tables follow a little later.
    assert (told.resent, told.resent_apart) == (20, 12)


def test_share_of_new_pods() -> None:
    told = result()
    assert told.share_of_new_pods == pytest.approx(0.5)
    assert told.fair_share_of_new_pods == pytest.approx(0.5)


def test_without_new_pods_there_is_no_share() -> None:
    told = result(timeline=restart_timeline(pods=restart_timeline().pods[:2]))
    assert told.share_of_new_pods is None
    assert told.fair_share_of_new_pods is None


def test_drained_servers_are_not_stale() -> None:
    told = result()
    assert told.drained_after == pytest.approx(15.0)
    assert told.stale_real_servers() == ()
    assert told.stale_real_servers(after=20) == ()
    assert told.left_servers() == ()


def test_a_server_that_stayed_longer_is_stale() -> None:
    (stale,) = result().stale_real_servers(after=12)
    assert (stale.node, stale.pod.name, stale.drained) == ("node-1", "old-1", True)
    assert str(stale) == (
        "node-1: 10.96.0.10:80/TCP -> 10.244.1.5:8080 (pod old-1, weight 0, 0 active and "
        "0 inactive connections) still there 15 s after its endpoint left"
    )


def test_a_server_that_is_still_there_is_stale_once_it_is_old_enough() -> None:
    told = result(
        timeline=restart_timeline(
            servers=(server("node-1", "10.244.1.5", zero=6, gone=None, n=67),)
        )
    )
    assert told.drained_after is None
    (stale,) = told.stale_real_servers(after=60)
    assert stale.age == pytest.approx(65.0)
    assert told.left_servers() == (stale,)


def test_a_record_that_is_too_short_gives_no_answer() -> None:
    told = result(
        timeline=restart_timeline(servers=(server("node-1", "10.244.1.5", zero=6, gone=None),))
    )
    with pytest.raises(NotObservedError) as error:
        told.stale_real_servers()
    assert "was still there when the record ended 65 s after its endpoint left" in str(error.value)
    assert "at least 210 s or a smaller 'after'" in str(error.value)


def test_an_address_that_a_new_pod_got_is_not_the_old_ones() -> None:
    pods = (
        *restart_timeline().pods,
        pod("new-2", "10.244.1.5", first_seen=17.0, ready_at=20.0),
    )
    servers = (server("node-1", "10.244.1.5", zero=None, gone=None),)
    told = result(timeline=restart_timeline(pods=pods, servers=servers))
    assert told.stale_real_servers(after=1) == ()


def test_evidence_tells_the_story_in_order() -> None:
    told = result(verdict="inconclusive", reasons=("too little",)).evidence
    expected = (
        "shop/web through 10.96.0.10:80, client on node-1: inconclusive",
        "too little",
        "connections 1600, failures 0",
        "+0.0 s  phase restart",
        "+4.0 s  new pod new-1 (10.244.1.6) is ready",
        "+5.0 s  old pod old-1 (10.244.1.5) left the endpoints",
        "+6.0 s  node-1: 10.96.0.10:80/TCP -> 10.244.1.5:8080 has weight 0",
        "+20.0 s  node-1: 10.96.0.10:80/TCP -> 10.244.1.5:8080 is removed",
    )
    at = -1
    for text in expected:
        found = told.find(text, at + 1)
        assert found > at, text
        at = found


def test_times_of_phases() -> None:
    timeline = restart_timeline()
    assert (timeline.disrupted_at, timeline.completed_at) == (1000.0, 1018.0)
    assert replace(timeline, phases=()).completed_at is None
