"""Stand-ins for the Endpoints and EndpointSlice controllers: which pods stand behind a Service.

Both follow the rules of the originals: the pods that the selector selects and that have an
address; ready = serving and not terminating, or ``publishNotReadyAddresses``; a named target port
resolves per pod, and pods whose ports differ go to slices of their own.
"""

from __future__ import annotations

import threading

from pytest_ipvs.lab.client import ENDPOINTS, NODES, PODS, SERVICES, SLICES, Object, Resource
from pytest_ipvs.lab.controllers_replicaset import is_finished, is_ready, is_terminating
from pytest_ipvs.lab.informers import Cluster, Controller, owner_reference, timestamp

SLICE_SERVICE = "kubernetes.io/service-name"
SLICE_MANAGER = "endpointslice.kubernetes.io/managed-by"
SLICE_MANAGED = "endpointslice-controller.k8s.io"
ENDPOINTS_MANAGER = "endpoints.kubernetes.io/managed-by"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
ZONE = "topology.kubernetes.io/zone"
MAX_ENDPOINTS = 100

Port = tuple[str, str, int, str]
"""(name, protocol, number, appProtocol) of one resolved port."""


def simple_selects(selector: Object, labels: Object | None) -> bool:
    """Whether a Service's selector (equality only) selects ``labels``."""
    labels = labels or {}
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def target_port(pod: Object, port: Object) -> int | None:
    """The number of a Service's port on one pod; ``None`` if the pod has no port of that name."""
    target: int | str = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    if target.isdigit():
        return int(target)
    for container in pod["spec"]["containers"]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target and candidate.get("protocol", "TCP") == port.get(
                "protocol", "TCP"
            ):
                return int(candidate["containerPort"])
    return None


def resolved_ports(service: Object, pod: Object) -> tuple[Port, ...]:
    """The Service's ports on one pod; a name that the pod does not have is left out."""
    found = []
    for port in service["spec"].get("ports") or []:
        number = target_port(pod, port)
        if number is not None:
            found.append(
                (
                    port.get("name", ""),
                    port.get("protocol", "TCP"),
                    number,
                    port.get("appProtocol", ""),
                )
            )
    return tuple(found)


class _ServiceController(Controller):
    """What both controllers share: a Service is looked at when it or one of its pods changes."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.services = cluster.informer(SERVICES)
        self.pods = cluster.informer(PODS)
        self._labels: dict[str, Object] = {}
        self._lock = threading.Lock()
        self.services.on_event(self._on_service)
        self.pods.on_event(self._on_pod)

    def _on_service(self, _kind: str, item: Object) -> None:
        self.enqueue(item["metadata"]["namespace"], item["metadata"]["name"])

    def _on_pod(self, kind: str, pod: Object) -> None:
        labels = pod["metadata"].get("labels") or {}
        uid = pod["metadata"]["uid"]
        with self._lock:
            # A pod that lost its label must leave the Services that selected it before.
            before = self._labels.get(uid, labels)
            if kind == "DELETED":
                self._labels.pop(uid, None)
            else:
                self._labels[uid] = labels
        for service in self.services.items(pod["metadata"]["namespace"]):
            selector = service["spec"].get("selector") or {}
            if simple_selects(selector, labels) or simple_selects(selector, before):
                self._on_service(kind, service)

    def members(self, service: Object) -> list[Object]:
        """The pods that the Service selects and that have an address and are not finished."""
        return [
            pod
            for pod in self.pods.items(service["metadata"]["namespace"])
            if simple_selects(service["spec"]["selector"], pod["metadata"].get("labels"))
            and pod.get("status", {}).get("podIP")
            and not is_finished(pod)
        ]

    @staticmethod
    def managed(service: Object | None) -> bool:
        """Whether a controller makes this Service's endpoints (it has a selector)."""
        return bool(
            service
            and service["spec"].get("selector")
            and service["spec"].get("type") != "ExternalName"
        )


class EndpointSliceController(_ServiceController):
    """Writes the EndpointSlices of each Service that has a selector."""

    name = "endpointslice-controller"

    def __init__(self, cluster: Cluster, resource: Resource = SLICES) -> None:
        super().__init__(cluster)
        self.resource = resource
        self.slices = cluster.informer(resource)
        self.nodes = cluster.informer(NODES)
        self.slices.on_event(self._on_slice)

    def _on_slice(self, _kind: str, item: Object) -> None:
        labels = item["metadata"].get("labels") or {}
        if labels.get(SLICE_MANAGER) == SLICE_MANAGED and SLICE_SERVICE in labels:
            self.enqueue(item["metadata"]["namespace"], labels[SLICE_SERVICE])

    def sync(self, namespace: str, name: str) -> None:
        service = self.services.get(namespace, name)
        present = [
            item
            for item in self.slices.items(namespace)
            if (item["metadata"].get("labels") or {}).get(SLICE_SERVICE) == name
            and item["metadata"]["labels"].get(SLICE_MANAGER) == SLICE_MANAGED
        ]
        if service is None or is_terminating(service) or not self.managed(service):
            # With the Service gone the garbage collector would do it; a dropped selector is ours.
            for item in present:
                self.cluster.delete(self.resource, item)
            return
        for family in service["spec"].get("ipFamilies") or ["IPv4"]:
            self._sync_family(service, family, [s for s in present if s["addressType"] == family])

    def _sync_family(self, service: Object, family: str, present: list[Object]) -> None:
        wanted: dict[tuple[Port, ...], dict[str, Object]] = {}
        for pod in self.members(service):
            address = pod_address(pod, family)
            if address:
                ports = resolved_ports(service, pod)
                wanted.setdefault(ports, {})[address] = self._endpoint(service, pod, address)
        if not wanted:
            # A Service without pods keeps one slice without endpoints.
            wanted[()] = {}
        spare = list(present)
        for ports, endpoints in wanted.items():
            mine = [item for item in spare if slice_ports(item) == ports]
            if not mine and spare and not endpoints:
                mine = [spare[0]]
            spare = [item for item in spare if item not in mine]
            self._fill(service, family, ports, endpoints, mine)
        for item in spare:
            self.cluster.delete(self.resource, item)

    def _fill(
        self,
        service: Object,
        family: str,
        ports: tuple[Port, ...],
        endpoints: dict[str, Object],
        mine: list[Object],
    ) -> None:
        """Bring the slices of one set of ports up to date; known endpoints stay in their place."""
        left = dict(endpoints)
        parts: list[tuple[Object | None, list[Object]]] = []
        for known in mine:
            kept = []
            for endpoint in known.get("endpoints") or []:
                found = left.pop(endpoint["addresses"][0], None)
                if found is not None:
                    kept.append(found)
            parts.append((known, kept))
        if not parts:
            parts.append((None, []))
        for endpoint in left.values():
            if all(len(content) >= MAX_ENDPOINTS for _, content in parts):
                parts.append((None, []))
            next(content for _, content in parts if len(content) < MAX_ENDPOINTS).append(endpoint)
        for number, (item, content) in enumerate(parts):
            if item is not None and not content and number > 0:
                self.cluster.delete(self.resource, item)
            else:
                self._write(service, family, ports, content, item)

    def _write(
        self,
        service: Object,
        family: str,
        ports: tuple[Port, ...],
        content: list[Object],
        item: Object | None,
    ) -> None:
        labels = {
            key: value
            for key, value in (service["metadata"].get("labels") or {}).items()
            if key not in (SLICE_MANAGER, SLICE_SERVICE)
        }
        labels |= {SLICE_MANAGER: SLICE_MANAGED, SLICE_SERVICE: service["metadata"]["name"]}
        if service["spec"].get("clusterIP") == "None":
            labels[HEADLESS] = ""
        fields: Object = {"endpoints": content or None, "ports": port_objects(ports) or None}
        if item is not None:
            if all((item.get(key) or None) == value for key, value in fields.items()) and (
                item["metadata"].get("labels") == labels
            ):
                return
            meta = {
                **item["metadata"],
                "labels": labels,
                "annotations": {TRIGGER: timestamp()},
            }
            self.cluster.update(self.resource, {**item, **fields, "metadata": meta})
            return
        meta = {
            "generateName": service["metadata"]["name"] + "-",
            "namespace": service["metadata"]["namespace"],
            "labels": labels,
            "annotations": {TRIGGER: timestamp()},
            "ownerReferences": [
                owner_reference({"apiVersion": "v1", "kind": "Service", **service})
            ],
        }
        self.cluster.create(self.resource, {"metadata": meta, "addressType": family, **fields})

    def _endpoint(self, service: Object, pod: Object, address: str) -> Object:
        serving = is_ready(pod)
        ending = is_terminating(pod)
        forced = bool(service["spec"].get("publishNotReadyAddresses"))
        endpoint: Object = {
            "addresses": [address],
            "conditions": {
                "ready": forced or (serving and not ending),
                "serving": serving,
                "terminating": ending,
            },
            "targetRef": target_reference(pod),
        }
        node_name = pod["spec"].get("nodeName")
        if node_name:
            endpoint["nodeName"] = node_name
            node = self.nodes.get("", node_name)
            zone = ((node or {}).get("metadata", {}).get("labels") or {}).get(ZONE)
            if zone:
                endpoint["zone"] = zone
        hostname = pod["spec"].get("hostname")
        if hostname and pod["spec"].get("subdomain") == service["metadata"]["name"]:
            endpoint["hostname"] = hostname
        if self.resource.prefix.endswith("v1beta1"):
            return _old_endpoint(endpoint)
        return endpoint


class EndpointsController(_ServiceController):
    """Writes the Endpoints object of each Service that has a selector."""

    name = "endpoint-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.endpoints = cluster.informer(ENDPOINTS)
        self.endpoints.on_event(self._on_service)

    def sync(self, namespace: str, name: str) -> None:
        service = self.services.get(namespace, name)
        present = self.endpoints.get(namespace, name)
        if service is None or is_terminating(service):
            # Hand-made Endpoints have no such label and stay.
            if present and ENDPOINTS_MANAGER in (present["metadata"].get("labels") or {}):
                self.cluster.delete(ENDPOINTS, present)
            return
        if not self.managed(service):
            return
        labels = dict(service["metadata"].get("labels") or {})
        labels[ENDPOINTS_MANAGER] = "endpoint-controller"
        if service["spec"].get("clusterIP") == "None":
            labels[HEADLESS] = ""
        subsets = self._subsets(service)
        if present is not None:
            if (present.get("subsets") or []) == subsets and (
                present["metadata"].get("labels") == labels
            ):
                return
            meta = {
                **present["metadata"],
                "labels": labels,
                "annotations": {TRIGGER: timestamp()},
            }
            self.cluster.update(ENDPOINTS, {**present, "metadata": meta, "subsets": subsets})
            return
        meta = {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {TRIGGER: timestamp()},
        }
        self.cluster.create(ENDPOINTS, {"metadata": meta, "subsets": subsets})

    def _subsets(self, service: Object) -> list[Object]:
        forced = bool(service["spec"].get("publishNotReadyAddresses"))
        groups: dict[tuple[Port, ...], tuple[list[Object], list[Object]]] = {}
        for pod in self.members(service):
            if is_terminating(pod) and not forced:
                continue
            address: Object = {"ip": pod["status"]["podIP"], "targetRef": target_reference(pod)}
            if pod["spec"].get("nodeName"):
                address["nodeName"] = pod["spec"]["nodeName"]
            ready, not_ready = groups.setdefault(resolved_ports(service, pod), ([], []))
            (ready if is_ready(pod) or forced else not_ready).append(address)
        subsets = []
        for ports, (ready, not_ready) in sorted(groups.items()):
            subset: Object = {}
            if ready:
                subset["addresses"] = sorted(ready, key=lambda found: str(found["ip"]))
            if not_ready:
                subset["notReadyAddresses"] = sorted(not_ready, key=lambda found: str(found["ip"]))
            subset["ports"] = port_objects(ports)
            subsets.append(subset)
        return subsets


def pod_address(pod: Object, family: str) -> str | None:
    """The pod's address of one family."""
    addresses = [entry["ip"] for entry in pod["status"].get("podIPs") or []]
    for address in addresses or [pod["status"]["podIP"]]:
        if (":" in address) == (family == "IPv6"):
            return str(address)
    return None


def target_reference(pod: Object) -> Object:
    """The reference from an endpoint to its pod."""
    meta = pod["metadata"]
    return {
        "kind": "Pod",
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
    }


def port_objects(ports: tuple[Port, ...]) -> list[Object]:
    """Ports as slices and Endpoints write them."""
    result = []
    for name, protocol, number, app in ports:
        port: Object = {"name": name, "port": number, "protocol": protocol}
        if app:
            port["appProtocol"] = app
        result.append(port)
    return result


def slice_ports(item: Object) -> tuple[Port, ...]:
    """The ports of a slice in the form of :data:`Port`."""
    return tuple(
        (
            port.get("name") or "",
            port.get("protocol", "TCP"),
            port.get("port", 0),
            port.get("appProtocol") or "",
        )
        for port in item.get("ports") or []
    )


def _old_endpoint(endpoint: Object) -> Object:
    """The endpoint as discovery.k8s.io/v1beta1 of 1.20 has it: ready only, node by topology."""
    old = {key: value for key, value in endpoint.items() if key not in ("nodeName", "zone")}
    old["conditions"] = {"ready": endpoint["conditions"]["ready"]}
    topology = {}
    if "nodeName" in endpoint:
        topology["kubernetes.io/hostname"] = endpoint["nodeName"]
    if "zone" in endpoint:
        topology[ZONE] = endpoint["zone"]
    if topology:
        old["topology"] = topology
    return old
