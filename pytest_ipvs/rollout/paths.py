"""Single paths through the nodes' tables, each tried by some connections: facts of DP-08 to DP-11.

Each function takes the cluster and a throw-away workload. Nothing is disrupted: pods are made, and
asked to connect to one another. What could not be tried is a path with a ``problem``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_ipvs.rollout.errors import NotPossibleHere
from pytest_ipvs.rollout.manifests import CONTAINER_PORT
from pytest_ipvs.rollout.protocols import ClusterLike
from pytest_ipvs.rollout.workload import PodPlace, Workload
from pytest_ipvs.traffic.placement import run_traffic
from pytest_ipvs.traffic.plan import address_text
from pytest_ipvs.traffic.results import Results
from pytest_ipvs.traffic.run import TrafficError

SECONDS, RATE = 4.0, 8.0
RESENT = "with a resent SYN"
# A pod that is asked to connect may take 3 s for each of two addresses before it says so.
READ_TIMEOUT = 10.0
RULES = "{ iptables-save -t nat; nft list ruleset; } 2>/dev/null | grep -cF -e %s || :"


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Connections on one path, from ``node`` where that matters.

    ``tried``: those that met what is asked about, ``failed`` of them by what they met ("timed
    out", "refused" …). ``problem``: why nothing was measured, "" where it was.
    """

    what: str
    node: str | None = None
    tried: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


def same_port(cluster: ClusterLike, workload: Workload) -> tuple[Path, ...]:
    """A pod connects to the cluster IP and to the pod behind it from one source port, both ways.

    Only where the Service chose that very pod can the two collide.
    """
    caller, other, *_ = workload.pods()
    direct = address_text(other.address, CONTAINER_PORT)
    virtual = address_text(workload.address, workload.port)
    both = f"{other.name}.{other.name}"
    return (
        _called(cluster, workload, caller, "the cluster IP, then its pod", both, virtual, direct),
        _called(cluster, workload, caller, "a pod, then its cluster IP", both, direct, virtual),
    )


def own_addresses(cluster: ClusterLike, workload: Workload) -> tuple[Path, ...]:
    """Each pod connects to its own Service, and one to the load balancer if there should be one."""
    pods = workload.pods()
    virtual = address_text(workload.address, workload.port)
    what = "a pod to itself through its own cluster IP"
    found = [_called(cluster, workload, pod, what, pod.name, virtual) for pod in pods]
    if cluster.settings.load_balancer:
        what = "a pod to its load balancer's address"
        if workload.balancer:
            virtual = address_text(workload.balancer, workload.port)
            found.append(_called(cluster, workload, pods[0], what, "", virtual))
        else:
            found.append(Path(what=what, problem="no load balancer gave the Service an address"))
    return tuple(found)


def cross_node(cluster: ClusterLike, workload: Workload) -> tuple[Path, ...]:
    """Each node connects to a cluster IP whose pods are, some or all, on other nodes.

    Raises `NotPossibleHere` where no pod is on another node than some selected one.
    """
    homes = {pod.name: pod.node for pod in workload.pods()}
    nodes = [n.name for n in cluster.nodes if n.ready and set(homes.values()) - {n.name}]
    if not nodes:
        raise NotPossibleHere("no ready node has a pod of the workload on another node")

    what = "a node to a cluster IP whose pod is on another node"

    def one(node: str) -> Path:
        results = _run(cluster, workload, workload.address, workload.port, where=f"node:{node}")
        if isinstance(results, str):
            return Path(what=what, node=node, problem=results)
        lost = results.failures
        met = sum(n for pod, n in results.pods.items() if homes.get(pod, node) != node)
        return _path(what, node, results, met + lost.total(), {**lost, RESENT: results.resent})

    answers = cluster.pool.map(one, nodes)
    return tuple(
        answer
        if isinstance(answer, Path)
        else Path(what=what, node=name, problem=str(answer.reason))
        for name, answer in answers.items()
    )


def host_port(cluster: ClusterLike, workload: Workload, exposed: Workload) -> tuple[Path, ...]:
    """A pod connects to the host port of a pod of ``exposed``, on another node if there is one.

    Raises `NotPossibleHere` where it is dead and the node has no rule for it: then it is not IPVS
    that broke it.
    """
    pod = exposed.pods()[0]
    caller = max(workload.pods(), key=lambda one: one.node != pod.node)
    what = "a pod to another one's host port"
    target = address_text(pod.host, exposed.host_port or 0)
    path = _called(cluster, workload, caller, what, pod.name, target)
    if not path.tried or sum(path.failed.values()) < path.tried:
        return (path,)
    address = address_text(pod.address, CONTAINER_PORT)
    answers = cluster.pool.map(lambda name: cluster.pool.run(name, RULES, address), [pod.node])
    said = getattr(answers[pod.node], "stdout", "").strip()
    if said == "0":
        raise NotPossibleHere(f"host ports are not implemented: {pod.node} has no rule for one")
    if not said.isdigit():
        why = f"it is dead, and the rules of {pod.node} could not be read"
        path = Path(what=what, node=caller.node, problem=why)
    return (path,)


def _called(
    cluster: ClusterLike, workload: Workload, caller: PodPlace, what: str, met: str, *targets: str
) -> Path:
    """What the caller says of its connections; ``met``: the answer that shows what is asked for."""
    path = workload.call(*targets)
    results = _run(cluster, workload, caller.address, CONTAINER_PORT, path=path)
    if isinstance(results, str):
        return Path(what=what, node=caller.node, problem=results)
    failed: dict[str, int] = {}
    for sample in results.failed:
        _, bad_gateway, words = sample.detail.partition(" 502 ")
        if bad_gateway:
            failed[words] = failed.get(words, 0) + 1
    good = results.pods[met] if met else results.pods.total()
    return _path(what, caller.node, results, good + sum(failed.values()), failed)


def _path(what: str, node: str, results: Results, tried: int, failed: Mapping[str, int]) -> Path:
    if not results.finished:
        reasons = "; ".join(results.problems) or "the client did not come to its end"
        return Path(what=what, node=node, problem=reasons)
    if not tried:
        problem = f"no connection met it, the client saw {named(results.classes)}"
        return Path(what=what, node=node, problem=problem)
    return Path(what=what, node=node, tried=tried, failed=named(failed))


def named(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts above zero, with the names of classes as words."""
    return {name.replace("_", " "): number for name, number in counts.items() if number}


def _run(
    cluster: ClusterLike, workload: Workload, address: str, port: int, **options: Any
) -> Results | str:
    """Some connections on ports of the kernel's choice; or why the client can't be run."""
    try:
        return run_traffic(
            cluster,
            address,
            port,
            seconds=SECONDS,
            rate=RATE,
            ports=0,
            read_timeout=READ_TIMEOUT,
            progress=workload.say,
            **options,
        )
    except TrafficError as error:
        return str(error)
