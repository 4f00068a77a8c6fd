"""Changing a Deployment, and waiting until the change is complete."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.protocols import ApiLike, Say
from pytest_ipvs.rollout.record import is_ready
from pytest_ipvs.rollout.target import Target
from pytest_ipvs.traffic.namespace import may_pass

POLL_SECONDS = 0.5
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"


def restart(api: ApiLike, target: Target) -> None:
    """What ``kubectl rollout restart`` does."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    template = {"metadata": {"annotations": {RESTARTED_AT: now}}}
    api.patch(target.path, {"spec": {"template": template}})


def scale(api: ApiLike, target: Target, replicas: int) -> None:
    """What ``kubectl scale`` does."""
    api.patch(f"{target.path}/scale", {"spec": {"replicas": replicas}})


def delete_pods(api: ApiLike, target: Target, names: Collection[str]) -> None:
    """Delete pods by name, with the grace period that they ask for."""
    for name in names:
        api.delete(f"{target.pods_path}/{name}")


def wait_complete(
    api: ApiLike,
    target: Target,
    *,
    timeout: float,
    gone: Collection[str] = (),
    say: Say,
    pause: Callable[[float], None],
) -> None:
    """Until the Deployment is what its spec says and nothing of the old is left.

    ``gone``: uids of pods that must be gone too. Raises `RolloutError` after ``timeout`` seconds.
    An API server that is away meanwhile is waited for: the record tells of the gap.
    """
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        try:
            deployment, pods = api.get(target.path), list(target.pods(api))
        except Exception as error:
            if not may_pass(error):
                raise
            lacks = str(error)
        else:
            lacks = _lacks(deployment, pods, gone)
        if not lacks:
            return
        if time.monotonic() > deadline:
            raise RolloutError(
                f"Deployment {target} did not come to rest within {timeout:.0f} s: {lacks}"
            )
        if lacks != told:
            say(f"{target}: {lacks}")
            told = lacks
        pause(POLL_SECONDS)


def _lacks(deployment: Mapping[str, Any], pods: list[dict[str, Any]], gone: Collection[str]) -> str:
    """What is still to come, "" when complete; the conditions of ``kubectl rollout status``."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    if int(status.get("observedGeneration") or 0) < int(deployment["metadata"]["generation"]):
        return "the change is not seen by the controller yet"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("status") == "False":
            return f"it makes no progress ({condition.get('reason', 'no reason given')})"
    counts = {
        name: int(status.get(name) or 0)
        for name in ("updatedReplicas", "replicas", "availableReplicas")
    }
    if counts["updatedReplicas"] < wanted:
        return f"{counts['updatedReplicas']} of {wanted} updated"
    if counts["replicas"] > counts["updatedReplicas"]:
        return f"{counts['replicas'] - counts['updatedReplicas']} old ones left"
    if counts["availableReplicas"] < wanted:
        return f"{counts['availableReplicas']} of {wanted} available"
    leaving = [
        str(pod["metadata"]["name"])
        for pod in pods
        if pod["metadata"].get("deletionTimestamp") or pod["metadata"]["uid"] in gone
    ]
    if leaving:
        return f"{len(leaving)} old pods have not ended ({', '.join(sorted(leaving)[:3])})"
    # The status is the controller's view, which may be older than the pods.
    ready = sum(1 for pod in pods if is_ready(pod))
    if len(pods) != wanted or ready != wanted:
        return f"{len(pods)} pods, {ready} of them ready, {wanted} wanted"
    return ""
