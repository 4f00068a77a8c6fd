"""What a real API server fills in where a client left a field out.

Source: the defaulting functions of Kubernetes (``pkg/apis/*/v1/defaults.go``), checked against the
recorded answers. Only for kinds of ``kinds.py``; everything else is stored as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_ipvs.lab.api.kinds import Kind

Json = dict[str, Any]


def apply_defaults(kind: Kind, object_: Json, *, minor: int) -> None:
    """Fill in the defaults of ``object_`` in place."""
    default = _DEFAULTS.get(kind.qualified)
    if default is not None:
        default(object_, minor)


def _pod_spec(spec: Json, minor: int) -> None:
    for name in ("initContainers", "containers"):
        for container in spec.get(name) or []:
            _container(container)
    for volume in spec.get("volumes") or []:
        for source in ("configMap", "secret", "projected", "downwardAPI"):
            if isinstance(volume.get(source), dict):
                volume[source].setdefault("defaultMode", 420)
        if "hostPath" in volume:
            volume["hostPath"].setdefault("type", "")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    if "serviceAccountName" in spec:
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    if spec.get("hostNetwork"):
        for container in spec.get("containers") or []:
            for port in container.get("ports") or []:
                port.setdefault("hostPort", port.get("containerPort"))


def _container(container: Json) -> None:
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if isinstance(reference, dict):
            reference.setdefault("apiVersion", "v1")
    container.setdefault("resources", {})
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(name), dict):
            _probe(container[name])
    for handler in (container.get("lifecycle") or {}).values():
        if isinstance(handler, dict) and isinstance(handler.get("httpGet"), dict):
            _http_get(handler["httpGet"])
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    if "imagePullPolicy" not in container:
        image = str(container.get("image", ""))
        tag = image.rpartition("/")[2].partition(":")[2]
        fixed = "@" in image or (tag and tag != "latest")
        container["imagePullPolicy"] = "IfNotPresent" if fixed else "Always"


def _probe(probe: Json) -> None:
    if isinstance(probe.get("httpGet"), dict):
        _http_get(probe["httpGet"])
    for name, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        if not probe.get(name):
            probe[name] = value


def _http_get(action: Json) -> None:
    action.setdefault("path", "/")
    action.setdefault("scheme", "HTTP")


def _template(spec: Json, minor: int) -> None:
    template = spec.get("template")
    if not isinstance(template, dict):
        return
    metadata = template.setdefault("metadata", {})
    if minor < 34 and isinstance(metadata, dict):
        # Servers before 1.34 print the unset time of a template.
        metadata.setdefault("creationTimestamp", None)
    if isinstance(template.get("spec"), dict):
        _pod_spec(template["spec"], minor)


def _pod(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    _pod_spec(spec, minor)
    spec.setdefault("enableServiceLinks", True)
    # What the admission plugins ServiceAccount, Priority and DefaultTolerationSeconds add.
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        tolerated = any(
            item.get("effect") in (None, "", "NoExecute") and item.get("key") in (None, "", key)
            for item in tolerations
        )
        if not tolerated:
            tolerations.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }
            )


def _deployment(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("replicas", 1)
    _template(spec, minor)
    strategy = spec.setdefault("strategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _replica_set(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if isinstance(spec, dict):
        spec.setdefault("replicas", 1)
        _template(spec, minor)


def _daemon_set(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    _template(spec, minor)
    strategy = spec.setdefault("updateStrategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        if minor >= 22:
            rolling.setdefault("maxSurge", 0)
    spec.setdefault("revisionHistoryLimit", 10)


def _stateful_set(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("replicas", 1)
    _template(spec, minor)
    spec.setdefault("podManagementPolicy", "OrderedReady")
    strategy = spec.setdefault("updateStrategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    spec.setdefault("revisionHistoryLimit", 10)
    if minor >= 27:
        policy = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
        policy.setdefault("whenDeleted", "Retain")
        policy.setdefault("whenScaled", "Retain")


def _job(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("parallelism", 1)
    spec.setdefault("completions", 1)
    spec.setdefault("backoffLimit", 6)
    _template(spec, minor)
    if minor >= 24:
        spec.setdefault("completionMode", "NonIndexed")
        spec.setdefault("suspend", False)
    if minor >= 34:
        spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
    if not spec.get("manualSelector"):
        uid = object_["metadata"]["uid"]
        prefix = "batch.kubernetes.io/controller-uid" if minor >= 27 else "controller-uid"
        spec.setdefault("selector", {"matchLabels": {prefix: uid}})
        labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
        labels.setdefault("controller-uid", uid)
        labels.setdefault("job-name", object_["metadata"]["name"])
        if minor >= 27:
            labels.setdefault("batch.kubernetes.io/controller-uid", uid)
            labels.setdefault("batch.kubernetes.io/job-name", object_["metadata"]["name"])


def _service(object_: Json, minor: int) -> None:
    spec = object_.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        client = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        client.setdefault("timeoutSeconds", 10800)
    elif spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    kind = spec["type"]
    # External IPs bring an external policy only on servers that know both policies.
    external = kind in {"NodePort", "LoadBalancer"} or (
        minor >= 26 and kind == "ClusterIP" and spec.get("externalIPs")
    )
    if external:
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if minor >= 22 and kind != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if minor >= 22 and kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if minor >= 30:
        balancer = (object_.get("status") or {}).get("loadBalancer") or {}
        for ingress in balancer.get("ingress") or []:
            if ingress.get("ip"):
                ingress.setdefault("ipMode", "VIP")
    if minor < 22:
        for name in ("internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(name, None)


def _secret(object_: Json, minor: int) -> None:
    object_.setdefault("type", "Opaque")
    plain = object_.pop("stringData", None)
    if plain:
        import base64

        data = object_.setdefault("data", {})
        for key, value in plain.items():
            data[key] = base64.b64encode(str(value).encode()).decode()


def _endpoints(object_: Json, minor: int) -> None:
    for subset in object_.get("subsets") or []:
        for port in subset.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _endpoint_slice(object_: Json, minor: int) -> None:
    for port in object_.get("ports") or []:
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")
    object_.setdefault("endpoints", None)
    object_.setdefault("ports", None)


def _binding(object_: Json, minor: int) -> None:
    group = "rbac.authorization.k8s.io"
    object_.setdefault("roleRef", {}).setdefault("apiGroup", group)
    for subject in object_.get("subjects") or []:
        if subject.get("kind") in {"User", "Group"}:
            subject.setdefault("apiGroup", group)


def _namespace(object_: Json, minor: int) -> None:
    if minor >= 21:
        labels = object_["metadata"].setdefault("labels", {})
        labels["kubernetes.io/metadata.name"] = object_["metadata"]["name"]


def _node(object_: Json, minor: int) -> None:
    status = object_.get("status")
    if isinstance(status, dict) and "capacity" in status:
        status.setdefault("allocatable", dict(status["capacity"]))


_DEFAULTS: dict[str, Callable[[Json, int], None]] = {
    "pods": _pod,
    "deployments.apps": _deployment,
    "replicasets.apps": _replica_set,
    "daemonsets.apps": _daemon_set,
    "statefulsets.apps": _stateful_set,
    "jobs.batch": _job,
    "services": _service,
    "secrets": _secret,
    "endpoints": _endpoints,
    "endpointslices.discovery.k8s.io": _endpoint_slice,
    "rolebindings.rbac.authorization.k8s.io": _binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _binding,
    "namespaces": _namespace,
    "nodes": _node,
}


def initial_status(kind: Kind, object_: Json) -> None:
    """Reset what a creating client may not set: status, and what follows from the spec."""
    match kind.qualified:
        case "pods":
            object_["status"] = {"phase": "Pending", "qosClass": qos_class(object_["spec"])}
        case "services":
            object_["status"] = {"loadBalancer": {}}
        case "namespaces":
            object_["status"] = {"phase": "Active"}
            object_.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
        case "replicasets.apps":
            object_["status"] = {"replicas": 0}
        case "daemonsets.apps":
            object_["status"] = {
                "currentNumberScheduled": 0,
                "numberMisscheduled": 0,
                "desiredNumberScheduled": 0,
                "numberReady": 0,
            }
        case "statefulsets.apps":
            object_["status"] = {"replicas": 0, "availableReplicas": 0}
        case "deployments.apps" | "jobs.batch":
            object_["status"] = {}
        case "nodes":
            # The kubelet may register its node together with the first status.
            object_.setdefault("status", {})
            object_.setdefault("spec", {})


def qos_class(spec: Json) -> str:
    """The quality-of-service class that the resources of a pod's containers give."""
    wanted = [container.get("resources") or {} for container in spec.get("containers") or []]
    if not any(item.get("requests") or item.get("limits") for item in wanted):
        return "BestEffort"
    for item in wanted:
        limits, requests = item.get("limits") or {}, item.get("requests") or item.get("limits")
        if set(limits) < {"cpu", "memory"} or requests != limits:
            return "Burstable"
    return "Guaranteed"
