"""Which evidence a cause needs: the same failures, with and without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
from test_cause import STUCK, entry, facts, only

from pytest_ipvs.ipvs.tables import ServiceKey
from pytest_ipvs.rollout.cause import diagnose
from pytest_ipvs.rollout.sorting import split
from pytest_ipvs.rollout.sysctls import may_follow
from pytest_ipvs.rollout.timeline import Timeline
from pytest_ipvs.traffic.results import Second

TOLD, FITS = "told by the nodes' connection entries", "by what fits the times"
OLD, STAYS, NEW = "10.244.1.5", "10.244.2.5", "10.244.1.6"
# 5.14.0 of a kernel that tracks stable has no fix d, and nothing is known of a vendor's.
LACKS_D, VENDORS = "5.14.0", "5.14.0-70.el9.x86_64"
KINDS = Mapping[str, tuple[int, bool]]


def node(mode: str, expire: str, template: str = "1", kernel: str = "6.1.176") -> SimpleNamespace:
    """A node's facts."""
    known = facts(
        conn_reuse_mode=mode, expire_nodest_conn=expire, expire_quiescent_template=template
    )
    known.kernel_release, known.kernel_version = kernel, ""
    return known


@pytest.mark.parametrize(
    ("facts", "affinity", "expected"),
    [
        (node("1", "1"), False, False),
        (node("0", "0"), False, True),
        (node("1", "0"), False, True),
        (node("0", "1"), False, False),
        (node("0", "1", kernel=LACKS_D), False, True),
        (node("0", "1", kernel=VENDORS), False, None),
        (node("0", "1", kernel="unreadable"), False, None),
        (node("1", "1", kernel=LACKS_D), False, False),
        (node("1", "1", "0"), False, False),
        (node("1", "1", "0"), True, True),
        (node("1", "1"), True, False),
        (SimpleNamespace(sysctls={}), False, None),
        (None, False, None),
    ],
)
def test_which_nodes_may_send_a_tuple_to_a_removed_server(
    facts: Any, affinity: bool, expected: bool | None
) -> None:
    assert may_follow(facts, affinity=affinity) is expected


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"node-1": node("0", "0")}, "reuse_leftover"),
        ({}, "reuse_leftover"),
        ({"node-1": node("1", "1"), "node-2": node("1", "1")}, "unknown"),
        ({"node-1": node("1", "1"), "node-2": node("0", "0")}, "reuse_leftover"),
    ],
    ids=["allowed", "not read", "excluded", "one node allows it"],
)
def test_by_the_times_alone_a_leftover_needs_a_node_that_allows_it(
    known: dict[str, Any], kind: str
) -> None:
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, no_route=10)
    cause = only(diagnose(results_of(seconds), STUCK, facts=known))
    assert (cause.kind, cause.count, cause.decisive) == (kind, 540, False)


def test_what_a_node_was_seen_to_do_its_settings_do_not_exclude() -> None:
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, refused=10)
    results = results_of(seconds, samples=(sample(60.0, "refused"),))
    known = {"node-1": node("1", "1")}
    cause = only(diagnose(results, STUCK, facts=known, entries=(entry(61),)))
    assert (cause.kind, cause.count) == ("reuse_leftover", 540)
    assert "the kernel may lack the fix" in cause.remedy


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        ({"previous_pod": "stays"}, [entry(61)]),
        ({"reused": False, "previous_pod": ""}, [entry(61)]),
        ({}, [entry(61, "TIME_WAIT")]),
        ({}, [entry(80)]),
        ({}, [entry(59)]),
        ({}, [entry(61, real="10.9.9.9")]),
        ({}, []),
    ],
    ids=[
        *("another pod's tuple", "a fresh tuple", "an entry of a connection that went well"),
        *("read too late", "read before", "an address of no pod", "no entry"),
    ],
)
def test_an_entry_that_proves_nothing(change: dict[str, Any], entries: list[Any]) -> None:
    """In its place the times speak, and here the nodes' settings exclude what they say."""
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, refused=10)
    results = results_of(seconds, samples=(sample(60.0, "refused", **change),))
    known = {"node-1": node("1", "1"), "node-2": node("1", "1")}
    cause = only(diagnose(results, STUCK, facts=known, entries=entries))
    assert (cause.kind, cause.decisive) == ("unknown", False)


def test_a_real_server_that_is_nobodys_is_named() -> None:
    nobodys = "10.9.9.9"
    strange = replace(server("node-2", nobodys, zero=None, gone=None), weighted_at=ZERO + 60)
    timeline = replace(restart_timeline(), servers=(*restart_timeline().servers, strange))
    seconds = healthy_seconds(end=59) + failing_seconds(59, 62, after="stays", no_route=10)
    known = {"node-1": node("1", "1"), "node-2": node("1", "1")}
    told = entry(61, "SYN_RECV", real=nobodys, node="node-2")
    for entries, decisive in (([told], True), ([], False)):
        results = results_of(seconds, samples=(sample(60.0, "no_route", previous_pod="stays"),))
        cause = only(diagnose(results, timeline, facts=known, entries=entries))
        assert (cause.kind, cause.pods) == ("stale_real_server", (nobodys,))
        assert cause.decisive == decisive
        assert f"real server {nobodys}, which is no endpoint's; node-2: weight 1" in cause.text
    # A pod of another Deployment may be an endpoint of the Service as well.
    shared = replace(timeline, endpoints=frozenset({nobodys}))
    assert only(diagnose(results, shared, facts=known, entries=[told])).kind == "unknown"


def listed(**old: Any) -> Timeline:
    """Three pods that node-1 sends new connections to at 20 s; old-1 leaves at 25 s."""
    times = {"deleted_at": 25.0, "left_at": 25.0, "gone_at": 40.0}
    _, stays, new = restart_timeline().pods
    return restart_timeline(
        pods=(
            pod("old-1", OLD, **{**times, **old}),
            replace(stays, endpoint_at=ZERO - 20),
            replace(new, endpoint_at=ZERO + 4),
        ),
        servers=tuple(
            server("node-1", address, zero=26 if address == OLD else None, gone=None)
            for address in (OLD, STAYS, NEW)
        ),
    )


def refused_at_20(*answers: Mapping[str, int]) -> list[Second]:
    """Answers before, of other pods during, and after two seconds with 6 refused connections."""
    before, during, after = answers
    seconds = [replace(s, pods=before) for s in healthy_seconds(end=20)]
    failing = failing_seconds(20, 22, after="stays", refused=6)
    seconds += [replace(s, pods=during) for s in failing]
    return [*seconds, *(replace(s, pods=after) for s in healthy_seconds(22))]


ALL = {"old-1": 6, "stays": 7, "new-1": 7}
OTHERS = {"stays": 7, "new-1": 7}
YOUNG = {"old-1": 6, "stays": 7}


@pytest.mark.parametrize(
    ("answers", "real", "old", "kind", "name"),
    [
        ((YOUNG, YOUNG, ALL), NEW, {}, "ready_before_listening", "new-1"),
        ((ALL, YOUNG, ALL), NEW, {}, "readiness_lag", "new-1"),
        ((ALL, ALL, ALL), STAYS, {}, "readiness_lag", "stays"),
        ((ALL, OTHERS, OTHERS), OLD, {"deleted_at": 19.0}, "pod_dies_early", "old-1"),
        ((ALL, OTHERS, OTHERS), OLD, {"stopped_at": 20.5}, "pod_dies_early", "old-1"),
        ((ALL, OTHERS, ALL), OLD, {"deleted_at": 19.0}, "readiness_lag", "old-1"),
        ((ALL, OTHERS, OTHERS), OLD, {"deleted_at": 25.0}, "readiness_lag", "old-1"),
    ],
    ids=[
        *("young", "young, had answered", "answers meanwhile", "dies", "has stopped"),
        *("is back", "leaves later"),
    ],
)
def test_who_refused_tells_what_it_was(
    answers: Any, real: str, old: dict[str, float], kind: str, name: str
) -> None:
    results = results_of(
        refused_at_20(*answers), samples=(sample(20.5, "refused", previous_pod="stays"),)
    )
    known = {"node-1": node("1", "1")}
    cause = only(diagnose(results, listed(**old), facts=known, entries=(entry(22, real=real),)))
    assert (cause.kind, cause.count, cause.pods, cause.decisive) == (kind, 12, (name,), True)
    assert cause.text.endswith(f"kind of cause: {kind}, {TOLD}")
    assert f"node-1 holds it in state CLOSE for {real}:8080 (pod {name})" in cause.text


def test_a_pod_that_resets_while_it_answers_is_no_readiness_lag() -> None:
    seconds = [replace(s, classes={"ok": 14, "reset": 6}) for s in refused_at_20(ALL, ALL, ALL)]
    seconds = [*healthy_seconds(end=20), *seconds[30:32], *healthy_seconds(22)]
    results = results_of(seconds, samples=(sample(20.5, "reset", previous_pod="stays"),))
    known = {"node-1": node("1", "1")}
    cause = only(diagnose(results, listed(), facts=known, entries=(entry(22, real=STAYS),)))
    assert cause.kind == "unknown"


@pytest.mark.parametrize(
    ("late", "kind"), [(0, "unknown"), (4, "client_starved")], ids=["in time", "starved"]
)
def test_a_time_out_at_a_pod_that_answers_says_nothing_of_it(late: int, kind: str) -> None:
    """A SYN that is sent again may be scheduled anew: its entry is not where the first one went."""
    failing = failing_seconds(20, 21, after="stays", connect_timeout=6)
    failing = [replace(s, pods=ALL, late=late) for s in failing]
    told = sample(20.5, "connect_timeout", previous_pod="stays")
    results = results_of([*healthy_seconds(end=20), *failing], samples=(told,))
    known = {"node-1": node("1", "1")}
    entries = (entry(25, "SYN_RECV", real=STAYS),)
    assert only(diagnose(results, listed(), facts=known, entries=entries)).kind == kind


def test_two_causes_in_one_second_share_its_failures() -> None:
    ports = (20007, 20008, 20009)
    samples = tuple(sample(20.5, "refused", source_port=p, previous_pod="stays") for p in ports)
    entries = [entry(22, real=real) for real in (NEW, NEW, OLD)]
    entries = [
        replace(one, connection=one.connection._replace(client_port=port))
        for one, port in zip(entries, ports, strict=True)
    ]
    results = results_of(refused_at_20(YOUNG, {"stays": 7}, OTHERS), samples=samples)
    diagnosis = diagnose(
        results, listed(deleted_at=19.0), facts={"node-1": node("1", "1")}, entries=entries
    )
    assert diagnosis is not None
    assert [(c.kind, c.count, c.pods) for c in diagnosis.causes] == [
        ("ready_before_listening", 8, ("new-1",)),
        ("pod_dies_early", 4, ("old-1",)),
    ]


@given(st.integers(0, 500), st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 9)))
def test_shares_add_up(number: int, weights: dict[Any, int]) -> None:
    parts = split(number, Counter(weights))
    assert sum(parts.values()) == (number if weights else 0)
    for kind, part in parts.items():
        assert abs(part - number * weights[kind] / sum(weights.values())) < 1


def test_a_pod_that_serves_on_after_it_left_has_not_died() -> None:
    """The table is read late, and the new pod's real server too: the old pod is not to blame."""
    _, stays, new = restart_timeline().pods
    timeline = restart_timeline(
        pods=(
            pod("old-1", OLD, deleted_at=5.0, left_at=5.0, stopped_at=15.0, gone_at=16.0),
            replace(stays, endpoint_at=ZERO - 20),
            replace(new, endpoint_at=ZERO + 5),
        ),
        servers=(
            replace(server("node-1", OLD, zero=9, gone=20), weighted_at=ZERO + 5.5),
            replace(server("node-1", NEW, zero=None, gone=None, n=9), first_seen=ZERO + 9),
        ),
    )
    before = [replace(s, pods={"stays": 10, "old-1": 10}) for s in healthy_seconds(end=6)]
    seconds = [*before, *failing_seconds(6, 12, after="stays", refused=6), *healthy_seconds(12)]
    cause = only(diagnose(results_of(seconds), timeline, facts={"node-1": node("1", "1")}))
    assert (cause.kind, cause.count) == ("ready_before_listening", 36)
    assert cause.text.endswith(f"kind of cause: ready_before_listening, {FITS}")
    died = replace(timeline.pods[0], stopped_at=ZERO + 6)
    timeline = replace(timeline, pods=(died, *timeline.pods[1:]))
    cause = diagnose(results_of(seconds), timeline, facts={"node-1": node("1", "1")}).causes[0]
    assert (cause.kind, cause.pods) == ("pod_dies_early", ("old-1",))


def second(t: int, **fields: Any) -> Second:
    """One second of 20 connections that a pod answers which stays."""
    classes = fields.pop("classes", {})
    whole = {"ok": 20 - sum(classes.values()), **classes}
    return Second(t=int(ZERO) + t, due=20, classes=whole, pods={"stays": whole["ok"]}, **fields)


def ranked(*seconds: Second, timeline: Timeline | None = None) -> list[tuple[str, int]]:
    """The causes in their order."""
    diagnosis = diagnose(results_of(list(seconds)), timeline or restart_timeline())
    assert diagnosis is not None
    return [(cause.kind, cause.count) for cause in diagnosis.causes]


def test_the_unknown_and_the_clients_limits_come_last() -> None:
    gap = restart_timeline(no_endpoints=((ZERO + 30, ZERO + 31),))
    some = [
        second(-5, classes={"no_port": 19}),
        second(30, classes={"refused": 20}),
        second(50, classes={"http_error": 5}),
        second(-4, classes={"refused": 3}),
    ]
    assert ranked(*some, timeline=gap) == [
        ("no_endpoints", 20),
        ("before_disruption", 3),
        ("unknown", 5),
        ("client_limit", 19),
    ]
    largest = second(51, classes={"http_error": 18})
    assert ranked(*some, largest, timeline=gap)[0] == ("unknown", 23)


def test_resent_syns_that_failures_explain_are_told_beside_them() -> None:
    failing = second(-5, classes={"refused": 8})
    after = second(-1, resent=5, resent_after={"failed": 5})
    diagnosis = diagnose(results_of([failing, after]), restart_timeline())
    cause = only(diagnosis)
    assert (cause.kind, cause.count) == ("before_disruption", 8)
    assert "besides, 5 connects needed a resent SYN: on the tuple of a connection" in cause.text
    of_its_own = second(40, resent=2, resent_after={"server_fin": 2})
    assert ranked(failing, after, of_its_own) == [("before_disruption", 8), ("syn_dropped", 2)]


def test_only_resent_syns_that_count_tell_of_resets() -> None:
    """The client was behind in the second in which many were sent again."""
    behind = second(40, resent=9, resent_after={"server_rst": 9}, late=2)
    apart = second(45, resent=3, resent_after={"server_rst": 2, "server_fin": 1})
    diagnosis = diagnose(results_of([behind, apart]), restart_timeline())
    assert diagnosis is not None
    cause, limit = diagnosis.causes
    assert (cause.kind, cause.count, limit.kind) == ("server_resets", 3, "client_limit")
    assert "3 connects needed a resent SYN, about 1 s each: 2 of them on a tuple" in cause.text


def test_what_is_so_for_all_virtual_servers_is_said_once() -> None:
    node_port = ServiceKey("TCP", "10.0.2.101", 30080)
    same = server("node-1", OLD, zero=6, gone=None, n=67)
    other = replace(same, key=node_port)
    seconds = healthy_seconds(end=16) + failing_seconds(16, 70, no_route=10)

    def text(*servers: Any) -> str:
        return only(diagnose(results_of(seconds), restart_timeline(servers=servers))).text

    told = text(same, other)
    assert told.count("node-1: weight 0 at +6 s, still there at +70 s") == 1
    assert "10.0.2.101" not in told
    told = text(same, replace(other, gone_at=ZERO + 20))
    assert "node-1: weight 0 at +6 s, still there at +70 s (10.96.0.10:80/TCP)" in told
    assert "node-1: weight 0 at +6 s, removed at +20 s (10.0.2.101:30080/TCP)" in told
