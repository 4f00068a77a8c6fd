"""A cluster without a cluster, for tests of pytest's side: `install` it from a conftest.py.

Works in this process and in any other that loads that conftest.py, such as a pytest-xdist worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_ipvs.cluster.errors import ClusterError
from pytest_ipvs.cluster.handle import SysctlValue
from pytest_ipvs.cluster.model import NodeDetails, NodeFacts, ProxyFacts, ProxyObjects, Snapshot
from pytest_ipvs.ipvs.objects import Node, Service
from pytest_ipvs.ipvs.tables import Table, parse_table

# What healthy nodes have is written there.
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "checks"), str(TESTS / "ipvs")]
import evidence_builder as healthy  # noqa: E402

EMPTY = parse_table(
    "IP Virtual Server version 1.2.1 (size=4096)\n"
    "Prot LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)


@dataclass
class World:
    """What the fake cluster is like."""

    names: Sequence[str] = ("node-1", "node-2", "node-3")
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, str | None] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    services: Sequence[Service] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    unread: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    without_proxy: bool = False
    broken: str = ""


class FakeCluster:
    """Has of `pytest_ipvs.cluster.cluster.Cluster` what pytest's side uses."""

    world = World()

    def __init__(self, settings: Any, policy: Any) -> None:
        if self.world.broken:
            raise ClusterError(self.world.broken)
        self.settings, self.policy = settings, policy
        self.api = SimpleNamespace(
            context="staging",
            server="https://user:secret@10.0.0.1:6443/path?token=secret",
            version="v1.36.2",
            client="the ApiClient",
        )
        self.nodes = tuple(
            Node(
                name=name,
                kernel_release=self._kernel(name),
                kube_proxy_version="v1.36.2",
                labels=self.world.labels.get(name, {}),
            )
            for name in sorted(self.world.names)
        )

    def _kernel(self, name: str) -> str:
        return self.world.kernels.get(name, "6.1.0-56-amd64")

    def check_access(self) -> None:
        pass

    def snapshot(self, nodes: Sequence[str] | None = None, *, details: bool = False) -> Snapshot:
        world = self.world
        return Snapshot(
            taken_at=time.time(),
            server_version="v1.36.2",
            nodes=self.nodes,
            services=tuple(world.services),
            endpoint_slices=(),
            facts={n: self._facts(n, details) for n in world.names if n not in world.silent},
            proxy_objects=ProxyObjects() if details else None,
            unreachable=dict(world.silent),
        )

    def _facts(self, name: str, details: bool = False) -> NodeFacts:
        told = NodeDetails(**healthy.node_details()) if details else None
        facts = replace(self._with_proxy(name), details=told)
        if not self.world.without_proxy:
            return facts
        unread = dict.fromkeys(("proxy.mode", "proxy.healthz"), "nothing answers on port 1")
        return replace(
            facts,
            proxy=ProxyFacts(),
            unread=unread,
            addresses=(("cilium_host", "10.0.0.1"),),
            details=told and replace(told, proxy_command=None),
        )

    def _with_proxy(self, name: str) -> NodeFacts:
        return NodeFacts(
            node=name,
            taken_at=time.time(),
            kernel_release=self._kernel(name),
            kernel_version="#1 SMP Debian 6.1.176-1",
            sysctls={**healthy.SYSCTLS, **self.world.sysctls.get(name, {})},
            module_parameters={"ip_vs.conn_tab_bits": "12"},
            table=self.world.tables.get(name, EMPTY),
            addresses=(("lo", "127.0.0.1"),),
            conntrack={"insert_failed": 0, "drop": 0, "early_drop": 0},
            unread=self.world.unread.get(name, {}),
            proxy=self._proxy(name),
        )

    def _proxy(self, name: str) -> ProxyFacts:
        mode = self.world.modes.get(name, "ipvs")
        told = healthy.proxy_facts(time.time(), name)
        return replace(told, mode=mode, config=None if mode is None else told.config)

    def observe(
        self,
        *,
        progress: Callable[[str], None] | None = None,
        details: bool = False,
        **_: Any,
    ) -> tuple[Snapshot, ...]:
        return (self.snapshot(details=details), self.snapshot())

    def node(self, name: str) -> Any:
        facts = self._facts(name)
        sysctls = {key: SysctlValue(text, key, name) for key, text in facts.sysctls.items()}
        return SimpleNamespace(name=name, facts=facts, sysctl=sysctls)

    def close(self) -> None:
        pass


def install(**world: Any) -> None:
    """Let the plugin reach a fake cluster that is like this."""
    from pytest_ipvs.cluster import cluster

    FakeCluster.world = World(**world)
    cluster.Cluster = FakeCluster  # type: ignore[assignment,misc]
