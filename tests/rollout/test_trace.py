"""Entries that are asked for while they are fresh, and which of them tell where a failure went."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rollout_records import results_of, sample

from pytest_ipvs.rollout.lookup import TUPLES, find_entries
from pytest_ipvs.rollout.trace import Tracer
from pytest_ipvs.traffic.results import Sample

LINE = "TCP 0AF401FA 4E27 0A60000A 0050 0AF40105 1F90 CLOSE            9\n"
WAY = ("10.96.0.10", 80)


class Pool:
    """Nodes that answer grep."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    def run(self, name: str, command: str, *args: str) -> SimpleNamespace:
        """One node's answer."""
        self.asked.append((name, command % args))
        text = self.answers[name]
        return SimpleNamespace(rc=0 if text else 1, stdout=text, stderr="")

    def map(self, function: Any, names: Any) -> dict[str, Any]:
        """Each node's answer; one that can't be reached has a reason only."""
        return {
            name: function(name) if name in self.answers else SimpleNamespace(reason="gone")
            for name in names
        }


def test_entries_are_looked_up_on_the_nodes() -> None:
    pool = Pool(**{"node-1": LINE, "node-2": "", "node-4": "not a table\n"})
    nodes = ["node-1", "node-2", "node-3", "node-4"]
    (found,) = find_entries(pool, nodes, [(sample(1.0), *WAY)])
    assert (found.node, found.connection.real) == ("node-1", "10.244.1.5")
    (_, command), *_ = pool.asked
    assert command == "grep -i -F -e TCP 0AF401FA 4E27 0A60000A 0050  /proc/net/ip_vs_conn"


def test_ipv6_entries_are_spelt_as_the_kernel_does() -> None:
    pool = Pool(**{"node-1": ""})
    find_entries(pool, ["node-1"], [(sample(1.0, source="fd01::2"), "fd96::10", 80)])
    ((_, command),) = pool.asked
    assert "TCP fd01:0000:0000:0000:0000:0000:0000:0002 4E27 fd96:0000" in command


def test_no_sample_asks_nobody() -> None:
    pool = Pool(**{"node-1": ""})
    assert find_entries(pool, ["node-1"], []) == ()
    assert pool.asked == []


def test_of_many_failures_some_of_all_the_time_are_asked_for() -> None:
    pool = Pool(**{"node-1": ""})
    many = [(sample(n / 10, source_port=20000 + n), *WAY) for n in range(3 * TUPLES)]
    find_entries(pool, ["node-1"], many)
    ((_, command),) = pool.asked
    ports = [int(words.split()[2], 16) for words in command.split("-e ")[1:]]
    assert ports == list(range(20000 + 3 * TUPLES - 1, 20000, -3))


def tracer_of(pool: Pool, *ways: list[Sample]) -> Tracer:
    """A tracer of clients that go to 10.96.0.10:80, :81 and so on."""
    host, port = WAY
    return Tracer(
        pool,
        sorted(pool.answers),
        lambda: [
            (results_of([], samples=tuple(failed)), host, port + n) for n, failed in enumerate(ways)
        ],
    )


def test_each_failure_is_asked_for_once_and_then_only_where_it_was_known() -> None:
    pool = Pool(**{"node-1": "", "node-2": LINE, "node-3": ""})
    failed = [sample(20.0, "refused")]
    tracer = tracer_of(pool, failed)
    tracer.look()
    tracer.look()
    assert [node for node, _ in pool.asked] == ["node-1", "node-2", "node-3"]
    (entry,) = tracer.entries
    assert (entry.node, entry.connection.real) == ("node-2", "10.244.1.5")
    # It timed out, so it is told of later than what began after it.
    failed.append(sample(18.0, "connect_timeout", source_port=20008))
    tracer.look()
    (_, (node, command)) = pool.asked[2:]
    assert node == "node-2"
    assert "4E28" in command
    assert "4E27" not in command


def test_all_clients_failures_are_asked_for_at_once() -> None:
    pool = Pool(**{"node-1": ""})
    tracer = tracer_of(pool, [sample(20.0)], [sample(20.0)], [])
    tracer.look()
    ((_, command),) = pool.asked
    assert "0A60000A 0050 " in command
    assert "0A60000A 0051 " in command


def test_the_last_failures_are_asked_for_at_the_end() -> None:
    pool = Pool(**{"node-1": LINE})
    tracer = tracer_of(pool, [sample(20.0)])
    tracer.start()
    tracer.finish()
    assert len(tracer.entries) == 1
    tracer.finish()
    assert len(tracer.entries) == 1


def test_a_look_that_fails_does_not_cost_the_run() -> None:
    pool = Pool()
    tracer = tracer_of(pool, [sample(20.0, source="not an address")])
    tracer.finish()
    assert (tracer.entries, pool.asked) == ((), [])
