"""A target's real servers on every node, read by one command over connections that are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pytest_ipvs.cluster.script_table import table_script
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, TableError, parse_table
from pytest_ipvs.rollout.protocols import ClusterLike, Say
from pytest_ipvs.rollout.target import Target

Servers = dict[ServiceKey, tuple[RealServer, ...]]
READ = "cat /proc/net/ip_vs"
READ_WHOLE = "/bin/sh -c %s sh"
POLL_SECONDS = 1.0
PATIENCE = 3.0
MOST_AT_ONCE = 16


def read_tables(cluster: ClusterLike, target: Target) -> dict[str, Servers | str]:
    """By node name; one sentence in place of the servers where a node could not be read."""
    names = [node.name for node in cluster.nodes]
    pool = cluster.pool
    answers = pool.map(lambda name: pool.run(name, READ_WHOLE, table_script()), names)
    return {name: _read(target, answer) for name, answer in answers.items()}


class TableReader:
    """`read_tables` again and again, in which a node that hangs does not hold up the others.

    A node that has not answered within `PATIENCE` seconds is left out; its answer, or the reason
    why there is none, comes with a later call. It is not asked again before that.
    """

    def __init__(self, cluster: ClusterLike, target: Target) -> None:
        self._cluster = cluster
        self._target = target
        names = [node.name for node in cluster.nodes]
        self._executor = ThreadPoolExecutor(
            max(1, min(MOST_AT_ONCE, len(names))), "ipvs-recorder-node"
        )
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Servers | str]] = {}
        self._had: dict[str, set[ServiceKey]] = {}

    def __call__(self) -> dict[str, Servers | str]:
        """What has come by now."""
        with self._lock:
            for node in self._cluster.nodes:
                if node.name not in self._asked:
                    self._asked[node.name] = self._executor.submit(self._one, node.name)
            wait(self._asked.values(), timeout=PATIENCE)
            done = {name: asked for name, asked in self._asked.items() if asked.done()}
            for name in done:
                del self._asked[name]
        return {name: asked.result() for name, asked in done.items()}

    def _one(self, name: str) -> Servers | str:
        """By the cheap command where that shows all virtual servers that the node had before.

        It lacks some on a node that shares its kernel, but never a part of one.
        """
        if had := self._had.get(name):
            servers = self._ask(name, READ)
            if isinstance(servers, str) or had <= servers.keys():
                return servers
        servers = self._ask(name, READ_WHOLE, table_script())
        if not isinstance(servers, str):
            self._had[name] = set(servers)
        return servers

    def _ask(self, name: str, command: str, *arguments: str) -> Servers | str:
        pool = self._cluster.pool
        try:
            answer = pool.map(lambda node: pool.run(node, command, *arguments), [name])[name]
        except Exception as error:  # the record says why the node was not read
            return (str(error) or type(error).__name__).splitlines()[0]
        return _read(self._target, answer)

    def close(self) -> None:
        """Ask nobody any more; what hangs ends at its own time limit."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _read(target: Target, answer: Any) -> Servers | str:
    if not hasattr(answer, "stdout"):
        return str(getattr(answer, "reason", answer))
    if answer.rc != 0:
        words = answer.stderr.strip().splitlines()
        return words[-1] if words else f"reading /proc/net/ip_vs ended with {answer.rc}"
    try:
        return target.real_servers(parse_table(answer.stdout))
    except TableError as error:
        return str(error)


def wait_programmed(
    cluster: ClusterLike,
    target: Target,
    *,
    timeout: float,
    say: Say,
    pause: Callable[[float], None],
) -> bool:
    """Until every node that can be read sends traffic for the target somewhere.

    A Service that was just made is not in the nodes' tables yet; connections that fail then are
    nobody's fault. False after ``timeout`` seconds: what fails then is a finding. A port that is
    none of the Service's is somebody else's, and no node programs it for the Service.
    """
    ports = target.service.ports
    if target.address_port not in {number for p in ports for number in (p.port, p.node_port)}:
        return True
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        waiting = _not_programmed(read_tables(cluster, target), target)
        if not waiting:
            return True
        if time.monotonic() > deadline:
            return False
        if waiting != told:
            say(f"{target}: waiting for {waiting} to program {target.service.ref}")
            told = waiting
        pause(POLL_SECONDS)


def _not_programmed(tables: Mapping[str, Servers | str], target: Target) -> str:
    local = "Local" in (
        target.service.internal_traffic_policy,
        target.service.external_traffic_policy,
    )
    lacking = []
    for node, servers in tables.items():
        if isinstance(servers, str):
            continue
        here = {k.address: s for k, s in servers.items() if k.port == target.address_port}
        # With a Local policy a node without a pod of its own may rightly have none.
        if (
            not here
            or not here.keys() >= set(target.service.load_balancer_ips)
            or (not local and not any(s.weight > 0 for s in next(iter(here.values()))))
        ):
            lacking.append(node)
    return ", ".join(sorted(lacking))
