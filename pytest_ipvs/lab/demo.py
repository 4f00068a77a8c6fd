"""The objects that every new lab has: its nodes, kube-proxy's ConfigMap, the demo namespace."""

from __future__ import annotations

import json

from pytest_ipvs.lab.client import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINTS,
    NAMESPACES,
    NODES,
    SERVICES,
    SLICES,
    ApiClient,
    ApiError,
    Object,
    Resource,
)
from pytest_ipvs.lab.controllers_endpoints import SLICE_SERVICE
from pytest_ipvs.lab.informers import timestamp

DEMO = "demo"
REPLICAS = 3
SELECTOR = {"app": "web"}


def node_object(name: str, index: int, address: str, pod_cidr: str) -> Object:
    """A Node as a kubelet registers it; status apart."""
    return {
        "metadata": {
            "name": name,
            "labels": {
                "beta.kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": "zone-1" if index < 3 else "zone-2",
            },
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def node_status(
    name: str, index: int, address: str, *, kernel: str, os_image: str, version: str
) -> Object:
    """A ready node's status."""
    now = timestamp()
    size = {"cpu": "4", "ephemeral-storage": "20Gi", "memory": "8Gi", "pods": "110"}
    conditions = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "sufficient PID available"),
    ]
    entries = [
        (kind, status, reason, f"kubelet has {text}") for kind, status, reason, text in conditions
    ]
    entries.append(("Ready", "True", "KubeletReady", "kubelet is posting ready status"))
    return {
        "capacity": size,
        "allocatable": size,
        "conditions": [
            {
                "type": kind,
                "status": status,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
                "reason": reason,
                "message": message,
            }
            for kind, status, reason, message in entries
        ],
        "addresses": [
            {"type": "InternalIP", "address": address},
            {"type": "Hostname", "address": name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "machineID": f"{index:032d}",
            "systemUUID": f"{index:032d}",
            "bootID": f"00000000-0000-0000-0000-{index:012d}",
            "kernelVersion": kernel,
            "osImage": os_image,
            "containerRuntimeVersion": "lab://0",
            "kubeletVersion": version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
        },
    }


def _service(name: str, spec: Object, *, selector: Object | None = None) -> Object:
    port: Object = {"name": "http", "port": 80, "targetPort": "http"}
    body: Object = {"ports": [port], "selector": selector or SELECTOR, **spec}
    if "nodePort" in body:
        port["nodePort"] = body.pop("nodePort")
    return {"metadata": {"name": name, "namespace": DEMO}, "spec": body}


BALANCER = "192.168.50.210"


def services() -> list[Object]:
    """One Service of each kind, all in front of the same pods."""
    udp = _service("web-udp", {"clusterIP": "10.96.10.5"})
    udp["spec"]["ports"] = [{"name": "dgram", "port": 53, "protocol": "UDP", "targetPort": "dgram"}]
    affinity = {
        "clusterIP": "10.96.10.2",
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
    }
    local = {
        "clusterIP": "10.96.10.4",
        "type": "NodePort",
        "externalTrafficPolicy": "Local",
        "nodePort": 30081,
    }
    return [
        _service("web", {"clusterIP": "10.96.10.1"}),
        _service("web-affinity", affinity),
        _service(
            "web-nodeport", {"clusterIP": "10.96.10.3", "type": "NodePort", "nodePort": 30080}
        ),
        _service("web-local", local),
        udp,
        _service("empty", {"clusterIP": "10.96.10.6"}, selector={"app": "nothing-has-this"}),
        _service("web-headless", {"clusterIP": "None"}),
        _service("web-external", {"clusterIP": "10.96.10.8", "externalIPs": ["192.168.50.200"]}),
        _service("web-lb", {"clusterIP": "10.96.10.9", "type": "LoadBalancer", "nodePort": 30090}),
        _service("web-itp-local", {"clusterIP": "10.96.10.10", "internalTrafficPolicy": "Local"}),
        {
            "metadata": {"name": "elsewhere", "namespace": DEMO},
            "spec": {"type": "ExternalName", "externalName": "example.invalid"},
        },
    ]


def deployment() -> Object:
    """The Deployment demo/web: the built-in server, behind all Services of the namespace."""
    container: Object = {
        "name": "web",
        # The lab pulls nothing: without a command the built-in server runs.
        "image": "lab.invalid/web:1",
        "ports": [
            {"name": "http", "containerPort": 8080},
            {"name": "dgram", "containerPort": 8080, "protocol": "UDP"},
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 2},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
    }
    return {
        "metadata": {"name": "web", "namespace": DEMO, "labels": {"app": "web"}},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": SELECTOR},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 15, "containers": [container]},
            },
        },
    }


def create(
    api: ApiClient,
    *,
    api_address: tuple[str, int],
    proxy_config: dict[str, object],
    slices: Resource = SLICES,
) -> None:
    """Create everything but nodes; what exists stays."""
    for namespace in ("kube-system", "kube-node-lease", DEMO):
        _ensure(api, NAMESPACES, {"metadata": {"name": namespace}})
    # hostnameOverride is a node's own, so the shared ConfigMap has none.
    shared = {**proxy_config, "hostnameOverride": ""}
    _ensure(
        api,
        CONFIG_MAPS,
        {
            "metadata": {
                "name": "kube-proxy",
                "namespace": "kube-system",
                "labels": {"app": "kube-proxy"},
            },
            # JSON is YAML, and needs no writer that the standard library lacks.
            "data": {"config.conf": json.dumps(shared, indent=2) + "\n"},
        },
    )
    _kubernetes_service(api, api_address, slices)
    for body in services():
        _ensure(api, SERVICES, body)
    ingress = {"loadBalancer": {"ingress": [{"ip": BALANCER, "ipMode": "VIP"}]}}
    api.patch(SERVICES, DEMO, "web-lb", {"status": ingress}, sub="status")
    _ensure(api, DEPLOYMENTS, deployment())


def _kubernetes_service(api: ApiClient, address: tuple[str, int], slices: Resource) -> None:
    """default/kubernetes and its endpoints, which the API server itself keeps in real clusters."""
    meta: Object = {"name": "kubernetes", "namespace": "default"}
    labels = {"component": "apiserver", "provider": "kubernetes"}
    port = {"name": "https", "port": 443, "protocol": "TCP", "targetPort": address[1]}
    _ensure(
        api,
        SERVICES,
        {
            "metadata": {**meta, "labels": labels},
            "spec": {"clusterIP": "10.96.0.1", "ports": [port]},
        },
    )
    own = {"name": "https", "port": address[1], "protocol": "TCP"}
    _ensure(
        api,
        ENDPOINTS,
        {
            "metadata": {
                **meta,
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{"addresses": [{"ip": address[0]}], "ports": [own]}],
        },
    )
    _ensure(
        api,
        slices,
        {
            "metadata": {**meta, "labels": {SLICE_SERVICE: "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address[0]], "conditions": {"ready": True}}],
            "ports": [own],
        },
    )


def register_nodes(api: ApiClient, nodes: list[Object], statuses: list[Object]) -> None:
    """Create the nodes and write their statuses."""
    for node, status in zip(nodes, statuses, strict=True):
        _ensure(api, NODES, node)
        api.patch(NODES, None, node["metadata"]["name"], {"status": status}, sub="status")


def _ensure(api: ApiClient, resource: Resource, body: Object) -> None:
    try:
        api.create(resource, body)
    except ApiError as error:
        if error.status != 409:
            raise
