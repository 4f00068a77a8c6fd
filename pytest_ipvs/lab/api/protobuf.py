"""Reading the protobuf bodies that kubectl sends from 1.32 on; answers are always JSON.

Only what kubectl's own commands create: a field that is not written down here refuses the whole
body, so that nothing is lost in silence. Numbers are those of ``generated.proto`` in ``k8s.io/api``
and ``k8s.io/apimachinery``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

from pytest_ipvs.lab.api.errors import ApiError, bad_request

Json = dict[str, Any]

_MAGIC = b"k8s\0"

# "number name type": s text, i number, b truth, x bytes; a capital word is another message;
# [] a list, {} a map from text. A star marks what is kept when zero, false or empty.
_MESSAGES: dict[str, str] = {
    "ObjectMeta": "1 name s, 2 generateName s, 3 namespace s, 4 selfLink s, 5 uid s, "
    "6 resourceVersion s, 7 generation i, 8 creationTimestamp Time, 9 deletionTimestamp Time, "
    "10 deletionGracePeriodSeconds i*, 11 labels {}s, 12 annotations {}s, "
    "13 ownerReferences []OwnerReference, 14 finalizers []s",
    "OwnerReference": "1 kind s, 3 name s, 4 uid s, 5 apiVersion s, 6 controller b*, "
    "7 blockOwnerDeletion b*",
    "LabelSelector": "1 matchLabels {}s, 2 matchExpressions []Requirement",
    "Requirement": "1 key s, 2 operator s, 3 values []s",
    "DeleteOptions": "1 gracePeriodSeconds i*, 2 preconditions Preconditions, "
    "3 orphanDependents b*, 4 propagationPolicy s, 5 dryRun []s",
    "Preconditions": "1 uid s, 2 resourceVersion s",
    "LocalReference": "1 name s",
    "Reference": "1 kind s, 2 namespace s, 3 name s, 4 uid s, 5 apiVersion s, "
    "6 resourceVersion s, 7 fieldPath s",
    "ConfigMap": "1 metadata ObjectMeta, 2 data {}s, 3 binaryData {}x, 4 immutable b*",
    "Secret": "1 metadata ObjectMeta, 2 data {}x, 3 type s, 4 stringData {}s, 5 immutable b*",
    "ServiceAccount": "1 metadata ObjectMeta, 2 secrets []Reference, "
    "3 imagePullSecrets []LocalReference, 4 automountServiceAccountToken b*",
    "Namespace": "1 metadata ObjectMeta, 2 spec NamespaceSpec, 3 status NamespaceStatus",
    "NamespaceSpec": "1 finalizers []s",
    "NamespaceStatus": "1 phase s",
    "Service": "1 metadata ObjectMeta, 2 spec ServiceSpec, 3 status ServiceStatus",
    "ServiceSpec": "1 ports []ServicePort, 2 selector {}s, 3 clusterIP s, 4 type s, "
    "5 externalIPs []s, 7 sessionAffinity s, 8 loadBalancerIP s, 9 loadBalancerSourceRanges []s, "
    "10 externalName s, 11 externalTrafficPolicy s, 12 healthCheckNodePort i, "
    "13 publishNotReadyAddresses b, 17 ipFamilyPolicy s, 18 clusterIPs []s, 19 ipFamilies []s, "
    "20 allocateLoadBalancerNodePorts b*, 21 loadBalancerClass s, 22 internalTrafficPolicy s",
    "ServicePort": "1 name s, 2 protocol s, 3 port i, 4 targetPort IntOrString, 5 nodePort i, "
    "6 appProtocol s",
    "ServiceStatus": "1 loadBalancer LoadBalancer",
    "LoadBalancer": "",
    "Deployment": "1 metadata ObjectMeta, 2 spec DeploymentSpec, 3 status WorkloadStatus",
    "DeploymentSpec": "1 replicas i*, 2 selector LabelSelector, 3 template PodTemplateSpec, "
    "4 strategy DeploymentStrategy, 5 minReadySeconds i, 6 revisionHistoryLimit i*, 7 paused b, "
    "9 progressDeadlineSeconds i*",
    "DeploymentStrategy": "1 type s, 2 rollingUpdate RollingUpdate",
    "RollingUpdate": "1 maxUnavailable IntOrString, 2 maxSurge IntOrString",
    # A new object's status is empty but for zeros.
    "WorkloadStatus": "1 observedGeneration i, 2 replicas i, 3 updatedReplicas i, "
    "4 availableReplicas i, 5 unavailableReplicas i, 7 readyReplicas i",
    "PodTemplateSpec": "1 metadata ObjectMeta, 2 spec PodSpec",
    "PodSpec": "2 containers []Container, 3 restartPolicy s, 4 terminationGracePeriodSeconds i*, "
    "5 activeDeadlineSeconds i*, 6 dnsPolicy s, 7 nodeSelector {}s, 8 serviceAccountName s, "
    "9 serviceAccount s, 10 nodeName s, 11 hostNetwork b, 12 hostPID b, 13 hostIPC b, "
    "15 imagePullSecrets []LocalReference, 16 hostname s, 17 subdomain s, 19 schedulerName s, "
    "24 priorityClassName s",
    "Container": "1 name s, 2 image s, 3 command []s, 4 args []s, 5 workingDir s, "
    "6 ports []ContainerPort, 7 env []EnvVar, 8 resources Resources, "
    "13 terminationMessagePath s, 14 imagePullPolicy s, 16 stdin b, 17 stdinOnce b, 18 tty b, "
    "20 terminationMessagePolicy s",
    "ContainerPort": "1 name s, 2 hostPort i, 3 containerPort i, 4 protocol s, 5 hostIP s",
    "EnvVar": "1 name s, 2 value s",
    "Resources": "1 limits {}Quantity, 2 requests {}Quantity",
    "Job": "1 metadata ObjectMeta, 2 spec JobSpec, 3 status JobStatus",
    "JobSpec": "1 parallelism i*, 2 completions i*, 3 activeDeadlineSeconds i*, "
    "4 selector LabelSelector, 5 manualSelector b*, 6 template PodTemplateSpec, "
    "7 backoffLimit i*, 8 ttlSecondsAfterFinished i*",
    "JobStatus": "4 active i, 5 succeeded i, 6 failed i, 7 completedIndexes s, 9 ready i*, "
    "10 failedIndexes s, 11 terminating i*",
    "Role": "1 metadata ObjectMeta, 2 rules []PolicyRule",
    "ClusterRole": "1 metadata ObjectMeta, 2 rules []PolicyRule",
    "PolicyRule": "1 verbs []s, 2 apiGroups []s, 3 resources []s, 4 resourceNames []s, "
    "5 nonResourceURLs []s",
    "RoleBinding": "1 metadata ObjectMeta, 2 subjects []Subject, 3 roleRef RoleRef",
    "ClusterRoleBinding": "1 metadata ObjectMeta, 2 subjects []Subject, 3 roleRef RoleRef",
    "Subject": "1 kind s, 2 apiGroup s, 3 name s, 4 namespace s",
    "RoleRef": "1 apiGroup s, 2 kind s, 3 name s",
    "SelfSubjectAccessReview": "1 metadata ObjectMeta, 2 spec AccessSpec, 3 status AccessStatus",
    "AccessSpec": "1 resourceAttributes ResourceAttributes, "
    "2 nonResourceAttributes NonResourceAttributes",
    "AccessStatus": "1 allowed b, 2 reason s, 3 evaluationError s, 4 denied b",
    "ResourceAttributes": "1 namespace s, 2 verb s, 3 group s, 4 version s, 5 resource s, "
    "6 subresource s, 7 name s",
    "NonResourceAttributes": "1 path s, 2 verb s",
    "SelfSubjectRulesReview": "1 metadata ObjectMeta, 2 spec RulesSpec, 3 status RulesStatus",
    "RulesSpec": "1 namespace s",
    "RulesStatus": "3 incomplete b, 4 evaluationError s",
    "SelfSubjectReview": "1 metadata ObjectMeta, 2 status ReviewStatus",
    "ReviewStatus": "1 userInfo UserInfo",
    "UserInfo": "1 username s, 2 uid s, 3 groups []s",
    "TokenRequest": "1 metadata ObjectMeta, 2 spec TokenSpec, 3 status TokenStatus",
    "TokenSpec": "1 audiences []s, 3 boundObjectRef BoundReference, 4 expirationSeconds i*",
    "TokenStatus": "1 token s, 2 expirationTimestamp Time",
    "BoundReference": "1 kind s, 2 apiVersion s, 3 name s, 4 uid s",
    "Eviction": "1 metadata ObjectMeta, 2 deleteOptions DeleteOptions",
}


class _UnknownFieldError(Exception):
    """A field that is not written down."""


def decode(body: bytes) -> Json:
    """The object in a body of type application/vnd.kubernetes.protobuf.

    Raises a 400 ``ApiError`` for broken bodies and a 415 one for kinds or fields not known here.
    """
    if not body.startswith(_MAGIC):
        raise bad_request("the body is not Kubernetes protobuf: it does not begin with k8s\\0")
    try:
        api_version = kind = ""
        raw = b""
        for number, value in _fields(body[len(_MAGIC) :]):
            if number == 1:
                for inner, text in _fields(_bytes(value)):
                    if inner == 1:
                        api_version = _bytes(text).decode()
                    elif inner == 2:
                        kind = _bytes(text).decode()
            elif number == 2:
                raw = _bytes(value)
        if kind not in _MESSAGES:
            raise _UnknownFieldError(kind)
        return {"apiVersion": api_version, "kind": kind, **_message(kind, raw)}
    except _UnknownFieldError as unknown:
        message = (
            f"415: Unsupported Media Type: this server reads no protobuf with {unknown}; send JSON"
        )
        raise ApiError(415, "UnsupportedMediaType", message, {}) from None
    except (IndexError, ValueError, TypeError) as error:
        raise bad_request(f"the protobuf body cannot be read: {error}") from None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
        elif wire == 2:
            size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("it ends too early")
            yield number, data[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {wire}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where text is expected")
    return value


def _layout(name: str) -> dict[int, tuple[str, str]]:
    found = {}
    for entry in filter(None, _MESSAGES[name].split(", ")):
        number, field, type_ = entry.split()
        found[int(number)] = (field, type_)
    return found


def _message(name: str, data: bytes) -> Json:
    layout = _layout(name)
    result: Json = {}
    for number, value in _fields(data):
        if number not in layout:
            raise _UnknownFieldError(f"field {number} of {name}")
        field, type_ = layout[number]
        if type_.startswith("[]"):
            result.setdefault(field, []).append(_value(type_[2:], value))
        elif type_.startswith("{}"):
            key, item = "", _zero(type_[2:])
            for inner, part in _fields(_bytes(value)):
                if inner == 1:
                    key = _bytes(part).decode()
                else:
                    item = _value(type_[2:], part)
            result.setdefault(field, {})[key] = item
        else:
            item = _value(type_.removesuffix("*"), value)
            if type_.endswith("*") or item not in ("", 0, False, None, {}):
                result[field] = item
    return result


def _zero(type_: str) -> Any:
    return {"s": "", "x": "", "i": 0}.get(type_, {})


def _value(type_: str, value: int | bytes) -> Any:
    match type_:
        case "s":
            return _bytes(value).decode()
        case "x":
            return base64.b64encode(_bytes(value)).decode()
        case "b":
            return bool(value)
        case "i":
            return _signed(value)
        case "Time":
            parts = dict(_fields(_bytes(value)))
            seconds = _signed(parts.get(1, 0))
            return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
        case "Quantity":
            return _bytes(dict(_fields(_bytes(value)))[1]).decode()
        case "IntOrString":
            parts = dict(_fields(_bytes(value)))
            if parts.get(1):
                return _bytes(parts[3]).decode()
            return _signed(parts.get(2, 0))
        case _:
            return _message(type_, _bytes(value))


def _signed(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("text where a number is expected")
    return value - (1 << 64) if value >= 1 << 63 else value
