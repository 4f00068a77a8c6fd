"""Whether an object may be stored: names, required fields, ranges, and what may not change.

Source of rules and texts: recorded 422 answers and ``pkg/apis/*/validation`` of Kubernetes.
Only rules that a lab's clients meet; an object with a wrong *type* in a checked field is refused
too, so that no later reader trips over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pytest_ipvs.lab.api.errors import FieldError
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.selectors import selector_matches

Json = dict[str, Any]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_OLD_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex "
    "used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_OLD_LABEL_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or "
    "'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_PORT_TEXT = "must be between 1 and 65535, inclusive"
_IMMUTABLE = "field is immutable"
# Names of these kinds may hold any character but a slash and percent.
_PATH_NAMES = frozenset({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})


def _bad(field: str, value: object, detail: str, go_type: str = "") -> FieldError:
    return FieldError(
        type="FieldValueInvalid", field=field, value=value, detail=detail, go_type=go_type
    )


def _required(field: str, detail: str = "") -> FieldError:
    return FieldError(type="FieldValueRequired", field=field, detail=detail)


def _unsupported(field: str, value: object, supported: tuple[str, ...]) -> FieldError:
    words = ", ".join(f'"{word}"' for word in supported)
    return FieldError(
        type="FieldValueNotSupported", field=field, value=value, detail=f"supported values: {words}"
    )


def validate(kind: Kind, object_: Json, *, minor: int) -> list[FieldError]:
    """Every reason to refuse a new object; empty when it is fine."""
    errors = list(_metadata(kind, object_["metadata"], minor))
    check = {
        "services": _service,
        "pods": _pod,
        "deployments.apps": _workload,
        "replicasets.apps": _workload,
        "daemonsets.apps": _workload,
        "statefulsets.apps": _workload,
        "leases.coordination.k8s.io": _lease,
        "configmaps": _config_map,
        "endpointslices.discovery.k8s.io": _endpoint_slice,
        "rolebindings.rbac.authorization.k8s.io": _role_binding,
        "clusterrolebindings.rbac.authorization.k8s.io": _role_binding,
    }.get(kind.qualified)
    if check is not None:
        errors.extend(check(object_, minor))
    return errors


def validate_update(kind: Kind, new: Json, old: Json, *, minor: int) -> list[FieldError]:
    """Every reason to refuse an update; includes those of ``validate``."""
    errors = validate(kind, new, minor=minor)
    match kind.qualified:
        case "deployments.apps" | "replicasets.apps" | "daemonsets.apps":
            if new["spec"].get("selector") != old["spec"].get("selector"):
                selector = new["spec"].get("selector")
                errors.append(_bad("spec.selector", selector, _IMMUTABLE, "v1.LabelSelector"))
        case "configmaps" | "secrets":
            if old.get("immutable") and any(
                new.get(name) != old.get(name) for name in ("data", "binaryData", "immutable")
            ):
                errors.append(
                    FieldError(
                        type="FieldValueForbidden",
                        field="data",
                        detail="field is immutable when `immutable` is set",
                    )
                )
        case "pods":
            errors.extend(_pod_update(new, old))
        case "endpointslices.discovery.k8s.io":
            if new.get("addressType") != old.get("addressType"):
                errors.append(_bad("addressType", new.get("addressType"), _IMMUTABLE))
        case "rolebindings.rbac.authorization.k8s.io" | (
            "clusterrolebindings.rbac.authorization.k8s.io"
        ):
            if new.get("roleRef") != old.get("roleRef"):
                errors.append(_bad("roleRef", new.get("roleRef"), "cannot change roleRef"))
        case _:
            pass
    return errors


def _metadata(kind: Kind, metadata: Json, minor: int) -> Iterator[FieldError]:
    name = metadata["name"]
    if kind.kind in _PATH_NAMES:
        if name in {".", ".."} or "/" in name or "%" in name:
            yield _bad("metadata.name", name, "may not contain '/' or '%'")
    elif kind.qualified == "services" and minor < 34:
        if not _OLD_LABEL.fullmatch(name) or len(name) > 63:
            yield _bad("metadata.name", name, _OLD_LABEL_TEXT)
    elif kind.qualified in {"services", "namespaces"}:
        if not _LABEL.fullmatch(name):
            yield _bad("metadata.name", name, _LABEL_TEXT)
        elif len(name) > 63:
            yield _bad("metadata.name", name, "must be no more than 63 characters")
    elif not _SUBDOMAIN.fullmatch(name):
        yield _bad("metadata.name", name, _SUBDOMAIN_TEXT)
    elif len(name) > 253:
        yield _bad("metadata.name", name, "must be no more than 253 characters")
    yield from _labels("metadata.labels", metadata.get("labels"))
    for index, owner in enumerate(metadata.get("ownerReferences") or []):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield _bad(f"metadata.ownerReferences[{index}].{field}", "", "must not be empty")


def _labels(field: str, labels: Any) -> Iterator[FieldError]:
    for key, value in (labels or {}).items():
        if not isinstance(value, str):
            yield _bad(field, value, "must be a string")
            continue
        prefix, slash, rest = key.rpartition("/")
        if slash and not _SUBDOMAIN.fullmatch(prefix):
            yield _bad(field, key, f"prefix part {_SUBDOMAIN_TEXT}")
        if not _QUALIFIED.fullmatch(rest) or len(rest) > 63:
            yield _bad(
                field,
                key,
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must "
                "start and end with an alphanumeric character",
            )
        if value and (not _QUALIFIED.fullmatch(value) or len(value) > 63):
            yield _bad(
                field,
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, "
                "'-', '_' or '.', and must start and end with an alphanumeric character",
            )


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _service(object_: Json, minor: int) -> Iterator[FieldError]:
    spec = object_.get("spec") or {}
    kind = spec.get("type")
    types = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if kind not in types:
        yield _unsupported("spec.type", kind, types)
    headless = spec.get("clusterIP") == "None"
    ports = spec.get("ports") or []
    if not ports and kind != "ExternalName" and not headless:
        yield _required("spec.ports")
    if kind == "ExternalName" and not spec.get("externalName"):
        yield _required("spec.externalName")
    seen: set[tuple[object, object]] = set()
    names: set[str] = set()
    for index, port in enumerate(ports):
        field = f"spec.ports[{index}]"
        name = port.get("name", "")
        if len(ports) > 1 and not name:
            yield _required(f"{field}.name")
        elif name and name in names:
            yield FieldError(type="FieldValueDuplicate", field=f"{field}.name", value=name)
        names.add(name)
        if not _is_port(port.get("port")):
            yield _bad(f"{field}.port", port.get("port"), _PORT_TEXT)
        if port.get("protocol") not in {"TCP", "UDP", "SCTP"}:
            protocol = port.get("protocol")
            yield _unsupported(f"{field}.protocol", protocol, ("SCTP", "TCP", "UDP"))
        target = port.get("targetPort")
        if not isinstance(target, str) and not _is_port(target):
            yield _bad(f"{field}.targetPort", target, _PORT_TEXT)
        if port.get("nodePort") and kind not in {"NodePort", "LoadBalancer"}:
            yield FieldError(
                type="FieldValueForbidden",
                field=f"{field}.nodePort",
                detail="may not be used when `type` is 'ClusterIP'",
            )
        key = (port.get("protocol"), port.get("port"))
        if key in seen:
            value = {"port": port.get("port"), "protocol": port.get("protocol")}
            yield FieldError(type="FieldValueDuplicate", field=field, value=value)
        seen.add(key)
    if spec.get("sessionAffinity") not in {"ClientIP", "None"}:
        yield _unsupported(
            "spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None")
        )
    client = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    timeout = client.get("timeoutSeconds")
    if timeout is not None and not (isinstance(timeout, int) and 0 < timeout <= 86400):
        field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        yield _bad(field, timeout, "must be greater than 0 and less than 86400")
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        policy = spec.get(field)
        if policy is not None and policy not in {"Cluster", "Local"}:
            yield _unsupported(f"spec.{field}", policy, ("Cluster", "Local"))
    yield from _labels("spec.selector", spec.get("selector"))


def _containers(field: str, spec: Any) -> Iterator[FieldError]:
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not containers:
        yield _required(f"{field}.containers")
        return
    names: set[str] = set()
    for index, container in enumerate(containers):
        here = f"{field}.containers[{index}]"
        name = container.get("name")
        if not name:
            yield _required(f"{here}.name")
        elif not _LABEL.fullmatch(name):
            yield _bad(f"{here}.name", name, _LABEL_TEXT)
        elif name in names:
            yield FieldError(type="FieldValueDuplicate", field=f"{here}.name", value=name)
        names.add(name or "")
        if not container.get("image"):
            yield _required(f"{here}.image")
        for number, port in enumerate(container.get("ports") or []):
            if not _is_port(port.get("containerPort")):
                value = port.get("containerPort")
                yield _bad(f"{here}.ports[{number}].containerPort", value, _PORT_TEXT)
    grace = spec.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < 0:
        detail = "must be greater than or equal to 0"
        yield _bad(f"{field}.terminationGracePeriodSeconds", grace, detail)


def _pod(object_: Json, minor: int) -> Iterator[FieldError]:
    yield from _containers("spec", object_.get("spec") or {})


def _workload(object_: Json, minor: int) -> Iterator[FieldError]:
    spec = object_.get("spec") or {}
    selector = spec.get("selector")
    replicas = spec.get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        yield _bad("spec.replicas", replicas, "must be greater than or equal to 0")
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    if not selector:
        yield _required("spec.selector")
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield _bad("spec.selector", selector, "empty selector is invalid for deployment")
    elif not selector_matches(selector, labels):
        yield _bad(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
            "map[string]string",
        )
    yield from _labels("spec.template.labels", labels)
    yield from _containers("spec.template.spec", template.get("spec") or {})
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy != "Always":
        yield _unsupported("spec.template.spec.restartPolicy", policy, ("Always",))


def _lease(object_: Json, minor: int) -> Iterator[FieldError]:
    duration = (object_.get("spec") or {}).get("leaseDurationSeconds")
    if duration is not None and (not isinstance(duration, int) or duration <= 0):
        yield _bad("spec.leaseDurationSeconds", duration, "must be greater than 0")


def _config_map(object_: Json, minor: int) -> Iterator[FieldError]:
    for key, value in (object_.get("data") or {}).items():
        if not re.fullmatch(r"[-._a-zA-Z0-9]+", key):
            yield _bad(
                f"data[{key}]",
                key,
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            )
        if not isinstance(value, str):
            yield _bad(f"data[{key}]", value, "must be a string")


def _endpoint_slice(object_: Json, minor: int) -> Iterator[FieldError]:
    types = ("FQDN", "IPv4", "IPv6")
    if not object_.get("addressType"):
        yield _required("addressType")
    elif object_["addressType"] not in types:
        yield _unsupported("addressType", object_["addressType"], types)
    for index, endpoint in enumerate(object_.get("endpoints") or []):
        if not endpoint.get("addresses"):
            yield _required(f"endpoints[{index}].addresses", "must contain at least 1 address")


def _role_binding(object_: Json, minor: int) -> Iterator[FieldError]:
    if not object_["roleRef"].get("name"):
        yield _required("roleRef.name")
    if object_["roleRef"].get("kind") not in {"Role", "ClusterRole"}:
        yield _unsupported("roleRef.kind", object_["roleRef"].get("kind"), ("Role", "ClusterRole"))


def _pod_update(new: Json, old: Json) -> Iterator[FieldError]:
    """A pod's spec is fixed but for images, tolerations, the deadline and a shorter grace."""

    def fixed(spec: Json) -> Json:
        free = {"tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"}
        rest = {key: value for key, value in spec.items() if key not in free}
        for name in ("containers", "initContainers"):
            if name in rest:
                rest[name] = [
                    {key: value for key, value in item.items() if key != "image"}
                    for item in rest[name] or []
                ]
        return rest

    if fixed(new["spec"]) != fixed(old["spec"]):
        yield FieldError(
            type="FieldValueForbidden",
            field="spec",
            detail="pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` "
            "(only additions to existing tolerations),`spec.terminationGracePeriodSeconds` "
            "(allow it to be set to 1 if it was previously negative)",
        )
