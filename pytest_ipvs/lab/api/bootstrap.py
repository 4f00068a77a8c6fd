"""What a fresh cluster holds: namespaces, default accounts and the roles that clients expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_ipvs.lab.api.kinds import Registry

Json = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]


def first_objects(registry: Registry) -> Iterator[tuple[str, Json]]:
    """The objects of a fresh cluster, each with its resource's qualified name."""
    for name in _NAMESPACES:
        yield "namespaces", _object("v1", "Namespace", name)
    version = f"{_RBAC}/v1"
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    own = ["configmaps", "endpoints", "pods", "pods/log", "secrets", "serviceaccounts", "services"]
    groups = ["", "apps", "batch", "coordination.k8s.io", "discovery.k8s.io"]
    seen = [resource for resource in own if resource != "secrets"]
    more = [
        "deployments",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "daemonsets",
        "statefulsets",
        "statefulsets/scale",
        "jobs",
        "endpointslices",
        "events",
        "namespaces",
    ]
    view = {"apiGroups": groups, "resources": seen + more, "verbs": _READ}
    edit = {"apiGroups": groups, "resources": own + more[:-2], "verbs": _READ + _WRITE}
    evict = {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}
    roles = {"apiGroups": [_RBAC], "resources": ["roles", "rolebindings"], "verbs": _READ + _WRITE}
    for name, rules in (
        ("cluster-admin", everything),
        ("admin", [view, edit, evict, roles]),
        ("edit", [view, edit, evict]),
        ("view", [view]),
    ):
        yield f"clusterroles.{_RBAC}", _object(version, "ClusterRole", name) | {"rules": rules}
    binding = _object(version, "ClusterRoleBinding", "cluster-admin") | {
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": "system:masters"}],
    }
    yield f"clusterrolebindings.{_RBAC}", binding


def namespace_objects(
    registry: Registry, namespace: str, authority: str
) -> Iterator[tuple[str, Json]]:
    """What every namespace gets: the account of pods that name none, and the server's CA."""
    account = _object("v1", "ServiceAccount", "default", namespace)
    yield "serviceaccounts", account
    if registry.minor >= 20:
        yield (
            "configmaps",
            _object("v1", "ConfigMap", "kube-root-ca.crt", namespace)
            | {"data": {"ca.crt": authority}},
        )


def _object(api_version: str, kind: str, name: str, namespace: str = "") -> Json:
    metadata = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
