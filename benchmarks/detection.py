"""How soon each client notices ``reuse_leftover`` on the lab, once the old pod is gone.

Each client has a node of its own, so none meets what another left in the table, and they take
turns, so none takes the other's processor. ab, wrk and hey tell of failures when they end; here it
counts in their favour as noticed when the kernel of their machine counts a failed connect
(``AttemptFails`` of ``/proc/net/snmp``). Ours must have told of the failure itself.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.lab import start
from pytest_ipvs.lab.client import DEPLOYMENTS, PODS, ApiClient
from pytest_ipvs.lab.launch import LabHandle
from pytest_ipvs.settings import resolve
from pytest_ipvs.traffic import Plan, TrafficRun
from pytest_ipvs.traffic.placement import place

HOST, PORT = "10.96.10.1", 80
# Long enough for each client to have been with every pod.
WARM_SECONDS = 15
LIMIT_SECONDS = 120
LOOK_SECONDS = 0.5


class Bench:
    """The lab with the fault in force, and what is done to it."""

    def __init__(self, lab: LabHandle, cluster: Cluster) -> None:
        self.lab, self.cluster = lab, cluster
        token = re.search(r"token: (\S+)", lab.kubeconfig.read_text())
        assert token is not None
        self.api = ApiClient("http://{}:{}".format(*lab.status()["api"]), token[1])

    def ssh(self, client: str, *words: str) -> list[str]:
        """The command that does this on a client."""
        return ["ssh", "-F", str(self.lab.ssh_config), "-o", "BatchMode=yes", client, *words]

    def failed_connects(self, client: str) -> int:
        """``AttemptFails`` of the client's kernel."""
        words = self.ssh(client, "cat", "/proc/net/snmp")
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index("AttemptFails")])

    @contextmanager
    def ours(self, client: str) -> Iterator[Callable[[], int]]:
        """Our client under way; yields what counts the failures that it has told of."""
        plan = Plan(host=HOST, port=PORT, rate=40, ports=200)
        run = TrafficRun(place(self.cluster, f"ssh://root@{client}").host, plan)
        with ExitStack() as stack:
            stack.callback(run.abort)
            run.start()
            yield lambda: run.results().failures.total()

    @contextmanager
    def theirs(self, client: str, command: Sequence[str]) -> Iterator[Callable[[], int]]:
        """Another client under way; yields what counts the failed connects of its machine."""
        words = self.ssh(client, f"echo $$; exec {shlex.join(command)}")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tool:
            assert tool.stdout is not None
            pid = tool.stdout.readline().strip()
            try:
                yield lambda: self.failed_connects(client)
                if tool.poll() is not None:
                    sys.exit(f"{command[0]} ended before its time, with {tool.returncode}")
            finally:
                subprocess.run(self.ssh(client, "kill", "-9", pid), check=False)

    def replace_a_pod(self) -> None:
        """One pod is deleted; returns when it is gone."""
        victim = self.pods()[0]
        self.api.delete(PODS, "demo", victim)
        until(lambda: victim not in self.pods(), "the pod's end")

    def pods(self) -> list[str]:
        """Names of all pods of demo/web."""
        return sorted(pod["metadata"]["name"] for pod in self.api.list_all(PODS, "demo")[0])

    def at_rest(self) -> bool:
        """Whether three pods are ready and none is on its way."""
        web = self.api.get(DEPLOYMENTS, "demo", "web")
        return web is not None and web["status"].get("availableReplicas") == 3 == len(self.pods())

    def seconds_until_noticed(self, counted: Callable[[], int]) -> float | None:
        """From the old pod's end to the first failure; ``None``: not within the limit."""
        time.sleep(WARM_SECONDS)
        before = counted()
        self.replace_a_pod()
        began = time.monotonic()
        while time.monotonic() < began + LIMIT_SECONDS:
            if counted() > before:
                return round(time.monotonic() - began, 1)
            time.sleep(LOOK_SECONDS)
        return None


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for it; the benchmark ends if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"did not happen within {seconds:g} s: {what}")
        time.sleep(0.2)


def first_detection(
    command: Callable[[str, str, int], list[str]], tools: Sequence[str]
) -> dict[str, float | None]:
    """Seconds by client, ``None`` where it saw nothing. ``command`` of tool, URL and seconds."""
    found: dict[str, float | None] = {}
    with ExitStack() as stack:
        lab = start(
            name=f"detection-{os.getpid()}",
            owner_pid=os.getpid(),
            nodes=1 + len(tools),
            programs=tools,
            progress=lambda text: print(text, flush=True),
        )
        stack.callback(lab.down)
        reached = {
            "ipvs_kubeconfig": str(lab.kubeconfig),
            "ipvs_connect": lab.connect,
            "ipvs_ssh_config": str(lab.ssh_config),
        }
        cluster = Cluster(resolve(reached, {}, {}, {}))
        stack.callback(cluster.close)
        lab.fault("reuse_leftover")
        bench = Bench(lab, cluster)
        stack.callback(bench.api.close)
        for number, name in enumerate(["ours", *tools], 1):
            client = "client" if number == 1 else f"client-{number}"
            until(bench.at_rest, "three ready pods")
            limit = WARM_SECONDS + LIMIT_SECONDS + 60
            url = f"http://{HOST}:{PORT}/"
            running = (
                bench.ours(client)
                if name == "ours"
                else bench.theirs(client, command(name, url, limit))
            )
            with running as counted:
                found[name] = bench.seconds_until_noticed(counted)
            seen = "saw nothing" if found[name] is None else f"{found[name]} s"
            print(f"{name}: {seen}", flush=True)
    return found
