"""The API's objects as small records: only the fields that decide what kube-proxy programs.

Every ``from_api`` takes one JSON object of the API and raises ``ValueError`` with one sentence
that names kind, namespace/name and field where the object is malformed. Addresses are in
canonical spelling: dotted IPv4, compressed lower-case IPv6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pytest_ipvs.ipvs._fields import Fields
from pytest_ipvs.ipvs._places import places_of

TrafficPolicy = Literal["Cluster", "Local"]

# kube-proxy leaves out Services and slices that carry this label, whatever its value.
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
# Annotations that ask for zone hints. The first one is older, and wins where both are set.
TOPOLOGY_HINTS_ANNOTATION = "service.kubernetes.io/topology-aware-hints"
TOPOLOGY_MODE_ANNOTATION = "service.kubernetes.io/topology-mode"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
DEFAULT_AFFINITY_TIMEOUT = 10800


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of a Service. ``name`` is "" where the Service's only port has none."""

    name: str
    protocol: str
    port: int
    node_port: int | None = None
    target_port: int | str | None = None
    app_protocol: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service. ``affinity_timeout`` is in seconds, ``None`` without ClientIP affinity.

    ``load_balancer_ips`` holds ingress addresses whose ``ipMode`` is VIP or absent;
    ``proxied_ips`` the others, which only a kube-proxy that knows no ``ipMode`` programs.
    ``proxy_name`` is the value of the label that hands the Service to
    another proxy, ``None`` where it has no such label. ``topology_hints`` and ``topology_mode``
    are the values of the two annotations that ask for zone hints, ``None`` where it lacks them.
    """

    namespace: str
    name: str
    uid: str = ""
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    proxied_ips: tuple[str, ...] = ()
    load_balancer_source_ranges: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    affinity_timeout: int | None = None
    internal_traffic_policy: TrafficPolicy = "Cluster"
    external_traffic_policy: TrafficPolicy = "Cluster"
    health_check_node_port: int | None = None
    publish_not_ready: bool = False
    headless: bool = False
    external_name: bool = False
    proxy_name: str | None = None
    topology_keys: tuple[str, ...] = ()
    topology_hints: str | None = None
    topology_mode: str | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"

    @classmethod
    def from_api(cls, item: Mapping[str, Any]) -> Service:
        """Read a core/v1 Service."""
        fields = Fields("Service", item)
        root = fields.root
        spec, metadata = fields.mapping(root, "spec"), fields.mapping(root, "metadata")
        labels = fields.strings(metadata, "metadata.labels")
        annotations = fields.strings(metadata, "metadata.annotations")
        kind = fields.text(spec, "spec.type", "ClusterIP")
        first_ip = fields.text(spec, "spec.clusterIP")
        # Servers before 1.20 have no clusterIPs.
        listed = fields.items(spec, "spec.clusterIPs") or ([first_ip] if first_ip else [])
        return cls(
            namespace=fields.namespace,
            name=fields.name,
            uid=fields.text(metadata, "metadata.uid"),
            type=kind,
            cluster_ips=tuple(
                fields.address(value, f"spec.clusterIPs[{index}]")
                for index, value in enumerate(listed)
                if value not in ("", "None")
            ),
            external_ips=tuple(
                fields.address(value, f"spec.externalIPs[{index}]")
                for index, value in enumerate(fields.items(spec, "spec.externalIPs"))
            ),
            load_balancer_ips=_load_balancer_ips(fields, proxied=False),
            proxied_ips=_load_balancer_ips(fields, proxied=True),
            load_balancer_source_ranges=tuple(
                str(value).strip() for value in fields.items(spec, "spec.loadBalancerSourceRanges")
            ),
            ports=tuple(
                _service_port(fields, entry, f"spec.ports[{index}]")
                for index, entry in enumerate(fields.mappings(spec, "spec.ports"))
            ),
            affinity_timeout=_affinity_timeout(fields, spec),
            internal_traffic_policy=_policy(fields, spec, "spec.internalTrafficPolicy"),
            external_traffic_policy=_policy(fields, spec, "spec.externalTrafficPolicy"),
            health_check_node_port=fields.number(spec, "spec.healthCheckNodePort", 0, 65535)
            or None,
            publish_not_ready=fields.flag(spec, "spec.publishNotReadyAddresses", False),
            headless=first_ip == "None" or "None" in listed,
            external_name=kind == "ExternalName",
            proxy_name=labels.get(PROXY_NAME_LABEL),
            topology_keys=tuple(fields.items(spec, "spec.topologyKeys")),
            topology_hints=annotations.get(TOPOLOGY_HINTS_ANNOTATION),
            topology_mode=annotations.get(TOPOLOGY_MODE_ANNOTATION),
            selector=fields.strings(spec, "spec.selector"),
            labels=labels,
        )


def _service_port(fields: Fields, entry: Mapping[str, Any], path: str) -> ServicePort:
    port = fields.number(entry, f"{path}.port", 1, 65535)
    if port is None:
        raise fields.wrong(f"{path}.port", None, "an integer from 1 to 65535")
    target = entry.get("targetPort")
    if target is not None and (not isinstance(target, int | str) or isinstance(target, bool)):
        raise fields.wrong(f"{path}.targetPort", target, "a number or a name")
    return ServicePort(
        name=fields.text(entry, f"{path}.name"),
        protocol=fields.text(entry, f"{path}.protocol", "TCP"),
        port=port,
        node_port=fields.number(entry, f"{path}.nodePort", 0, 65535) or None,
        target_port=target,
        app_protocol=fields.text(entry, f"{path}.appProtocol") or None,
    )


def _load_balancer_ips(fields: Fields, *, proxied: bool) -> tuple[str, ...]:
    balancer = fields.mapping(fields.mapping(fields.root, "status"), "status.loadBalancer")
    return tuple(
        fields.address(entry["ip"], f"status.loadBalancer.ingress[{index}].ip")
        for index, entry in enumerate(fields.mappings(balancer, "status.loadBalancer.ingress"))
        if entry.get("ip") and (entry.get("ipMode") not in (None, "VIP")) == proxied
    )


def _affinity_timeout(fields: Fields, spec: Mapping[str, Any]) -> int | None:
    affinity = fields.text(spec, "spec.sessionAffinity", "None")
    if affinity == "None":
        return None
    if affinity != "ClientIP":
        raise fields.wrong("spec.sessionAffinity", affinity, "None or ClientIP")
    config = fields.mapping(spec, "spec.sessionAffinityConfig")
    client = fields.mapping(config, "spec.sessionAffinityConfig.clientIP")
    path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    return fields.number(client, path, 1, 86400) or DEFAULT_AFFINITY_TIMEOUT


def _policy(fields: Fields, spec: Mapping[str, Any], path: str) -> TrafficPolicy:
    value = fields.text(spec, path, "Cluster") or "Cluster"
    if value not in ("Cluster", "Local"):
        raise fields.wrong(path, value, "Cluster or Local")
    return cast(TrafficPolicy, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePort:
    """One port of an EndpointSlice; ``port`` is ``None`` where the slice leaves it out."""

    name: str
    protocol: str
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint. Conditions carry kube-proxy's defaults for absent ones.

    ``ready`` and ``serving`` default to true, ``terminating`` to false. ``target`` is
    "Pod/namespace/name" or ``None``. kube-proxy uses the first address only.
    """

    addresses: tuple[str, ...]
    node_name: str | None = None
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    target: str | None = None
    zone: str | None = None
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """An EndpointSlice. ``service`` is the Service's name, "" for a slice of none.

    ``family`` is "IPv4", "IPv6" or "FQDN". ``headless`` and ``proxy_name`` are the labels that
    make kube-proxy leave the slice out.
    """

    namespace: str
    name: str
    service: str
    family: str
    ports: tuple[SlicePort, ...]
    endpoints: tuple[Endpoint, ...]
    headless: bool = False
    proxy_name: str | None = None
    # What plain_places() found out. All nodes' tables are judged by the same slices.
    _plain: dict[int, frozenset[bytes] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def plain_places(self, port: int) -> frozenset[bytes] | None:
        """The places of all endpoints with this port, if each gets traffic whatever the node.

        That is: each is ready and none has hints. ``None`` where that is not so, and for a
        slice without endpoints. A place is the kernel's spelling: see ``RealServer.place``.
        """
        if port not in self._plain:
            plain = [
                one.addresses[0]
                for one in self.endpoints
                if one.ready and not one.zone_hints and not one.node_hints
            ]
            all_are = plain and len(plain) == len(self.endpoints)
            self._plain[port] = frozenset(places_of(plain, port)) if all_are else None
        return self._plain[port]

    @classmethod
    def from_api(cls, item: Mapping[str, Any]) -> EndpointSlice:
        """Read an EndpointSlice of discovery.k8s.io/v1 or v1beta1."""
        fields = Fields("EndpointSlice", item)
        root = fields.root
        labels = fields.strings(fields.mapping(root, "metadata"), "metadata.labels")
        family = fields.text(root, "addressType")
        if family not in ("IPv4", "IPv6", "FQDN"):
            raise fields.wrong("addressType", root.get("addressType"), "IPv4, IPv6 or FQDN")
        return cls(
            namespace=fields.namespace,
            name=fields.name,
            service=labels.get(SERVICE_NAME_LABEL, ""),
            family=family,
            ports=tuple(
                SlicePort(
                    name=fields.text(entry, f"ports[{index}].name"),
                    protocol=fields.text(entry, f"ports[{index}].protocol", "TCP"),
                    port=fields.number(entry, f"ports[{index}].port", 0, 65535) or None,
                )
                for index, entry in enumerate(fields.mappings(root, "ports"))
            ),
            endpoints=tuple(
                _endpoint(fields, entry, f"endpoints[{index}]", family)
                for index, entry in enumerate(fields.mappings(root, "endpoints"))
            ),
            headless=HEADLESS_LABEL in labels,
            proxy_name=labels.get(PROXY_NAME_LABEL),
        )


def _endpoint(fields: Fields, entry: Mapping[str, Any], path: str, family: str) -> Endpoint:
    conditions = fields.mapping(entry, f"{path}.conditions")
    # v1beta1 tells node and zone in a map of labels; v1 has fields of their own.
    topology = fields.strings(entry, f"{path}.topology")
    hints = fields.mapping(entry, f"{path}.hints")
    addresses = []
    for index, value in enumerate(fields.items(entry, f"{path}.addresses")):
        where = f"{path}.addresses[{index}]"
        if family != "FQDN":
            value = fields.address(value, where)
            if (":" in value) != (family == "IPv6"):
                raise fields.wrong(where, value, f"an {family} address")
        addresses.append(value)
    if not addresses:
        raise fields.wrong(f"{path}.addresses", entry.get("addresses"), "at least one address")
    return Endpoint(
        addresses=tuple(addresses),
        node_name=fields.text(entry, f"{path}.nodeName")
        or topology.get("kubernetes.io/hostname")
        or None,
        ready=fields.flag(conditions, f"{path}.conditions.ready", True),
        serving=fields.flag(conditions, f"{path}.conditions.serving", True),
        terminating=fields.flag(conditions, f"{path}.conditions.terminating", False),
        target=_target(fields, entry, f"{path}.targetRef"),
        zone=fields.text(entry, f"{path}.zone")
        or topology.get("topology.kubernetes.io/zone")
        or None,
        zone_hints=_hints(fields, hints, f"{path}.hints.forZones"),
        node_hints=_hints(fields, hints, f"{path}.hints.forNodes"),
    )


def _hints(fields: Fields, hints: Mapping[str, Any], path: str) -> tuple[str, ...]:
    entries = fields.mappings(hints, path)
    return tuple(fields.text(hint, f"{path}[{i}].name") for i, hint in enumerate(entries))


def _target(fields: Fields, entry: Mapping[str, Any], path: str) -> str | None:
    reference = fields.mapping(entry, path)
    if not reference:
        return None
    namespace = fields.text(reference, f"{path}.namespace") or fields.namespace
    kind = fields.text(reference, f"{path}.kind")
    return f"{kind}/{namespace}/{fields.text(reference, f'{path}.name')}"


def endpoint_slices_from_endpoints(item: Mapping[str, Any]) -> tuple[EndpointSlice, ...]:
    """Read a core/v1 Endpoints object as slices: one per subset and address family.

    For servers without EndpointSlices. Endpoints say neither serving nor terminating.
    """
    fields = Fields("Endpoints", item)
    labels = fields.strings(fields.mapping(fields.root, "metadata"), "metadata.labels")
    slices: list[EndpointSlice] = []
    for index, subset in enumerate(fields.mappings(fields.root, "subsets")):
        path = f"subsets[{index}]"
        ports = tuple(
            SlicePort(
                name=fields.text(entry, f"{path}.ports[{i}].name"),
                protocol=fields.text(entry, f"{path}.ports[{i}].protocol", "TCP"),
                port=fields.number(entry, f"{path}.ports[{i}].port", 1, 65535),
            )
            for i, entry in enumerate(fields.mappings(subset, f"{path}.ports"))
        )
        by_family: dict[str, list[Endpoint]] = {}
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            for i, entry in enumerate(fields.mappings(subset, f"{path}.{key}")):
                where = f"{path}.{key}[{i}]"
                address = fields.address(entry.get("ip"), f"{where}.ip")
                by_family.setdefault("IPv6" if ":" in address else "IPv4", []).append(
                    Endpoint(
                        addresses=(address,),
                        node_name=fields.text(entry, f"{where}.nodeName") or None,
                        ready=ready,
                        target=_target(fields, entry, f"{where}.targetRef"),
                    )
                )
        slices.extend(
            EndpointSlice(
                namespace=fields.namespace,
                name=f"{fields.name}-{index}-{family.lower()}",
                service=fields.name,
                family=family,
                ports=ports,
                endpoints=tuple(endpoints),
                headless=HEADLESS_LABEL in labels,
                proxy_name=labels.get(PROXY_NAME_LABEL),
            )
            for family, endpoints in by_family.items()
        )
    return tuple(slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node. ``taints`` are "key=value:effect"; ``kernel_release`` is ``uname -r``."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    internal_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    hostname: str = ""
    kernel_release: str = ""
    kubelet_version: str = ""
    kube_proxy_version: str = ""
    os_image: str = ""
    zone: str | None = None
    ready: bool = True
    unschedulable: bool = False
    taints: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()

    @classmethod
    def from_api(cls, item: Mapping[str, Any]) -> Node:
        """Read a core/v1 Node."""
        fields = Fields("Node", item)
        root = fields.root
        spec, status = fields.mapping(root, "spec"), fields.mapping(root, "status")
        labels = fields.strings(fields.mapping(root, "metadata"), "metadata.labels")
        info = fields.mapping(status, "status.nodeInfo")
        by_type: dict[str, list[str]] = {}
        for index, entry in enumerate(fields.mappings(status, "status.addresses")):
            path = f"status.addresses[{index}]"
            kind, value = fields.text(entry, f"{path}.type"), fields.text(entry, f"{path}.address")
            if kind in ("InternalIP", "ExternalIP"):
                value = fields.address(value, f"{path}.address")
            by_type.setdefault(kind, []).append(value)
        one_cidr = fields.text(spec, "spec.podCIDR")
        return cls(
            name=fields.name,
            labels=labels,
            internal_ips=tuple(by_type.get("InternalIP", ())),
            external_ips=tuple(by_type.get("ExternalIP", ())),
            hostname=(by_type.get("Hostname") or [""])[0],
            kernel_release=fields.text(info, "status.nodeInfo.kernelVersion"),
            kubelet_version=fields.text(info, "status.nodeInfo.kubeletVersion"),
            kube_proxy_version=fields.text(info, "status.nodeInfo.kubeProxyVersion"),
            os_image=fields.text(info, "status.nodeInfo.osImage"),
            zone=labels.get("topology.kubernetes.io/zone")
            or labels.get("failure-domain.beta.kubernetes.io/zone"),
            ready=any(
                condition.get("type") == "Ready" and condition.get("status") == "True"
                for condition in fields.mappings(status, "status.conditions")
            ),
            unschedulable=fields.flag(spec, "spec.unschedulable", False),
            taints=tuple(
                f"{taint.get('key')}={taint.get('value', '')}:{taint.get('effect')}"
                for taint in fields.mappings(spec, "spec.taints")
            ),
            pod_cidrs=tuple(fields.items(spec, "spec.podCIDRs"))
            or ((one_cidr,) if one_cidr else ()),
        )
