"""The objects of the throw-away workload, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from pytest_ipvs.traffic.namespace import LABELS

NAME = "web"
PORT, CONTAINER_PORT = 80, 8080
DEFAULT_AFFINITY_SECONDS = 10800
ANY_ADDRESS = "auto"
"""In place of a load balancer's address: whichever it gives."""


def manifests(
    *,
    namespace: str,
    replicas: int,
    affinity: bool | int,
    node_port: bool,
    image: str,
    ending: str,
    pre_stop: float,
    grace: int,
    env: Mapping[str, str],
    load_balancer: str | None = None,
    host_port: int | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """(path to POST to, object) for script, Service and Deployment in a namespace that exists."""
    metadata = {"name": NAME, "namespace": namespace, "labels": {**LABELS, "app": NAME}}
    script = (resources.files("pytest_ipvs.traffic") / "server.py").read_text(encoding="utf-8")
    core = f"/api/v1/namespaces/{namespace}"
    return [
        (
            f"{core}/configmaps",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {"server.py": script},
            },
        ),
        (f"{core}/services", _service(metadata, affinity, node_port, load_balancer)),
        (
            f"/apis/apps/v1/namespaces/{namespace}/deployments",
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": NAME}},
                    "strategy": {
                        "type": "RollingUpdate",
                        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
                    },
                    "template": {
                        "metadata": {"labels": {**LABELS, "app": NAME}},
                        "spec": _pod(image, ending, pre_stop, grace, env, host_port),
                    },
                },
            },
        ),
    ]


def _service(
    metadata: Mapping[str, Any], affinity: bool | int, node_port: bool, load_balancer: str | None
) -> dict[str, Any]:
    kind = "LoadBalancer" if load_balancer else "NodePort" if node_port else "ClusterIP"
    spec: dict[str, Any] = {
        "type": kind,
        "selector": {"app": NAME},
        "ports": [{"name": "http", "port": PORT, "targetPort": CONTAINER_PORT, "protocol": "TCP"}],
    }
    if load_balancer not in (None, ANY_ADDRESS):
        spec["loadBalancerIP"] = load_balancer
    if affinity:
        seconds = DEFAULT_AFFINITY_SECONDS if affinity is True else int(affinity)
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": seconds}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": dict(metadata), "spec": spec}


def _pod(
    image: str,
    ending: str,
    pre_stop: float,
    grace: int,
    env: Mapping[str, str],
    host_port: int | None,
) -> dict[str, Any]:
    variables = {"PORT": str(CONTAINER_PORT), "ENDING": ending, **env}
    container: dict[str, Any] = {
        "name": "server",
        "image": image,
        "command": ["python3", "/srv/server.py"],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            *({"name": name, "value": value} for name, value in variables.items()),
        ],
        "ports": [{"name": "http", "containerPort": CONTAINER_PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": CONTAINER_PORT},
            "periodSeconds": 1,
        },
        "volumeMounts": [{"name": "script", "mountPath": "/srv", "readOnly": True}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if host_port:
        container["ports"][0]["hostPort"] = host_port
    if pre_stop > 0:
        # The nodes need time to hear of the deletion; the "sleep" action is too new for 1.20.
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", f"{pre_stop:g}"]}}}
    return {
        "containers": [container],
        "volumes": [{"name": "script", "configMap": {"name": NAME}}],
        "terminationGracePeriodSeconds": grace,
        "automountServiceAccountToken": False,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": NAME}},
            }
        ],
    }
