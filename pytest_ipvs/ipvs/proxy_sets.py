"""The ipsets and the addresses of kube-ipvs0 that one node's kube-proxy should have.

Which endpoints are real servers is no matter here: the only set that holds endpoints,
KUBE-LOOP-BACK, holds the local ones of every Service port, those that are not ready included
in newer releases.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pytest_ipvs.ipvs.expected import (
    DUMMY_INTERFACE,
    node_port_addresses,
    programmed,
    targets_of,
)
from pytest_ipvs.ipvs.objects import EndpointSlice, Node, Service, ServicePort
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_chains import set_name

VIRTUAL_ADDRESSES = "KUBE-IPVS-IPS"
_HEALTH_CHECKS = "KUBE-HEALTH-CHECK-NODE-PORT"

KINDS: Mapping[str, str] = {
    "KUBE-LOOP-BACK": "hash:ip,port,ip",
    "KUBE-CLUSTER-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER": "hash:ip,port",
    "KUBE-LOAD-BALANCER-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER-FW": "hash:ip,port",
    "KUBE-LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "KUBE-NODE-PORT-TCP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-TCP": "bitmap:port",
    "KUBE-NODE-PORT-UDP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-UDP": "bitmap:port",
    "KUBE-NODE-PORT-SCTP-HASH": "hash:ip,port",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    _HEALTH_CHECKS: "bitmap:port",
    VIRTUAL_ADDRESSES: "hash:ip",
}
"""Name and kind of every set of IPv4. All exist always, with or without members."""

# Absent in 1.20.2, there in 1.27: which release between them has them first is not certain.
_FIRST_CERTAIN = (1, 27, 0)
_NEWER = frozenset({_HEALTH_CHECKS, VIRTUAL_ADDRESSES})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSet:
    """One ipset as it should be.

    ``required`` maps each member, as ipset spells it, to the "namespace/name" of its Service.
    ``allowed`` are members that are right as well. ``optional``: right to be absent altogether.
    ``judged`` is false where its members can't be known, because the node's addresses were not
    read.
    """

    name: str
    kind: str
    required: Mapping[str, str]
    allowed: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    judged: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAddresses:
    """Addresses of kube-ipvs0 of one family, each with the "namespace/name" of its Service.

    ``allowed``: external and load balancer addresses that another interface has too. Newer
    releases leave them out, older ones bind them. Those of ``ipMode: Proxy`` are allowed as well
    where it is not certain that this kube-proxy leaves them out.
    """

    required: Mapping[str, str]
    allowed: Mapping[str, str]


def used_families(services: Iterable[Service], rules: ProxyRules, node: Node) -> tuple[str, ...]:
    """The families of which the node's kube-proxy programs at least one virtual address.

    Where no Service has an address of a family it does not matter what is programmed for it:
    a node without IPv6 has none of it.
    """
    possible = rules.families(node)
    found = {
        "IPv6" if ":" in address else "IPv4"
        for service in services
        if programmed(service) and service.ports
        for address in service.cluster_ips
    }
    return tuple(family for family in ("IPv4", "IPv6") if family in found & possible)


def virtual_addresses(
    services: Iterable[Service],
    addresses: tuple[tuple[str, str], ...],
    rules: ProxyRules,
    family: str,
) -> ExpectedAddresses:
    """What kube-ipvs0 should have; ``addresses`` are (interface, address) of the node.

    ClusterIPs are bound always, other virtual addresses only where no other interface has them.
    """
    elsewhere = {
        text.partition("/")[0] for interface, text in addresses if interface != DUMMY_INTERFACE
    }
    required: dict[str, str] = {}
    allowed: dict[str, str] = {}
    for service in services:
        if not programmed(service) or not service.ports:
            continue
        own = list(_of(service.cluster_ips, family))
        required.update(dict.fromkeys(own, service.ref))
        for address in _outside(service, rules, family):
            certain = bool(own) and address not in elsewhere
            (required if certain else allowed).setdefault(address, service.ref)
        allowed.update(dict.fromkeys(_proxied(service, rules, family), service.ref))
    return ExpectedAddresses(required=required, allowed=allowed)


def expected_sets(
    *,
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    node: Node,
    addresses: tuple[tuple[str, str], ...],
    rules: ProxyRules,
    family: str,
) -> tuple[ExpectedSet, ...]:
    """The sets of one family, in the order of ``KINDS``."""
    listed = [service for service in services if programmed(service)]
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for item in slices:
        if item.proxy_name is None and not item.headless and item.family == family:
            by_service.setdefault((item.namespace, item.service), []).append(item)
    members = _Members(node, addresses, rules, family)
    for service in listed:
        members.add(service, by_service.get((service.namespace, service.name), []))
    bound = virtual_addresses(listed, addresses, rules, family)
    members.required[VIRTUAL_ADDRESSES] = dict(bound.required)
    members.allowed[VIRTUAL_ADDRESSES] = dict(bound.allowed)
    return tuple(
        ExpectedSet(
            name=set_name(name, family),
            kind=kind,
            required=members.required.get(name, {}),
            allowed=members.allowed.get(name, {}),
            optional=name in _NEWER and rules.number < _FIRST_CERTAIN,
            judged=bool(addresses) or not ("SCTP" in name or name == VIRTUAL_ADDRESSES),
        )
        for name, kind in KINDS.items()
    )


def _of(addresses: Iterable[str], family: str) -> Iterator[str]:
    return (address for address in addresses if (":" in address) == (family == "IPv6"))


def _outside(service: Service, rules: ProxyRules, family: str) -> Iterator[str]:
    external = service.external_ips if rules.external_ips else ()
    return _of((*external, *service.load_balancer_ips), family)


def _proxied(service: Service, rules: ProxyRules, family: str) -> Iterator[str]:
    """Addresses of ``ipMode: Proxy`` that this kube-proxy may program all the same."""
    return _of(service.proxied_ips if rules.ip_mode is None else (), family)


class _Members:
    """Members of all sets of one family, gathered Service by Service."""

    def __init__(
        self,
        node: Node,
        addresses: tuple[tuple[str, str], ...],
        rules: ProxyRules,
        family: str,
    ) -> None:
        self.rules = rules
        self.family = family
        self.node_name = rules.node_name(node)
        self.own = tuple(_of(node.internal_ips, family))
        self.addresses_known = bool(addresses)
        self.node_addresses = node_port_addresses(family, node, addresses, rules)
        self.required: dict[str, dict[str, str]] = {}
        self.allowed: dict[str, dict[str, str]] = {}

    def _put(self, name: str, member: str, service: Service, required: bool = True) -> None:
        where = self.required if required else self.allowed
        where.setdefault(name, {})[member] = service.ref

    def add(self, service: Service, slices: list[EndpointSlice]) -> None:
        """Add what one Service asks for."""
        cluster_ips = list(_of(service.cluster_ips, self.family))
        # Releases differ in what they do with a Service that has no ClusterIP of the family.
        certain = bool(cluster_ips)
        local = service.external_traffic_policy == "Local"
        external = service.external_ips if self.rules.external_ips else ()
        for port in service.ports:
            self._loop_back(service, port, slices, certain)
            spelled = f",{port.protocol.lower()}:{port.port}"
            for address in cluster_ips:
                self._put("KUBE-CLUSTER-IP", address + spelled, service)
            for address in _of(external, self.family):
                name = "KUBE-EXTERNAL-IP-LOCAL" if local else "KUBE-EXTERNAL-IP"
                self._put(name, address + spelled, service, certain)
            for address in _of(service.load_balancer_ips, self.family):
                self._balancer(service, address, address + spelled, certain)
            for address in _proxied(service, self.rules, self.family):
                self._balancer(service, address, address + spelled, False)
            if port.node_port and certain:
                self._node_port(service, port, local)
        if service.health_check_node_port and certain and local and service.type == "LoadBalancer":
            self._put(_HEALTH_CHECKS, str(service.health_check_node_port), service)

    def _loop_back(
        self, service: Service, port: ServicePort, slices: list[EndpointSlice], certain: bool
    ) -> None:
        for number, endpoints in targets_of(port, slices):
            for endpoint in endpoints:
                if endpoint.node_name == self.node_name:
                    address = endpoint.addresses[0]
                    member = f"{address},{port.protocol.lower()}:{number},{address}"
                    self._put("KUBE-LOOP-BACK", member, service, endpoint.ready and certain)

    def _balancer(self, service: Service, address: str, member: str, certain: bool) -> None:
        self._put("KUBE-LOAD-BALANCER", member, service, certain)
        if service.external_traffic_policy == "Local":
            self._put("KUBE-LOAD-BALANCER-LOCAL", member, service, certain)
        ranges = list(_of(service.load_balancer_source_ranges, self.family))
        if not ranges:
            return
        self._put("KUBE-LOAD-BALANCER-FW", member, service, certain)
        inside = False
        for text in ranges:
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                continue
            # ipset takes no prefix of length 0: it may be split into halves or left out.
            parts = network.subnets() if network.prefixlen == 0 else (network,)
            for part in parts:
                spelled = str(part).removesuffix(f"/{part.max_prefixlen}")
                self._put(
                    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
                    f"{member},{spelled}",
                    service,
                    certain and network.prefixlen > 0,
                )
            inside |= any(ipaddress.ip_address(own) in network for own in self.own)
        # Which of its addresses a node takes for its own is not certain, so that none is required.
        if inside:
            name = "KUBE-LOAD-BALANCER-SOURCE-IP"
            self._put(name, f"{member},{address}", service, required=False)

    def _node_port(self, service: Service, port: ServicePort, local: bool) -> None:
        names = [f"KUBE-NODE-PORT-{port.protocol}"]
        if local:
            names.append(f"KUBE-NODE-PORT-LOCAL-{port.protocol}")
        if port.protocol == "SCTP":
            for address, optional in self.node_addresses:
                member = f"{address},sctp:{port.node_port}"
                for name in names:
                    self._put(f"{name}-HASH", member, service, not optional)
            return
        # Without an address to serve it on, a node port is in no set.
        certain = any(not optional for _, optional in self.node_addresses)
        if certain or self.node_addresses or not self.addresses_known:
            for name in names:
                self._put(name, str(port.node_port), service, certain)
