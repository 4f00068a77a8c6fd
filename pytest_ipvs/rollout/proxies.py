"""Restarting kube-proxy on a node, where it is a pod."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytest_ipvs.rollout.errors import NotPossibleHere, RolloutError
from pytest_ipvs.rollout.protocols import ApiLike, Say
from pytest_ipvs.rollout.record import is_ready

NAMESPACE_PATH = "/api/v1/namespaces/kube-system/pods"
SELECTORS = ("k8s-app=kube-proxy", "component=kube-proxy", "app=kube-proxy")
"""Labels by kubeadm and most vendors; by AKS and static pods; by home-made manifests."""

POLL_SECONDS = 0.5


def find_proxy_pod(api: ApiLike, node: str) -> dict[str, Any]:
    """The kube-proxy pod of a node. Raises `NotPossibleHere` where it is none we may delete."""
    for selector in SELECTORS:
        for pod in api.items(NAMESPACE_PATH, labelSelector=selector):
            if (pod.get("spec") or {}).get("nodeName") != node:
                continue
            owners = pod["metadata"].get("ownerReferences") or ()
            if any(owner.get("kind") == "DaemonSet" for owner in owners):
                return pod
            raise NotPossibleHere(
                f"kube-proxy on {node} is the pod {pod['metadata']['name']} without a DaemonSet, "
                "so deleting it would not restart it"
            )
    raise NotPossibleHere(
        f"kube-proxy on {node} is no pod of namespace kube-system, so it can't be restarted "
        "through the API"
    )


def restart_proxy(
    api: ApiLike,
    node: str,
    pod: dict[str, Any],
    *,
    timeout: float,
    say: Say,
    pause: Callable[[float], None],
) -> None:
    """Delete the pod and wait until another one is ready on the node. Raises `RolloutError`."""
    uid = pod["metadata"]["uid"]
    api.delete(f"{NAMESPACE_PATH}/{pod['metadata']['name']}")
    say(f"kube-proxy on {node}: pod {pod['metadata']['name']} is deleted")
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = find_proxy_pod(api, node)
        except NotPossibleHere:
            found = None
        if found and found["metadata"]["uid"] != uid and is_ready(found):
            return
        if time.monotonic() > deadline:
            raise RolloutError(
                f"kube-proxy on {node} has no ready pod {timeout:.0f} s after the old one was "
                f"deleted: kubectl -n kube-system get pods -o wide"
            )
        pause(POLL_SECONDS)
