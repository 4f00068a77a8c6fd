"""What a Deployment's status says: counts, and the conditions that rollout status waits for."""

from __future__ import annotations

import math
from typing import Any

from pytest_ipvs.lab.client import Object
from pytest_ipvs.lab.controllers_replicaset import condition, seconds_since
from pytest_ipvs.lab.informers import timestamp

REVISION = "deployment.kubernetes.io/revision"


def resolve(value: int | str | None, total: int, *, up: bool) -> int:
    """An absolute number out of an int-or-percent field."""
    if isinstance(value, str):
        share = int(value.rstrip("%")) * total / 100
        return math.ceil(share) if up else math.floor(share)
    return int(value or 0)


def limits(deployment: Object) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) as absolute numbers; both are 0 for Recreate."""
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {"maxSurge": "25%", "maxUnavailable": "25%"}
    replicas = deployment["spec"].get("replicas", 1)
    surge = resolve(rolling.get("maxSurge"), replicas, up=True)
    unavailable = resolve(rolling.get("maxUnavailable"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas)


def size(item: Object) -> int:
    """The replicas that a ReplicaSet asks for."""
    return int(item["spec"].get("replicas", 1))


def counted(item: Object, field: str) -> int:
    """A count of the status; 0 when absent."""
    return int(item.get("status", {}).get(field) or 0)


def revision(item: Object) -> int:
    """The revision that a ReplicaSet's annotation carries; 0 without one."""
    return int((item["metadata"].get("annotations") or {}).get(REVISION) or 0)


def deployment_status(item: Object, sets: list[Object], new: Object | None) -> Object:
    """The status that the controller writes, conditions included."""
    desired = int(item["spec"].get("replicas", 1))
    _, unavailable = limits(item)
    total = sum(counted(other, "replicas") for other in sets)
    available = sum(counted(other, "availableReplicas") for other in sets)
    before: Object = item.get("status") or {}
    status: Object = {"observedGeneration": item["metadata"].get("generation", 1)}
    counts: dict[str, int] = {
        "replicas": total,
        "updatedReplicas": counted(new, "replicas") if new else 0,
        "readyReplicas": sum(counted(other, "readyReplicas") for other in sets),
        "availableReplicas": available,
        "unavailableReplicas": max(0, sum(size(other) for other in sets) - available),
    }
    status |= {key: count for key, count in counts.items() if count}
    status["terminatingReplicas"] = sum(counted(other, "terminatingReplicas") for other in sets)
    if before.get("collisionCount"):
        status["collisionCount"] = before["collisionCount"]
    if available >= desired - unavailable:
        first = (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    else:
        first = (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    second = _progress(item, status, new, desired)
    status["conditions"] = [
        _merged(condition(item, "Available"), "Available", *first),
        _merged(condition(item, "Progressing"), "Progressing", *second, touch=_moved(item, status)),
    ]
    return status


def _moved(item: Object, status: Object) -> bool:
    """Whether the rollout made progress between the two statuses."""
    before = item.get("status") or {}

    def number(source: Object, key: str) -> int:
        return int(source.get(key) or 0)

    def old(source: Object) -> int:
        return number(source, "replicas") - number(source, "updatedReplicas")

    return (
        number(status, "updatedReplicas") > number(before, "updatedReplicas")
        or old(status) < old(before)
        or number(status, "readyReplicas") > number(before, "readyReplicas")
        or number(status, "availableReplicas") > number(before, "availableReplicas")
    )


def _progress(
    item: Object, status: Object, new: Object | None, desired: int
) -> tuple[str, str, str]:
    """(status, reason, message) of the Progressing condition."""
    name = new["metadata"]["name"] if new else ""
    now = condition(item, "Progressing")
    complete = (
        new is not None
        and status.get("updatedReplicas", 0) == desired
        and status.get("replicas", 0) == desired
        and status.get("availableReplicas", 0) == desired
    )
    if complete:
        message = f'ReplicaSet "{name}" has successfully progressed.'
        return "True", "NewReplicaSetAvailable", message
    if item["spec"].get("paused"):
        return "Unknown", "DeploymentPaused", "Deployment is paused"
    if now is None or (
        now["reason"] == "NewReplicaSetAvailable"
        and status.get("updatedReplicas", 0) != status.get("replicas", 0)
        and not status.get("updatedReplicas", 0)
    ):
        return "True", "NewReplicaSetCreated", f'Created new replica set "{name}"'
    # A finished rollout that only loses or regains a pod stays finished.
    if now["reason"] == "NewReplicaSetAvailable" and status.get("updatedReplicas") == status.get(
        "replicas"
    ):
        return now["status"], now["reason"], now["message"]
    if _moved(item, status):
        return "True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
    limit = item["spec"].get("progressDeadlineSeconds", 600)
    if seconds_since(now["lastUpdateTime"]) > limit:
        message = f'ReplicaSet "{name}" has timed out progressing.'
        return "False", "ProgressDeadlineExceeded", message
    if now["reason"] == "NewReplicaSetAvailable":
        return "True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
    return now["status"], now["reason"], now["message"]


def _merged(
    known: Any, kind: str, status: str, reason: str, message: str, *, touch: bool = False
) -> Object:
    """A condition whose times move only when they should."""
    now = timestamp()
    fields = {"status": status, "reason": reason, "message": message}
    if known and all(known.get(key) == value for key, value in fields.items()) and not touch:
        return dict(known)
    moved = not known or known["status"] != status
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": now,
        "lastTransitionTime": now if moved else known["lastTransitionTime"],
        "reason": reason,
        "message": message,
    }
