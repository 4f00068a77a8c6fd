"""Label selectors and field selectors: parsing with the API's own errors, and matching."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pytest_ipvs.lab.api.errors import bad_request
from pytest_ipvs.lab.api.kinds import Kind

Json = dict[str, Any]
Labels = Mapping[str, str]
Matcher = Callable[[Json], bool]

_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|<|>|[^\s=!(),<>]+)")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def parse_labels(text: str) -> Callable[[Labels], bool]:
    """A predicate over labels for "a=b,c!=d,e in (f,g),!h"; raises a 400 ``ApiError``."""
    tokens = _tokens(text)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take(*, identifier: bool = True) -> str:
        nonlocal position
        token = peek()
        if identifier and (not token or token in {"=", "==", "!=", "!", "(", ")", ",", "<", ">"}):
            raise bad_request(f"unable to parse requirement: found '{token}', expected: identifier")
        position += 1
        return token

    def values() -> set[str]:
        if take(identifier=False) != "(":
            raise bad_request(
                f"unable to parse requirement: found '{tokens[position - 1]}', expected: '('"
            )
        found = set()
        while peek() != ")":
            if peek() == ",":
                found.add("")
            else:
                found.add(take())
            if peek() == ",":
                take(identifier=False)
            elif peek() != ")":
                raise bad_request(
                    f"unable to parse requirement: found '{peek()}', expected: ',' or ')'"
                )
        take(identifier=False)
        return found

    tests: list[Callable[[Labels], bool]] = []
    while position < len(tokens):
        if peek() == "!":
            take(identifier=False)
            tests.append(_absent(take()))
        else:
            key = take()
            operator = peek()
            if operator in {"=", "==", "!="}:
                take(identifier=False)
                value = "" if peek() in {"", ","} else take()
                tests.append(_equal(key, value, wanted=operator != "!="))
            elif operator in {"in", "notin"}:
                take()
                tests.append(_member(key, values(), wanted=operator == "in"))
            elif operator in {"", ","}:
                tests.append(_present(key))
            else:
                raise bad_request(
                    f"unable to parse requirement: found '{operator}', expected: in, notin, "
                    "=, ==, !=, gt, lt"
                )
        if peek() == ",":
            take(identifier=False)
        elif peek():
            raise bad_request(
                f"unable to parse requirement: found '{peek()}', expected: ',' or 'end of string'"
            )
    return lambda labels: all(test(labels) for test in tests)


def _absent(key: str) -> Callable[[Labels], bool]:
    return lambda labels: key not in labels


def _present(key: str) -> Callable[[Labels], bool]:
    return lambda labels: key in labels


def _equal(key: str, value: str, *, wanted: bool) -> Callable[[Labels], bool]:
    return lambda labels: (labels.get(key) == value) is wanted


def _member(key: str, values: set[str], *, wanted: bool) -> Callable[[Labels], bool]:
    return lambda labels: (labels.get(key) in values) is wanted


def selector_matches(selector: Mapping[str, Any] | None, labels: Labels) -> bool:
    """Whether a ``LabelSelector`` object (matchLabels, matchExpressions) selects these labels."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for requirement in selector.get("matchExpressions") or []:
        key, values = requirement["key"], set(requirement.get("values") or [])
        match requirement["operator"]:
            case "In":
                matches = labels.get(key) in values
            case "NotIn":
                matches = labels.get(key) not in values
            case "Exists":
                matches = key in labels
            case _:
                matches = key not in labels
        if not matches:
            return False
    return True


def selector_text(selector: Mapping[str, Any] | None) -> str:
    """A ``LabelSelector`` as text, as ``Scale.status.selector`` carries it."""
    selector = selector or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for requirement in selector.get("matchExpressions") or []:
        key, values = requirement["key"], ",".join(sorted(requirement.get("values") or []))
        match requirement["operator"]:
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(key)
            case _:
                parts.append(f"!{key}")
    return ",".join(parts)


_FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    "nodes": ("spec.unschedulable",),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
    "replicasets.apps": ("status.replicas",),
    "jobs.batch": ("status.successful",),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
}
# A field that is absent from the object reads as this.
_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false"}


def _field(object_: Json, path: str) -> str:
    if path == "source":
        return str((object_.get("source") or {}).get("component") or "")
    if path == "status.podIPs":
        return ",".join(item["ip"] for item in (object_.get("status") or {}).get("podIPs") or [])
    value: Any = object_
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return _ABSENT.get(path, "0" if path == "status.replicas" else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def parse_fields(kind: Kind, text: str) -> Matcher:
    """A predicate over objects of ``kind`` for "a.b=c,d!=e"; raises a 400 ``ApiError``."""
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(kind.qualified, ()))
    tests: list[tuple[str, str, bool]] = []
    for part in filter(None, text.split(",")):
        for operator in ("!=", "==", "="):
            path, found, value = part.partition(operator)
            if found:
                break
        else:
            raise bad_request(f'invalid selector: "{text}"; can\'t understand "{part}"')
        if path not in known:
            if kind.qualified == "pods" or kind.qualified in _FIELDS:
                raise bad_request(f"field label not supported: {path}")
            raise bad_request(
                f'"{path}" is not a known field selector: only "metadata.name", '
                '"metadata.namespace"'
            )
        tests.append((path, value, operator != "!="))
    return lambda object_: all(
        (_field(object_, path) == value) is wanted for path, value, wanted in tests
    )


def matcher(kind: Kind, labels: str, fields: str) -> Matcher:
    """One predicate for both selectors of a request; "" selects everything."""
    if not labels and not fields:
        return lambda object_: True
    by_labels = parse_labels(labels)
    by_fields = parse_fields(kind, fields)
    return lambda object_: by_labels(object_["metadata"].get("labels") or {}) and by_fields(object_)
