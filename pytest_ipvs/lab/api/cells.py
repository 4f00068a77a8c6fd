"""What each kind's row of a table says: the cells that kubectl prints."""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Printer = tuple[tuple[str, ...], tuple[str, ...], Callable[[Json], list[Any]]]

NUMBERS = frozenset({"Up-to-date", "Available", "Desired", "Current", "Data", "Count", "Secrets"})


def seconds_since(timestamp: str) -> float:
    """Seconds from an API timestamp (whole or fractional seconds, UTC) to now."""
    moment = time.strptime(timestamp.partition(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S")
    return time.time() - calendar.timegm(moment)


def duration(seconds: float) -> str:
    """A duration as kubectl writes it: "45s", "2m26s", "3h5m", "12d"."""
    whole = int(seconds)
    if whole < 0:
        return "0s" if whole >= -1 else "<invalid>"
    if whole < 120:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    years = days // 365
    return f"{years}y{days % 365}d" if years < 8 and days % 365 else f"{years}y"


def age(timestamp: str | None) -> str:
    """The time since a timestamp; "<unknown>" without one."""
    return duration(seconds_since(timestamp)) if timestamp else "<unknown>"


def _age(object_: Json) -> str:
    return age(object_["metadata"].get("creationTimestamp"))


def name_and_age(object_: Json) -> list[Any]:
    """The row of a kind without columns of its own."""
    return [object_["metadata"]["name"], _age(object_)]


def _pod(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    statuses = status.get("containerStatuses") or []
    ready = sum(1 for item in statuses if item.get("ready"))
    total = len(spec.get("containers") or [])
    restarts = sum(item.get("restartCount", 0) for item in statuses)
    reason = status.get("reason") or status.get("phase") or "Unknown"
    for item in reversed(statuses):
        state = item.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif state.get("terminated"):
            ended = state["terminated"]
            if ended.get("reason"):
                reason = ended["reason"]
            elif ended.get("signal"):
                reason = f"Signal:{ended['signal']}"
            else:
                reason = f"ExitCode:{ended.get('exitCode', 0)}"
    if object_["metadata"].get("deletionTimestamp"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    gates = spec.get("readinessGates") or []
    conditions = {item["type"]: item["status"] for item in status.get("conditions") or []}
    passed = sum(1 for gate in gates if conditions.get(gate["conditionType"]) == "True")
    return [
        object_["metadata"]["name"],
        f"{ready}/{total}",
        reason,
        str(restarts),
        _age(object_),
        status.get("podIP") or "<none>",
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        f"{passed}/{len(gates)}" if gates else "<none>",
    ]


def _labels(labels: Json | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or "<none>"


def _selector(selector: Json | None) -> str:
    from pytest_ipvs.lab.api.selectors import selector_text

    return selector_text(selector) or "<none>"


def _containers(spec: Json) -> list[str]:
    containers = spec["template"]["spec"].get("containers") or []
    return [
        ",".join(item.get("name", "") for item in containers),
        ",".join(item.get("image", "") for item in containers),
    ]


def _service(object_: Json) -> list[Any]:
    spec = object_["spec"]
    ports = []
    for port in spec.get("ports") or []:
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        ports.append(f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}")
    ingress = ((object_.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    outside = [item.get("ip") or item.get("hostname", "") for item in ingress]
    outside += spec.get("externalIPs") or []
    shown = ",".join(outside)
    if spec["type"] == "ExternalName":
        shown = spec.get("externalName", "")
    elif not shown:
        shown = "<pending>" if spec["type"] == "LoadBalancer" else "<none>"
    return [
        object_["metadata"]["name"],
        spec["type"],
        spec.get("clusterIP") or "<none>",
        shown,
        ",".join(ports) or "<none>",
        _age(object_),
        _labels(spec.get("selector")),
    ]


def _some(items: list[str]) -> str:
    if not items:
        return "<none>"
    return ",".join(items[:3]) + (f" + {len(items) - 3} more..." if len(items) > 3 else "")


def _endpoints(object_: Json) -> list[Any]:
    shown = []
    for subset in object_.get("subsets") or []:
        addresses = [item["ip"] for item in subset.get("addresses") or []]
        ports = [item["port"] for item in subset.get("ports") or []]
        shown += [f"{address}:{port}" for port in ports for address in addresses]
        shown += addresses if not ports else []
    return [object_["metadata"]["name"], _some(shown), _age(object_)]


def _more(items: list[str]) -> str:
    if not items:
        return "<unset>"
    return ",".join(items[:3]) + (f" + {len(items) - 3} more..." if len(items) > 3 else "")


def _endpoint_slice(object_: Json) -> list[Any]:
    ports = [str(port["port"]) if port.get("port") else "*" for port in object_.get("ports") or []]
    addresses = [
        address
        for endpoint in object_.get("endpoints") or []
        for address in endpoint.get("addresses") or []
    ]
    return [
        object_["metadata"]["name"],
        object_.get("addressType", ""),
        _more(ports),
        _more(addresses),
        _age(object_),
    ]


def _node(object_: Json) -> list[Any]:
    status, spec = object_.get("status") or {}, object_.get("spec") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    ready = conditions.get("Ready", {}).get("status")
    shown = {"True": "Ready", "False": "NotReady"}.get(ready, "Unknown")
    if spec.get("unschedulable"):
        shown += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    labels = object_["metadata"].get("labels") or {}
    roles = sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))
    addresses = {item["type"]: item["address"] for item in reversed(status.get("addresses") or [])}
    info = status.get("nodeInfo") or {}
    return [
        object_["metadata"]["name"],
        shown,
        ",".join(filter(None, roles)) or "<none>",
        _age(object_),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage", "<unknown>"),
        info.get("kernelVersion", "<unknown>"),
        info.get("containerRuntimeVersion", "<unknown>"),
    ]


def _deployment(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    return [
        object_["metadata"]["name"],
        f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _age(object_),
        *_containers(spec),
        _selector(spec.get("selector")),
    ]


def _replica_set(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    return [
        object_["metadata"]["name"],
        spec.get("replicas", 0),
        status.get("replicas", 0),
        str(status.get("readyReplicas", 0)),
        _age(object_),
        *_containers(spec),
        _selector(spec.get("selector")),
    ]


def _daemon_set(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    return [
        object_["metadata"]["name"],
        status.get("desiredNumberScheduled", 0),
        status.get("currentNumberScheduled", 0),
        str(status.get("numberReady", 0)),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        _labels(spec["template"]["spec"].get("nodeSelector")),
        _age(object_),
        *_containers(spec),
        _selector(spec.get("selector")),
    ]


def _stateful_set(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}"
    return [object_["metadata"]["name"], ready, _age(object_), *_containers(spec)]


def _job(object_: Json) -> list[Any]:
    spec, status = object_["spec"], object_.get("status") or {}
    conditions = {item["type"] for item in status.get("conditions") or [] if item["status"]}
    shown = next((item for item in ("Complete", "Failed") if item in conditions), "Running")
    took = ""
    if status.get("startTime"):
        end = status.get("completionTime")
        seconds = seconds_since(status["startTime"]) - (seconds_since(end) if end else 0)
        took = duration(seconds)
    done = f"{status.get('succeeded', 0)}/{spec.get('completions', 1)}"
    return [
        object_["metadata"]["name"],
        shown,
        done,
        took,
        _age(object_),
        *_containers(spec),
        _selector(spec.get("selector")),
    ]


def _config_map(object_: Json) -> list[Any]:
    count = len(object_.get("data") or {}) + len(object_.get("binaryData") or {})
    return [object_["metadata"]["name"], count, _age(object_)]


def _secret(object_: Json) -> list[Any]:
    count = len(object_.get("data") or {})
    return [object_["metadata"]["name"], object_.get("type", ""), count, _age(object_)]


def _service_account(object_: Json) -> list[Any]:
    return [object_["metadata"]["name"], len(object_.get("secrets") or []), _age(object_)]


def _event(object_: Json) -> list[Any]:
    first = object_.get("firstTimestamp") or object_.get("eventTime")
    series = object_.get("series") or {}
    last = series.get("lastObservedTime") or object_.get("lastTimestamp") or first
    involved = object_.get("involvedObject") or {}
    source = (object_.get("source") or {}).get("component") or object_.get("reportingComponent")
    return [
        age(last),
        object_.get("type", ""),
        object_.get("reason", ""),
        f"{involved.get('kind', '').lower()}/{involved.get('name', '')}",
        (object_.get("message") or "").strip(),
        involved.get("fieldPath", ""),
        source or "",
        age(first),
        series.get("count") or object_.get("count") or 1,
        object_["metadata"]["name"],
    ]


def _lease(object_: Json) -> list[Any]:
    holder = (object_.get("spec") or {}).get("holderIdentity", "")
    return [object_["metadata"]["name"], holder, _age(object_)]


def _namespace(object_: Json) -> list[Any]:
    phase = (object_.get("status") or {}).get("phase", "")
    return [object_["metadata"]["name"], phase, _age(object_)]


def _role(object_: Json) -> list[Any]:
    return [object_["metadata"]["name"], object_["metadata"].get("creationTimestamp", "")]


def _binding(object_: Json) -> list[Any]:
    reference, subjects = object_["roleRef"], object_.get("subjects") or []

    def of(kind: str) -> str:
        return ", ".join(
            "/".join(filter(None, (item.get("namespace"), item["name"])))
            for item in subjects
            if item.get("kind") == kind
        )

    return [
        object_["metadata"]["name"],
        f"{reference['kind']}/{reference['name']}",
        _age(object_),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]


_WORKLOAD_WIDE = ("Containers", "Images", "Selector")
_RBAC = "rbac.authorization.k8s.io"

PRINTERS: dict[str, Printer] = {
    "pods": (
        ("Name", "Ready", "Status", "Restarts", "Age"),
        ("IP", "Node", "Nominated Node", "Readiness Gates"),
        _pod,
    ),
    "services": (
        ("Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"),
        ("Selector",),
        _service,
    ),
    "endpoints": (("Name", "Endpoints", "Age"), (), _endpoints),
    "endpointslices.discovery.k8s.io": (
        ("Name", "AddressType", "Ports", "Endpoints", "Age"),
        (),
        _endpoint_slice,
    ),
    "nodes": (
        ("Name", "Status", "Roles", "Age", "Version"),
        ("Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime"),
        _node,
    ),
    "namespaces": (("Name", "Status", "Age"), (), _namespace),
    "deployments.apps": (
        ("Name", "Ready", "Up-to-date", "Available", "Age"),
        _WORKLOAD_WIDE,
        _deployment,
    ),
    "replicasets.apps": (
        ("Name", "Desired", "Current", "Ready", "Age"),
        _WORKLOAD_WIDE,
        _replica_set,
    ),
    "daemonsets.apps": (
        ("Name", "Desired", "Current", "Ready", "Up-to-date", "Available", "Node Selector", "Age"),
        _WORKLOAD_WIDE,
        _daemon_set,
    ),
    "statefulsets.apps": (("Name", "Ready", "Age"), ("Containers", "Images"), _stateful_set),
    "jobs.batch": (("Name", "Status", "Completions", "Duration", "Age"), _WORKLOAD_WIDE, _job),
    "configmaps": (("Name", "Data", "Age"), (), _config_map),
    "secrets": (("Name", "Type", "Data", "Age"), (), _secret),
    "serviceaccounts": (("Name", "Secrets", "Age"), (), _service_account),
    "events": (
        ("Last Seen", "Type", "Reason", "Object", "Message"),
        ("Subobject", "Source", "First Seen", "Count", "Name"),
        _event,
    ),
    "leases.coordination.k8s.io": (("Name", "Holder", "Age"), (), _lease),
    f"roles.{_RBAC}": (("Name", "Created At"), (), _role),
    f"clusterroles.{_RBAC}": (("Name", "Created At"), (), _role),
    f"rolebindings.{_RBAC}": (
        ("Name", "Role", "Age"),
        ("Users", "Groups", "ServiceAccounts"),
        _binding,
    ),
    f"clusterrolebindings.{_RBAC}": (
        ("Name", "Role", "Age"),
        ("Users", "Groups", "ServiceAccounts"),
        _binding,
    ),
}
