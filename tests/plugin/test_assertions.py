"""The assertions: what passes, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_fakes import FakeCluster, World
from rollout_fakes import LEFT, TIMELINE, result, results

from pytest_ipvs.assertions import (
    assert_affinity_follows_endpoints,
    assert_balanced,
    assert_no_connection_failures,
    assert_no_slow_connects,
    assert_no_stale_real_servers,
    assert_sysctl,
    assert_tables_match_api,
    sysctl_problem,
)
from pytest_ipvs.cluster.errors import ClusterError
from pytest_ipvs.ipvs.tables import ServiceKey, parse_table
from pytest_ipvs.policy import Policy
from pytest_ipvs.rollout.timeline import ServerTrace

KEY = "net.ipv4.vs.conntrack"


def failure(assertion: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assertion(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("observed", "expected", "problem"),
    [
        ("1", 1, ""),
        ("1", "1", ""),
        ("1", (0, 1), ""),
        ("3 50", "3\t50", ""),
        ("0", 1, f"{KEY} is 0, expected 1; to set it: sysctl -w {KEY}=1"),
        ("5", ("0", "1"), f"{KEY} is 5, expected 0 or 1; to set it: sysctl -w {KEY}=0"),
        (None, 1, f"{KEY} does not exist there, expected 1"),
    ],
)
def test_sysctl_problem(observed: str | None, expected: Any, problem: str) -> None:
    assert sysctl_problem(KEY, observed, expected) == problem


def test_sysctl_that_was_not_read() -> None:
    text = sysctl_problem(KEY, None, 1, "permission denied")
    assert text == f"{KEY} was not read: permission denied, expected 1"


def test_assert_sysctl_names_the_node() -> None:
    node: Any = SimpleNamespace(name="node-2", sysctl={KEY: "0"})
    assert_sysctl(node, KEY, 0)
    assert failure(assert_sysctl, node, KEY, 1).startswith(f"node-2: {KEY} is 0, expected 1")
    assert "does not exist there" in failure(assert_sysctl, node, "a.b", 1)


def test_assert_sysctl_on_a_silent_node() -> None:
    class Silent(dict[str, str]):
        def __missing__(self, key: str) -> str:
            raise ClusterError("node node-2 can't be reached: no route to host")

    node: Any = SimpleNamespace(name="node-2", sysctl=Silent())
    assert "was not read: node node-2 can't be reached" in failure(assert_sysctl, node, KEY, 1)


def cluster(monkeypatch: pytest.MonkeyPatch, **world: Any) -> Any:
    monkeypatch.setattr(FakeCluster, "world", World(**world))
    return FakeCluster(None, Policy())


STRANGER = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600063:0050 rr
  -> 0AF40105:1F90      Masq    1      0          0
"""


def test_assert_tables_match_api(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_tables_match_api(cluster(monkeypatch))
    odd = cluster(monkeypatch, tables={"node-2": parse_table(STRANGER)})
    # Two readings within a moment: the difference is younger than what a table may lag.
    policy = replace(odd.policy, converge_budget=0.0)
    odd.policy = policy
    text = failure(assert_tables_match_api, odd)
    assert "TB-01: " in text
    assert "node-2: " in text
    assert "10.96.0.99:80" in text


def test_silent_node_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = cluster(monkeypatch, silent={"node-3": "no route to host"})
    assert "node-3 did not answer: no route to host" in failure(assert_tables_match_api, odd)


def test_table_that_was_not_read_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = cluster(
        monkeypatch,
        tables={"node-1": None},
        unread={"node-1": {"table": "permission denied"}},
    )
    assert "permission denied" in failure(assert_tables_match_api, odd)


def test_no_connection_failures() -> None:
    assert_no_connection_failures(result())
    assert_no_connection_failures(results())
    text = failure(assert_no_connection_failures, result(failing={"no_route": 2, "refused": 1}))
    assert text.startswith("210 of 2000 connections failed: 140 no route, 70 refused")
    assert "10.244.1.250:20007 -> 10.96.0.10:80: no route (EHOSTUNREACH)" in text
    assert "re-used tuples" in text


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ({"reused": 0}, "inconclusive: only 0 re-used tuples"),
        ({"finished": False}, "inconclusive: the client did not come to its end"),
    ],
)
def test_zero_failures_without_power_fail(client: dict[str, Any], why: str) -> None:
    assert why in failure(assert_no_connection_failures, result(**client))


def test_client_alone_must_have_worked() -> None:
    text = failure(assert_no_connection_failures, replace(results(), seconds=()))
    assert text == "inconclusive: the client made no connection"


@pytest.mark.parametrize("check", [assert_no_connection_failures, assert_no_slow_connects])
def test_a_client_alone_that_met_its_own_limits_proves_nothing(check: Callable[..., None]) -> None:
    limited = replace(results().seconds[0], due=1000, classes={"ok": 1, "no_port": 999})
    text = failure(check, replace(results(), seconds=(limited,)))
    assert text.startswith("inconclusive: the client's own limits kept 999 of 1000 connections")


def test_no_slow_connects() -> None:
    assert_no_slow_connects(result())
    text = failure(assert_no_slow_connects, result(resent=2))
    assert text.startswith("140 of 2000 connects needed a resent SYN, expected none")
    assert "140 server rst" in text
    assert "let the application end its connections with FIN" in text
    assert_no_slow_connects(result(resent=2), allowed=140)
    assert "expected at most 139" in failure(assert_no_slow_connects, result(resent=2), allowed=139)


def test_balanced() -> None:
    assert_balanced(result())
    starved = result()
    seconds = tuple(replace(s, pods={"web-other": 20}) for s in starved.results.seconds)
    starved = replace(starved, results=replace(starved.results, seconds=seconds))
    assert "expected  at least 50 %" in failure(assert_balanced, starved)
    assert_balanced(starved, min_share=0.0)


def test_affinity_follows_endpoints() -> None:
    assert_affinity_follows_endpoints(result(affinity=True))
    text = failure(
        assert_affinity_follows_endpoints, result(affinity=True, failing={"no_route": 5})
    )
    assert text.startswith("PS-02: ")
    text = failure(assert_affinity_follows_endpoints, result(affinity=False))
    assert "session affinity: the Service of this rollout has none" in text


def server(*, gone_at: float | None) -> ServerTrace:
    return ServerTrace(
        node="node-2",
        key=ServiceKey(protocol="TCP", address="10.96.0.10", port=80),
        address="10.244.1.5",
        port=8080,
        first_seen=1000,
        last_seen=1100,
        weight=0,
        active=3,
        inactive=7,
        weight_zero_at=LEFT,
        gone_at=gone_at,
    )


def test_stale_real_servers_of_a_rollout() -> None:
    assert_no_stale_real_servers(result(), after=10)
    left = replace(result(), timeline=replace(TIMELINE, servers=(server(gone_at=None),)))
    text = failure(assert_no_stale_real_servers, left, after=60)
    assert text.startswith("1 old real servers stayed in the nodes' tables, expected none")
    assert "node-2: " in text
    # The record ends before the budget does: that is no proof of anything.
    assert failure(assert_no_stale_real_servers, left).startswith("not measured: ")
    drained = replace(result(), timeline=replace(TIMELINE, servers=(server(gone_at=LEFT + 30),)))
    assert_no_stale_real_servers(drained, after=60)


def test_stale_real_servers_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_no_stale_real_servers(cluster(monkeypatch))
