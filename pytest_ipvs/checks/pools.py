"""Pools: the nodes of a cluster that should be alike."""

from __future__ import annotations

from pytest_ipvs.ipvs.objects import Node

POOL_LABELS = (
    "eks.amazonaws.com/nodegroup",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "agentpool",
    "alibabacloud.com/nodepool-id",
    "node.tke.cloud.tencent.com/nodepool-id",
    "kops.k8s.io/instancegroup",
    "node.kubernetes.io/nodepool",
)
"""Labels by which distributions name pools of equal nodes; the first that a node has counts."""

_ROLE = "node-role.kubernetes.io/"


def pool_of(node: Node) -> str:
    """The pool that a node belongs to: the name of its label, else its roles, else "workers"."""
    for label in POOL_LABELS:
        if name := node.labels.get(label):
            return name
    roles = sorted(name.removeprefix(_ROLE) for name in node.labels if name.startswith(_ROLE))
    return " and ".join(role for role in roles if role != "worker") or "workers"
