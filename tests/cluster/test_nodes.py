"""The node pool: over a fake ssh, over this machine, and over a real ssh server if there is one."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from cluster_fakes import wait_for

from pytest_ipvs.cluster.errors import ClusterError, NodeUnreachableError
from pytest_ipvs.cluster.nodes import NodePool, Unreachable
from pytest_ipvs.cluster.process import reason_from
from pytest_ipvs.cluster.template import Template
from pytest_ipvs.ipvs.objects import Node

pytestmark = pytest.mark.system

# Fails as its host's name says; otherwise runs the command here. Writes down its arguments.
FAKE_SSH = r"""#!/bin/bash
echo "$@" >> "{log}"
command="${{@: -1}}"; host="${{@: -2:1}}"
case $host in
  gone) echo "ssh: connect to host gone port 22: No route to host" >&2; exit 255;;
  alias) echo "ssh: Could not resolve hostname alias: Name or service not known" >&2; exit 255;;
  key) echo "root@key: Permission denied (publickey,password)." >&2; exit 255;;
  unknown) echo "Host key verification failed." >&2; exit 255;;
  hangs) exec sleep 30;;
  odd) echo "something new" >&2; exit 255;;
  thrice) echo >> "{log}.tries"; [ "$(wc -l < "{log}.tries")" -gt 3 ] || exit 255;;
esac
exec sh -c "$command"
"""


def nodes(*names):
    return [Node(name=name) for name in names]


@pytest.fixture
def make():
    pools = []

    def make(names, template="ssh://root@{name}", **options):
        pools.append(NodePool(nodes(*names), Template.parse(template), **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def ssh_log(programs, tmp_path):
    log = tmp_path / "ssh.log"
    log.touch()
    programs("ssh", FAKE_SSH.format(log=log))
    return log


def test_arguments_are_quoted(make, ssh_log):
    pool = make(["node-1"])
    assert (
        pool.run("node-1", "printf %%s %s", "it's $HOME; `id` %d é\n x").stdout
        == "it's $HOME; `id` %d é\n x"
    )


def test_ssh_shares_a_connection_and_never_asks(make, ssh_log):
    pool = make(["node-1", "node-2"], timeout=7)
    pool.map(lambda name: pool.run(name, "true"))
    pool.run("node-1", "true")
    lines = ssh_log.read_text().splitlines()
    paths = [re.search(r"ControlPath=(\S+)", line)[1] for line in lines]
    assert len(set(paths)) == 2
    for line, path in zip(lines, paths, strict=True):
        assert "BatchMode=yes" in line
        assert "ServerAliveInterval=5" in line
        assert "ConnectTimeout=7" in line
        assert "ControlMaster=auto" in line
        # Room for the suffix that ssh appends while it makes the socket.
        assert len(path) <= 104 - 17
    folder = Path(paths[0]).parent
    assert folder.stat().st_mode & 0o077 == 0
    pool.close()
    assert not folder.exists()


def test_the_ssh_configuration_is_handed_on(make, ssh_log, tmp_path):
    config = tmp_path / "ssh config"
    config.write_text("")
    make(["node-1"], ssh_config=str(config)).run("node-1", "true")
    assert f"-F {config}" in ssh_log.read_text()


def test_a_missing_ssh_configuration_is_one_sentence():
    with pytest.raises(ClusterError, match=r"^--ipvs-ssh-config is '/no/such', expected a file"):
        NodePool(nodes("a"), None, ssh_config="/no/such")


def test_every_unreachable_node_is_told_once_with_its_reason(make, ssh_log):
    names = ["alias", "gone", "good", "hangs", "key", "odd", "unknown"]
    pool = make(names, timeout=1.5, jobs=4)
    results = pool.map(lambda name: pool.run(name, "echo hi").stdout)
    assert list(results) == names
    assert results.pop("good") == "hi\n"
    assert {name: result.reason for name, result in results.items()} == {
        "alias": "no such host name or ssh alias: alias",
        "gone": "no route to host",
        "hangs": "no answer within 1.5 s",
        "key": "permission denied (it accepts publickey,password)",
        "odd": "something new",
        "unknown": "its ssh host key is not known",
    }
    # Asked again at once, the same is told without another attempt.
    before = ssh_log.read_text()
    again = pool.map(lambda name: pool.run(name, "echo hi"), ["gone"])
    assert again == {"gone": Unreachable(node="gone", reason="no route to host")}
    assert ssh_log.read_text() == before
    pool.forgive()
    pool.map(lambda name: pool.run(name, "echo hi"), ["gone"])
    assert ssh_log.read_text() != before


def test_status_255_of_the_command_itself_is_told_apart(make, ssh_log):
    pool = make(["node-1"])
    with pytest.raises(NodeUnreachableError, match="the connection ended without a word"):
        pool.run("node-1", "exit 255")
    pool.forgive()
    assert pool.run("node-1", "exit 254").rc == 254


def test_a_connection_that_ends_without_a_word_is_made_anew(make, ssh_log):
    assert make(["thrice"]).run("thrice", "echo hi").stdout == "hi\n"
    assert len([line for line in ssh_log.read_text().splitlines() if "thrice" in line]) == 4


def test_a_test_s_own_command_has_no_short_limit_and_ordinary_errors(make, ssh_log):
    host = make(["node-1"], timeout=0.2).host("node-1")
    assert host.run("sleep 0.4; echo %s", "done").stdout == "done\n"
    with pytest.raises(NodeUnreachableError, match="node gone can't be reached: no route to host"):
        make(["gone"]).host("gone").run("true")


def test_limit_kills_what_the_command_started(make, tmp_path):
    mark = tmp_path / "pid"
    pool = make(["node-1"], "local://")
    with pytest.raises(NodeUnreachableError, match="no answer within"):
        pool.run("node-1", f"sh -c 'echo $$ > {mark}; sleep 30; :'", timeout=0.5)
    pid = int(mark.read_text())
    wait_for(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    )


def test_a_background_process_that_keeps_stderr_open_does_not_hang(make):
    # As the background master of older ssh versions does.
    pool = make(["node-1"], "local://", timeout=5)
    assert pool.run("node-1", "(sleep 20) >/dev/null & echo hi").stdout == "hi\n"


def test_at_most_so_many_nodes_at_once(make):
    pool = make([f"n{i}" for i in range(9)], "docker://{name}", jobs=3)
    lock = threading.Lock()
    running, most = 0, 0
    gate = threading.Barrier(3)

    def work(name):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1
        return name

    assert list(pool.map(work)) == [f"n{i}" for i in range(9)]
    assert most == 3


def test_a_mistake_in_the_function_ends_the_others(make):
    pool = make(["a", "b"], "docker://{name}", jobs=2)

    started, ended = threading.Event(), []

    def work(name):
        if name == "a":
            assert started.wait(10)
            raise ZeroDivisionError
        host = pool.open("local://", name)
        started.set()
        with pytest.raises(NodeUnreachableError, match="closed by this run") as error:
            host.run("sleep 30")
        ended.append(error.value.node)

    with pytest.raises(ZeroDivisionError):
        pool.map(work)
    assert ended == ["b"]


def test_one_machine_for_several_nodes_is_refused(make):
    pool = make(["a", "b"], "local://")
    with pytest.raises(
        ClusterError, match="'local://', which is one machine for 2 nodes, expected"
    ):
        pool.map(lambda name: name)
    assert pool.map(lambda name: name, ["a"]) == {"a": "a"}


def test_a_template_that_fits_no_node_is_one_error_and_else_one_node_s(make):
    pool = NodePool(nodes("a", "b"), Template.parse("ssh://{external_ip}"))
    with pytest.raises(
        ClusterError, match=r"^node a: --ipvs-connect uses \{external_ip\}.*any other"
    ):
        pool.map(lambda name: pool.run(name, "true"))


def test_no_template_is_one_sentence():
    pool = NodePool(nodes("a"), None)
    with pytest.raises(
        ClusterError, match=r"^no way to reach nodes is given, expected --ipvs-connect"
    ):
        pool.map(lambda name: name)


def test_a_missing_program_is_one_sentence(make, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ClusterError, match=r"^docker:// needs the command docker, which is not inst"
    ):
        make(["a"], "docker://{name}").host("a")


def test_a_closed_pool_runs_nothing(make):
    pool = make(["a"], "local://")
    pool.close()
    with pytest.raises(NodeUnreachableError, match="closed by this run"):
        pool.run("a", "true")


def test_other_hosts_of_testinfra_are_left_alone(make):
    import testinfra

    pool = make(["a"], "local://")
    pool.run("a", "true")
    pool.close()
    assert testinfra.get_host("local://").run("echo hi").stdout == "hi\n"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ssh: connect to host x port 22: Connection refused", "connection refused"),
        (
            "ssh: connect to host x port 22: Connection timed out",
            "no answer to the connection attempt",
        ),
        ("Timeout, server x not responding.", "it stopped answering"),
        ("kex_exchange_identification: read: Connection reset by peer", "it closed the connection"),
        ("Connection closed by 10.0.0.1 port 22", "it closed the connection"),
        (
            "x: line 1: Bad configuration option: foo",
            "the ssh configuration has an unknown option foo",
        ),
        ("Error response from daemon: No such container: web", "no such container: web"),
        ('Error from server (NotFound): pods "a" not found', "no such pod: a"),
        ("sudo: a password is required", "sudo asks for a password"),
        ("", "the connection ended without a word"),
        ("first\nlast \x1b[31mline", "last  [31mline"),
    ],
)
def test_reasons(stderr, reason):
    assert reason_from(stderr) == reason


@pytest.fixture
def real_ssh(tmp_path):
    """A dropbear on loopback with its own keys; gives port, client configuration and log."""
    programs = ("dropbear", "dropbearkey", "ssh-keygen", "ssh", "unshare")
    if os.geteuid() != 0 or None in map(shutil.which, programs):
        pytest.skip("needs root, dropbear and OpenSSH's client")
    subprocess.run(
        ["dropbearkey", "-t", "ecdsa", "-f", tmp_path / "host"], check=True, capture_output=True
    )
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True
    )
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    (home / ".ssh/authorized_keys").write_text((tmp_path / "id.pub").read_text())
    (home / ".ssh/authorized_keys").chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "dropbear.log"
    # The server must not see, let alone change, the keys of whoever runs the tests: it gets a
    # home of its own in a mount namespace of its own.
    start = 'mount --bind "$0" "$1" && shift && exec dropbear "$@"'
    command = ["unshare", "-m", "sh", "-c", start, home, pwd.getpwuid(0).pw_dir]
    command += ["-F", "-E", "-s", "-r", tmp_path / "host", "-p", f"127.0.0.1:{port}"]
    command += ["-P", tmp_path / "pid"]
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stderr=sink)
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {tmp_path}/id\n"
        f"  User root\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {tmp_path}/known\n  LogLevel ERROR\n"
    )
    try:
        wait_for(lambda: server.poll() is not None or _listens(port))
        if server.poll() is not None:
            pytest.skip(f"no ssh server can be started here: {log.read_text()[-200:]}")
        yield config, log
    finally:
        server.kill()
        server.wait()


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_one_real_connection_per_node(make, real_ssh):
    config, log = real_ssh
    pool = make(["node-1", "node-2"], "ssh://{name}", ssh_config=str(config))
    for _ in range(3):
        results = pool.map(lambda name: pool.run(name, "echo %s", "it's é").stdout)
        assert results == {"node-1": "it's é\n", "node-2": "it's é\n"}
    assert log.read_text().lower().count("auth succeeded") == 2
    masters = list(pool._directory.iterdir())
    assert len(masters) == 2
    pool.close()
    wait_for(lambda: log.read_text().count("Exit") >= 2)
