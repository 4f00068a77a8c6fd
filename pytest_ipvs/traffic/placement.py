"""Where a client runs: on pytest's machine, on a node, or on any machine testinfra can reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results
from pytest_ipvs.traffic.run import TrafficError, TrafficRun

MOST_PODS = 500


class Place(NamedTuple):
    """A testinfra host or a `JobPlace`, its name for people, and a node's name if it is one."""

    host: Any
    label: str
    node: str | None = None


def place(cluster: Any, where: str | None = None, *, avoid: Sequence[str] = ()) -> Place:
    """The host that ``where`` (default: the setting ``client``) names.

    "local", "node" (the first ready one that takes ordinary pods), "node:NAME", a testinfra URI,
    or "job" and "job:N" (pods of an Indexed Job). ``avoid``: names of nodes that will be drained
    or restarted, on which no client may be. Raises `TrafficError`.
    """
    where = where or cluster.settings.client
    known = sorted(node.name for node in cluster.nodes) if avoid else []
    # A name that is misspelt would keep nobody away.
    if unknown := sorted(set(avoid) - set(known)):
        raise TrafficError(
            f"the client should avoid node {unknown[0]!r}, expected one of {', '.join(known)}"
        )
    if where == "job" or where.startswith("job:"):
        return _job(cluster, where, avoid)
    if where == "local":
        import testinfra

        return Place(testinfra.get_host("local://"), "this machine")
    if where == "node":
        free = [node for node in cluster.nodes if node.name not in avoid]
        nodes = sorted(free, key=lambda node: (not node.ready, bool(node.taints)))
        if not nodes:
            left = "all selected ones are to be avoided" if avoid else "no node is selected"
            raise TrafficError(f"the client should run on a node, but {left}")
        name = nodes[0].name
        return Place(cluster.pool.host(name), f"node {name}", name)
    if where.startswith("node:"):
        name = where.removeprefix("node:")
        known = sorted(node.name for node in cluster.nodes)
        if name not in known:
            raise TrafficError(
                f"the client should run on node {name!r}, expected one of {', '.join(known)}"
            )
        if name in avoid:
            raise TrafficError(
                f"the client should run on node {name!r}, which it should avoid: expected another"
            )
        return Place(cluster.pool.host(name), f"node {name}", name)
    if "://" not in where:
        raise TrafficError(
            f"the client's place is {where!r}, expected local, node, node:NAME, job, job:N or a "
            "testinfra URI"
        )
    return Place(cluster.pool.open(where, "client"), where.rsplit("@", 1)[-1])


def _job(cluster: Any, where: str, avoid: Sequence[str]) -> Place:
    from pytest_ipvs.traffic.job import JobPlace

    text = where.partition(":")[2] or "1"
    if not text.isdigit() or not 0 < int(text) <= MOST_PODS:
        raise TrafficError(f"the client's place is {where!r}, expected job:N with 1 to {MOST_PODS}")
    count = int(text)
    label = "a Job of one pod" if count == 1 else f"a Job of {count} pods"
    return Place(JobPlace(cluster=cluster, count=count, avoid=tuple(avoid)), label)


def run_traffic(
    cluster: Any,
    address: str,
    port: int,
    *,
    seconds: float = 10.0,
    rate: float | None = None,
    ports: int | None = None,
    where: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Results:
    """Short connections to an address for some seconds; what they met.

    ``rate`` and ``ports`` default to the settings; ``options`` are those of `Plan`. Raises
    `TrafficError` where the client can't be run, ``ValueError`` for a plan that can't be.
    """
    settings = cluster.settings
    ports = settings.source_ports if ports is None else ports
    plan = Plan(
        host=address,
        port=port,
        duration=seconds,
        rate=settings.rate if rate is None else rate,
        ports=ports,
        slow_ms=options.pop("slow_ms", cluster.policy.slow_connect_ms),
        **options,
    )
    there = place(cluster, where)
    progress(f"{plan.rate:g} connections a second to {plan.target} from {there.label}")
    with TrafficRun(there.host, plan, where=there.label) as run:
        run.wait(seconds + plan.connect_timeout + plan.read_timeout + plan.close_wait + 30.0)
    return run.results()
