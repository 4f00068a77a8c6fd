"""Causes: named when the record shows them, unknown when it does not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_records import (
    ZERO,
    failing_seconds,
    healthy_seconds,
    pod,
    restart_timeline,
    results_of,
    sample,
    server,
)

from pytest_ipvs.ipvs.connections import Connection
from pytest_ipvs.rollout.cause import Diagnosis, diagnose
from pytest_ipvs.rollout.lookup import Entry
from pytest_ipvs.rollout.timeline import Cost, EventTrace
from pytest_ipvs.traffic.results import Second

STUCK = restart_timeline(
    servers=(
        server("node-1", "10.244.1.5", zero=6, gone=None, n=67),
        server("node-2", "10.244.1.5", zero=6, gone=15),
    )
)


def facts(**values: str) -> SimpleNamespace:
    """A node's facts on a current kernel; sysctls by the last part of their key."""
    sysctls = {"conn_reuse_mode": "1", "expire_nodest_conn": "1", "expire_quiescent_template": "1"}
    return SimpleNamespace(
        kernel_release="6.1.0-56-amd64",
        kernel_version="#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-11-01)",
        sysctls={f"net.ipv4.vs.{key}": value for key, value in (sysctls | values).items()},
        proxy=SimpleNamespace(version="v1.36.2", config={}),
    )


def entry(at: float, state: str = "CLOSE", real: str = "10.244.1.5", node: str = "node-1") -> Entry:
    """An entry that sends the sample's tuple to a pod, old-1 unless told otherwise."""
    client, virtual = ("10.244.1.250", 20007), ("10.96.0.10", 80)
    connection = Connection("TCP", *client, *virtual, real, 8080, state, 9)
    return Entry(node=node, connection=connection, at=ZERO + at)


def only(diagnosis: Diagnosis | None) -> Any:
    """The one cause."""
    assert diagnosis is not None
    (cause,) = diagnosis.causes
    assert str(diagnosis) == diagnosis.text == cause.text
    return cause


def test_nothing_to_explain() -> None:
    assert diagnose(results_of(healthy_seconds()), restart_timeline()) is None


def test_how_exact_the_times_are_is_said_once() -> None:
    seconds = healthy_seconds(-10, 0) + failing_seconds(-5, -2, refused=1)
    seconds += failing_seconds(40, 45, after="", no_route=2)
    timeline = restart_timeline(
        costs={"tables": Cost(readings=10, seconds=3.0, period=1.0)}, periods={"node-1": 2.5}
    )
    found = diagnose(results_of(seconds, clock_error=0.04), timeline)
    assert found is not None
    first, second = found.causes
    lines = first.text.splitlines()
    assert lines[-2] == (
        "  how exact the times are: client's clock known to 0.04 s; "
        "tables every 1 s in 0.30 s, up to 2.5 s apart"
    )
    assert lines[-1].startswith("  kind of cause: ")
    assert "how exact" not in second.text


def leftover(**change: Any) -> Any:
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, no_route=3, connect_timeout=7)
    results = results_of(seconds, samples=(sample(20.0), sample(60.0, "connect_timeout")))
    known = {"node-1": facts(conn_reuse_mode="0", expire_nodest_conn="0"), "node-2": facts()}
    arguments: dict[str, Any] = {"facts": known, "entries": (entry(61, "SYN_RECV"),)}
    return only(diagnose(results, STUCK, **{**arguments, **change}))


def test_re_used_tuples_that_follow_a_removed_server() -> None:
    cause = leftover()
    assert (cause.kind, cause.count) == ("reuse_leftover", 540)
    assert cause.classes == {"no_route": 162, "connect_timeout": 378}
    assert (cause.nodes, cause.pods) == (("node-1",), ("old-1",))
    for text in (
        "540 connections failed (378 connect timeout, 162 no route)",
        "example: 10.244.1.250:20007 -> 10.96.0.10:80: connect timeout",
        "the same tuple was answered by old-1 10 s earlier",
        "node-1 holds it in state SYN_RECV for 10.244.1.5:8080 (pod old-1)",
        "old pod old-1 (10.244.1.5); left the endpoints at +5 s; was gone at +16 s",
        "was gone at +16 s; node-1: weight 0 at +6 s, still there at +70 s",
        "node-1: net.ipv4.vs.conn_reuse_mode is 0, expected 1",
        "node-1: net.ipv4.vs.expire_nodest_conn is 0, expected 1",
        "remedy: on node-1: sysctl -w net.ipv4.vs.conn_reuse_mode=1 net.ipv4.vs.expire_nodest",
        "for good: look for what sets them",
        "kind of cause: reuse_leftover",
    ):
        assert text in cause.text
    assert "node-2: net" not in cause.text


def test_without_an_entry_the_busy_old_server_names_the_node() -> None:
    assert leftover(entries=()).nodes == ("node-1",)


def test_unread_sysctls_are_said_to_be_unread() -> None:
    cause = leftover(facts={})
    assert "the sysctls of node-1 were not read" in cause.text
    assert "net.ipv4.vs.conn_reuse_mode=1" in cause.remedy


def test_right_sysctls_point_at_the_kernel() -> None:
    cause = leftover(facts={"node-1": facts()})
    assert "the kernel may lack the fix" in cause.remedy
    assert "conn_reuse_mode is 1, expected 1" in cause.text


def test_a_node_whose_table_is_not_known_is_not_guessed() -> None:
    cause = leftover(entries=(), facts={})
    no_servers = restart_timeline(servers=())
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, no_route=3)
    told = only(diagnose(results_of(seconds), no_servers))
    assert cause.nodes == ("node-1",)
    assert told.nodes == ()
    assert "the node is not known" in told.text


def test_affine_clients_that_stay_with_their_pod() -> None:
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, no_route=10)
    # A fresh port has no previous pod.
    seconds += failing_seconds(16, 70, after="", no_route=2)
    cause = only(
        diagnose(
            results_of(seconds, samples=(sample(30.0),)),
            STUCK,
            facts={"node-1": facts(expire_quiescent_template="0")},
            affinity=True,
        )
    )
    assert (cause.kind, cause.count) == ("template_sticks", 648)
    assert "expire_quiescent_template is 0, expected 1" in cause.text
    assert cause.remedy.startswith("on node-1: sysctl -w net.ipv4.vs.expire_quiescent_template=1")


def test_an_application_that_dies_before_its_endpoint_left() -> None:
    seconds = healthy_seconds(end=5) + failing_seconds(5, 7, after="stays", refused=6)
    seconds += healthy_seconds(7)
    timeline = restart_timeline(
        pods=(
            pod("old-1", "10.244.1.5", deleted_at=5.0, left_at=5.0, stopped_at=5.0, gone_at=8.0),
            *restart_timeline().pods[1:],
        ),
        servers=(server("node-1", "10.244.1.5", zero=7, gone=15),),
    )
    results = results_of(seconds, samples=(sample(5.5, "refused", previous_pod="stays"),))
    cause = only(diagnose(results, timeline))
    assert (cause.kind, cause.count, cause.pods) == ("pod_dies_early", 12, ("old-1",))
    assert "stopped at +5 s; was gone at +8 s; node-1: weight 0 at +7 s" in cause.text
    assert "preStop" in cause.remedy


def test_a_node_that_never_heard_of_it() -> None:
    timeline = restart_timeline(servers=(server("node-2", "10.244.1.5", zero=None, gone=None),))
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, after="stays", no_route=7)
    cause = only(diagnose(results_of(seconds), timeline))
    assert (cause.kind, cause.pods) == ("stale_real_server", ("old-1",))
    assert "node-2: weight 1 and still there at +70 s" in cause.text
    assert "kube-proxy" in cause.remedy


def test_no_endpoint_at_all() -> None:
    timeline = restart_timeline(no_endpoints=((ZERO + 30, ZERO + 33),))
    seconds = healthy_seconds(end=30) + failing_seconds(30, 33, after="", refused=20)
    cause = only(diagnose(results_of(seconds), timeline))
    assert (cause.kind, cause.count) == ("no_endpoints", 60)
    assert "from +30 s to +33 s" in cause.text


def test_failures_before_the_disruption_are_not_its_doing() -> None:
    seconds = failing_seconds(-5, -4, after="", refused=2) + healthy_seconds(0)
    assert only(diagnose(results_of(seconds), restart_timeline())).kind == "before_disruption"


def test_the_unknown_is_said_as_unknown() -> None:
    one = failing_seconds(50, 51, after="stays", read_timeout=1)[0]
    one = replace(one, pods={"stays": 9, "new-1": 10})
    results = results_of(
        [*healthy_seconds(end=50), one, *healthy_seconds(51)],
        samples=(sample(50.2, "read_timeout", previous_pod="stays"),),
    )
    told = EventTrace(
        at=ZERO + 49, kind="Warning", reason="FailedMount", object="Pod web-1", message="no volume"
    )
    cause = only(diagnose(results, restart_timeline(events=(told,))))
    assert cause.kind == "unknown"
    assert "the cause is unknown" in cause.text
    assert "between +50 s and +51 s" in cause.text
    assert "event at +49 s: Warning FailedMount of Pod web-1: no volume" in cause.text
    assert "example: 10.244.1.250:20007" in cause.text


def test_a_client_that_was_starved_is_suspected_itself() -> None:
    late = replace(failing_seconds(50, 51, after="stays", read_timeout=3)[0], late=4)
    cause = only(diagnose(results_of([*healthy_seconds(end=50), late]), restart_timeline()))
    assert (cause.kind, cause.count) == ("client_starved", 3)
    assert "processor time" in cause.remedy


def pods_with_endpoints(**new: Any) -> tuple[Any, ...]:
    """The pods of `restart_timeline`, with the times of their endpoints."""
    old, stays, added = restart_timeline().pods
    return (
        old,
        replace(stays, endpoint_at=ZERO - 20),
        replace(added, **{"endpoint_at": ZERO + 4, **new}),
    )


def late_start(**classes: int) -> list[Second]:
    """The new pod is in service from 4 s on and answers from 10 s on."""
    failing = [
        replace(s, pods={"stays": 10}, failed_after={"stays": 3, "old-1": 3})
        for s in failing_seconds(5, 10, **classes)
    ]
    return [*healthy_seconds(end=5), *failing, *healthy_seconds(10)]


@pytest.mark.parametrize("told", [False, True])
def test_a_pod_that_is_ready_before_it_listens(told: bool) -> None:
    timeline = restart_timeline(
        pods=pods_with_endpoints(),
        servers=(
            server("node-1", "10.244.1.5", zero=5, gone=7),
            replace(server("node-1", "10.244.1.6", zero=None, gone=None), first_seen=ZERO + 4),
        ),
    )
    samples = (sample(7.2, "refused", previous_pod="stays"),)
    entries = (entry(8, real="10.244.1.6"),) if told else ()
    results = results_of(late_start(refused=6), samples=samples)
    cause = only(diagnose(results, timeline, entries=entries))
    assert (cause.kind, cause.count) == ("ready_before_listening", 30)
    assert cause.pods == ("new-1",)
    assert "a real server since +4.0 s, its first answer came at +10 s" in cause.text
    assert "readinessProbe" in cause.remedy


def test_a_pod_that_stops_serving_while_it_is_an_endpoint() -> None:
    failing = [
        replace(s, pods={"stays": 10}) for s in failing_seconds(40, 44, after="stays", reset=6)
    ]
    seconds = [*healthy_seconds(end=40), *failing, *healthy_seconds(44)]
    timeline = restart_timeline(pods=pods_with_endpoints(restarts=1))
    cause = only(diagnose(results_of(seconds), timeline))
    assert (cause.kind, cause.count, cause.pods) == ("readiness_lag", 24, ("new-1",))
    assert "no answer for a while between +40 s and +44 s" in cause.text
    assert "restarted 1 times" in cause.text


def test_a_starved_new_pod_is_not_late() -> None:
    starved = [replace(s, pods={"stays": 10}) for s in failing_seconds(16, 70, no_route=10)]
    timeline = replace(
        STUCK,
        pods=pods_with_endpoints(),
        servers=(*STUCK.servers, server("node-1", "10.244.1.6", zero=None, gone=None)),
    )
    early = [replace(s, pods={"stays": 20}) for s in healthy_seconds(end=16)]
    cause = only(diagnose(results_of([*early, *starved]), timeline))
    assert (cause.kind, cause.pods) == ("reuse_leftover", ("old-1",))


def test_the_clients_own_limits_are_told_when_they_are_many() -> None:
    short = Second(t=1030, due=20, classes={"no_port": 20})
    cause = only(diagnose(results_of([*healthy_seconds(end=30), short]), restart_timeline()))
    assert (cause.kind, cause.count) == ("client_limit", 20)
    few = Second(t=1030, due=20, classes={"no_port": 1, "ok": 19})
    assert diagnose(results_of([*healthy_seconds(end=30), few]), restart_timeline()) is None


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        ({"server_rst": 40}, "server_resets"),
        ({"server_fin": 35, "none": 5}, "syn_dropped"),
        ({"server_fin": 19, "server_rst": 21}, "server_resets"),
    ],
)
def test_resent_syns(after: dict[str, int], kind: str) -> None:
    slow = Second(t=1020, due=40, classes={"ok": 40}, resent=40, resent_after=after)
    told = sample(20.0, "slow", kind="slow", errno="", connect_ms=1003.2, resent=1)
    cause = only(diagnose(results_of([slow], samples=(told,)), restart_timeline()))
    assert (cause.kind, cause.count) == (kind, 40)
    assert "connected after 1003 ms, 1 resent SYN" in cause.text


def test_several_causes_are_ranked() -> None:
    seconds = failing_seconds(-5, -4, after="", refused=2) + failing_seconds(20, 70, no_route=10)
    diagnosis = diagnose(results_of(seconds), STUCK)
    assert diagnosis is not None
    assert [(c.kind, c.count) for c in diagnosis.causes] == [
        ("reuse_leftover", 500),
        ("before_disruption", 2),
    ]


def test_a_share_of_mixed_failures_is_never_counted_twice() -> None:
    mixed = replace(failing_seconds(20, 21, no_route=4)[0], failed_after={"old-1": 3})
    diagnosis = diagnose(results_of([mixed]), STUCK)
    assert diagnosis is not None
    assert sum(cause.count for cause in diagnosis.causes) == 4
