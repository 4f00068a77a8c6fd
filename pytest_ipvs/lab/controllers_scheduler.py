"""A stand-in for the scheduler: puts each pod on the ready node with the fewest of its kind."""

from __future__ import annotations

from pytest_ipvs.lab.client import NODES, PODS, ApiError, Object
from pytest_ipvs.lab.controllers_replicaset import condition, is_active, is_finished, is_terminating
from pytest_ipvs.lab.informers import Cluster, Controller, owner_of, timestamp

SCHEDULER = "default-scheduler"


def tolerates(pod: Object, taint: Object) -> bool:
    """Whether the pod tolerates a taint."""
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") and toleration["effect"] != taint["effect"]:
            continue
        key = toleration.get("key")
        if not key:
            if toleration.get("operator") == "Exists":
                return True
            continue
        if key != taint["key"]:
            continue
        if toleration.get("operator", "Equal") == "Exists":
            return True
        if toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _term_matches(term: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    for values, expressions in (
        (labels, term.get("matchExpressions") or []),
        (fields, term.get("matchFields") or []),
    ):
        for expression in expressions:
            value = values.get(expression["key"])
            wanted = expression.get("values") or []
            matched = {
                "In": value in wanted,
                "NotIn": value not in wanted,
                "Exists": value is not None,
                "DoesNotExist": value is None,
            }.get(expression["operator"], False)
            if not matched:
                return False
    return bool(term.get("matchExpressions") or term.get("matchFields"))


def fits(pod: Object, node: Object) -> str | None:
    """``None`` if the pod may run on the node, else why not, in the scheduler's words."""
    ready = condition(node, "Ready")
    if ready is None or ready["status"] != "True":
        return "node(s) were not ready"
    spec = node.get("spec", {})
    unschedulable = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if spec.get("unschedulable") and not tolerates(pod, unschedulable):
        return "node(s) were unschedulable"
    for taint in spec.get("taints") or []:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not tolerates(pod, taint):
            return f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}"
    labels = node["metadata"].get("labels") or {}
    selector = pod["spec"].get("nodeSelector") or {}
    required = (
        (pod["spec"].get("affinity") or {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    if any(labels.get(key) != value for key, value in selector.items()) or (
        required
        and not any(_term_matches(term, node) for term in required.get("nodeSelectorTerms") or [])
    ):
        return "node(s) didn't match Pod's node affinity/selector"
    return None


class Scheduler(Controller):
    """Binds pods that no node has yet."""

    name = "default-scheduler"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.pods = cluster.informer(PODS)
        self.nodes = cluster.informer(NODES)
        self.pods.on_event(self._on_pod)
        self.nodes.on_event(self._on_node)

    def _waits(self, pod: Object) -> bool:
        return (
            not pod["spec"].get("nodeName")
            and pod["spec"].get("schedulerName", SCHEDULER) == SCHEDULER
            and not pod["spec"].get("schedulingGates")
            and not is_terminating(pod)
            and not is_finished(pod)
        )

    def _on_pod(self, kind: str, pod: Object) -> None:
        if kind != "DELETED" and self._waits(pod):
            self.enqueue(pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _on_node(self, _kind: str, _node: Object) -> None:
        for pod in self.pods.items():
            if self._waits(pod):
                self.enqueue(pod["metadata"]["namespace"], pod["metadata"]["name"])

    def sync(self, namespace: str, name: str) -> None:
        pod = self.pods.get(namespace, name)
        if pod is None or not self._waits(pod):
            return
        nodes = self.nodes.items()
        reasons = {node["metadata"]["name"]: fits(pod, node) for node in nodes}
        candidates = [node for node, reason in reasons.items() if reason is None]
        if not candidates:
            self._refuse(pod, len(nodes), [reason for reason in reasons.values() if reason])
            return
        node = min(candidates, key=self._crowd(pod))
        binding: Object = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            self.cluster.api.request("POST", PODS.path(namespace, name, "binding"), binding)
        except ApiError as error:
            if error.status in (404, 409):
                return
            raise
        fresh = self.cluster.api.get(PODS, namespace, name)
        if fresh is not None:
            # The next pod is placed with this one counted.
            self.pods.learn(fresh)
        self.cluster.event(
            pod,
            kind="Pod",
            reason="Scheduled",
            message=f"Successfully assigned {namespace}/{name} to {node}",
            source=self.name,
            warning=False,
        )

    def _crowd(self, pod: Object) -> _Crowd:
        return _Crowd(pod, self.pods.items())

    def _refuse(self, pod: Object, count: int, reasons: list[str]) -> None:
        parts = [f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons))]
        message = f"0/{count} nodes are available: {', '.join(parts) or 'no nodes'}."
        now = condition(pod, "PodScheduled")
        if now is not None and now.get("message") == message:
            return
        status: Object = {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "lastProbeTime": None,
                    "lastTransitionTime": timestamp(),
                    "reason": "Unschedulable",
                    "message": message,
                }
            ]
        }
        self.cluster.patch(PODS, pod, {"status": status}, "status")
        self.cluster.event(
            pod,
            kind="Pod",
            reason="FailedScheduling",
            message=message,
            source=self.name,
            warning=True,
        )


class _Crowd:
    """Sorts node names: fewest pods of the same owner's kind first, then fewest pods, then name."""

    def __init__(self, pod: Object, pods: list[Object]) -> None:
        self._alike: dict[str, int] = {}
        self._all: dict[str, int] = {}
        kin = self._kin(pod)
        for other in pods:
            node = other["spec"].get("nodeName")
            if not node or not is_active(other):
                continue
            self._all[node] = self._all.get(node, 0) + 1
            if kin and self._kin(other) == kin:
                self._alike[node] = self._alike.get(node, 0) + 1

    @staticmethod
    def _kin(pod: Object) -> tuple[str, str] | None:
        owner = owner_of(pod)
        return (pod["metadata"]["namespace"], owner["uid"]) if owner else None

    def __call__(self, node: str) -> tuple[int, int, str]:
        return self._alike.get(node, 0), self._all.get(node, 0), node
