"""Whole runs: a real client over loopback, a cluster in memory."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_world import World

from pytest_ipvs.rollout import DisruptionNotAllowed, Rollout, RolloutError, affinity_probe
from pytest_ipvs.rollout import disrupt as disrupt_module
from pytest_ipvs.rollout import recorder as recorder_module
from pytest_ipvs.rollout import run as rollout_module
from pytest_ipvs.traffic import run as run_module

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(disrupt_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(recorder_module, "API_PERIOD", 0.1)
    monkeypatch.setattr(recorder_module, "TABLE_PERIOD", 0.1)


def quick(world: World, *, plan: dict[str, Any] | None = None, **options: Any) -> Rollout:
    """A run whose client speaks often."""
    return Rollout(world, "shop/web", plan={"tick": 0.1, **(plan or {})}, **options)


@pytest.fixture
def make_world() -> Iterator[Any]:
    """Makes worlds, and ends them."""
    worlds: list[World] = []

    def make(*args: Any, **options: Any) -> World:
        worlds.append(World(*args, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_the_nodes_to_avoid_are_those_of_all_clients(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    place = rollout_module.place

    def seen(cluster: Any, where: Any, *, avoid: Any) -> Any:
        asked.append((where, avoid))
        return place(cluster, "local", avoid=avoid)

    monkeypatch.setattr(rollout_module, "place", seen)
    options = {"client": "job:2", "also": ["cluster-ip@node"], "avoid": ["node-1"]}
    with quick(make_world(), baseline=0.3, **options) as run:
        run.abandon()
    assert asked == [("job:2", ("node-1",)), ("node", ("node-1",))]


def test_a_healthy_restart_passes(make_world: Any) -> None:
    said: list[str] = []
    world = make_world()
    # The share of new pods begins up to two seconds after the last of them was ready.
    with quick(world, progress=said.append, settle=2.2) as run:
        run.restart()
    assert (run.verdict, run.reasons) == ("passed", ())
    assert not run.failures
    assert run.reused_tuples >= 50
    assert run.share_of_new_pods == pytest.approx(1.0)
    assert run.result.fair_share_of_new_pods == pytest.approx(1.0)
    assert {pod.name for pod in run.timeline.old_pods} == {"web-1-1", "web-1-2"}
    assert run.stale_real_servers() == ()
    # How many connections there were is up to the machine; the rule of three is not.
    began = run.timeline.disrupted_at
    assert began is not None
    tried = run.result.results.window(began, math.inf).connections
    assert run.bound == pytest.approx(3 / tried)
    assert run.result.cause is None
    assert [phase.name for phase in run.timeline.phases] == ["baseline", "restart", "settle"]
    assert said[0].startswith("shop/web: 100 connections a second over 40 ports from this machine")
    assert "shop/web: restart" in said
    assert said[-1].startswith("shop/web: passed, ")


def test_ctrl_c_does_not_wait_for_clients_to_start(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[run_module.TrafficRun] = []

    def start(self: run_module.TrafficRun) -> None:
        begun.append(self)
        assert self._given_up.wait(60), "nobody told it to give up"
        self._go_on()

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.TrafficRun, "start", start)
    monkeypatch.setattr(rollout_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), quick(make_world()):
        pass
    assert begun


def test_re_used_tuples_that_follow_a_removed_pod_fail_with_their_cause(make_world: Any) -> None:
    world = make_world(leftover=True)
    with quick(world) as run:
        run.restart()
    assert run.verdict == "failed"
    assert set(run.failures) == {"reset"}
    (cause,) = run.result.cause.causes
    assert (cause.kind, cause.nodes) == ("reuse_leftover", ("node-1",))
    assert cause.count == sum(run.failures.values())
    assert "node-1 holds it in state CLOSE for 10.244.1." in cause.text
    assert "net.ipv4.vs.conn_reuse_mode is 0, expected 1" in cause.text
    assert "net.ipv4.vs.expire_nodest_conn is 0, expected 1" in cause.text
    assert "sysctl -w" in cause.remedy
    assert cause.text.splitlines()[0] in run.evidence
    assert {stale.pod.name for stale in run.stale_real_servers(after=1)} <= {"web-1-1", "web-1-2"}


@pytest.fixture
def proxied(make_world: Any) -> Iterator[tuple[World, str]]:
    """A world, and the address of a proxy that connects to it with ports of its own."""
    world = make_world()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as front:

        def pass_on(client: socket.socket) -> None:
            there = ("127.0.0.1", world.port)
            with client, socket.create_connection(there) as server, suppress(OSError):
                server.sendall(client.recv(4096))
                while text := server.recv(4096):
                    client.sendall(text)

        def serve() -> None:
            with suppress(OSError), ThreadPoolExecutor(16) as beside:
                while True:
                    beside.submit(pass_on, front.accept()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield world, f"127.0.0.1:{front.getsockname()[1]}"
        front.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_other_ports_on_the_way_prove_nothing(proxied: tuple[World, str]) -> None:
    world, via = proxied
    with quick(world, via=via) as run:
        run.restart()
    assert not run.failures
    assert run.verdict == "inconclusive"
    assert run.reasons[0].startswith("IPVS does not see the client's ports: something on the way")


def test_entries_that_can_not_be_read_are_only_remarked(make_world: Any) -> None:
    world = make_world()
    answer = world.run

    def run(name: str, command: str, *args: str) -> Any:
        if command.startswith("grep -m 1"):
            return SimpleNamespace(rc=2, stdout="", stderr="Permission denied")
        return answer(name, command, *args)

    world.run = run
    with quick(world, baseline=0.1, settle=0.1) as told:
        told.disrupt("a change", lambda: None)
    assert not any("IPVS does not see" in reason for reason in told.reasons)
    assert told.result.remarks == (
        "whether IPVS sees the client's ports was not looked up (node-1: Permission denied)",
    )


def test_scale_and_delete_in_one_run(make_world: Any) -> None:
    world = make_world()
    with quick(world, settle=1.8) as run:
        run.scale(3)
        (name,) = run.delete_pods(1)
    assert (run.verdict, run.reasons) == ("passed", ())
    names = [phase.name for phase in run.timeline.phases]
    assert names == ["baseline", "scale to 3", "settle", f"delete {name}", "settle"]
    assert ("DELETE", f"/api/v1/namespaces/shop/pods/{name}") in world.calls


def test_an_endpoint_that_leaves_alive_shows_what_the_kernel_does(make_world: Any) -> None:
    world = make_world(leftover=True)
    run = Rollout(world, "pytest-ipvs-x/web", plan={"tick": 0.1}, settle=3.0)
    with run:
        name = run.endpoint_leaves()
    probe = run.result.probe
    assert probe is not None
    assert (probe.pod, probe.problem) == (name, "")
    assert probe.old_answers > 0
    assert probe.fix_d is None
    (old,) = (pod for pod in run.timeline.pods if pod.name == name)
    assert (old.released, old.gone_at) == (True, None)
    assert world.released == []
    assert f"kernel: {probe.old_answers} answers by {name} at weight 0" in run.evidence


def test_only_a_throw_away_workload_may_lose_an_endpoint(make_world: Any) -> None:
    world = make_world()
    with quick(world, baseline=0.1, settle=0.1) as run:
        with pytest.raises(RolloutError, match="expected a throw-away workload"):
            run.endpoint_leaves()
        run.abandon()
    assert world.calls == []
    assert run.result is None


def test_one_disruption_is_seen_on_several_ways(make_world: Any) -> None:
    world = make_world()
    there, nowhere = f"127.0.0.1:{world.port}", "127.0.0.1:1"
    plan = {"connect_timeout": 0.2}
    ways = (f"{there}@local", nowhere)
    with quick(world, plan=plan, also=ways, baseline=0.1, settle=0.1) as run:
        run.disrupt("a change", lambda: None)
    assert run.through(f"{there}@local").results.connections > 0
    assert run.through(f"{there}@local").timeline is run.timeline
    with pytest.raises(RolloutError, match="no connection succeeded before the disruption"):
        run.through(nowhere)
    (remark,) = run.result.remarks
    assert remark.startswith(f"{nowhere} was not measured: shop/web through {nowhere}: no conn")
    with pytest.raises(RolloutError, match="there is no way 'x', expected one of 127"):
        run.through("x")


def test_another_run_sees_what_concerns_both(make_world: Any) -> None:
    world = make_world()
    options = {"baseline": 0.1, "settle": 0.1}
    with quick(world, **options) as one, quick(world, **options) as two:
        one.alongside(two)
        one.disrupt("a change", lambda: None)
    for run in (one, two):
        names = [phase.name for phase in run.timeline.phases]
        assert names == ["baseline", "a change", "settle"]


def test_the_affinity_probe_leaves_nothing_and_uses_both_kinds_of_ports(make_world: Any) -> None:
    world = make_world(affinity=True)
    result = affinity_probe(world, settle=1.8, plan={"tick": 0.1})
    assert (result.verdict, result.reasons) == ("passed", ())
    assert result.affinity
    assert result.fresh is not None
    assert result.fresh.connections > 0
    assert result.fresh.reused == 0
    assert world.objects == {}


def test_nothing_happens_without_permission(make_world: Any) -> None:
    world = make_world()
    world.settings.allow_disruption = False
    with (
        pytest.raises(DisruptionNotAllowed, match="expected --ipvs-allow-disruption"),
        quick(world),
    ):
        pass
    assert world.calls == []


def test_a_target_that_does_not_answer_is_not_disrupted(make_world: Any) -> None:
    world = make_world()
    world.real_servers.clear()
    world.settings.converge_timeout = 0.0
    with (
        pytest.raises(RolloutError, match="no connection succeeded before the disruption"),
        quick(world, plan={"connect_timeout": 0.2}),
    ):
        pass
    assert world.calls == []


def test_an_error_in_the_block_stops_the_client_and_gives_no_result(make_world: Any) -> None:
    run = quick(make_world(), baseline=0.1).__enter__()
    folder = Path(run._main._folder)
    assert folder.exists()
    run.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert not folder.exists()
    assert run.result is None
    with pytest.raises(RolloutError, match="before its with block has ended"):
        assert run.failures


def test_few_ports_too_slow_to_return_are_inconclusive(make_world: Any) -> None:
    with quick(make_world(), ports=2000, settle=0.1) as run:
        run.restart()
    assert not run.failures
    assert run.verdict == "inconclusive"
    assert any("re-used tuples" in reason for reason in run.reasons)


def test_a_disruption_outside_its_block_is_refused(make_world: Any) -> None:
    run = quick(make_world())
    with pytest.raises(RolloutError, match="use it as 'with"):
        run.restart()


def test_wrong_arguments_change_nothing(make_world: Any) -> None:
    world = make_world()
    with quick(world, baseline=0.1, settle=0.1) as run:
        for change, text in (
            (lambda: run.delete_pods(9), "delete 9 pods, expected 1 to 2"),
            (lambda: run.delete_pods(names=("x",)), "has no pod 'x'"),
            (lambda: run.scale(-1), "expected 0 or more replicas"),
        ):
            with pytest.raises((ValueError, RolloutError), match=text):
                change()
    assert world.calls == []
    assert run.verdict == "inconclusive"
