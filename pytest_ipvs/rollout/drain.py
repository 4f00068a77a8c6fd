"""Draining a node: cordon, evict by the Eviction API, and uncordon whatever happens."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pytest_ipvs.rollout.errors import NotPossibleHere, RolloutError
from pytest_ipvs.rollout.protocols import ApiLike, Say

CORDONED_BY = "pytest-ipvs/cordoned-by"
"""Annotation of a node that we cordoned; its value is the holder of the Lease."""

MIRROR = "kubernetes.io/config.mirror"
POLL_SECONDS = 1.0
UNCORDON_TRIES = 5

_CORDONED: dict[str, tuple[ApiLike, str]] = {}


def pods_on(api: ApiLike, node: str) -> list[dict[str, Any]]:
    """The node's pods that a drain evicts: not a DaemonSet's, not static, not ended."""
    return [
        pod
        for pod in api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")
        if MIRROR not in (pod["metadata"].get("annotations") or {})
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and (_controller(pod) or {}).get("kind") != "DaemonSet"
    ]


def blockers(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Pods that would not come back or would lose data, with the reason; kubectl refuses too."""
    found = []
    for pod in pods:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        if _controller(pod) is None:
            found.append(f"{name} has no controller")
        elif any("emptyDir" in volume for volume in pod["spec"].get("volumes") or ()):
            found.append(f"{name} has an emptyDir volume")
    return sorted(found)


def _controller(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def choose_node(api: ApiLike, names: Iterable[str], target_nodes: Iterable[str], keep: str) -> str:
    """The node to drain: with pods of the target, not the client's, with the fewest pods at all.

    Raises `NotPossibleHere` where there is none that may be drained.
    """
    hosting = sorted((set(target_nodes) & set(names)) - {keep})
    if not hosting:
        raise NotPossibleHere(
            "no selected node but the client's own has a pod of the target, expected one to drain"
        )
    free: list[tuple[int, str]] = []
    reasons = []
    for node in hosting:
        pods = pods_on(api, node)
        if blocked := blockers(pods):
            reasons.append(f"{node}: {blocked[0]}")
        else:
            free.append((len(pods), node))
    if not free:
        raise NotPossibleHere(f"no node can be drained without loss ({'; '.join(reasons)})")
    return min(free)[1]


def cordon(api: ApiLike, node: str, holder: str) -> None:
    """Let no new pod come to the node, and say that it was us. Raises if it is cordoned already."""
    spec = api.get(f"/api/v1/nodes/{node}").get("spec") or {}
    if spec.get("unschedulable"):
        raise RolloutError(f"node {node} is cordoned already, expected a node in use")
    _CORDONED[node] = api, holder
    api.patch(
        f"/api/v1/nodes/{node}",
        {
            "metadata": {"annotations": {CORDONED_BY: holder}},
            "spec": {"unschedulable": True},
        },
    )


def release(api: ApiLike, node: str, holder: str, say: Say, pause: Callable[[float], None]) -> None:
    """Uncordon a node that we cordoned, unless another run has taken it over meanwhile."""
    try:
        annotations = api.get(f"/api/v1/nodes/{node}")["metadata"].get("annotations") or {}
        ours = annotations.get(CORDONED_BY) == holder
    except Exception:  # better uncordoned once too often
        ours = True
    if ours:
        uncordon(api, node, say, pause)
    else:
        _CORDONED.pop(node, None)


def uncordon(api: ApiLike, node: str, say: Say, pause: Callable[[float], None]) -> None:
    """Let pods come to the node again; tried several times, and told when it failed."""
    body = {"metadata": {"annotations": {CORDONED_BY: None}}, "spec": {"unschedulable": None}}
    for attempt in range(1, UNCORDON_TRIES + 1):
        try:
            api.patch(f"/api/v1/nodes/{node}", body)
        except Exception as error:
            if attempt == UNCORDON_TRIES:
                say(f"node {node} is STILL CORDONED ({error}): kubectl uncordon {node}")
                return
            pause(float(attempt))
        else:
            _CORDONED.pop(node, None)
            return


@atexit.register
def _uncordon_all() -> None:
    for node, (api, holder) in list(_CORDONED.items()):
        release(api, node, holder, lambda _: None, lambda _: None)


def uncordon_stale(api: ApiLike, say: Say, pause: Callable[[float], None]) -> list[str]:
    """Uncordon what a run that died has left; to be called with the Lease in hand."""
    left = [
        str(node["metadata"]["name"])
        for node in api.items("/api/v1/nodes")
        if CORDONED_BY in (node["metadata"].get("annotations") or {})
    ]
    for node in left:
        say(f"uncordoning node {node}, left behind by a run that died")
        uncordon(api, node, say, pause)
    return left


def evict(
    api: ApiLike, node: str, *, timeout: float, say: Say, pause: Callable[[float], None]
) -> None:
    """Evict the node's pods and wait until they are gone.

    A PodDisruptionBudget that says no (429) is asked again, as kubectl does. Raises `RolloutError`
    after ``timeout`` seconds, with the pods that are left.
    """
    deadline = time.monotonic() + timeout
    leaving = {str(pod["metadata"]["uid"]) for pod in pods_on(api, node)}
    told = ""
    while True:
        left = [pod for pod in pods_on(api, node) if str(pod["metadata"]["uid"]) in leaving]
        if not left:
            return
        waiting = [word for pod in left if (word := _evict_one(api, pod))]
        names = ", ".join(str(pod["metadata"]["name"]) for pod in left[:3])
        if time.monotonic() > deadline:
            why = f": {waiting[0]}" if waiting else ""
            raise RolloutError(
                f"node {node} was not drained within {timeout:.0f} s, left are {names}{why}"
            )
        if waiting and waiting[0] != told:
            told = waiting[0]
            say(f"draining {node}: {told}")
        pause(POLL_SECONDS)


def _evict_one(api: ApiLike, pod: Mapping[str, Any]) -> str:
    """ "" once it is on its way, else why it must stay for now."""
    metadata = pod["metadata"]
    if metadata.get("deletionTimestamp"):
        return ""
    name, namespace = metadata["name"], metadata["namespace"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    try:
        api.create(f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", body)
    except Exception as error:
        if getattr(error, "status", None) == 404:
            return ""
        if getattr(error, "status", None) != 429:
            raise
        return f"{namespace}/{name} may not be evicted now: {error}".splitlines()[0]
    return ""


def is_ours(node: str) -> bool:
    """Whether we cordoned the node and have not uncordoned it."""
    return node in _CORDONED
