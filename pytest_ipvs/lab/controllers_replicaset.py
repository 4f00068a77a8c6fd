"""A stand-in for the ReplicaSet controller: keeps as many pods as each ReplicaSet asks for."""

from __future__ import annotations

import calendar
import copy
import time

from pytest_ipvs.lab.client import PODS, REPLICA_SETS, ApiError, Object
from pytest_ipvs.lab.informers import (
    Cluster,
    Controller,
    owner_of,
    owner_reference,
    selects,
)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def condition(item: Object, kind: str) -> Object | None:
    """The status condition of one type."""
    for found in item.get("status", {}).get("conditions") or []:
        if found["type"] == kind:
            result: Object = found
            return result
    return None


def is_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition is True."""
    found = condition(pod, "Ready")
    return found is not None and found["status"] == "True"


def is_terminating(item: Object) -> bool:
    """Whether deletion of the object has begun."""
    return bool(item["metadata"].get("deletionTimestamp"))


def is_finished(pod: Object) -> bool:
    """Whether all containers of the pod have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Whether the pod counts as a replica: not finished, not being deleted."""
    return not is_finished(pod) and not is_terminating(pod)


def deletion_cost(pod: Object) -> int:
    """What a pod's annotation says of it; the real controller also takes a wrong one for 0."""
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "")
    try:
        return int(text)
    except ValueError:
        return 0


def seconds_since(text: str) -> float:
    """Seconds between an API time stamp and now."""
    return time.time() - calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def available_in(pod: Object, min_ready_seconds: int) -> float | None:
    """Seconds until the pod counts as available: 0 when it does, ``None`` when not ready."""
    found = condition(pod, "Ready")
    if found is None or found["status"] != "True":
        return None
    if not min_ready_seconds:
        return 0.0
    return max(0.0, min_ready_seconds - seconds_since(found["lastTransitionTime"]))


def owned(items: list[Object], owner: Object) -> list[Object]:
    """Those of ``items`` that ``owner`` controls."""
    uid = owner["metadata"]["uid"]
    return [item for item in items if (owner_of(item) or {}).get("uid") == uid]


class ReplicaSetController(Controller):
    """Creates and deletes pods; says in the status how many are ready and available."""

    name = "replicaset-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.sets = cluster.informer(REPLICA_SETS)
        self.pods = cluster.informer(PODS)
        self.sets.on_event(self._on_set)
        self.pods.on_event(self._on_pod)

    def _on_set(self, _kind: str, item: Object) -> None:
        self.enqueue(item["metadata"]["namespace"], item["metadata"]["name"])

    def _on_pod(self, _kind: str, pod: Object) -> None:
        namespace = pod["metadata"]["namespace"]
        owner = owner_of(pod)
        if owner is not None:
            if owner["kind"] == "ReplicaSet":
                self.enqueue(namespace, owner["name"])
            return
        for candidate in self.sets.items(namespace):
            if selects(candidate["spec"].get("selector"), pod["metadata"].get("labels")):
                self.enqueue(namespace, candidate["metadata"]["name"])

    def sync(self, namespace: str, name: str) -> None:
        item = self.sets.get(namespace, name)
        if item is None:
            return
        pods = self._claim(item)
        active = [pod for pod in pods if is_active(pod)]
        if not is_terminating(item):
            wanted = item["spec"].get("replicas", 1)
            if len(active) < wanted:
                active += self._create(item, wanted - len(active))
            elif len(active) > wanted:
                doomed = self._ranked(item, active)[: len(active) - wanted]
                for pod in doomed:
                    self.cluster.delete(PODS, pod)
                    self._tell(item, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
                pods = self._claim(item)
                active = [pod for pod in pods if is_active(pod)]
        ending = [pod for pod in pods if is_terminating(pod) and not is_finished(pod)]
        self._write_status(item, active, len(ending))

    def _claim(self, item: Object) -> list[Object]:
        """The pods of this set; orphans that the selector selects are adopted."""
        namespace = item["metadata"]["namespace"]
        everyone = self.pods.items(namespace)
        mine = owned(everyone, item)
        if is_terminating(item):
            return mine
        selector = item["spec"].get("selector")
        kept: list[Object] = []
        for pod in mine:
            if selects(selector, pod["metadata"].get("labels")) or is_terminating(pod):
                kept.append(pod)
                continue
            # A pod whose labels no longer match is let go, as the real controller does.
            others = [
                reference
                for reference in pod["metadata"].get("ownerReferences") or []
                if reference["uid"] != item["metadata"]["uid"]
            ]
            self.cluster.patch(PODS, pod, {"metadata": {"ownerReferences": others}})
        for pod in everyone:
            if owner_of(pod) is None and is_active(pod):
                if not selects(selector, pod["metadata"].get("labels")):
                    continue
                references = [
                    *(pod["metadata"].get("ownerReferences") or []),
                    owner_reference(item),
                ]
                body = {"metadata": {"ownerReferences": references}}
                kept.append(self.cluster.patch(PODS, pod, body))
        return kept

    def _create(self, item: Object, count: int) -> list[Object]:
        template = item["spec"]["template"]
        made: list[Object] = []
        for _ in range(count):
            meta = copy.deepcopy(template.get("metadata") or {})
            meta.pop("creationTimestamp", None)
            meta["generateName"] = item["metadata"]["name"] + "-"
            meta["namespace"] = item["metadata"]["namespace"]
            meta["ownerReferences"] = [owner_reference(item)]
            body = {"metadata": meta, "spec": copy.deepcopy(template["spec"])}
            try:
                pod = self.cluster.create(PODS, body)
            except ApiError as error:
                self._tell(item, "FailedCreate", f"Error creating: {error.message}", warning=True)
                if error.status == 403:
                    # Quota or a namespace that ends: nothing to gain from trying at once.
                    break
                raise
            made.append(pod)
            self._tell(item, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return made

    def _ranked(self, item: Object, pods: list[Object]) -> list[Object]:
        """Pods in the order in which they are to go: the least useful first.

        The order of the real controller: unassigned, pending, not ready, least deletion cost, most
        crowded node, youngest.
        """
        owner = owner_of(item)
        uids = {item["metadata"]["uid"]}
        if owner is not None:
            uids |= {
                other["metadata"]["uid"]
                for other in self.sets.items(item["metadata"]["namespace"])
                if (owner_of(other) or {}).get("uid") == owner["uid"]
            }
        crowd: dict[str, int] = {}
        for pod in self.pods.items(item["metadata"]["namespace"]):
            node = pod["spec"].get("nodeName")
            if node and is_active(pod) and (owner_of(pod) or {}).get("uid") in uids:
                crowd[node] = crowd.get(node, 0) + 1

        def rank(pod: Object) -> tuple[object, ...]:
            node = pod["spec"].get("nodeName")
            ready = condition(pod, "Ready")
            return (
                bool(node),
                pod.get("status", {}).get("phase") == "Running",
                is_ready(pod),
                deletion_cost(pod),
                -crowd.get(node or "", 0),
                # The smaller the age, the earlier it goes.
                seconds_since(ready["lastTransitionTime"]) if ready else 0.0,
                seconds_since(pod["metadata"]["creationTimestamp"]),
            )

        return sorted(pods, key=rank)

    def _write_status(self, item: Object, active: list[Object], ending: int) -> None:
        labels = item["spec"]["template"].get("metadata", {}).get("labels") or {}
        min_ready = item["spec"].get("minReadySeconds", 0)
        waits = [available_in(pod, min_ready) for pod in active]
        status: Object = {"replicas": len(active)}
        counts = {
            "fullyLabeledReplicas": sum(
                all((pod["metadata"].get("labels") or {}).get(k) == v for k, v in labels.items())
                for pod in active
            ),
            "readyReplicas": sum(is_ready(pod) for pod in active),
            "availableReplicas": sum(wait == 0 for wait in waits),
        }
        status |= {key: count for key, count in counts.items() if count}
        status["terminatingReplicas"] = ending
        status["observedGeneration"] = item["metadata"].get("generation", 1)
        if status != item.get("status"):
            self.cluster.update(REPLICA_SETS, {**item, "status": status}, "status")
        later = [wait for wait in waits if wait]
        if later:
            self.enqueue(item["metadata"]["namespace"], item["metadata"]["name"], min(later) + 0.1)

    def _tell(self, item: Object, reason: str, message: str, *, warning: bool = False) -> None:
        self.cluster.event(
            item,
            kind="ReplicaSet",
            reason=reason,
            message=message,
            source=self.name,
            warning=warning,
        )
