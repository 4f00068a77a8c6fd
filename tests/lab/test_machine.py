"""A booted machine: nodes, clients and pods on a real kernel's IPVS."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.lab.machine import Event, HandError, LabError
from pytest_ipvs.lab.machine_ssh import generate_host_key, generate_identity
from pytest_ipvs.lab.vm import VirtualMachine

pytestmark = pytest.mark.lab

SERVER = """
import os, socket, socketserver
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        body = os.environ["POD_NAME"].encode()
        self.wfile.write(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
print("serving", os.getpid(), socket.gethostname(), flush=True)
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("", 8080), Answer).serve_forever()
"""


class Lab:
    """The machine under test and shorthands for what the tests say often."""

    def __init__(self, machine: VirtualMachine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        self.events: list[Event] = []
        machine.on_event = self.events.append
        self.call: Callable[..., Any] = machine.call

    def run(self, node: str, *argv: str, timeout: float = 30) -> str:
        answer = self.call("exec", timeout=timeout, node=node, argv=list(argv))
        assert answer["rc"] == 0, answer
        text: str = answer["out"]
        return text

    def ssh(self, node: str, command: str) -> subprocess.CompletedProcess[str]:
        host, port = self.machine.ssh_endpoint(node)
        options = [
            *("-i", str(self.directory / "identity"), "-p", str(port), "-F", "none"),
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"),
            *("-o", f"UserKnownHostsFile={self.directory / 'known_hosts'}"),
            *("-o", "HostKeyAlias=lab", "-o", "LogLevel=ERROR"),
        ]
        return subprocess.run(
            ["ssh", *options, f"root@{host}", command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def start_pod(self, uid: str, node: str, address: str) -> None:
        self.call(
            "pod_create",
            uid=uid,
            node=node,
            name=uid,
            address=address,
            command=["python3", "/app/server.py"],
            env={"POD_NAME": uid},
            files={"/app/server.py": SERVER},
        )
        self.until(lambda: self.call("pod_probe", uid=uid, kind="http", port=8080)["ok"])

    def until(self, condition: Callable[[], Any], limit: float = 30) -> Any:
        deadline = time.monotonic() + limit
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)
        return value


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("machine")
    identity = generate_identity(directory / "identity")
    host_key = generate_host_key(directory / "host_key")
    (directory / "known_hosts").write_text(f"lab {host_key.public}\n")
    machine = VirtualMachine(directory, processors=1)
    machine.start()
    try:
        lab = Lab(machine, directory)
        keys = {"authorized_key": identity, "host_key": host_key.private}
        for index in (1, 2, 3):
            lab.call(
                "node_create",
                name=f"node-{index}",
                index=index,
                address=f"10.0.2.{100 + index}",
                pod_cidr=f"10.244.{index}.0/24",
                **keys,
            )
        lab.call("client_create", name="client", node="node-1", address="10.244.1.250", **keys)
        yield lab
    finally:
        machine.stop()


@pytest.fixture
def pods(lab: Lab) -> Iterator[dict[str, str]]:
    """Two pods on two nodes: uid → address."""
    addresses = {"web-a": "10.244.2.11", "web-b": "10.244.3.12"}
    for (uid, address), node in zip(addresses.items(), ("node-2", "node-3"), strict=True):
        lab.start_pod(uid, node, address)
    yield addresses
    for uid in addresses:
        lab.call("pod_delete", uid=uid, node="node-2" if uid == "web-a" else "node-3")


@pytest.fixture
def service(lab: Lab, pods: dict[str, str]) -> Iterator[str]:
    """A virtual server on every node, with both pods."""
    for node in ("node-1", "node-2", "node-3"):
        lines = ["-A -t 10.96.0.10:80 -s rr"]
        lines += [f"-a -t 10.96.0.10:80 -r {one}:8080 -m -w 1" for one in pods.values()]
        answer = lab.call("ipvs_restore", node=node, lines=lines)
        assert answer == {"applied": 3, "errors": []}
        lab.call("addresses", node=node, device="kube-ipvs0", add=["10.96.0.10/32"])
    yield "10.96.0.10"
    for node in ("node-1", "node-2", "node-3"):
        lab.call("ipvs_restore", node=node, lines=["-C"])
        lab.call("addresses", node=node, device="kube-ipvs0", remove=["10.96.0.10/32"])


def test_machine_knows_its_kernel(lab: Lab) -> None:
    answer = lab.call("ping")
    assert answer["kernel"] == lab.machine.kernel == lab.run("node-1", "uname", "-r").strip()
    assert lab.machine.alive


def test_clocks_agree(lab: Lab) -> None:
    before = time.time()
    inside = float(lab.run("node-1", "python3", "-c", "import time; print(time.time())"))
    # As exact as a loaded host allows; a guest's own hardware clock would be up to 1 s off.
    assert before - 0.3 < inside < time.time() + 0.3


@pytest.mark.parametrize("node", ["node-1", "node-2", "node-3", "client"])
def test_ssh_reaches_every_node_and_client(lab: Lab, node: str) -> None:
    done = lab.ssh(node, "hostname; cat /etc/hostname; id -u; python3 -c 'print(6 * 7)'; pwd")
    assert done.stdout.split() == [node, node, "0", "42", "/run/root"], done.stderr


def test_sessions_give_statuses_and_large_outputs(lab: Lab) -> None:
    done = lab.ssh("node-1", "seq 1 20000; exit 7")
    assert done.returncode == 7
    assert done.stdout.splitlines()[-1] == "20000"
    assert lab.run("node-1", "seq", "1", "200000").splitlines()[-1] == "200000"


def test_a_nodes_files_are_its_own(lab: Lab) -> None:
    lab.call("write", node="node-1", path="/etc/sysctl.d/lab.conf", text="x\n", mode=0o600)
    assert lab.run("node-1", "cat", "/etc/sysctl.d/lab.conf") == "x\n"
    assert lab.call("procs", node="node-2", paths=["/etc/sysctl.d/lab.conf"]) == {
        "/etc/sysctl.d/lab.conf": None
    }
    lab.run("node-1", "sh", "-c", "echo here > /tmp/mine")
    assert "mine" not in lab.run("node-2", "ls", "/tmp")


def test_sysctls_are_per_node(lab: Lab) -> None:
    key = "net.ipv4.vs.expire_nodest_conn"
    lab.call("sysctl", node="node-1", values={key: 1})
    lab.call("sysctl", node="node-2", values={key: 0})
    assert lab.call("sysctl", node="node-1", values={key: None}) == {key: "1"}
    assert lab.ssh("node-2", f"sysctl -n {key}").stdout == "0\n"
    assert lab.run("node-1", "sysctl", "-n", key) == "1\n"


def test_processes_of_one_node_are_hidden_from_the_others(lab: Lab) -> None:
    lab.run("node-1", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo started")
    assert "sleep 600" in lab.run("node-1", "ps")
    assert "sleep 600" not in lab.run("node-2", "ps")
    lab.run("node-1", "killall", "sleep")


def test_client_reaches_pods_through_the_service(lab: Lab, service: str) -> None:
    seen = {lab.run("client", "wget", "-q", "-O", "-", f"http://{service}/") for _ in range(4)}
    assert seen == {"web-a", "web-b"}
    table = lab.call("proc", node="node-1", path="/proc/net/ip_vs")
    assert "TCP  0A60000A:0050 rr" in table
    # The client is on node-1, so only that node's table has seen its connections.
    connections = lab.call("proc", node="node-1", path="/proc/net/ip_vs_conn")
    assert connections.count("0AF401FA") == 4
    assert "0AF401FA" not in lab.call("proc", node="node-2", path="/proc/net/ip_vs_conn")


def test_nodes_reach_the_service_themselves(lab: Lab, service: str) -> None:
    # The address is local, so it is the packets' source as well: it must be masqueraded, which IPVS
    # allows with conntrack only.
    lab.call("sysctl", node="node-2", values={"net.ipv4.vs.conntrack": 1})
    rule = ["POSTROUTING", "-s", service, "-j", "MASQUERADE"]
    lab.run("node-2", "iptables", "-t", "nat", "-A", *rule)
    try:
        seen = {lab.run("node-2", "wget", "-q", "-O", "-", f"http://{service}/") for _ in range(4)}
        assert seen == {"web-a", "web-b"}
    finally:
        lab.run("node-2", "iptables", "-t", "nat", "-D", *rule)
        lab.call("sysctl", node="node-2", values={"net.ipv4.vs.conntrack": 0})


def test_ipvsadm_sees_what_was_restored(lab: Lab) -> None:
    lines = [
        "-A -t 10.96.0.20:443 -s wrr -p 300 -M 255.255.255.0",
        "-a -t 10.96.0.20:443 -r 10.244.2.11:8443 -m -w 0",
        "-a -t 10.96.0.20:443 -r 10.244.2.99:8443 -g -w 3",
        "-e -t 10.96.0.20:443 -r 10.244.2.11:8443 -m -w 2",
        "-d -t 10.96.0.20:443 -r 10.244.2.99:8443",
        "-A -u [fd00::1]:53 -s mh -b mh-port",
        "-a -u [fd00::1]:53 -r [fd00::2]:53 -m -w 1",
        "-A -f 7 -s lc",
        "-a -t 10.96.0.99:80 -r 10.244.2.11:80 -m",
        "nonsense",
    ]
    try:
        answer = lab.call("ipvs_restore", node="node-3", lines=lines)
        assert answer["applied"] == 8
        first, second = answer["errors"]
        assert (first["line"], first["errno"]) == (8, "ESRCH")
        assert first["message"] == "no such virtual server"
        assert (second["line"], second["errno"]) == (9, "EINVAL")
        listing = lab.run("node-3", "ipvsadm", "-S", "-n").splitlines()
        assert sorted(line.strip() for line in listing) == sorted(
            [
                "-A -t 10.96.0.20:443 -s wrr -p 300 -M 255.255.255.0",
                "-a -t 10.96.0.20:443 -r 10.244.2.11:8443 -m -w 2",
                "-A -u [fd00::1]:53 -s mh -b mh-port",
                "-a -u [fd00::1]:53 -r [fd00::2]:53 -m -w 1",
                "-A -f 7 -s lc",
            ]
        )
    finally:
        lab.call("ipvs_restore", node="node-3", lines=["-C"])


def test_iptables_and_ipset_work_in_nodes(lab: Lab) -> None:
    sets = "create LAB hash:ip,port\nadd LAB 10.96.0.10,tcp:80\n"
    rules = (
        "*nat\n:LAB - [0:0]\n-A POSTROUTING -m comment --comment lab -j LAB\n"
        "-A LAB -m mark ! --mark 0x4000/0x4000 -j RETURN\n"
        "-A LAB -m set --match-set LAB dst,dst -j MASQUERADE --random-fully\nCOMMIT\n"
        "*filter\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "-A INPUT -d 10.96.0.250 -j REJECT\nCOMMIT\n"
    )
    for argv, text in ((["ipset", "restore"], sets), (["iptables-restore", "--noflush"], rules)):
        answer = lab.call("exec", node="node-2", argv=argv, stdin=text)
        assert answer["rc"] == 0, answer["err"]
    assert "--match-set LAB dst,dst" in lab.run("node-2", "iptables-save", "-t", "nat")
    assert "LAB" not in lab.run("node-1", "iptables-save", "-t", "nat")
    assert "LAB" not in lab.run("node-1", "ipset", "list", "-n")
    for command in ("iptables -t nat -F", "iptables -t nat -X", "iptables -F", "ipset destroy"):
        lab.run("node-2", *command.split())


def test_a_deleted_pods_address_is_gone_at_once(lab: Lab) -> None:
    lab.start_pod("short", "node-2", "10.244.2.50")
    assert lab.run("client", "wget", "-q", "-O", "-", "http://10.244.2.50:8080/") == "short"
    lab.call("pod_delete", uid="short")
    assert "10.244.2.50" not in lab.run("node-2", "ip", "route")
    # The kernel says so after three seconds; a machine that stands still meanwhile needs longer.
    program = "import socket; socket.create_connection(('10.244.2.50', 8080))"
    answer = lab.call("exec", timeout=120, node="client", argv=["python3", "-c", program])
    assert "No route to host" in answer["err"], answer
    assert [event for event in lab.events if event.get("uid") == "short"] == []


def test_a_pods_network_outlives_its_process(lab: Lab) -> None:
    lab.start_pod("again", "node-2", "10.244.2.51")
    first = lab.call("pod_exec", uid="again", argv=["hostname"])
    assert first == {"rc": 0, "out": "again\n", "err": ""}
    assert lab.call("pod_signal", uid="again", signal="KILL") == {"running": True}
    ended = {"event": "pod_exited", "uid": "again", "node": "node-2", "rc": 137}
    lab.until(lambda: ended in lab.events)
    probe = lab.call("pod_probe", uid="again", kind="tcp", port=8080)
    assert probe == {"ok": False, "detail": "Connection refused"}
    lab.start_pod("again", "node-2", "10.244.2.51")
    assert lab.call("pod_log", uid="again").count("serving 1 again") == 2
    lab.call("pod_delete", uid="again")
    with pytest.raises(HandError, match="there is no pod again"):
        lab.call("pod_log", uid="again")


def test_pods_see_their_own_system(lab: Lab) -> None:
    lab.call(
        "pod_create",
        uid="inner",
        node="node-1",
        name="inner",
        address="10.244.1.60",
        command=["sh", "-c", "cat /config/a.txt; echo $COLOUR; pwd; exec sleep 600"],
        env={"COLOUR": "blue"},
        files={"/config/a.txt": "content\n"},
        hostname="host-of-inner",
        workdir="/config",
    )
    lab.until(lambda: lab.call("pod_log", uid="inner").count("\n") == 3)
    assert lab.call("pod_log", uid="inner") == "content\nblue\n/config\n"
    answer = lab.call("pod_exec", uid="inner", argv=["sh", "-c", "hostname; ls /proc | head -1"])
    assert answer["out"] == "host-of-inner\n1\n"
    assert "inner" not in lab.run("node-1", "cat", "/etc/hostname")
    lab.call("pod_delete", uid="inner")


def test_time_limits_end_commands(lab: Lab) -> None:
    answer = lab.call("exec", timeout=0.5, node="node-1", argv=["sh", "-c", "echo a; sleep 600"])
    assert answer == {"rc": 124, "out": "a\n", "err": ""}


def test_slow_commands_do_not_hold_up_others(lab: Lab) -> None:
    with ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(lab.run, "node-1", "sleep", "3") for _ in range(4)]
        quick = [
            pool.submit(lab.call, "proc", node=f"node-{number % 3 + 1}", path="/proc/net/ip_vs")
            for number in range(40)
        ]
        assert all("IP Virtual Server" in one.result() for one in quick)
        assert not all(one.done() for one in slow)
        assert [one.result() for one in slow] == [""] * 4


def test_a_node_without_sshd(lab: Lab) -> None:
    lab.call("sshd_stop", node="node-3")
    try:
        assert lab.ssh("node-3", "true").returncode == 255
        assert lab.run("node-3", "hostname") == "node-3\n"
    finally:
        lab.call("sshd_start", node="node-3")
    assert lab.ssh("node-3", "hostname").stdout == "node-3\n"


def test_static_answers_of_a_node(lab: Lab) -> None:
    routes = {"/proxyMode": {"status": 200, "body": "ipvs", "type": "text/plain"}}
    lab.call("http_serve", node="node-1", port=10249, address="127.0.0.1", routes=routes)
    url = "http://127.0.0.1:10249/proxyMode"
    assert lab.ssh("node-1", f"wget -q -O - {url}").stdout == "ipvs"
    assert lab.call("exec", node="node-2", argv=["wget", "-q", "-O", "-", url])["rc"] != 0
    lab.call("http_stop", node="node-1", port=10249)


def test_a_node_can_go_and_come_back(lab: Lab) -> None:
    keys = {
        "authorized_key": generate_identity(lab.directory / "identity"),
        "host_key": generate_host_key(lab.directory / "host_key").private,
    }
    node = {
        "name": "node-9",
        "index": 9,
        "address": "10.0.2.109",
        "pod_cidr": "10.244.9.0/24",
    } | keys
    for _ in range(2):
        lab.call("node_create", **node)
        lab.start_pod("guest", "node-9", "10.244.9.5")
        assert lab.run("client", "wget", "-q", "-O", "-", "http://10.244.9.5:8080/") == "guest"
        assert lab.ssh("node-9", "hostname").stdout == "node-9\n"
        lab.call("node_delete", name="node-9")
        assert "10.244.9.0" not in lab.run("node-1", "ip", "route")
        with pytest.raises(HandError, match="there is no node or client node-9"):
            lab.run("node-9", "true")
    with pytest.raises(HandError, match="there is a node or client node-1 already"):
        lab.call("node_create", **(node | {"name": "node-1"}))


NESTED = """
import json, pathlib, subprocess, sys, time
from pytest_ipvs.lab.machine import choose
from pytest_ipvs.lab.machine_ssh import generate_host_key, generate_identity

def outside():
    return [
        subprocess.run(argv, capture_output=True, text=True).stdout
        for argv in (["ip", "-br", "addr"], ["ip", "route"], ["ipvsadm", "-Ln"])
    ]

directory = pathlib.Path("/tmp/nested")
directory.mkdir()
before = outside()
machine = choose("auto", directory=directory)
machine.start()
result = {"kind": machine.kind, "answers": []}
try:
    keys = {
        "authorized_key": generate_identity(directory / "identity"),
        "host_key": generate_host_key(directory / "host_key").private,
    }
    for index in (1, 2, 3):
        machine.call(
            "node_create", name=f"node-{index}", index=index, address=f"10.0.2.{100 + index}",
            pod_cidr=f"10.244.{index}.0/24", **keys,
        )
    machine.call("client_create", name="client", node="node-1", address="10.244.1.250", **keys)
    for number in (2, 3):
        machine.call(
            "pod_create", uid=f"pod-{number}", node=f"node-{number}", name=f"pod-{number}",
            address=f"10.244.{number}.10", command=["python3", "/server.py"],
            env={"POD_NAME": f"pod-{number}"}, files={"/server.py": sys.argv[1]},
        )
        deadline = time.monotonic() + 60
        while not machine.call("pod_probe", uid=f"pod-{number}", kind="http", port=8080)["ok"]:
            if time.monotonic() > deadline:
                raise SystemExit(f"pod-{number} was not ready within 60 s")
            time.sleep(0.05)
    machine.call("ipvs_restore", node="node-1", lines=[
        "-A -t 10.96.0.10:80 -s rr",
        "-a -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 1",
        "-a -t 10.96.0.10:80 -r 10.244.3.10:8080 -m -w 1",
    ])
    machine.call("addresses", node="node-1", device="kube-ipvs0", add=["10.96.0.10/32"])
    machine.call("sysctl", node="node-1", values={"net.ipv4.vs.conntrack": 1})
    result["sysctls"] = [
        machine.call("sysctl", node=node, values={"net.ipv4.vs.conntrack": None})
        for node in ("node-1", "node-2")
    ]
    host, port = machine.ssh_endpoint("client")
    for _ in range(2):
        done = subprocess.run(
            ["ssh", "-F", "none", "-i", str(directory / "identity"), "-p", str(port),
             "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
             "-o", "UserKnownHostsFile=/dev/null", f"root@{host}",
             "wget -q -O - http://10.96.0.10/; echo; hostname"],
            capture_output=True, text=True,
        )
        result["answers"].append(done.stdout.split() or done.stderr)
finally:
    machine.stop()
result["untouched"] = before == outside()
result["left"] = [
    path.parent.name
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
    if b"hand\\0--namespaces" in path.read_bytes()
]
print(json.dumps(result))
"""


def test_the_namespace_machine_works_inside_the_guest(lab: Lab) -> None:
    answer = lab.call(
        "exec",
        timeout=120,
        node="",
        argv=["python3", "-c", NESTED, SERVER],
        env={"PYTHONPATH": "/usr/lib/pytest-ipvs"},
    )
    assert answer["rc"] == 0, answer
    result = json.loads(answer["out"])
    assert result["kind"] == "namespace"
    assert sorted(result["answers"]) == [["pod-2", "client"], ["pod-3", "client"]]
    assert result["sysctls"] == [{"net.ipv4.vs.conntrack": "1"}, {"net.ipv4.vs.conntrack": "0"}]
    assert result["untouched"]
    assert result["left"] == []


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    def running() -> list[str]:
        return [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if str(tmp_path).encode() in path.read_bytes()
        ]

    machine = VirtualMachine(tmp_path)
    machine.start()
    assert len(running()) == 1
    machine.stop()
    assert running() == []
    assert not machine.alive
    machine.stop()
    with pytest.raises(LabError, match="not running"):
        machine.call("ping")
