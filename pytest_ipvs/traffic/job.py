"""Clients as the pods of an Indexed Job: load from as many machines as the cluster gives.

The script comes by ConfigMap into a stock Python image; each pod writes its lines to its log, and
a thread of ours follows each log. All of it lives in one namespace, which goes at the end.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any, ClassVar

from pytest_ipvs.traffic.collect import Collector
from pytest_ipvs.traffic.namespace import LABELS, OwnNamespace
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results
from pytest_ipvs.traffic.run import TrafficError, TrafficRun, within

NAME = "client"
PATIENCE = 60.0
GRACE_SECONDS = 30
LONGEST_RUN = 6 * 3600
"""Seconds after which clients end that were to run until stopped: we may have died."""

RETRY_SECONDS = 0.5
CLOCK_TRIES, CLOCK_GOOD = 3, 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobPlace:
    """So many pods of a Job. ``avoid``: nodes they must not be on, such as one to be drained.

    ``tolerations`` are a pod's, as the API writes them. ``cluster``: its api, nodes and settings.
    """

    cluster: Any
    count: int
    avoid: tuple[str, ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    client_class: ClassVar[type[TrafficRun]]


class Follower:
    """Reads one pod's log to its end, across lost connections."""

    def __init__(self, run: JobRun, pod: Mapping[str, Any]) -> None:
        self.run = run
        self.name = str(pod["metadata"]["name"])
        self.node = str(pod["spec"].get("nodeName") or "")
        self.collector = Collector(run.plan.target)
        self.problem = ""
        self.taken = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, name=f"ipvs-{self.name}", daemon=True)

    def _follow(self) -> None:
        try:
            while not self.done.is_set():
                error = self._read()
                if self.collector.end_reason is not None or self._ended(error):
                    return
                self.done.wait(RETRY_SECONDS)
        finally:
            self.done.set()

    def _read(self) -> str:
        """Feed what is new until the stream ends; why it could not be read, or nothing."""
        path = f"/api/v1/namespaces/{self.run.namespace.name}/pods/{self.name}/log"
        skip = self.taken
        try:
            for piece in self.run.api.stream(path, follow="true"):
                fresh, skip = piece[skip:], max(0, skip - len(piece))
                if fresh:
                    with self.run.lock:
                        self.taken += len(fresh)
                        self.collector.feed(fresh.decode(errors="replace"), received=time.time())
        except Exception as error:  # whatever the connection met: the next try says more
            return str(error)
        return ""

    def _ended(self, error: str) -> bool:
        """Whether the pod is at its end, without the client having said so."""
        try:
            pod = self.run.api.get(f"/api/v1/namespaces/{self.run.namespace.name}/pods/{self.name}")
        except Exception as lost:
            if getattr(lost, "status", None) != 404:
                self.problem = f"client pod {self.name} cannot be followed: {error or lost}"
                return False
            self.problem = f"client pod {self.name} was removed before its end"
            return True
        self.problem = ""
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            return False
        # Its last lines may have come between the two requests.
        self._read()
        if self.collector.end_reason is None:
            self.problem = f"client pod {self.name} died before its end: {why(pod)}"
        return True


def why(pod: Mapping[str, Any]) -> str:
    """What a pod's status says of its end, or of what it waits for."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        for state in (container.get("state") or {}).values():
            words = [str(state[key]) for key in ("reason", "message") if state.get(key)]
            if words:
                return ": ".join(words)[:300]
    for entry in status.get("conditions") or []:
        if entry.get("status") == "False" and entry.get("message"):
            return str(entry["message"])[:300]
    return str(status.get("message") or status.get("reason") or "it left no message")[:300]


class JobRun(TrafficRun):
    """A `TrafficRun` whose host is a `JobPlace`: several clients, one result.

    Rate, ports and held connections of the plan are those of all pods together.
    """

    def __init__(self, host: JobPlace, plan: Plan, *, where: str = "a Job") -> None:
        super().__init__(host, plan, where=where)
        self.place = host
        self.api = host.cluster.api
        self.lock = self._lock
        self.namespace = OwnNamespace(self.api)
        self._followers: dict[str, Follower] = {}
        self._asked_at = 0.0
        self.clock_problem = ""

    def start(self, timeout: float = 180.0) -> TrafficRun:
        """Make the Job; returns once each pod says that it runs."""
        if not self.place.cluster.settings.allow_disruption:
            raise TrafficError(
                "clients as a Job need --ipvs-allow-disruption: they are pods in a namespace "
                "that is made for them"
            )
        try:
            self._asked_at = time.time()
            self.namespace.create()
            for path, body in manifests(self.place, self.plan, self.namespace.name):
                self.api.create(path, body)
            self._wait_started(timeout)
        except BaseException as error:
            self._let_go()
            self.namespace.remove_after(error)
            if isinstance(error, TrafficError) or not isinstance(error, Exception):
                raise
            raise TrafficError(f"clients cannot run as a Job: {error}") from error
        return self

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the pods, that with most of them first."""
        count = Counter(follower.node for follower in self._followers.values() if follower.node)
        return tuple(sorted(count, key=lambda name: (-count[name], name)))

    def _pods(self) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.namespace.name}/pods"
        return list(self.api.items(path, labelSelector=f"job-name={NAME}"))

    def _wait_started(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            pods = self._pods()
            for pod in pods:
                phase = pod.get("status", {}).get("phase")
                name = pod["metadata"]["name"]
                if phase not in (None, "Pending") and name not in self._followers:
                    follower = self._followers[name] = Follower(self, pod)
                    follower.thread.start()
            begun = [f for f in self._followers.values() if f.collector.started is not None]
            if len(begun) >= self.place.count:
                break
            told = [f.problem for f in self._followers.values() if f.done.is_set() and f.problem]
            if told or time.monotonic() > deadline:
                waiting = [pod for pod in pods if pod["metadata"]["name"] not in self._followers]
                reason = why(waiting[0]) if waiting else "their logs have no first line"
                raise TrafficError(
                    f"{len(begun)} of {self.place.count} client pods started within "
                    f"{timeout:.0f} s: {told[0] if told else reason}"
                )
            self._given_up.wait(RETRY_SECONDS)
            self._go_on()
        for follower in self._followers.values():
            self._measure_clock(follower)

    def _measure_clock(self, follower: Follower) -> None:
        """By the pod's node, whose clock it shares; else only bounds are known, and are stated."""
        started = follower.collector.started
        if started is not None:
            follower.collector.bound_clock(started[0] - self._asked_at)
        try:
            host = self.place.cluster.node(follower.node).host
            # The first command also makes the connection, and the best of them counts.
            for _ in range(CLOCK_TRIES):
                before = time.time()
                answer = within(20.0, lambda: host.run("cat /proc/uptime"), follower.node)
                after = time.time()
                uptime = float(answer.stdout_bytes.decode().split()[0])
                with self.lock:
                    follower.collector.measure_clock(uptime, before, after)
                if after - before < CLOCK_GOOD:
                    return
        except Exception as error:  # not every cluster lets us onto its nodes
            self.clock_problem = f"{follower.node}: {error}"

    @property
    def running(self) -> bool:
        """Whether some client was alive and at work when last seen."""
        return any(not follower.done.is_set() for follower in self._followers.values())

    def results(self) -> Results:
        """What is known so far, all pods as one; after the block all there is."""
        with self.lock:
            parts = [
                follower.collector.results((follower.problem,) if follower.problem else ())
                for follower in self._followers.values()
            ]
        missing = self.place.count - len(parts)
        merged = Results.merge(parts)
        return dataclasses.replace(merged, finished=merged.finished and missing == 0)

    def refresh(self) -> Results:
        """What is there now: the logs are followed all the time."""
        return self.results()

    def stop(self) -> Results:
        """End the clients in good order, read their last lines, remove the namespace."""
        try:
            if self.running:
                with self.lock:
                    for follower in self._followers.values():
                        # One that a signal ended before was evicted.
                        collector = follower.collector
                        collector.told_to_stop = collector.end_reason is None
                path = f"/apis/batch/v1/namespaces/{self.namespace.name}/jobs/{NAME}"
                self.api.delete(path, body={"propagationPolicy": "Background"})
            deadline = time.monotonic() + GRACE_SECONDS + PATIENCE
            for follower in self._followers.values():
                follower.done.wait(max(0.0, deadline - time.monotonic()))
        except Exception as error:
            self._poll_error = f"the clients could not be stopped: {error}"
        finally:
            self.abort()
        return self.results()

    def abort(self) -> None:
        """Remove the namespace and all that is in it, whatever state it is in."""
        self._let_go()
        self.namespace.remove()

    def _let_go(self) -> None:
        for follower in self._followers.values():
            if not follower.done.is_set():
                follower.problem = follower.problem or f"client pod {follower.name} was given up"
                follower.done.set()


JobPlace.client_class = JobRun


def manifests(place: JobPlace, plan: Plan, namespace: str) -> list[tuple[str, dict[str, Any]]]:
    """(path to POST to, object) of the script's ConfigMap and the Job."""
    script = (resources.files("pytest_ipvs.traffic") / "client.py").read_text(encoding="utf-8")
    metadata = {"name": NAME, "namespace": namespace, "labels": LABELS}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"client.py": script},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": place.count,
            "parallelism": place.count,
            # A client that died has lost what it knew: another one in its place proves nothing.
            "backoffLimit": 0,
            "activeDeadlineSeconds": math.ceil(plan.duration or LONGEST_RUN) + 600,
            "template": {
                "metadata": {"labels": {**LABELS, "app": NAME}},
                "spec": _pod(place, share(plan, place.count)),
            },
        },
    }
    return [
        (f"/api/v1/namespaces/{namespace}/configmaps", config),
        (f"/apis/batch/v1/namespaces/{namespace}/jobs", job),
    ]


def share(plan: Plan, count: int) -> Plan:
    """One pod's part of a plan: its ports return after the same time."""
    return dataclasses.replace(
        plan,
        rate=plan.rate / count,
        ports=math.ceil(plan.ports / count),
        hold=math.ceil(plan.hold / count),
        duration=plan.duration or LONGEST_RUN,
    )


def _pod(place: JobPlace, plan: Plan) -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": place.cluster.settings.image,
        "command": ["python3", "/srv/client.py", json.dumps(plan.to_dict()).replace("$", "$$")],
        "volumeMounts": [{"name": "script", "mountPath": "/srv", "readOnly": True}],
        "resources": {"requests": {"cpu": "100m", "memory": "48Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "volumes": [{"name": "script", "configMap": {"name": NAME}}],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "tolerations": [dict(toleration) for toleration in place.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": NAME}},
            }
        ],
    }
    if place.avoid:
        # Such a requirement takes one name; all of one term must hold.
        fields = [
            {"key": "metadata.name", "operator": "NotIn", "values": [name]}
            for name in sorted(place.avoid)
        ]
        term = {"nodeSelectorTerms": [{"matchFields": fields}]}
        spec["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}
        }
    return spec
