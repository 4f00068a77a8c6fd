"""The cluster under test: its API and its nodes, read together at one moment or over time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_ipvs.cluster.api import Api
from pytest_ipvs.cluster.details import Shares
from pytest_ipvs.cluster.errors import ApiError, ClusterError, NodeUnreachableError
from pytest_ipvs.cluster.facts import Probe, TableCache, read_facts
from pytest_ipvs.cluster.handle import NodeHandle
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.cluster.nodes import NodePool, unreachable_reasons
from pytest_ipvs.cluster.reading import ApiReader, merged, moving, select
from pytest_ipvs.cluster.settle import Settling
from pytest_ipvs.ipvs.objects import EndpointSlice, Node, Service
from pytest_ipvs.ipvs.tables import Table
from pytest_ipvs.policy import Policy

if TYPE_CHECKING:
    from pytest_ipvs.settings import Settings

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions as the API tells them: ``server`` "v1.36.2"; the others by node name."""

    server: str
    kubelet: Mapping[str, str]
    kube_proxy: Mapping[str, str]
    kernel: Mapping[str, str]


class Cluster:
    """One cluster. Making it checks the settings and asks the API server for its version.

    ``nodes`` are the selected ones, sorted by name. Raises `ClusterError`.
    """

    def __init__(
        self, settings: Settings, policy: Policy | None = None, *, api: Api | None = None
    ) -> None:
        self.settings = settings
        self.policy = policy if policy is not None else Policy().with_settings(settings)
        # Before anything is connected: a bad template is found without a cluster.
        self.pool = NodePool.from_settings(settings, ())
        self.api = api if api is not None else Api.connect(settings)
        self._reader = ApiReader(self.api)
        self._tables = TableCache()
        self._shares = Shares()
        self._nodes: tuple[Node, ...] | None = None
        self._handles: dict[str, NodeHandle] = {}
        self.pause: Callable[[float], None] = time.sleep
        self.probe = Probe()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The selected nodes, sorted by name, as the API told them last."""
        if self._nodes is None:
            self._nodes = self._read_nodes()
        return self._nodes

    @property
    def services(self) -> tuple[Service, ...]:
        """All Services, as the API tells them now."""
        return self._reader.services()

    @property
    def endpoint_slices(self) -> tuple[EndpointSlice, ...]:
        """All EndpointSlices, as the API tells them now."""
        return self._reader.endpoint_slices()

    @property
    def versions(self) -> Versions:
        """Versions of the server and of each selected node."""
        nodes = self.nodes
        return Versions(
            server=self.api.version,
            kubelet={node.name: node.kubelet_version for node in nodes},
            kube_proxy={node.name: node.kube_proxy_version for node in nodes},
            kernel={node.name: node.kernel_release for node in nodes},
        )

    def check_access(self) -> None:
        """Ask for everything that a reading needs, but read no node. Raises `ClusterError`."""
        nodes = self.nodes
        self.pool.check_template([node.name for node in nodes])
        self.api.get("/api/v1/services", limit=1)
        self.api.get(self.api.endpoint_slices_path(), limit=1)

    def node(self, name: str) -> NodeHandle:
        """One selected node by name. Raises `ClusterError` for another one."""
        if name not in self._handles:
            known = {node.name: node for node in self.nodes}
            if name not in known:
                raise ClusterError(
                    f"node {name!r} is not selected, expected one of {', '.join(known) or 'none'}"
                )
            self._handles[name] = NodeHandle(known[name], self.pool, self._facts)
        return self._handles[name]

    def snapshot(self, nodes: Sequence[str] | None = None, *, details: bool = False) -> Snapshot:
        """Read the API, then the nodes (all selected, or those named), then the API again.

        Nodes that don't answer are in ``unreachable``. Services that changed meanwhile, in the
        API's view, are in ``moving``. ``details`` adds what is dear to read: `NodeDetails` of the
        nodes, in the same round trip, and kube-proxy's objects of the API.
        """
        self._nodes = self._read_nodes()
        names = [node.name for node in self._nodes]
        if nodes is not None:
            names = [self.node(name).name for name in nodes]
        before = self._reader.read()
        read = partial(self._facts, details=True) if details else self._facts
        results = self.pool.map(read, names)
        after = self._reader.read()
        reading = merged(before, after)
        return Snapshot(
            taken_at=time.time(),
            server_version=self.api.version,
            nodes=self._nodes,
            services=reading.services,
            endpoint_slices=reading.endpoint_slices,
            facts={n: r for n, r in results.items() if isinstance(r, NodeFacts)},
            unreachable=unreachable_reasons(results),
            moving=moving(before, after),
            proxy_objects=self._reader.proxy_objects() if details else None,
        )

    def observe(
        self,
        *,
        timeout: float | None = None,
        drain: bool = True,
        nodes: Sequence[str] | None = None,
        details: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> tuple[Snapshot, ...]:
        """Snapshots, oldest first, until nothing is left that may still change by itself.

        A difference between API and tables is followed until it is gone or older than what its
        node's kube-proxy may take; a real server at weight 0 until it is gone or past the drain
        budget (not at all with ``drain=False``). ``timeout`` (seconds) ends it earlier: what is
        undecided then stays so. With ``details`` the first snapshot has them.
        """
        settling = Settling(self.policy, drain=drain)
        begun = time.monotonic()
        snapshots: list[Snapshot] = []
        pause = FIRST_PAUSE
        while True:
            snapshots.append(self.snapshot(nodes, details=details and not snapshots))
            state = settling.add(snapshots[-1])
            elapsed = time.monotonic() - begun
            if state.settled or (timeout is not None and elapsed + pause > timeout):
                return tuple(snapshots)
            if progress is not None:
                progress(f"{state.text} ({elapsed:.0f} s)")
            self.pause(min(pause, max(FIRST_PAUSE, state.wait)))
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def converged(self, timeout: float | None = None) -> bool:
        """Whether all tables follow the API within ``timeout`` seconds (the converge budget).

        Real servers that drain at weight 0 don't count against it; a node that does not answer
        or whose table was not read does.
        """
        limit = self.policy.converge_budget if timeout is None else timeout
        snapshots = self.observe(timeout=limit, drain=False)
        return Settling(self.policy, drain=False).add(snapshots[-1]).equal

    def tables(self) -> dict[str, Table | None]:
        """Every selected node's table; ``None`` where ip_vs is not loaded.

        Raises `ClusterError` if one can't be read: a missing table must not look like none.
        """
        results = self.pool.map(self._facts, [node.name for node in self.nodes])
        tables: dict[str, Table | None] = {}
        for name, facts in results.items():
            if not isinstance(facts, NodeFacts):
                raise NodeUnreachableError(name, facts.reason)
            if "table" in facts.unread:
                raise ClusterError(f"node {name}: table was not read: {facts.unread['table']}")
            tables[name] = facts.table
        return tables

    def close(self) -> None:
        """End all connections; leaves no process behind."""
        self.pool.close()
        self._reader.close()
        self.api.close()

    def _facts(self, name: str, *, details: bool = False) -> NodeFacts:
        node = next((node for node in self.nodes if node.name == name), None)
        address = node.internal_ips[0] if node is not None and node.internal_ips else ""
        return read_facts(
            self.pool,
            name,
            tables=self._tables,
            address=address,
            probe=self.probe,
            details=details,
            shares=self._shares,
        )

    def _read_nodes(self) -> tuple[Node, ...]:
        settings = self.settings
        try:
            found = self._reader.nodes(settings.node_selector)
        except ApiError as error:
            if error.status == 400 and settings.node_selector:
                raise ClusterError(
                    f"{settings.origin('node_selector')} is {settings.node_selector!r}, expected "
                    f"a label selector: {error.message}"
                ) from None
            raise
        selected = select(found, settings.nodes, settings.origin("nodes"))
        if not selected:
            wanted = f" that matches {settings.node_selector!r}" if settings.node_selector else ""
            raise ClusterError(f"the cluster of {self.api.server} has no node{wanted} to test")
        self.pool.update(selected)
        return selected
