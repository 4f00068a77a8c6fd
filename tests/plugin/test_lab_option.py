"""--ipvs-lab: the plugin starts a lab, or joins one, and leaves nothing of its own behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_ipvs import lab
from pytest_ipvs.lab import LabError
from pytest_ipvs.labrun import LabUseError, start_lab
from pytest_ipvs.settings import Settings, resolve


class FakeLab:
    """A handle that remembers what was asked of it."""

    def __init__(self, *, owned: bool) -> None:
        self.owned = owned
        self.kubeconfig, self.ssh_config = "/lab/kubeconfig", "/lab/ssh_config"
        self.connect, self.client = "ssh://root@{name}", "ssh://root@client"
        self.kind, self.kernel = "vm-tcg", "6.1.0-56-amd64"
        self.calls: list[Any] = []

    def fault(self, name: str, node: str | None = None) -> None:
        if name == "nonsense":
            raise LabError("there is no such fault, expected one of reuse_leftover")
        self.calls.append((name, node))

    def clear(self) -> None:
        self.calls.append("clear")

    def down(self) -> None:
        self.calls.append("down")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The lab that the plugin starts; ``arguments`` are those it was started with."""
    seen = SimpleNamespace(lab=FakeLab(owned=True), arguments={})

    def start(**arguments: Any) -> FakeLab:
        seen.arguments = arguments
        arguments["progress"]("booting")
        return seen.lab

    monkeypatch.setattr(lab, "start", start, raising=False)
    return seen


def settings(**options: Any) -> Settings:
    return resolve({f"ipvs_{name}": value for name, value in options.items()}, {}, {}, {})


def test_without_the_option_nothing_starts(started: SimpleNamespace) -> None:
    wanted = settings(context="staging")
    assert start_lab(wanted, print) == (wanted, None)
    assert started.arguments == {}


def test_settings_reach_the_lab(started: SimpleNamespace) -> None:
    told: list[str] = []
    reached, running = start_lab(
        settings(lab=True, lab_kernel="5.10", lab_fault="a,b@node-2"), told.append
    )
    assert running is not None
    assert reached.kubeconfig == "/lab/kubeconfig"
    assert reached.ssh_config == "/lab/ssh_config"
    assert reached.connect == "ssh://root@{name}"
    assert reached.client == "ssh://root@client"
    assert reached.active
    assert started.arguments["kernel"] == "5.10"
    assert started.arguments["owner_pid"] == os.getpid()
    assert started.lab.calls == [("a", None), ("b", "node-2")]
    assert told[0] == "booting"
    running.close()
    assert started.lab.calls[-1] == "down"


def test_client_that_the_user_chose_stays(started: SimpleNamespace) -> None:
    reached, _ = start_lab(settings(lab=True, client="node:node-3"), print)
    assert reached.client == "node:node-3"


@pytest.mark.parametrize(("fault", "last"), [("reuse_leftover", ["clear"]), (None, [])])
def test_lab_of_somebody_else_stays_up(
    started: SimpleNamespace, fault: str | None, last: list[str]
) -> None:
    started.lab = FakeLab(owned=False)
    _, running = start_lab(settings(lab=True, lab_fault=fault), print)
    assert running is not None
    running.close()
    assert [call for call in started.lab.calls if isinstance(call, str)] == last


def test_unknown_fault_takes_the_lab_down(started: SimpleNamespace) -> None:
    with pytest.raises(LabUseError, match="--ipvs-lab-fault is 'nonsense': there is no such fault"):
        start_lab(settings(lab=True, lab_fault="nonsense"), print)
    assert started.lab.calls == ["down"]


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def lab_run(cluster_run: Run, started: SimpleNamespace) -> Run:
    """A run on the fake lab instead of a kubeconfig."""
    return lambda source, *options, **world: cluster_run(
        source, "--ipvs-lab", *options, cluster=(), **world
    )


def test_run_on_a_lab(lab_run: Run, started: SimpleNamespace) -> None:
    result = lab_run("def test_it(ipvs_node): pass", "--ipvs-lab-fault", "reuse_leftover")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "ipvs: booting",
            "ipvs: lab: putting in the fault reuse_leftover",
            "ipvs: lab default (vm-tcg), started for this run",
            "ipvs: lab faults: reuse_leftover",
        ]
    )
    assert started.lab.calls == [("reuse_leftover", None), "down"]


def test_cluster_that_does_not_answer_takes_the_lab_down(
    lab_run: Run, started: SimpleNamespace
) -> None:
    result = lab_run("def test_it(): pass", world="broken='the API does not answer'")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert started.lab.calls == ["down"]


def test_lab_that_can_not_start_is_one_sentence(
    lab_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**_: Any) -> None:
        raise LabError("there is no qemu-system-x86_64: run python -m pytest_ipvs.lab install")

    monkeypatch.setattr(lab, "start", start)
    result = lab_run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: there is no qemu-system-x86_64: run python -m *"])
