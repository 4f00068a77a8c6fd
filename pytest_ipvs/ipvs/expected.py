"""The table that one node's kube-proxy should program, from the API's objects."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, cast

from pytest_ipvs.ipvs._collector import paused
from pytest_ipvs.ipvs._places import place_of, places_of, read_place
from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice, Node, Service, ServicePort
from pytest_ipvs.ipvs.proxy import ProxyRules, in_networks
from pytest_ipvs.ipvs.tables import ServiceKey

DUMMY_INTERFACE = "kube-ipvs0"
# kube-proxy wants every real server with this forwarding method and weight.
WANTED_FORWARD, WANTED_WEIGHT = "Masq", 1
# Places of real servers in the kernel's spelling, b"0AF40105:1F90"; see ``RealServer.place``.
WantedSet = frozenset[bytes]


class ExpectedVirtualServer(NamedTuple):
    """One virtual server as it should be.

    ``wanted`` holds the place of each real server as the kernel writes it, b"0AF40105:1F90";
    ``real_servers`` spells them out. Each should be Masq with weight 1. ``alternatives`` are other
    sets that are right too, where no source decides what this kube-proxy version does, or where
    two Services claim the same address and port. ``optional``: right to be absent as well.
    ``judged`` is false where the real servers can't be known from here (topologyKeys).
    ``endpoints`` holds the place of every endpoint in the cluster where a traffic policy
    Local chooses among them, ``None`` where none does. ``node_port``: at an address of the node.
    A named tuple because a large node has 10,000 of them; see ``tables``.
    """

    scheduler: str
    persistence_seconds: int | None
    service: str
    port_name: str
    wanted: WantedSet
    alternatives: tuple[WantedSet, ...] = ()
    optional: bool = False
    judged: bool = True
    endpoints: WantedSet | None = None
    node_port: bool = False

    @property
    def real_servers(self) -> frozenset[tuple[str, int]]:
        """(address, port) of each wanted real server."""
        return frozenset(map(read_place, self.wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTable:
    """What one node's table should hold.

    ``node_ports`` maps (family, protocol, node port) to the virtual server that each local
    address should have; ``addresses_known`` is false where the node's addresses were not read,
    so that virtual servers of node ports can't be judged.
    """

    virtual_servers: Mapping[ServiceKey, ExpectedVirtualServer]
    rules: ProxyRules
    node_ports: Mapping[tuple[str, str, int], ExpectedVirtualServer] = field(default_factory=dict)
    addresses_known: bool = True


def expected_table(
    *,
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    node: Node,
    addresses: tuple[tuple[str, str], ...],
    rules: ProxyRules,
) -> ExpectedTable:
    """The table of ``node`` for these objects.

    ``addresses`` are (interface, address) of the node, ``()`` where they were not read.
    """
    builder = _Builder(node, addresses, rules)
    with paused():
        by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
        for item in slices:
            if item.proxy_name is None and not item.headless:
                by_service.setdefault((item.namespace, item.service), []).append(item)
        for service in services:
            if programmed(service):
                builder.add(service, by_service.get((service.namespace, service.name), ()))
        return ExpectedTable(
            virtual_servers=builder.virtual_servers,
            rules=rules,
            node_ports=builder.node_ports,
            addresses_known=bool(addresses),
        )


def programmed(service: Service) -> bool:
    """Whether kube-proxy programs the Service at all."""
    return (
        bool(service.cluster_ips)
        and not service.headless
        and not service.external_name
        and service.proxy_name is None
    )


# Calling tuple's constructor itself skips the named tuple's own, which is written in Python.
_key = cast(Callable[[tuple[str, str, int]], ServiceKey], partial(tuple.__new__, ServiceKey))
_expected_virtual_server = cast(
    Callable[[tuple[object, ...]], ExpectedVirtualServer],
    partial(tuple.__new__, ExpectedVirtualServer),
)


_Candidates = list[tuple[int, tuple[Endpoint, ...]]]


class _Sets(NamedTuple):
    """The wanted set of one virtual server, and what else is right."""

    wanted: WantedSet
    alternatives: tuple[WantedSet, ...] = ()
    endpoints: WantedSet | None = None

    def or_else(self, other: _Sets) -> _Sets:
        """Either of two."""
        more = (other.wanted, *other.alternatives)
        return self._replace(alternatives=(*self.alternatives, *more))


_sets = cast(Callable[[tuple[WantedSet, tuple[()], None]], _Sets], partial(tuple.__new__, _Sets))


class _Builder:
    """Everything that is the same for all Services of one node, computed once."""

    def __init__(
        self, node: Node, addresses: tuple[tuple[str, str], ...], rules: ProxyRules
    ) -> None:
        self.node = node
        self.rules = rules
        self.node_name = rules.node_name(node)
        # A kube-proxy with another name finds no Node object, and so no zone.
        self.zone = node.zone if self.node_name == node.name else None
        self.scheduler = rules.scheduler
        self.external_ips = rules.external_ips
        self.node_hints = rules.node_hints
        self.families: list[str] = [f for f in ("IPv4", "IPv6") if f in rules.families(node)]
        self.virtual_servers: dict[ServiceKey, ExpectedVirtualServer] = {}
        self.node_ports: dict[tuple[str, str, int], ExpectedVirtualServer] = {}
        self.node_addresses = {
            family: node_port_addresses(family, node, addresses, rules) for family in self.families
        }

    def add(self, service: Service, slices: Iterable[EndpointSlice]) -> None:
        """Add the virtual servers of one Service."""
        external = service.external_ips if self.external_ips else ()
        outer = []
        if external or service.load_balancer_ips:
            outer = [(ip, False) for ip in (*external, *service.load_balancer_ips)]
        if service.proxied_ips and self.rules.ip_mode is None:
            outer += [(ip, True) for ip in service.proxied_ips]
        for family in self.families:
            ipv6 = family == "IPv6"
            cluster_ip = None
            for ip in service.cluster_ips:
                # One address per family: the API allows no more.
                if (":" in ip) == ipv6:
                    cluster_ip = ip
            outside = [pair for pair in outer if (":" in pair[0]) == ipv6] if outer else []
            if cluster_ip is None and not outside:
                continue
            mine = [item for item in slices if item.family == family]
            for port in service.ports:
                self._add_port(service, port, family, cluster_ip, outside, mine)

    def _add_port(
        self,
        service: Service,
        port: ServicePort,
        family: str,
        cluster_ip: str | None,
        outside: list[tuple[str, bool]],
        slices: list[EndpointSlice],
    ) -> None:
        internal_local = (
            service.internal_traffic_policy == "Local" and self.rules.internal_traffic_policy
        )
        external_local = service.external_traffic_policy == "Local"
        reachable = bool(port.node_port or outside)
        local = internal_local or (external_local and reachable)
        if plain := None if local else _plain_set(port, slices):
            cluster_sets = local_sets = _sets((plain, (), None))
        else:
            cluster_sets, local_sets = self._chosen(
                service, port, slices, local, reachable, internal_local
            )
        if cluster_ip is not None:
            sets = local_sets if internal_local else cluster_sets
            self._put(_key((port.protocol, cluster_ip, port.port)), service, port, sets)
        sets = local_sets if external_local else cluster_sets
        for address, optional in outside:
            key = ServiceKey(port.protocol, address, port.port)
            self._put(key, service, port, sets, optional)
        if port.node_port and cluster_ip is not None:
            self.node_ports[family, port.protocol, port.node_port] = self._make(service, port, sets)
            for address, optional in self.node_addresses[family]:
                key = ServiceKey(port.protocol, address, port.node_port)
                self._put(key, service, port, sets, optional, node_port=True)

    def _chosen(
        self,
        service: Service,
        port: ServicePort,
        slices: list[EndpointSlice],
        local: bool,
        reachable: bool,
        internal_local: bool,
    ) -> tuple[_Sets, _Sets]:
        """The sets of the policies Cluster and Local where endpoints are chosen among."""
        candidates = targets_of(port, slices)
        # Who accepts no traffic from outside has no cluster set to fall back to.
        falls_back = reachable or not internal_local
        # Only one slice can't list an endpoint twice.
        variants = _variants(candidates, self.rules) if len(candidates) > 1 else [candidates]
        heeds = self.rules.heeds_zone_hints(service)
        first, *others = [
            (variant, hints)
            for variant in variants
            for hints in ((True, False) if heeds is None else (heeds,))
        ]
        cluster_sets, local_sets = self._both_sets(*first, local, falls_back)
        for variant in others:
            other, other_local = self._both_sets(*variant, local, falls_back)
            cluster_sets = cluster_sets.or_else(other)
            local_sets = local_sets.or_else(other_local)
        return cluster_sets, local_sets

    def _make(
        self,
        service: Service,
        port: ServicePort,
        sets: _Sets,
        optional: bool = False,
        node_port: bool = False,
    ) -> ExpectedVirtualServer:
        return _expected_virtual_server(
            (
                self.scheduler,
                service.affinity_timeout,
                f"{service.namespace}/{service.name}",
                port.name,
                sets.wanted,
                sets.alternatives,
                optional,
                not (service.topology_keys and self.rules.topology_keys),
                sets.endpoints,
                node_port,
            )
        )

    def _put(
        self,
        key: ServiceKey,
        service: Service,
        port: ServicePort,
        sets: _Sets,
        optional: bool = False,
        node_port: bool = False,
    ) -> None:
        made = self._make(service, port, sets, optional, node_port)
        other = self.virtual_servers.setdefault(key, made)
        if other is not made:
            # Two claims on one address and port: kube-proxy writes one after the other.
            self.virtual_servers[key] = made._replace(
                alternatives=(
                    *made.alternatives,
                    other.wanted,
                    *other.alternatives,
                    made.wanted | other.wanted,
                ),
                optional=made.optional and other.optional,
            )

    def _both_sets(
        self, candidates: _Candidates, zone_hints: bool, local: bool, falls_back: bool
    ) -> tuple[_Sets, _Sets]:
        """The sets of the policies Cluster and Local; the same twice where nothing is Local."""
        cluster = self._cluster_set(candidates, zone_hints)
        sets = _Sets(cluster)
        if not local:
            return sets, sets
        return sets, self._local_sets(candidates, cluster if falls_back else frozenset())

    def _cluster_set(self, candidates: _Candidates, zone_hints: bool) -> WantedSet:
        if len(candidates) == 1:
            port, endpoints = candidates[0]
            ready = [endpoint for endpoint in endpoints if endpoint.ready]
            pairs = None
        else:
            pairs = [(port, e) for port, endpoints in candidates for e in endpoints if e.ready]
            ready = [endpoint for _, endpoint in pairs]
        # Hints count only if every ready endpoint has them, so the first tells most.
        hinted = bool(ready) and bool(ready[0].zone_hints or ready[0].node_hints)
        if ready and not hinted:
            if pairs is not None:
                return _places(pairs)
            return frozenset(places_of([endpoint.addresses[0] for endpoint in ready], port))
        if hinted:
            chosen = self._narrowed(candidates, zone_hints)
        elif self.rules.terminating_cluster_wide:
            chosen = _serving_and_terminating(candidates)
        else:
            chosen = []
        return _places(chosen)

    def _narrowed(self, candidates: _Candidates, zone_hints: bool) -> list[tuple[int, Endpoint]]:
        ready = [
            (port, endpoint)
            for port, endpoints in candidates
            for endpoint in endpoints
            if endpoint.ready
        ]
        if self.node_hints and all(endpoint.node_hints for _, endpoint in ready):
            near = [pair for pair in ready if self.node_name in pair[1].node_hints]
            if near:
                return near
        zone = self.zone
        if zone_hints and zone and all(endpoint.zone_hints for _, endpoint in ready):
            near = [pair for pair in ready if zone in pair[1].zone_hints]
            if near:
                return near
        return ready

    def _local_sets(self, candidates: _Candidates, cluster: WantedSet) -> _Sets:
        everywhere = _places([(port, e) for port, listed in candidates for e in listed])
        here = [
            (port, tuple(e for e in endpoints if e.node_name == self.node_name))
            for port, endpoints in candidates
        ]
        local = [
            (port, endpoint) for port, endpoints in here for endpoint in endpoints if endpoint.ready
        ]
        if not local and self.rules.terminating_endpoints:
            local = _serving_and_terminating(here)
        if local:
            return _Sets(_places(local), (), everywhere)
        if self.rules.local_fallback is None:
            return _Sets(cluster, (frozenset(),), everywhere)
        return _Sets(cluster if self.rules.local_fallback else frozenset(), (), everywhere)


def _places(pairs: list[tuple[int, Endpoint]]) -> WantedSet:
    return frozenset([place_of(endpoint.addresses[0], port) for port, endpoint in pairs])


def _plain_set(port: ServicePort, slices: list[EndpointSlice]) -> WantedSet | None:
    """The wanted set of nearly all Services: one slice, nothing to choose among its endpoints."""
    if len(slices) != 1:
        return None
    (only,) = slices
    found = [
        target.port
        for target in only.ports
        if target.name == port.name and target.protocol == port.protocol
    ]
    return only.plain_places(found[0]) if len(found) == 1 and found[0] else None


def targets_of(port: ServicePort, slices: list[EndpointSlice]) -> _Candidates:
    """(target port, endpoints) of each slice that has this port of the Service."""
    return [
        (target.port, item.endpoints)
        for item in slices
        for target in item.ports
        if target.port is not None and target.name == port.name and target.protocol == port.protocol
    ]


def _variants(candidates: _Candidates, rules: ProxyRules) -> list[_Candidates]:
    """What kube-proxy may make of endpoints that two slices list, with and without terminating.

    Such twins are there while a pod's address is used anew. One variant where there is none.
    """
    states: dict[tuple[str, int], set[bool]] = {}
    for port, endpoints in candidates:
        for endpoint in endpoints:
            states.setdefault((endpoint.addresses[0], port), set()).add(endpoint.terminating)
    twins = {place for place, both in states.items() if len(both) > 1}
    if not twins:
        return [candidates]

    def keep(terminating: bool) -> _Candidates:
        return [
            (
                port,
                tuple(
                    endpoint
                    for endpoint in endpoints
                    if (endpoint.addresses[0], port) not in twins
                    or endpoint.terminating == terminating
                ),
            )
            for port, endpoints in candidates
        ]

    return [keep(False)] if rules.prefers_living_twin else [keep(False), keep(True)]


def _serving_and_terminating(candidates: _Candidates) -> list[tuple[int, Endpoint]]:
    return [
        (port, endpoint)
        for port, endpoints in candidates
        for endpoint in endpoints
        if endpoint.serving and endpoint.terminating
    ]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address with or without prefix length and zone. The same come back at each reading."""
    try:
        return ipaddress.ip_address(text.partition("/")[0].partition("%")[0])
    except ValueError:
        return None


def node_port_addresses(
    family: str, node: Node, addresses: tuple[tuple[str, str], ...], rules: ProxyRules
) -> list[tuple[str, bool]]:
    """(address, optional) of the node on which node ports are programmed."""
    ipv6 = family == "IPv6"
    listed = rules.node_port_addresses
    if "primary" in listed:
        own = [ip for ip in (*node.internal_ips, *node.external_ips) if (":" in ip) == ipv6]
        return [(own[0], False)] if own else []
    found: dict[str, bool] = {}
    for interface, text in addresses:
        # Thousands of addresses, left out where every address of the node is meant.
        if interface == DUMMY_INTERFACE and not listed:
            continue
        address = _parsed(text)
        if address is None:
            continue
        if (address.version == 6) != ipv6 or (ipv6 and address.is_link_local):
            continue
        optional = False
        if address.is_loopback:
            if rules.loopback_node_ports is False:
                continue
            # Old versions take the source addresses of local routes: for IPv6 that is uncertain.
            optional = ipv6 or rules.loopback_node_ports is None
        if interface == DUMMY_INTERFACE:
            # A CIDR selects among all interfaces.
            optional = True
        if listed and not in_networks(str(address), listed):
            continue
        found[str(address)] = optional and found.get(str(address), True)
    return list(found.items())
