"""A stand-in for the Job controller: runs pods to completion, counted or by index."""

from __future__ import annotations

import copy

from pytest_ipvs.lab.client import JOBS, PODS, Object
from pytest_ipvs.lab.controllers_replicaset import is_active, is_ready, is_terminating, owned
from pytest_ipvs.lab.informers import Cluster, Controller, owner_of, owner_reference, timestamp

INDEX = "batch.kubernetes.io/job-completion-index"


def compressed(indexes: set[int]) -> str:
    """Indexes as the status writes them: "0-2,5"."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def index_of(pod: Object) -> int | None:
    """The completion index of a pod of an Indexed Job."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX)
    return int(text) if text is not None else None


class JobController(Controller):
    """Creates the pods of Jobs and writes how many succeeded and failed."""

    name = "job-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.jobs = cluster.informer(JOBS)
        self.pods = cluster.informer(PODS)
        self.jobs.on_event(self._on_job)
        self.pods.on_event(self._on_pod)

    def _on_job(self, _kind: str, job: Object) -> None:
        self.enqueue(job["metadata"]["namespace"], job["metadata"]["name"])

    def _on_pod(self, _kind: str, pod: Object) -> None:
        owner = owner_of(pod)
        if owner is not None and owner["kind"] == "Job":
            self.enqueue(pod["metadata"]["namespace"], owner["name"])

    def sync(self, namespace: str, name: str) -> None:
        job = self.jobs.get(namespace, name)
        if job is None or is_terminating(job) or _ended(job):
            return
        pods = owned(self.pods.items(namespace), job)
        spec = job["spec"]
        indexed = spec.get("completionMode") == "Indexed"
        done = [pod for pod in pods if pod.get("status", {}).get("phase") == "Succeeded"]
        failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
        active = [pod for pod in pods if is_active(pod)]
        wanted = spec.get("completions") or (None if not indexed else 1)
        finished = {index for pod in done if (index := index_of(pod)) is not None}
        succeeded = len(finished) if indexed else len(done)
        complete = succeeded >= wanted if wanted is not None else bool(done) and not active
        broken = len(failed) > spec.get("backoffLimit", 6)
        if broken or complete or spec.get("suspend"):
            if broken or spec.get("suspend"):
                for pod in active:
                    self.cluster.delete(PODS, pod)
                active = []
        else:
            active += self._create(job, active, finished, wanted, succeeded, indexed)
        self._write_status(
            job,
            active=active,
            succeeded=succeeded,
            failed=len(failed),
            indexes=finished if indexed else None,
            verdict="Complete" if complete else "Failed" if broken else None,
        )

    def _create(
        self,
        job: Object,
        active: list[Object],
        finished: set[int],
        wanted: int | None,
        succeeded: int,
        indexed: bool,
    ) -> list[Object]:
        parallel = job["spec"].get("parallelism", 1)
        if wanted is None:
            # A work queue: once one pod succeeded, no new ones start.
            count = 0 if succeeded else parallel - len(active)
        else:
            count = min(parallel, wanted - succeeded) - len(active)
        made: list[Object] = []
        taken = {index_of(pod) for pod in active} | finished
        free = iter([index for index in range(wanted or 0) if index not in taken])
        for _ in range(max(0, count)):
            index = next(free, None) if indexed else None
            if indexed and index is None:
                break
            made.append(self.cluster.create(PODS, self._pod(job, index)))
        return made

    @staticmethod
    def _pod(job: Object, index: int | None) -> Object:
        template = copy.deepcopy(job["spec"]["template"])
        name = job["metadata"]["name"]
        meta = template.get("metadata") or {}
        meta.pop("creationTimestamp", None)
        meta |= {
            "namespace": job["metadata"]["namespace"],
            "ownerReferences": [owner_reference(job)],
            "generateName": f"{name}-" if index is None else f"{name}-{index}-",
        }
        spec = template["spec"]
        if index is not None:
            meta.setdefault("annotations", {})[INDEX] = str(index)
            meta.setdefault("labels", {})[INDEX] = str(index)
            spec.setdefault("hostname", f"{name}-{index}")
            for container in spec["containers"]:
                entry = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
                container.setdefault("env", []).append(entry)
        return {"metadata": meta, "spec": spec}

    def _write_status(
        self,
        job: Object,
        *,
        active: list[Object],
        succeeded: int,
        failed: int,
        indexes: set[int] | None,
        verdict: str | None,
    ) -> None:
        before = job.get("status") or {}
        status: Object = {
            "startTime": before.get("startTime") or timestamp(),
            "ready": sum(is_ready(pod) for pod in active),
            "terminating": 0,
            "uncountedTerminatedPods": {},
        }
        counts = {"active": len(active), "succeeded": succeeded, "failed": failed}
        status |= {key: count for key, count in counts.items() if count}
        if indexes:
            status["completedIndexes"] = compressed(indexes)
        if verdict:
            now = timestamp()
            entry: Object = {
                "type": verdict,
                "status": "True",
                "lastProbeTime": now,
                "lastTransitionTime": now,
            }
            if verdict == "Complete":
                status["completionTime"] = now
            else:
                entry["reason"] = "BackoffLimitExceeded"
                entry["message"] = "Job has reached the specified backoff limit"
            status["conditions"] = [entry]
        if status != before:
            self.cluster.update(JOBS, {**job, "status": status}, "status")


def _ended(job: Object) -> bool:
    return any(
        entry["type"] in ("Complete", "Failed") and entry["status"] == "True"
        for entry in job.get("status", {}).get("conditions") or []
    )
