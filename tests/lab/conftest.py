"""One lab for all tests that only use it; those that end it start their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from lab_suite import EMULATED, Run, verdicts_of

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.cluster.script_table import table_script
from pytest_ipvs.lab import LabHandle, start
from pytest_ipvs.lab.client import DEPLOYMENTS, PODS, ApiClient, Object
from pytest_ipvs.policy import Policy
from pytest_ipvs.settings import resolve

pytest.register_assert_rewrite("lab_truth")

CLIENT = """
import json, socket, sys, time
host, port, count, first, ports, pause = sys.argv[1], *map(int, sys.argv[2:6]), float(sys.argv[6])
slow, errors, pods = 0, {}, {}
for number in range(count):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("", first + number % ports))
    client.settimeout(3)
    began = time.monotonic()
    try:
        client.connect((host, port))
        slow += time.monotonic() - began > 0.9
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while b"\\n" not in data.partition(b"\\r\\n\\r\\n")[2]:
            part = client.recv(4096)
            if not part:
                break
            data += part
        try:
            client.recv(1)
        except ConnectionResetError:
            pass
        pod = data.partition(b"\\r\\n\\r\\n")[2].decode().strip()
        pods[pod] = pods.get(pod, 0) + 1
    except OSError as error:
        name = type(error).__name__ + str(error.errno or "")
        errors[name] = errors.get(name, 0) + 1
    client.close()
    time.sleep(pause)
print(json.dumps({"slow": slow, "errors": errors, "pods": pods}))
"""


ORDER = (
    *("test_lab_checks", "test_lab_ground_truth"),
    *("test_lab_nested", "test_lab_life", "test_machine"),
)
VS_KEYS = ("conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template", "conntrack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the lab in which traffic is measured, and with what boots labs beside it.

    With ``--no-loadscope-reorder`` workers take their files in this order.
    """

    def place(item: pytest.Item) -> tuple[int, bool]:
        stem = item.path.stem
        return ORDER.index(stem) if stem in ORDER else len(ORDER), "healthy" in item.name

    items.sort(key=place)


class RunningLab:
    """The lab under test and short words for what the tests do often."""

    def __init__(self, handle: LabHandle) -> None:
        self.handle = handle
        status = handle.status()
        token = re.search(r"token: (\S+)", handle.kubeconfig.read_text())
        assert token is not None
        host, port = status["api"]
        self.api = ApiClient(f"http://{host}:{port}", token[1])
        self._port = 20000
        self._set_nodes: set[str] = set()

    @property
    def words(self) -> tuple[str, ...]:
        """What a run of pytest needs to be told of this lab."""
        return (
            *("--ipvs-kubeconfig", str(self.handle.kubeconfig)),
            *("--ipvs-connect", self.handle.connect),
            *("--ipvs-ssh-config", str(self.handle.ssh_config)),
            *("--ipvs-client", self.handle.client),
        )

    def ssh(self, host: str, *words: str, text: str | None = None) -> str:
        """Runs a command on a node or client by ssh; its output."""
        done = subprocess.run(
            ["ssh", "-F", str(self.handle.ssh_config), "-o", "BatchMode=yes", host, *words],
            capture_output=True,
            text=True,
            input=text or "",
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def cluster(self, policy: Policy | None = None, **options: Any) -> Iterator[Cluster]:
        """The lab as the engine sees it, as any cluster by kubeconfig and ssh."""
        reached = {
            "ipvs_kubeconfig": str(self.handle.kubeconfig),
            "ipvs_connect": self.handle.connect,
            "ipvs_ssh_config": str(self.handle.ssh_config),
        }
        opened = Cluster(resolve(reached | options, {}, {}, {}), policy or Policy())
        try:
            yield opened
        finally:
            opened.close()

    def table(self, node: str) -> dict[str, dict[str, Any]]:
        """The node's IPVS table: "10.96.10.1:80" to scheduler and weights by address."""
        result: dict[str, dict[str, Any]] = {}
        current: dict[str, Any] = {}
        for line in self.ssh(node, "sh", "-s", text=table_script()).splitlines():
            words = line.split()
            if words[0] in ("TCP", "UDP"):
                current = {
                    "scheduler": words[2],
                    "persistent": "persistent" in words,
                    "servers": {},
                }
                result[dotted(words[1])] = current
            elif words[0] == "->" and words[1] != "RemoteAddress:Port":
                current["servers"][dotted(words[1])] = int(words[3])
        return result

    def web(self, node: str) -> dict[str, int]:
        """The real servers of demo/web on one node, with their weights."""
        servers: dict[str, int] = self.table(node)["10.96.10.1:80"]["servers"]
        return servers

    def sysctl(self, node: str, key: str) -> str:
        return self.ssh(node, "sysctl", "-n", key).strip()

    def set_vs(self, node: str, values: Mapping[str, int]) -> None:
        """Set ``net.ipv4.vs.*`` on one node; the fixture ``lab`` puts them back."""
        self._set_nodes.add(node)
        words = (f"net.ipv4.vs.{key}={value}" for key, value in values.items())
        self.ssh(node, "sysctl", "-qw", *words)

    def reset_vs(self) -> None:
        """What kube-proxy leaves, on the nodes that were touched."""
        for node in sorted(self._set_nodes):
            self.set_vs(node, dict.fromkeys(VS_KEYS, 1))
        self._set_nodes.clear()

    def pods(self) -> list[Object]:
        return [
            pod
            for pod in self.api.list_all(PODS, "demo")[0]
            if "deletionTimestamp" not in pod["metadata"]
        ]

    def addresses(self) -> set[str]:
        return {f"{pod['status']['podIP']}:8080" for pod in self.pods()}

    def rolled_out(self) -> bool:
        item = self.api.get(DEPLOYMENTS, "demo", "web")
        assert item is not None
        status = item["status"]
        wanted = item["spec"]["replicas"]
        return bool(
            status.get("observedGeneration") == item["metadata"]["generation"]
            and status.get("updatedReplicas") == wanted == status.get("replicas")
            and status.get("availableReplicas") == wanted
        )

    def restart(self) -> None:
        notes = {"kubectl.kubernetes.io/restartedAt": str(time.time_ns())}
        body = {"spec": {"template": {"metadata": {"annotations": notes}}}}
        self.api.patch(DEPLOYMENTS, "demo", "web", body)

    def new_ports(self, count: int) -> int:
        """The first of so many source ports in a row that no test before has used.

        IPVS remembers those of others for two minutes, with what they were left in.
        """
        first, self._port = self._port, self._port + count
        assert self._port <= 30000
        return first

    def connect(
        self, count: int, ports: int, *, pause: float = 0.02, address: str = "10.96.10.1:80"
    ) -> dict[str, Any]:
        """Short connections from the client, one after the other, over ``ports`` source ports."""
        host, port = address.split(":")
        first = self.new_ports(ports)
        words = ["python3", "-", host, port, str(count), str(first), str(ports), str(pause)]
        result: dict[str, Any] = json.loads(self.ssh("client", *words, text=CLIENT))
        return result


def dotted(text: str) -> str:
    address, _, port = text.partition(":")
    number = int(address, 16)
    parts = [str(number >> shift & 255) for shift in (24, 16, 8, 0)]
    return f"{'.'.join(parts)}:{int(port, 16)}"


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Polls until a condition is true; fails the test after the deadline."""

    def poll(
        condition: Callable[[], Any], what: str, seconds: float = 60, pause: float = 0.2
    ) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen within {seconds:g} s: {what}")
            time.sleep(pause)
        return result

    return poll


@contextmanager
def running(name: str, **options: Any) -> Iterator[RunningLab]:
    with ExitStack() as stack:
        handle = start(name=f"{name}-{os.getpid()}", owner_pid=os.getpid(), **options)
        stack.callback(handle.down)
        lab = RunningLab(handle)
        stack.callback(lab.api.close)
        yield lab


@pytest.fixture(scope="session")
def start_lab() -> Callable[..., AbstractContextManager[RunningLab]]:
    """Starts a lab of another kind than the shared one: ``start_lab("four", nodes=4)``."""
    return running


@pytest.fixture(scope="session")
def paced_lab() -> Iterator[RunningLab]:
    with running("paced") as lab:
        yield lab


@pytest.fixture(scope="session")
def plain_lab() -> Iterator[RunningLab]:
    # One processor is a quarter cheaper, which is what the paced lab beside it needs.
    with running("plain", processors=1) as lab:
        yield lab


@pytest.fixture
def lab(
    request: pytest.FixtureRequest, paced: bool, eventually: Callable[..., Any]
) -> Iterator[RunningLab]:
    """The lab that such tests share, as it was after its start: no faults, three replicas."""
    shared: RunningLab = request.getfixturevalue("paced_lab" if paced else "plain_lab")
    yield shared
    shared.handle.clear()
    shared.reset_vs()
    shared.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 3}})
    eventually(shared.rolled_out, "demo/web as it was")


@pytest.fixture
def conformance(lab: RunningLab, pytester: pytest.Pytester, eventually: Callable[..., Any]) -> Run:
    """Run the ready-made suite; its result and the verdict of every check in its final table."""
    # Connections of another test may keep a real server that left for two minutes.
    lab.handle.fault("deleted_at_once")
    for node in lab.handle.nodes:
        eventually(lambda node=node: all(lab.web(node).values()), f"{node} has drained")
    lab.handle.clear("deleted_at_once")

    def run(*words: str) -> tuple[pytest.RunResult, dict[str, str]]:
        result = pytester.runpytest_subprocess(
            *("--pyargs", "pytest_ipvs.conformance", "-p", "no:cacheprovider"),
            *lab.words,
            # The lab's kube-proxy sweeps every 5 s, and a busy guest lags some seconds behind.
            *("--ipvs-converge-timeout", "7", "--ipvs-drain-budget", "6"),
            *("--ipvs-policy", str(EMULATED)),
            *words,
            timeout=540,
        )
        return result, verdicts_of(result.outlines)

    return run
