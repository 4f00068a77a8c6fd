"""Results add up, whatever pieces they come in."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs.traffic.collect import Collector
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import KEPT_SAMPLES, Results, Second, plural, spell

LINES = [
    {"k": "start", "t": 1000.5, "uptime": 50.0, "pid": 7, "plan": {}},
    {"k": "s", "t": 1001, "n": 2, "c": {"ok": 1}, "p": {"web-1": 1}, "max": 2.5},
    {
        "k": "f",
        "t": 1001.5,
        "cls": "no_route",
        "err": "EHOSTUNREACH",
        "src": "10.244.1.250",
        "sport": 20007,
        "reused": True,
        "ms": None,
        "resent": 0,
        "prev": "web-0",
        "prev_t": 991.5,
        "prev_end": "server_fin",
    },
    {"k": "s", "t": 1001, "c": {"no_route": 1}, "r": 1, "rp": {"web-0": 1}, "fp": {"web-0": 1}},
    {
        "k": "s",
        "t": 1002,
        "n": 1,
        "c": {"ok": 1},
        "p": {"web-1": 1},
        "late": 1,
        "wait": 2,
        "max": 1,
    },
    {"k": "h", "b": {"40": 2}},
    {
        "k": "end",
        "t": 1003.0,
        "reason": "duration",
        "totals": {"ok": 2, "no_route": 1, "server_fin": 2},
    },
]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)


def collected(text: str, *pieces: int) -> Results:
    """Results of a text cut at some places."""
    collector = Collector("10.96.0.10:80")
    cuts = [0, *sorted(pieces), len(text)]
    for start, end in itertools.pairwise(cuts):
        collector.feed(text[start:end])
    return collector.results()


def test_lines_become_results() -> None:
    results = collected(TEXT)
    assert results.classes == {"ok": 2, "no_route": 1}
    assert (results.due, results.connections, results.reused) == (3, 3, 1)
    assert results.own_limits == {"missed_schedule": 3}
    assert results.failed_after == results.reused_after == {"web-0": 1}
    assert [second.max_connect_ms for second in results.seconds] == [2.5, 1.0]
    assert (results.finished, results.problems) == (True, ())
    (sample,) = results.failed
    assert sample.tuple_text == "10.244.1.250:20007 -> 10.96.0.10:80"
    assert (sample.previous_pod, sample.previous_at) == ("web-0", 991.5)
    assert results.percentile(0.5) == results.percentile(0.99)


@given(st.lists(st.integers(0, len(TEXT)), max_size=5))
def test_the_pieces_do_not_matter(cuts: list[int]) -> None:
    assert collected(TEXT, *cuts) == collected(TEXT)


def test_without_its_last_line_a_client_has_not_finished() -> None:
    cut = TEXT[: TEXT.rindex('{"k": "end"')]
    assert not collected(cut).finished
    assert collected(cut).classes == collected(TEXT).classes


@pytest.mark.parametrize(
    ("reason", "finished"),
    [("duration", True), ("stopped", True), ("heartbeat", False), ("signal", False)],
)
def test_only_an_end_that_was_meant_is_one(reason: str, finished: bool) -> None:
    assert collected(TEXT.replace('"duration"', f'"{reason}"')).finished is finished


def test_lost_lines_are_a_problem() -> None:
    lost = TEXT.replace(json.dumps(LINES[3]) + "\n", "")
    assert collected(lost).problems == (
        "the client's lines do not add up to the totals at its end",
    )


def test_unreadable_lines_are_a_problem() -> None:
    (problem,) = collected(TEXT + "Killed\n").problems
    assert "cannot be read: 'Killed'" in problem


def test_the_clients_clock_is_brought_to_ours() -> None:
    collector = Collector("10.96.0.10:80")
    collector.feed(TEXT)
    # Its clock said 1010.5 at uptime 60, while ours said 2010.
    collector.measure_clock(60.0, 2009.0, 2011.0)
    collector.measure_clock(60.0, 2009.9, 2010.1)
    collector.measure_clock(61.0, 2005.0, 2017.0)
    results = collector.results()
    assert [second.t for second in results.seconds] == [2001, 2002] or [
        second.t for second in results.seconds
    ] == [2000, 2001]
    assert results.samples[0].t == pytest.approx(2001.0)
    assert results.samples[0].previous_at == pytest.approx(1991.0)
    assert results.clock_error == pytest.approx(0.11)


def test_samples_are_bounded_and_the_newest_are_kept() -> None:
    collector = Collector("10.96.0.10:80")
    for number in range(5 * KEPT_SAMPLES):
        collector.feed(json.dumps(LINES[2] | {"t": 1000.0 + number}) + "\n")
    samples = collector.results().samples
    assert len(samples) == 2 * KEPT_SAMPLES
    assert (samples[0].t, samples[-1].t) == (1000.0, 1000.0 + 5 * KEPT_SAMPLES - 1)


counts = st.dictionaries(st.sampled_from(["ok", "refused", "no_port"]), st.integers(1, 9))
seconds = st.builds(
    Second,
    t=st.integers(0, 5),
    due=st.integers(0, 9),
    classes=counts,
    pods=counts,
    reused=st.integers(0, 9),
    reused_after=counts,
    late=st.integers(0, 9),
    waited=st.integers(0, 9),
    max_connect_ms=st.floats(0, 9),
)
results_of = st.builds(
    lambda found, finished: Results(
        seconds=tuple({s.t: s for s in found}.values()), finished=finished
    ),
    st.lists(seconds, max_size=4),
    st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(results_of, min_size=1, max_size=3))
def test_merging_adds_exactly_and_in_any_order(parts: list[Results]) -> None:
    merged = Results.merge(parts)
    assert merged.connections == sum(part.connections for part in parts)
    assert merged.reused == sum(part.reused for part in parts)
    assert merged.own_limits == sum((p.own_limits for p in parts), start=type(merged.pods)())
    assert merged.finished == all(part.finished for part in parts)
    assert Results.merge(parts[::-1]).seconds == merged.seconds


def test_only_missing_processor_time_excuses_timeouts() -> None:
    """A start that waits for a port counts against the client, but it had its time."""
    waited = Results(seconds=(Second(t=1000, due=20, waited=3),))
    assert (waited.own_limits, waited.starved_seconds) == ({"missed_schedule": 3}, frozenset())
    late = Results(seconds=(Second(t=1000, due=20, late=3),))
    assert late.own_limits == waited.own_limits
    assert 1000 in late.starved_seconds


def test_nothing_merged_has_not_finished() -> None:
    assert not Results.merge(()).finished


def test_counts_are_told_in_words() -> None:
    assert spell({"no_route": 1, "refused": 1, "connect_timeout": 7}) == (
        "7 connect timeout, 1 no route, 1 refused"
    )
    assert [plural(count, "connect") for count in range(3)] == [
        "0 connects",
        "1 connect",
        "2 connects",
    ]


def test_a_window_has_the_seconds_and_samples_of_its_time() -> None:
    results = collected(TEXT)
    assert results.window(1002, math.inf).classes == {"ok": 1}
    assert results.window(0, 1002).failures == {"no_route": 1}
    assert results.window(1002, math.inf).samples == ()
    assert results.window(0, 1002).percentile(0.5) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"host": ""}, "plan: host is '', expected an address or a name"),
        ({"port": 0}, "plan: port is 0, expected a port from 1 to 65535"),
        ({"rate": 0}, "plan: rate is 0, expected connections per second, more than 0"),
        ({"first_port": 65000, "ports": 1000}, "1024 or more, with room for 1000 ports"),
        ({"mode": "udp"}, "plan: mode is 'udp', expected http, tcp, echo or hold"),
        ({"path": "/a b"}, "plan: path is '/a b', expected printable text without spaces"),
        ({"read_timeout": 0}, "plan: read_timeout is 0, expected seconds, more than 0"),
    ],
)
def test_a_plan_that_cannot_be_says_why(change: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError) as told:
        Plan(**{"host": "10.96.0.10", "port": 80, **change})  # type: ignore[arg-type]
    assert text in str(told.value)


def test_a_plan_knows_its_target_and_when_ports_return() -> None:
    plan = Plan(host="fd00::a", port=80, rate=20, ports=200)
    assert (plan.target, plan.return_time) == ("[fd00::a]:80", 10.0)
    assert Plan(host="web", port=80, ports=0).return_time is None
