"""A client on a machine that is reached by shell commands only."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from traffic_peers import Answer, ShellHost, poll, serving

from pytest_ipvs.traffic import run as run_module
from pytest_ipvs.traffic.placement import place, run_traffic
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.run import TrafficError, TrafficRun, within

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.05)


def plan(port: int, **more: object) -> Plan:
    """A short plan against loopback."""
    fields = {"host": "127.0.0.1", "port": port, "rate": 100, "ports": 0, "tick": 0.1, **more}
    return Plan(**fields)  # type: ignore[arg-type]


def test_a_run_to_its_end_leaves_nothing_behind() -> None:
    host = ShellHost()
    with serving() as (port, _):
        with TrafficRun(host, plan(port, duration=0.3), where="node-1") as run:
            folder = Path(run._folder)
            assert folder.is_dir()
            assert run.wait(20)
        results = run.results()
    assert results.classes == {"ok": 30}
    assert (results.finished, results.problems) == (True, ())
    assert 0 < results.clock_error < 5
    assert not folder.exists()


def test_a_run_is_stopped_in_good_order() -> None:
    with serving() as (port, _):
        with TrafficRun(ShellHost(), plan(port)) as run:
            poll(lambda: run.results().connections > 5, "traffic")
            assert run.running
        results = run.results()
    assert results.finished
    assert set(results.classes) == {"ok"}


def test_the_output_so_far_can_be_had_at_any_time() -> None:
    with serving() as (port, _), TrafficRun(ShellHost(), plan(port)) as run:
        poll(lambda: run.refresh().connections, "traffic")
        assert not run.results().finished


def test_a_killed_client_never_looks_finished() -> None:
    with serving() as (port, _):
        with TrafficRun(ShellHost(), plan(port), where="node-2") as run:
            folder = Path(run._folder)
            os.kill(run._pid, signal.SIGKILL)
            assert run.wait(20)
        results = run.results()
    assert not results.finished
    assert results.problems == ("the client on node-2 died before its end: it left no message",)
    assert not folder.exists()


def test_an_interrupt_kills_the_client_and_removes_its_folder() -> None:
    with serving() as (port, _):
        run = TrafficRun(ShellHost(), plan(port)).start()
        folder, pid = Path(run._folder), run._pid
        run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        poll(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid), "the client's end")
    assert not folder.exists()


@pytest.mark.parametrize("step", ["mkdir", "part-0", "heartbeat_file"])
def test_a_start_that_is_given_up_leaves_nothing(step: str) -> None:
    class Interrupted(ShellHost):
        def run(self, command: str, *args: str) -> Answer:
            answer = super().run(command, *args)
            if step in self.scripts[-1]:
                run.give_up()
            return answer

    host = Interrupted()
    with serving() as (port, _):
        run = TrafficRun(host, plan(port, tick=30.0), where="node-1")
        with pytest.raises(TrafficError, match=r"^the start of the client on node-1 was given up$"):
            run.start()
    folder = host.scripts[-1].rpartition(" ")[2].strip()
    assert folder.startswith("/tmp/pytest-ipvs-")
    assert not Path(folder).exists()


def test_a_lost_machine_is_told_and_what_came_back_later_counts() -> None:
    host = ShellHost()
    with serving() as (port, _), TrafficRun(host, plan(port), where="node-1") as run:
        host.broken = "ssh: connect to host node-1 port 22: Connection refused"
        poll(lambda: run.results().problems, "the problem")
        (problem,) = run.results().problems
        assert problem == f"node-1 cannot be reached: {host.broken}"
        host.broken = ""
        poll(lambda: not run.results().problems, "the way back")
    assert run.results().finished


def test_a_machine_lost_to_the_end_leaves_the_run_unfinished() -> None:
    host = ShellHost()
    with serving() as (port, _):
        with TrafficRun(host, plan(port), where="node-1") as run:
            folder = run._folder
            host.broken = "gone"
        results = run.results()
        host.broken = ""
        host.run("rm -rf -- %s", folder)
        host.run("kill %s", str(run._pid))
    assert not results.finished
    assert results.problems == ("node-1 cannot be reached: gone",)


def test_no_python_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PYTHONS", "no-such-python")
    with pytest.raises(TrafficError) as told, TrafficRun(ShellHost(), plan(80), where="node-1"):
        pass
    assert str(told.value) == (
        "the client cannot run on node-1: there is no python3 or python on the PATH"
    )


def test_a_python_that_cannot_run_the_client_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\necho 'needs Python 3.8 or newer, this is 2.7.18' >&2; exit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr(run_module, "PYTHONS", str(old))
    host = ShellHost()
    with pytest.raises(TrafficError) as told, TrafficRun(host, plan(80), where="node-1"):
        pass
    assert str(told.value) == (
        "the client on node-1 did not start: needs Python 3.8 or newer, this is 2.7.18"
    )
    assert "rm -rf -- /tmp/pytest-ipvs-" in host.scripts[-1]


def test_a_target_that_cannot_be_resolved_says_so() -> None:
    with (
        pytest.raises(TrafficError, match="did not start: "),
        TrafficRun(ShellHost(), Plan(host="no-such-host.invalid", port=80)),
    ):
        pass


def test_arguments_reach_the_client_as_they_are() -> None:
    with serving() as (port, _):
        path = "/it's$(id)`id`\"%s|&;{}"
        with TrafficRun(ShellHost(), plan(port, duration=0.1, path=path)) as run:
            run.wait(20)
    assert run.results().classes == {"ok": 10}


class Repeating(ShellHost):
    """Sends each command of the shipping again, while the first one removes the parts."""

    def run(self, command: str, *args: str) -> Answer:
        answer = super().run(command, *args)
        script = args[0] if args else command
        if "part-0" not in script:
            return answer
        if "client.py" in script:
            folder = script.partition("/part-0")[0].rpartition(" ")[2]
            Path(folder, "part-0").write_text("not yet removed")
        return super().run(command, *args)


def test_a_command_that_is_sent_twice_ships_the_client_all_the_same() -> None:
    with serving() as (port, _), TrafficRun(Repeating(), plan(port, duration=0.1)) as run:
        folder = Path(run._folder)
        run.wait(20)
    assert run.results().classes == {"ok": 10}
    assert not folder.exists()


class Losing(ShellHost):
    """Runs every command, and loses what the first three sessions of each said."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: Counter[str] = Counter()

    def run(self, command: str, *args: str) -> Answer:
        answer = super().run(command, *args)
        script = self.scripts[-1]
        self.lost[script] += 1
        if self.lost[script] % 4:
            raise RuntimeError(Answer(255, b"", b""))
        return answer


def test_sessions_that_end_without_a_word_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SILENT_PAUSES", (0.0, 0.0, 0.0))
    host = Losing()
    with serving() as (port, _), TrafficRun(host, plan(port, duration=0.3)) as run:
        folder = Path(run._folder)
        run.wait(20)
    results = run.results()
    assert (results.classes, results.problems) == ({"ok": 30}, ())
    assert not folder.exists()
    assert min(host.lost.values()) == 4


class Greeting(ShellHost):
    """A shell that greets before each command, on a line that does not end."""

    def run(self, command: str, *args: str) -> Answer:
        answer = super().run(command, *args)
        return Answer(answer.rc, b"Welcome!\n2 updates " + answer.stdout_bytes, answer.stderr_bytes)


def test_a_shell_that_greets_is_understood() -> None:
    with serving() as (port, _), TrafficRun(Greeting(), plan(port, duration=0.3)) as run:
        folder = Path(run._folder)
        run.wait(20)
    results = run.results()
    assert (results.classes, results.finished, results.problems) == ({"ok": 30}, True, ())
    assert not folder.exists()


class Strange(ShellHost):
    """Answers each command as told; "" lets it through."""

    def __init__(self) -> None:
        super().__init__()
        self.says = ""

    def run(self, command: str, *args: str) -> Answer:
        answer = super().run(command, *args)
        return Answer(0, self.says.encode(), b"") if self.says else answer


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            "maintenance mode\n",
            (
                "the shell on node-1 answered 'maintenance mode\\n', expected a line with "
                "'pytest-ipvs-says:': it does not run our commands as they are"
            ),
        ),
        (
            f"{run_module.MARK} up 1\n",
            "node-1 told the client's state as 'up 1', expected its uptime and 0 or 1",
        ),
    ],
)
def test_an_answer_that_cannot_be_read_is_one_sentence(says: str, told: str) -> None:
    host = Strange()
    with serving() as (port, _):
        run = TrafficRun(host, plan(port), where="node-1").start()
        host.says = says
        poll(lambda: run.results().problems, "the problem")
        assert run.results().problems == (told,)
        # The follower is alive: it goes on when the machine does.
        host.says = ""
        poll(lambda: not run.results().problems, "the way back")
        host.says = says
        assert told in run.stop().problems
        host.says = ""
        host.run("kill %s", str(run._pid))
    assert not run.results().finished


def test_a_shell_that_runs_nothing_is_one_sentence() -> None:
    host = Strange()
    host.says = "This account is not available.\n"
    with pytest.raises(TrafficError) as told, TrafficRun(host, plan(80), where="node-1"):
        pass
    assert str(told.value).startswith("the shell on node-1 answered 'This account is not ")


def test_a_machine_that_never_says_a_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SILENT_PAUSES", (0.0, 0.0, 0.0))
    host = ShellHost()

    def silent(command: str, *args: str) -> Answer:
        raise RuntimeError(Answer(255, b"", b""))

    monkeypatch.setattr(host, "run", silent)
    text = "node-1 cannot be reached: the connection ended with 255 and no message"
    with pytest.raises(TrafficError, match=text), TrafficRun(host, plan(80), where="node-1"):
        pass


def test_no_command_is_too_long_for_a_small_ssh_server() -> None:
    host = ShellHost()
    with serving() as (port, _), TrafficRun(host, plan(port)):
        pass
    assert max(map(len, host.scripts)) < 8000


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        (b"banner\nPermission denied (publickey).\n", "Permission denied (publickey)."),
        (b"", "the connection ended with 255 and no message"),
    ],
)
def test_what_ssh_said_is_what_we_say(stderr: bytes, told: str) -> None:
    def run() -> None:
        raise RuntimeError(Answer(255, b"", stderr))

    with pytest.raises(TrafficError) as error:
        within(5.0, run, "node-1")
    assert str(error.value) == f"node-1 cannot be reached: {told}"


def test_a_machine_that_hangs_does_not_hang_us() -> None:
    release = threading.Event()
    with pytest.raises(TrafficError, match="node-1 did not answer within 0 s"):
        within(0.05, lambda: release.wait(20), "node-1")
    release.set()


def cluster(client: str, **more: object) -> SimpleNamespace:
    """As much of a cluster as placement needs."""
    nodes = (
        SimpleNamespace(name="cp", ready=True, taints=("control-plane=:NoSchedule",)),
        SimpleNamespace(name="node-1", ready=False, taints=()),
        SimpleNamespace(name="node-2", ready=True, taints=()),
    )
    pool = SimpleNamespace(host=lambda name: f"host of {name}", open=lambda uri, label: uri)
    settings = SimpleNamespace(client=client, rate=100, source_ports=20)
    policy = SimpleNamespace(slow_connect_ms=900.0)
    fields = {"nodes": nodes, "pool": pool, "settings": settings, "policy": policy, **more}
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("node", ("host of node-2", "node node-2", "node-2")),
        ("node:cp", ("host of cp", "node cp", "cp")),
        ("ssh://root@client", ("ssh://root@client", "client", None)),
    ],
)
def test_the_client_is_where_the_setting_says(client: str, expected: tuple[str, ...]) -> None:
    assert tuple(place(cluster(client))) == expected


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("node:node-9", "'node-9', expected one of cp, node-1, node-2"),
        ("job:none", "'job:none', expected job:N with 1 to 500"),
        ("nowhere", "'nowhere', expected local, node, node:NAME, job, job:N or a testinfra URI"),
    ],
)
def test_a_place_that_is_none_is_one_sentence(client: str, text: str) -> None:
    with pytest.raises(TrafficError, match=text):
        place(cluster(client))


def test_no_client_is_where_none_may_be() -> None:
    assert place(cluster("node"), avoid=["node-2"]).node == "cp"
    with pytest.raises(TrafficError, match="all selected ones are to be avoided"):
        place(cluster("node"), avoid=["node-2", "node-1", "cp"])
    with pytest.raises(TrafficError, match="run on node 'cp', which it should avoid"):
        place(cluster("node:cp"), avoid=["cp"])


def test_traffic_alone_needs_only_an_address() -> None:
    said: list[str] = []
    with serving() as (port, _):
        results = run_traffic(
            cluster("local"), "127.0.0.1", port, seconds=0.2, progress=said.append
        )
    assert (results.classes, results.finished) == ({"ok": 20}, True)
    assert said == [f"100 connections a second to 127.0.0.1:{port} from this machine"]


def zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be collected."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
