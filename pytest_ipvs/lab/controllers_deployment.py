"""A stand-in for the Deployment controller: rolls ReplicaSets as the documented algorithm does.

Source: the Deployment concept page and ``pkg/controller/deployment`` of Kubernetes; order and
status fields as in recordings of a real rolling update.
"""

from __future__ import annotations

import copy
import json

from pytest_ipvs.lab.client import DEPLOYMENTS, PODS, REPLICA_SETS, ApiError, Object
from pytest_ipvs.lab.controllers_deployment_status import (
    REVISION,
    counted,
    deployment_status,
    limits,
    revision,
    size,
)
from pytest_ipvs.lab.controllers_replicaset import (
    condition,
    is_finished,
    is_terminating,
    owned,
    seconds_since,
)
from pytest_ipvs.lab.informers import (
    Cluster,
    Controller,
    owner_of,
    owner_reference,
    selects,
)

HASH = "pod-template-hash"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
SAFE = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Object, collisions: int = 0) -> str:
    """A short name for a pod template: FNV-1a, written without vowels like the real one.

    The value differs from a real controller's, which hashes Go's printed structure.
    """
    value = 0x811C9DC5
    text = json.dumps(without_hash(template), sort_keys=True) + (str(collisions) * bool(collisions))
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return "".join(SAFE[ord(digit) % len(SAFE)] for digit in str(value))


def without_hash(template: Object) -> Object:
    """The template without the label that the controller itself adds."""
    result = copy.deepcopy(template)
    meta = result.get("metadata") or {}
    meta.pop("creationTimestamp", None)
    labels = meta.get("labels") or {}
    labels.pop(HASH, None)
    return result


class DeploymentController(Controller):
    """Makes a ReplicaSet per template and moves replicas from the old ones to the new one."""

    name = "deployment-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.deployments = cluster.informer(DEPLOYMENTS)
        self.sets = cluster.informer(REPLICA_SETS)
        self.pods = cluster.informer(PODS)
        self.deployments.on_event(self._on_deployment)
        self.sets.on_event(self._on_set)
        self.pods.on_event(self._on_pod)

    def _on_deployment(self, _kind: str, item: Object) -> None:
        self.enqueue(item["metadata"]["namespace"], item["metadata"]["name"])

    def _on_set(self, _kind: str, item: Object) -> None:
        owner = owner_of(item)
        if owner is not None and owner["kind"] == "Deployment":
            self.enqueue(item["metadata"]["namespace"], owner["name"])

    def _on_pod(self, kind: str, pod: Object) -> None:
        # Only Recreate waits for pods to be gone.
        owner = owner_of(pod)
        if kind != "DELETED" or owner is None or owner["kind"] != "ReplicaSet":
            return
        replica_set = self.sets.get(pod["metadata"]["namespace"], owner["name"])
        if replica_set is not None:
            self._on_set(kind, replica_set)

    def sync(self, namespace: str, name: str) -> None:
        item = self.deployments.get(namespace, name)
        if item is None:
            return
        sets = self._claim(item)
        if is_terminating(item):
            self._write_status(item, sets)
            return
        new = self._current(item, sets)
        old = [other for other in sets if other is not new]
        if item["spec"].get("paused") or self._is_scaling(item, sets):
            self._scale_all(item, new, old)
        elif (item["spec"].get("strategy") or {}).get("type") == "Recreate":
            self._recreate(item, new, old)
        else:
            self._roll(item, new, old)
        sets = self._claim(item)
        item = self.deployments.get(namespace, name)
        if item is None:
            return
        self._write_status(item, sets)
        self._clean_up(item, sets)

    def _claim(self, item: Object) -> list[Object]:
        """The Deployment's ReplicaSets, oldest first; orphans with its labels are adopted."""
        namespace = item["metadata"]["namespace"]
        everyone = self.sets.items(namespace)
        mine = owned(everyone, item)
        if not is_terminating(item):
            for other in everyone:
                if owner_of(other) is None and not is_terminating(other):
                    if not selects(item["spec"]["selector"], other["metadata"].get("labels")):
                        continue
                    references = [
                        *(other["metadata"].get("ownerReferences") or []),
                        owner_reference(item),
                    ]
                    body = {"metadata": {"ownerReferences": references}}
                    mine.append(self.cluster.patch(REPLICA_SETS, other, body))
        return sorted(
            mine, key=lambda found: (found["metadata"]["creationTimestamp"], revision(found))
        )

    def _current(self, item: Object, sets: list[Object]) -> Object | None:
        wanted = without_hash(item["spec"]["template"])
        for candidate in sets:
            if without_hash(candidate["spec"]["template"]) == wanted:
                return candidate
        label = template_hash(item["spec"]["template"], self._collisions(item))
        for candidate in sets:
            # The server may default a ReplicaSet's template more than the Deployment's.
            if candidate["metadata"]["name"] == f"{item['metadata']['name']}-{label}":
                return candidate
        return None

    @staticmethod
    def _collisions(item: Object) -> int:
        return counted(item, "collisionCount")

    def _ensure_new(self, item: Object, new: Object | None, old: list[Object]) -> Object:
        """The ReplicaSet of the present template with the newest revision; made if need be."""
        latest = max((revision(other) for other in old), default=0) + 1
        desired = item["spec"].get("replicas", 1)
        surge, _ = limits(item)
        if new is not None:
            number = max(latest, revision(new))
            notes = {REVISION: str(number), DESIRED: str(desired), MAXIMUM: str(desired + surge)}
            present = new["metadata"].get("annotations") or {}
            if any(present.get(key) != value for key, value in notes.items()):
                new = self.cluster.patch(REPLICA_SETS, new, {"metadata": {"annotations": notes}})
            self._note_revision(item, number)
            return new
        template = copy.deepcopy(item["spec"]["template"])
        label = template_hash(template, self._collisions(item))
        labels = template.setdefault("metadata", {}).setdefault("labels", {})
        labels[HASH] = label
        selector = copy.deepcopy(item["spec"]["selector"])
        selector.setdefault("matchLabels", {})[HASH] = label
        kept = {
            key: value
            for key, value in (item["metadata"].get("annotations") or {}).items()
            if key != "kubectl.kubernetes.io/last-applied-configuration"
        }
        size_now = self._room(item, 0, sum(size(other) for other in old))
        if (item["spec"].get("strategy") or {}).get("type") == "Recreate":
            size_now = desired
        spec: Object = {"replicas": size_now, "selector": selector, "template": template}
        if item["spec"].get("minReadySeconds"):
            spec["minReadySeconds"] = item["spec"]["minReadySeconds"]
        body: Object = {
            "metadata": {
                "name": f"{item['metadata']['name']}-{label}",
                "namespace": item["metadata"]["namespace"],
                "labels": labels,
                "annotations": kept
                | {REVISION: str(latest), DESIRED: str(desired), MAXIMUM: str(desired + surge)},
                "ownerReferences": [owner_reference(item)],
            },
            "spec": spec,
        }
        try:
            made = self.cluster.create(REPLICA_SETS, body)
        except ApiError as error:
            if error.status == 409:
                # A foreign ReplicaSet has the name: count it and hash again, as the original does.
                status = dict(item.get("status") or {})
                status["collisionCount"] = self._collisions(item) + 1
                self.cluster.update(DEPLOYMENTS, {**item, "status": status}, "status")
            raise
        self._note_revision(item, latest)
        self._tell_scaled(item, made, 0, size_now)
        return made

    def _note_revision(self, item: Object, number: int) -> None:
        notes = {REVISION: str(number)}
        if (item["metadata"].get("annotations") or {}).get(REVISION) != str(number):
            self.cluster.patch(DEPLOYMENTS, item, {"metadata": {"annotations": notes}})

    @staticmethod
    def _room(item: Object, new_size: int, all_size: int) -> int:
        """How large the new ReplicaSet may be now (maxSurge bounds the sum of all)."""
        desired = int(item["spec"].get("replicas", 1))
        if new_size >= desired:
            return desired
        surge, _ = limits(item)
        return new_size + max(0, min(desired + surge - all_size, desired - new_size))

    def _resize(self, item: Object, replica_set: Object, replicas: int) -> Object:
        desired = item["spec"].get("replicas", 1)
        surge, _ = limits(item)
        notes = {DESIRED: str(desired), MAXIMUM: str(desired + surge)}
        before = size(replica_set)
        present = replica_set["metadata"].get("annotations") or {}
        if before == replicas and all(present.get(key) == notes[key] for key in notes):
            return replica_set
        body = {"metadata": {"annotations": notes}, "spec": {"replicas": replicas}}
        result = self.cluster.patch(REPLICA_SETS, replica_set, body)
        self._tell_scaled(item, replica_set, before, replicas)
        return result

    def _is_scaling(self, item: Object, sets: list[Object]) -> bool:
        desired = str(item["spec"].get("replicas", 1))
        for other in sets:
            noted = (other["metadata"].get("annotations") or {}).get(DESIRED)
            if size(other) > 0 and noted is not None and noted != desired:
                return True
        return False

    def _scale_all(self, item: Object, new: Object | None, old: list[Object]) -> None:
        """Follow a change of ``replicas``; in the middle of a rollout in proportion."""
        desired = item["spec"].get("replicas", 1)
        active = [other for other in [*old, *([new] if new else [])] if size(other) > 0]
        if len(active) <= 1:
            target = active[0] if active else (new or (old[-1] if old else None))
            if target is not None:
                self._resize(item, target, desired)
            return
        if new is not None and counted(new, "availableReplicas") == desired == size(new):
            for other in old:
                if size(other):
                    self._resize(item, other, 0)
            return
        surge, _ = limits(item)
        allowed = desired + surge if desired else 0
        total = sum(size(other) for other in active)
        # Largest first; the rest goes to the largest, so that the sum is exact.
        active.sort(key=lambda other: (-size(other), revision(other)))
        shares = [round(size(other) * allowed / total) for other in active]
        shares[0] += allowed - sum(shares)
        for other, share in zip(active, shares, strict=True):
            self._resize(item, other, max(0, share))

    def _recreate(self, item: Object, new: Object | None, old: list[Object]) -> None:
        running = [other for other in old if size(other) > 0]
        for other in running:
            self._resize(item, other, 0)
        uids = {other["metadata"]["uid"] for other in old}
        left = [
            pod
            for pod in self.pods.items(item["metadata"]["namespace"])
            if (owner_of(pod) or {}).get("uid") in uids and not is_finished(pod)
        ]
        if running or left:
            return
        new = self._ensure_new(item, new, old)
        self._resize(item, new, item["spec"].get("replicas", 1))

    def _roll(self, item: Object, new: Object | None, old: list[Object]) -> None:
        new = self._ensure_new(item, new, old)
        everyone = [*old, new]
        room = self._room(item, size(new), sum(size(other) for other in everyone))
        if room != size(new):
            self._resize(item, new, room)
            return
        if not any(size(other) for other in old):
            return
        _, unavailable = limits(item)
        least = item["spec"].get("replicas", 1) - unavailable
        total = sum(size(other) for other in everyone)
        missing = size(new) - counted(new, "availableReplicas")
        budget = total - least - missing
        if budget <= 0:
            return
        sizes = {other["metadata"]["name"]: size(other) for other in old}
        # Replicas that are not available help nobody: they go first.
        used = 0
        for other in old:
            name = other["metadata"]["name"]
            sick = min(budget - used, sizes[name] - counted(other, "availableReplicas"))
            if sick > 0:
                sizes[name] -= sick
                used += sick
        available = sum(counted(other, "availableReplicas") for other in everyone)
        spare = min(available - least, budget - used)
        for other in old:
            name = other["metadata"]["name"]
            step = min(spare, sizes[name])
            if step > 0:
                sizes[name] -= step
                spare -= step
        for other in old:
            if sizes[other["metadata"]["name"]] != size(other):
                self._resize(item, other, sizes[other["metadata"]["name"]])

    def _clean_up(self, item: Object, sets: list[Object]) -> None:
        """Delete old, empty ReplicaSets beyond ``revisionHistoryLimit``."""
        if item["spec"].get("paused") or counted(item, "updatedReplicas") != size(item):
            return
        new = self._current(item, sets)
        idle = [
            other
            for other in sets
            if other is not new and not size(other) and not counted(other, "replicas")
        ]
        excess = len(idle) - item["spec"].get("revisionHistoryLimit", 10)
        for other in sorted(idle, key=revision)[: max(0, excess)]:
            self.cluster.delete(REPLICA_SETS, other)

    def _write_status(self, item: Object, sets: list[Object]) -> None:
        status = deployment_status(item, sets, self._current(item, sets))
        if status != item.get("status"):
            self.cluster.update(DEPLOYMENTS, {**item, "status": status}, "status")
        deadline = item["spec"].get("progressDeadlineSeconds", 600)
        found = condition({"status": status}, "Progressing")
        if found and found["reason"] not in ("NewReplicaSetAvailable", "ProgressDeadlineExceeded"):
            left = deadline - seconds_since(found["lastUpdateTime"])
            self.enqueue(item["metadata"]["namespace"], item["metadata"]["name"], max(1, left + 1))

    def _tell_scaled(self, item: Object, replica_set: Object, before: int, after: int) -> None:
        if before == after:
            return
        way = "up" if after > before else "down"
        self.cluster.event(
            item,
            kind="Deployment",
            reason="ScalingReplicaSet",
            message=f"Scaled {way} replica set {replica_set['metadata']['name']}"
            f" from {before} to {after}",
            source=self.name,
            warning=False,
        )
