"""The record itself: what each reading or event changes in the traces of pods and real servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pytest_ipvs.ipvs.objects import EndpointSlice
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey
from pytest_ipvs.rollout.timeline import EventTrace, PodTrace, ServerTrace

KEPT_EVENTS = 500


class Record:
    """Traces that grow. Not safe for threads: the recorder holds a lock."""

    def __init__(self) -> None:
        self.pods: dict[str, PodTrace] = {}
        self.servers: dict[tuple[str, ServiceKey, str, int], ServerTrace] = {}
        self.past_servers: list[ServerTrace] = []
        self.endpoints: set[str] = set()
        self.no_endpoints: list[tuple[float, float]] = []
        self.empty_since: float | None = None
        self.events: list[EventTrace] = []
        self._was_endpoint: set[str] = set()
        self._told: set[tuple[str, int]] = set()

    def mark_old(self) -> None:
        """Whoever is there now, and stays so far, was there before the first disruption."""
        for uid, pod in self.pods.items():
            if pod.deleted_at is None and pod.gone_at is None:
                self.pods[uid] = replace(pod, old=True)

    def release(self, uid: str, now: float) -> None:
        """A pod leaves the Service on purpose and lives on where it is not seen any more."""
        pod = self.pods[uid]
        self.pods[uid] = replace(pod, released=True, left_at=pod.left_at or now)

    def take_pods(
        self, pods: Iterable[Mapping[str, Any]], slices: Iterable[EndpointSlice], now: float
    ) -> None:
        """All pods and slices as they are at ``now``."""
        endpoints = [endpoint for part in slices for endpoint in part.endpoints]
        self.endpoints.update(address for e in endpoints for address in e.addresses)
        ready = {e.addresses[0] for e in endpoints if e.ready}
        seen = set()
        for item in pods:
            pod = self._pod(item, now)
            seen.add(pod.uid)
            self.pods[pod.uid] = self._with_endpoint(pod, ready, now)
        for uid, pod in self.pods.items():
            if uid not in seen and pod.gone_at is None and not pod.released:
                self.pods[uid] = replace(pod, gone_at=now, left_at=pod.left_at or now)
        if ready and self.empty_since is not None:
            self.no_endpoints.append((self.empty_since, now))
            self.empty_since = None
        elif not ready and self.empty_since is None:
            self.empty_since = now

    def _pod(self, item: Mapping[str, Any], now: float) -> PodTrace:
        metadata, status = item["metadata"], item.get("status") or {}
        uid = str(metadata["uid"])
        pod = self.pods.get(uid) or PodTrace(name=str(metadata["name"]), uid=uid, first_seen=now)
        deleted = bool(metadata.get("deletionTimestamp"))
        address = str(status.get("podIP") or pod.address)
        # A Service of the other family has these as its endpoints.
        listed = (str(entry.get("ip") or "") for entry in status.get("podIPs") or ())
        further = tuple(one for one in listed if one and one != address)
        return replace(
            pod,
            address=address,
            further=further or pod.further,
            node=str((item.get("spec") or {}).get("nodeName") or pod.node),
            ready_at=pod.ready_at or (now if is_ready(item) else None),
            deleted_at=pod.deleted_at or (now if deleted else None),
            stopped_at=pod.stopped_at or (now if has_stopped(item) else None),
            restarts=sum(int(s.get("restartCount") or 0) for s in _containers(item)),
        )

    def _with_endpoint(self, pod: PodTrace, ready: set[str], now: float) -> PodTrace:
        if pod.deleted_at is not None or pod.released:
            return replace(pod, left_at=pod.left_at or now)
        if not ready.isdisjoint(pod.addresses):
            self._was_endpoint.add(pod.uid)
            return replace(pod, left_at=None, endpoint_at=pod.endpoint_at or now)
        if pod.uid in self._was_endpoint:
            return replace(pod, left_at=pod.left_at or now)
        return pod

    def take_table(
        self, node: str, table: Mapping[ServiceKey, Iterable[RealServer]], now: float
    ) -> None:
        """One node's real servers as they are at ``now``."""
        seen = set()
        for key, servers in table.items():
            for server in servers:
                identity = (node, key, server.address, server.port)
                seen.add(identity)
                trace = self.servers.get(identity)
                zero_at = trace.weight_zero_at if trace else None
                weighted_at = trace.weighted_at if trace else None
                self.servers[identity] = ServerTrace(
                    node=node,
                    key=key,
                    address=server.address,
                    port=server.port,
                    first_seen=trace.first_seen if trace else now,
                    last_seen=now,
                    weight=server.weight,
                    active=server.active,
                    inactive=server.inactive,
                    weighted_at=now if server.weight else weighted_at,
                    weight_zero_at=(zero_at or now) if server.weight == 0 else None,
                )
        for identity, trace in list(self.servers.items()):
            if identity[0] == node and identity not in seen:
                self.past_servers.append(replace(trace, gone_at=now))
                del self.servers[identity]

    def take_event(self, item: Mapping[str, Any], about: str, now: float) -> None:
        """An Event, kept if its object's name begins with ``about``; the same one is kept once."""
        subject = item.get("involvedObject") or item.get("regarding") or {}
        name = str(subject.get("name") or "")
        told = (str(item["metadata"].get("uid")), int(item.get("count") or 1))
        if not name.startswith(about) or told in self._told or len(self.events) >= KEPT_EVENTS:
            return
        self._told.add(told)
        message = str(item.get("message") or item.get("note") or "").strip()
        self.events.append(
            EventTrace(
                at=now,
                kind=str(item.get("type") or "Normal"),
                reason=str(item.get("reason") or ""),
                object=f"{subject.get('kind', '')} {name}".strip(),
                message=message.splitlines()[0][:200] if message else "",
            )
        )

    def forget_event(self, item: Mapping[str, Any]) -> None:
        """An Event that is older than the record: it is not told, and not when listed again."""
        self._told.add((str(item["metadata"].get("uid")), int(item.get("count") or 1)))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's Ready condition is true."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def has_stopped(pod: Mapping[str, Any]) -> bool:
    """Whether one of its containers has ended."""
    return any("terminated" in (status.get("state") or {}) for status in _containers(pod))


def _containers(pod: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (pod.get("status") or {}).get("containerStatuses") or ()
