"""The lab's files, its command line, and how its process starts and ends; no machine is booted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from control_fakes import wait_for

from pytest_ipvs.lab import __main__ as command_line
from pytest_ipvs.lab import launch
from pytest_ipvs.lab.faults import FAULTS
from pytest_ipvs.lab.machine import LabError
from pytest_ipvs.lab.state import StateDirectory, base_directory, ssh_config


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_IPVS_LAB_DIR", str(tmp_path / "labs"))


def made(name: str = "x") -> StateDirectory:
    directory = StateDirectory.of(name)
    directory.make()
    return directory


def test_the_directory_is_the_owner_s_alone() -> None:
    directory = made()
    assert directory.path == base_directory() / "x"
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.write(directory.kubeconfig, "secret")
    assert directory.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_without_a_setting_the_runtime_directory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_IPVS_LAB_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert base_directory() == Path(f"/run/user/7/pytest-ipvs-lab-{os.getuid()}")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert base_directory() == Path(f"/tmp/pytest-ipvs-lab-{os.getuid()}")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 42, "a b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="is not made of letters"):
        StateDirectory.of(name)


def test_a_lab_is_alive_as_long_as_its_process_holds_the_lock() -> None:
    directory = made()
    assert directory.owner() is None
    descriptor = directory.lock()
    assert descriptor is not None
    assert directory.owner() == os.getpid()
    assert directory.lock() is None
    os.close(descriptor)
    assert directory.owner() is None


def test_what_a_killed_lab_left_is_removed() -> None:
    directory = made()
    directory.write(directory.record, "{}")
    # The program's name is what tells QEMU from others that read our files.
    (directory.path / "qemu-system-x86_64").symlink_to("/bin/sleep")
    argv = [str(directory.path / "qemu-system-x86_64"), "1000"]
    with subprocess.Popen(argv) as machine, subprocess.Popen(["sleep", "1000"]) as other:
        wait_for(lambda: machine.pid in directory.machines(), "the machine's name")
        assert other.pid not in directory.machines()
        assert directory.end()
        assert machine.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
    assert not directory.path.exists()
    assert not directory.end()


def test_requests_reach_the_control_socket_however_deep_the_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["directory"] * 20)
    monkeypatch.setenv("PYTEST_IPVS_LAB_DIR", str(deep))
    directory = made()
    with directory.listen() as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                stream.readline()
                stream.write(b'{"error": "no such thing"}\n')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LabError, match=r"^no such thing$"):
            directory.ask("status")
        thread.join()
    with pytest.raises(LabError, match="no lab runs in"):
        directory.ask("status")


def test_the_ssh_configuration_knows_names_and_addresses() -> None:
    directory = made("with-name")
    text = ssh_config(directory, {"node-1": ("127.0.0.1", 2201)}, {"node-1": "10.0.2.101"})
    (directory.path / "config").write_text(text)
    for alias in ("node-1", "10.0.2.101"):
        answer = subprocess.run(
            ["ssh", "-G", "-F", str(directory.path / "config"), alias],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert "hostname 127.0.0.1" in answer
        assert "port 2201" in answer
        assert "user root" in answer
        assert "hostkeyalias node-1" in answer


# The command line


def run(*words: str) -> int:
    return command_line.main(words)


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("install", "up", "down", "status", "shell", "fault", "clear", "exit codes"):
        assert word in text


def test_all_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("faults") == 0
    text = capsys.readouterr().out
    assert len(FAULTS) == 17
    for name, fault in FAULTS.items():
        assert name in text
        assert fault.text in text


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("status",), 3, "the lab 'default' is not up\n"),
        (("down",), 0, "the lab 'default' was not up\n"),
        (("fault", "conntrack_off"), 1, "error: no lab runs in "),
        (("clear",), 1, "error: no lab runs in "),
        (("shell", "node-1"), 1, "error: the lab 'default' is not up\n"),
        (("up", "--nodes", "0"), 1, "error: --nodes is 0, expected 1 to 9\n"),
        (("down", "--name", "a/b"), 1, "error: lab name 'a/b' is not made of letters"),
        (("up", "--name", ""), 1, "error: lab name '' is not made of letters"),
    ],
)
def test_without_a_lab_commands_say_so(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, text: str
) -> None:
    assert run(*words) == code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert said.startswith(text)
    assert said.count("\n") == 1


def test_wrong_usage_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("up", "--backend", "cloud")
    assert ended.value.code == 2
    assert "invalid choice: 'cloud'" in capsys.readouterr().err


# Start and end


def test_a_machine_that_cannot_be_is_told_in_one_sentence_and_leaves_nothing() -> None:
    # A kernel series goes with virtual machines only.
    with pytest.raises(LabError, match=r"^kernel 6\.1 needs backend vm: namespaces have this"):
        launch.start(name="x", backend="namespace", kernel="6.1")
    assert not base_directory().exists()


def test_an_owner_that_is_gone_is_refused() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(LabError, match="which wanted the lab, is gone"):
        launch.start(name="x", backend="namespace", kernel="6.1", owner_pid=process.pid)
    assert not base_directory().exists()


def test_a_lab_of_another_kind_is_not_joined() -> None:
    directory = made()
    descriptor = directory.lock()
    assert descriptor is not None
    try:
        with pytest.raises(LabError, match="is just starting"):
            launch.start(name="x")
        record = (
            '{"name": "x", "kind": "vm-tcg", "kernel": "6.1.0-56", "nodes": {"node-1": {}},'
            ' "kubeconfig": "/k", "ssh_config": "/s", "pid": 1, "programs": ["wrk"]}'
        )
        directory.write(directory.record, record)
        with pytest.raises(LabError, match="is up without the programs hey: take it down first"):
            launch.start(name="x", programs=("wrk", "hey"))
        with pytest.raises(LabError, match="is up as vm, but backend 'namespace' is asked for"):
            launch.start(name="x", backend="namespace")
        with pytest.raises(LabError, match=r"is up with kernel 6\.1\.0-56, but '5\.10' is asked"):
            launch.start(name="x", kernel="5.10")
        handle = launch.start(name="x", backend="vm", kernel="6.1", programs=["wrk"])
        assert not handle.owned
        assert handle.nodes == ("node-1",)
    finally:
        os.close(descriptor)


def test_the_package_offers_start_without_importing_the_machinery() -> None:
    script = (
        "import sys, pytest_ipvs.lab as lab\n"
        "assert 'pytest_ipvs.lab.launch' not in sys.modules\n"
        "import pytest_ipvs.lab.launch as launch\n"
        "assert lab.start is launch.start and lab.LabError\n"
        "assert 'pytest_ipvs.lab.api' not in sys.modules\n"
        "assert not any(name in sys.modules for name in ('kubernetes', 'pytest', 'testinfra'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
