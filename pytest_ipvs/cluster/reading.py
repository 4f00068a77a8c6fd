"""The API's objects at one moment as records, and which Services moved between two moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pytest_ipvs.cluster.api import Api
from pytest_ipvs.cluster.errors import ClusterError
from pytest_ipvs.cluster.model import ProxyObjects, Snapshot
from pytest_ipvs.cluster.proxy_objects import read_proxy_objects
from pytest_ipvs.ipvs.objects import EndpointSlice, Node, Service

R = TypeVar("R")

_SERVICES = "/api/v1/services"
_NODES = "/api/v1/nodes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReading:
    """Services and slices of all namespaces, in the order of the API."""

    services: tuple[Service, ...]
    endpoint_slices: tuple[EndpointSlice, ...]


class ApiReader:
    """Reads lists into records; an object whose version did not change is not parsed again."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, dict[tuple[str, str], Any]] = {}
        # Services and slices are fetched at the same time, so that their two moments are close.
        self._executor = ThreadPoolExecutor(2, "ipvs-api")

    def read(self) -> ApiReading:
        """Read Services and slices: as many requests as pages, however many nodes there are."""
        services = self._executor.submit(self.services)
        slices = self._executor.submit(self.endpoint_slices)
        return ApiReading(services=services.result(), endpoint_slices=slices.result())

    def services(self) -> tuple[Service, ...]:
        """All Services."""
        return tuple(self._records(_SERVICES, Service.from_api))

    def endpoint_slices(self) -> tuple[EndpointSlice, ...]:
        """All EndpointSlices, or what stands for them on old servers."""
        path = self._api.endpoint_slices_path()
        groups = self._records(path, self._api.slices_of)
        return tuple(part for group in groups for part in group)

    def nodes(self, selector: str | None = None) -> tuple[Node, ...]:
        """Nodes that match a label selector (all without), sorted by name."""
        items = self._api.items(_NODES, labelSelector=selector)
        return tuple(sorted((_parsed(Node.from_api, i) for i in items), key=lambda n: n.name))

    def proxy_objects(self) -> ProxyObjects:
        """What the API holds about kube-proxy: three requests, however many nodes there are."""
        return read_proxy_objects(self._api)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _records(self, path: str, parse: Callable[[Mapping[str, Any]], R]) -> list[R]:
        known = self._known.get(path, {})
        fresh: dict[tuple[str, str], Any] = {}
        records = []
        for item in self._api.items(path):
            metadata = item.get("metadata") or {}
            key = (str(metadata.get("uid")), str(metadata.get("resourceVersion")))
            record = (
                known.get(key) if all(metadata.get(k) for k in ("uid", "resourceVersion")) else None
            )
            if record is None:
                record = _parsed(parse, item)
            fresh[key] = record
            records.append(record)
        self._known[path] = fresh
        return records


def _parsed(parse: Callable[[Mapping[str, Any]], R], item: Mapping[str, Any]) -> R:
    try:
        return parse(item)
    except ValueError as error:
        raise ClusterError(f"the API server sent an object that can't be read: {error}") from None


def moving(before: ApiReading, after: ApiReading) -> frozenset[str]:
    """ "namespace/name" of Services that differ between two readings, themselves or by slices."""
    moved = _differing(_services_by_ref(before), _services_by_ref(after))
    moved |= _differing(_slices_by_ref(before), _slices_by_ref(after))
    return frozenset(moved)


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    return {ref for ref in before.keys() | after.keys() if before.get(ref) != after.get(ref)}


def _services_by_ref(reading: ApiReading) -> dict[str, Service]:
    return {service.ref: service for service in reading.services}


def _slices_by_ref(reading: ApiReading) -> dict[str, dict[str, EndpointSlice]]:
    by_ref: dict[str, dict[str, EndpointSlice]] = {}
    for item in reading.endpoint_slices:
        by_ref.setdefault(f"{item.namespace}/{item.service}", {})[item.name] = item
    return by_ref


def merged(before: ApiReading, after: ApiReading) -> ApiReading:
    """The later reading, plus what vanished since the earlier one.

    A Service that was deleted in between is still in the nodes' tables: without its record
    nobody could tell that its virtual server is moving rather than unexplained.
    """
    refs = {service.ref for service in after.services}
    names = {(item.namespace, item.name) for item in after.endpoint_slices}
    gone_services = (s for s in before.services if s.ref not in refs)
    gone_slices = (
        s
        for s in before.endpoint_slices
        # Only slices of a Service that is gone too: an old slice of a living one is wrong.
        if (s.namespace, s.name) not in names and f"{s.namespace}/{s.service}" not in refs
    )
    return ApiReading(
        services=(*after.services, *gone_services),
        endpoint_slices=(*after.endpoint_slices, *gone_slices),
    )


def select(nodes: Iterable[Node], names: tuple[str, ...], origin: str) -> tuple[Node, ...]:
    """The named nodes, or all that can have an IPVS table. Raises `ClusterError`."""
    known = {node.name: node for node in nodes}
    if not names:
        # kube-proxy on Windows has no IPVS mode.
        return tuple(
            node for node in known.values() if node.labels.get("kubernetes.io/os") != "windows"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(sorted(known)[:20]) or "none"
        raise ClusterError(
            f"{origin} has {unknown[0]!r}, which is not in the cluster, expected one of {shown}"
        )
    return tuple(known[name] for name in sorted(set(names)))


def with_details(snapshot: Snapshot, detailed: Snapshot) -> Snapshot:
    """A snapshot with the details that another one has, of nodes that are in both."""
    facts = dict(snapshot.facts)
    for name in facts.keys() & detailed.facts.keys():
        other = detailed.facts[name]
        unread = {k: v for k, v in other.unread.items() if k.startswith("details.")}
        facts[name] = replace(
            facts[name], details=other.details, unread={**facts[name].unread, **unread}
        )
    return replace(snapshot, facts=facts, proxy_objects=detailed.proxy_objects)
