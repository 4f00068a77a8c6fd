"""Entries that are asked for while they are fresh, and which of them tell where a failure went."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_records import results_of, sample
from rollout_world import wait_until

from pytest_ipvs.ipvs.objects import Service, ServicePort
from pytest_ipvs.rollout.lookup import TUPLES, find_entries
from pytest_ipvs.rollout.target import Target
from pytest_ipvs.rollout.trace import PortWatch, Tracer, watch_ports
from pytest_ipvs.traffic.job import JobPlace
from pytest_ipvs.traffic.placement import Place
from pytest_ipvs.traffic.plan import Plan
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


PORTS = ((20000, 20149),)


class Greps:
    """Nodes that answer grep, each look with the next word: "found", "none", "denied" …"""

    def __init__(self, **answers: str) -> None:
        self.answers = {name.replace("_", "-"): words.split() for name, words in answers.items()}
        self.asked: list[tuple[str, str]] = []

    def run(self, name: str, command: str, *args: str) -> SimpleNamespace:
        """One node's answer; the last word stays."""
        self.asked.append((name, command % args))
        words = self.answers[name]
        word = words.pop(0) if len(words) > 1 else words[0]
        return {
            "found": SimpleNamespace(rc=0, stdout=LINE, stderr=""),
            "none": SimpleNamespace(rc=1, stdout="", stderr=""),
            "denied": SimpleNamespace(rc=2, stdout="", stderr="grep: Permission denied\n"),
            "odd": SimpleNamespace(rc=0, stdout="", stderr=""),
            "gone": SimpleNamespace(reason="no answer within 20 s"),
        }[word]

    def map(self, function: Any, names: Any) -> dict[str, Any]:
        """Each node's answer."""
        return {name: function(name) for name in names}


def watch_of(
    pool: Greps, windows: tuple[tuple[int, int], ...] = PORTS, ports: int = 150
) -> PortWatch:
    """Watches a client of so many ports."""
    return PortWatch(pool, sorted(pool.answers), lambda: windows, ports=ports, served=(80, 30080))


def test_ports_that_no_node_knows_are_changed_on_the_way() -> None:
    pool = Greps(node_1="none", node_2="none")
    watch = watch_of(pool)
    watch.look()
    # Once may be too soon.
    assert (watch.reason, watch.remark) == ("", "")
    watch.look()
    assert watch.reason.startswith("IPVS does not see the client's ports: something on the way")
    assert watch.remark == ""
    assert [node for node, _ in pool.asked] == ["node-1", "node-2"] * 2


def test_one_port_that_is_known_is_enough_and_asked_for_once() -> None:
    pool = Greps(node_1="none", node_2="none found")
    watch = watch_of(pool)
    for _ in range(4):
        watch.look()
    assert (watch.reason, watch.remark) == ("", "")
    assert len(pool.asked) == 4


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("denied", "grep: Permission denied"),
        ("gone", "no answer within 20 s"),
        ("odd", "its answer can't be understood"),
    ],
)
def test_a_node_that_was_not_read_proves_nothing(word: str, why: str) -> None:
    watch = watch_of(Greps(node_1="none", node_2=word))
    watch.look()
    watch.look()
    assert watch.reason == ""
    assert watch.remark == (
        f"whether IPVS sees the client's ports was not looked up (node-2: {why})"
    )


def test_a_known_port_counts_beside_a_node_that_was_not_read() -> None:
    watch = watch_of(Greps(node_1="denied", node_2="found"))
    watch.look()
    watch.look()
    assert (watch.reason, watch.remark) == ("", "")


@pytest.mark.parametrize(
    ("windows", "ports"),
    # Ports of the kernel's choice; a client that has not told; a window with holes.
    [(PORTS, 0), ((), 150), (((10000, 29999),), 150)],
)
def test_ports_that_are_not_known_are_not_asked_for(
    windows: tuple[tuple[int, int], ...], ports: int
) -> None:
    pool = Greps(node_1="none")
    watch = watch_of(pool, windows, ports)
    watch.look()
    watch.look()
    assert pool.asked == []
    assert watch.reason == ""
    assert "the client's ports are not known" in watch.remark


def test_nodes_are_asked_for_the_ports_of_client_and_service_by_one_command() -> None:
    pool = Greps(node_1="none")
    watch_of(pool, ((20000, 20001), (21000, 21000)), 3).look()
    ((_, command),) = pool.asked
    assert command == (
        "grep -m 1 -i -E -e ^TCP [^ ]+ (4E20|4E21|5208) [^ ]+ (0050|7580)  /proc/net/ip_vs_conn"
    )
    many = Greps(node_1="none")
    watch_of(many, ((20000, 25999),), 6000).look()
    ((_, command),) = many.asked
    asked = [int(word, 16) for word in command.split("(")[1].split(")")[0].split("|")]
    assert asked == list(range(20000, 26000, 30))


@pytest.mark.parametrize("address", ["0AF401FA", "fd00:0000:0000:0000:0000:0000:0000:0005"])
def test_the_command_finds_the_line_of_an_entry(tmp_path: Path, address: str) -> None:
    line = f"TCP {address} 4E21 {address} 0050 {address} 1F90 TIME_WAIT      118\n"
    other = f"TCP {address} 4F99 {address} 0050 {address} 4E21 TIME_WAIT      118\n"
    table = tmp_path / "ip_vs_conn"

    def run(_: str, command: str, *args: str) -> Any:
        words = command.replace("/proc/net/ip_vs_conn", str(table)) % tuple(map(shlex.quote, args))
        done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
        return SimpleNamespace(rc=done.returncode, stdout=done.stdout, stderr=done.stderr)

    for text, seen in ((other + line, True), (other, False)):
        table.write_text(text)
        pool = Greps(node_1="none")
        pool.run = run  # type: ignore[method-assign]
        watch = watch_of(pool)
        watch.look()
        watch.look()
        assert (bool(watch.reason), watch.remark) == (not seen, "")


def test_a_watch_looks_when_the_tracer_begins_and_when_it_ends() -> None:
    pool = Greps(node_1="none")
    watch = watch_of(pool)
    tracer = Tracer(pool, ["node-1"], list, [watch])
    tracer.start()
    wait_until(lambda: pool.asked, "the tracer did not begin")
    tracer.finish()
    assert len(pool.asked) == 2
    assert watch.reason


def test_a_watch_that_can_not_look_does_not_cost_the_run() -> None:
    pool = Greps(node_1="none")
    pool.map = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
    watch = watch_of(pool)
    watch.look()
    assert watch.reason == ""
    assert "division by zero" in watch.remark


HERE = Place(None, "this machine")
NODE = Place(None, "node node-1", "node-1")
JOB = Place(JobPlace(cluster=None, count=2), "a Job of 2 pods")


@pytest.mark.parametrize(
    ("place", "host", "port", "watched"),
    [
        (HERE, "10.96.0.10", 80, True),
        (HERE, "10.0.2.101", 30080, True),
        (NODE, "10.96.0.10", 80, False),
        (NODE, "10.0.2.101", 30080, False),
        # A proxy in front of the Service.
        (NODE, "192.0.2.7", 443, True),
        (JOB, "10.96.0.10", 80, False),
        (JOB, "10.0.2.101", 30080, True),
    ],
)
def test_clients_are_watched_where_something_can_be_on_the_way(
    place: Place, host: str, port: int, watched: bool
) -> None:
    number = ServicePort(name="", protocol="TCP", port=80, node_port=30080)
    service = Service(
        namespace="shop", name="web", type="NodePort", cluster_ips=("10.96.0.10",), ports=(number,)
    )
    target = Target(
        namespace="shop",
        name="web",
        selector="app=web",
        service=service,
        port=number,
        address=host,
        address_port=port,
    )
    plan = Plan(host=host, port=port, ports=150)

    def watch(plan: Plan) -> PortWatch | None:
        return watch_ports(Greps(node_1="none"), ["node-1"], target, place, plan, lambda: PORTS)

    assert (watch(plan) is not None) == watched
    for change in ({"ports": 0}, {"order": "recent"}, {"mode": "hold"}):
        assert watch(replace(plan, **change)) is None
