"""What IPVS does to re-used ports while one of three real servers is replaced, row by row.

Every node has its own ``net.ipv4.vs.*``, so the rows of a table are measured at the same time: one
client behind each node, one disruption for all of them.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.lab.client import DEPLOYMENTS, PODS
from pytest_ipvs.traffic import Plan, Results, TrafficRun
from pytest_ipvs.traffic.placement import place
from pytest_ipvs.traffic.results import TIMEOUTS

if TYPE_CHECKING:
    from conftest import RunningLab

# Ports return after 5 s, within the 10 s for which IPVS remembers a refused connection.
RATE, PORTS = 40, 200
CLIENTS = {"node-1": "client", "node-2": "client-2", "node-3": "client-3"}
WEB, AFFINE = "10.96.10.1", "10.96.10.2"
OLD = "web-old"


class Clients:
    """One client behind each node, with the lab's way of waiting."""

    def __init__(
        self,
        lab: RunningLab,
        cluster: Cluster,
        address: str,
        eventually: Callable[..., Any],
        ports: int = PORTS,
        endings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._stack = ExitStack()
        self._eventually = eventually
        self.runs: dict[str, TrafficRun] = {}
        for node, name in CLIENTS.items():
            ending = endings.get(node, "server")
            # Who closes first keeps a port in TIME_WAIT for a minute: longer than the run.
            window = ports * 10 if ending == "client" else ports
            first = lab.new_ports(window)
            plan = Plan(
                host=address, port=80, rate=RATE, ending=ending, ports=window, first_port=first
            )
            self.runs[node] = TrafficRun(place(cluster, f"ssh://root@{name}").host, plan)

    def __enter__(self) -> Clients:
        with ExitStack() as stack, ThreadPoolExecutor(len(self.runs)) as beside:
            for run in self.runs.values():
                stack.callback(run.abort)
            list(beside.map(TrafficRun.start, self.runs.values()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until(self, connections: int) -> None:
        """Go on until each client has made this many more connections."""
        # Those that were due and not made, on a slow machine, have used no port.
        goals = {node: run.results().connections + connections for node, run in self.runs.items()}
        self._eventually(
            lambda: all(run.results().connections >= goals[n] for n, run in self.runs.items()),
            f"{connections} more connections of each client",
            5 * connections / RATE + 60,
            # Reading three growing records is work as well.
            pause=1.0,
        )

    def stop(self) -> dict[str, Results]:
        with ThreadPoolExecutor(len(self.runs)) as beside:
            return dict(
                zip(self.runs, beside.map(TrafficRun.stop, self.runs.values()), strict=True)
            )


def failures(results: Results) -> Counter[str]:
    """Failed connections, less the time-outs of a client that stood still itself."""
    found, starved = results.failures, results.starved_seconds
    for second in results.seconds:
        if second.t in starved:
            found.subtract({name: second.classes.get(name, 0) for name in TIMEOUTS})
    return +found


def new_share(lab: RunningLab, results: Results, old: set[str], since: float) -> float:
    pods = results.window(since, float("inf")).pods
    new = {pod["metadata"]["name"] for pod in lab.pods()} - old
    assert new
    return sum(pods[name] for name in new) / sum(pods.values())


def add_old_pod(lab: RunningLab, eventually: Callable[..., Any]) -> str:
    """A pod behind demo/web that belongs to nobody, and its address and port."""
    deployment = lab.api.get(DEPLOYMENTS, "demo", "web")
    assert deployment is not None
    spec = copy.deepcopy(deployment["spec"]["template"]["spec"])
    for container in spec["containers"]:
        container.pop("lifecycle")
    meta = {"name": OLD, "namespace": "demo", "labels": {"app": "web"}}
    lab.api.create(PODS, {"metadata": meta, "spec": spec})

    def address() -> str:
        pod = lab.api.get(PODS, "demo", OLD)
        assert pod is not None
        ready = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}.get("Ready")
        return f"{pod['status']['podIP']}:8080" if ready == "True" else ""

    found: str = eventually(address, f"{OLD} is ready")
    return found


def remove_old_pod(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    if lab.api.get(PODS, "demo", OLD) is not None:
        lab.api.delete(PODS, "demo", OLD)
        eventually(lambda: lab.api.get(PODS, "demo", OLD) is None, f"{OLD} is gone")


def assert_rolling_replacement(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    """One of three real servers is replaced: only 0 and 0 fails, and 0 starves the new pod.

    As in a rolling update the new pod is ready first, and the old one leaves the endpoints before
    it ends. It is a pod of its own, so that each step waits for the one before on every node: what
    fails is IPVS's doing then, however slow the machine.
    """
    lab.set_vs("node-1", {"conn_reuse_mode": 0, "expire_nodest_conn": 0})
    lab.set_vs("node-2", {"conn_reuse_mode": 0, "expire_nodest_conn": 1})
    lab.set_vs("node-3", {"conn_reuse_mode": 1, "expire_nodest_conn": 1})

    def on_every_node(agrees: Callable[[dict[str, int]], bool], what: str) -> None:
        for node in CLIENTS:
            there = functools.partial(lambda node: agrees(lab.web(node)), node)
            eventually(there, f"{what} on {node}", pause=1.0)

    def scale(replicas: int) -> None:
        lab.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": replicas}})
        eventually(lab.rolled_out, f"{replicas} pods")

    with lab.cluster() as cluster, ExitStack() as stack:
        scale(2)
        old = add_old_pod(lab, eventually)
        stack.callback(remove_old_pod, lab, eventually)
        before = {pod["metadata"]["name"] for pod in lab.pods()}
        on_every_node(lambda web: {s for s, w in web.items() if w} == lab.addresses(), "three pods")
        clients = stack.enter_context(Clients(lab, cluster, WEB, eventually))
        clients.until(PORTS + RATE)
        scale(3)
        on_every_node(lambda web: lab.addresses() <= set(web), "the new real server")
        lab.api.patch(PODS, "demo", OLD, {"metadata": {"labels": {"app": "old"}}})
        on_every_node(lambda web: not web.get(old), "weight 0")
        # What was on its way to the old pod has been answered by then.
        clients.until(RATE)
        remove_old_pod(lab, eventually)
        began = max(s.t for s in clients.runs["node-3"].results().seconds) + 1
        clients.until(3 * PORTS)
        for node in ("node-2", "node-3"):
            drained = functools.partial(lambda node: old not in lab.web(node), node)
            # Connections of another test keep it for two minutes. Reading a table is work as well.
            eventually(drained, f"{node} drains", 150, pause=1.0)
        assert lab.web("node-1")[old] == 0
        results = clients.stop()
    shares = {node: new_share(lab, found, before, began) for node, found in results.items()}

    lost = results["node-1"].failures
    deadly = ("no_route", "connect_timeout", "refused", "reset")
    # A third of the ports leads to the pod that is gone, and each comes back three times.
    assert sum(lost[name] for name in deadly) > PORTS / 2
    assert shares["node-1"] < 0.03
    assert not failures(results["node-2"])
    assert 0.05 < shares["node-2"] < 0.2
    assert not failures(results["node-3"])
    assert 0.28 < shares["node-3"] < 0.4
    for found in results.values():
        assert found.window(began, float("inf")).reused > PORTS
