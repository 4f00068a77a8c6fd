"""Failures of the API as ``Status`` objects, with the words that a real API server uses.

Source of codes, reasons and messages: recordings of Kubernetes 1.36.2 and 1.20.2, and
``k8s.io/apimachinery/pkg/api/errors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.lab.api.kinds import Kind

Json = dict[str, Any]


class ApiError(Exception):
    """One refused request: an HTTP status with its ``Status`` body.

    ``status`` is the HTTP status code; ``body`` the ``Status`` object; ``headers`` are sent too.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = dict(headers or {})

    @property
    def body(self) -> Json:
        """The ``Status`` object that the client receives."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.status
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One cause of a 422: what is wrong with one field.

    ``type`` is the machine word ("FieldValueInvalid"); ``go_type`` is how servers before 1.33 wrote
    the type of a compound value ("map[string]string").
    """

    type: str
    field: str
    value: object = None
    detail: str = ""
    go_type: str = ""

    def message(self, *, minor: int) -> str:
        """The cause's text without the field, in the style of a server of 1.``minor``."""
        shown = _show(self.value, self.go_type, minor)
        detail = f": {self.detail}" if self.detail else ""
        match self.type:
            case "FieldValueRequired":
                return f"Required value{detail}"
            case "FieldValueForbidden":
                return f"Forbidden{detail}"
            case "FieldValueDuplicate":
                return f"Duplicate value: {shown}{detail}"
            case "FieldValueNotSupported":
                return f"Unsupported value: {shown}{detail}"
            case _:
                return f"Invalid value: {shown}{detail}"


def _show(value: object, go_type: str, minor: int) -> str:
    text = json.dumps(value, separators=(",", ":"))
    # From 1.33 on compound values are shown as JSON, before in Go's syntax.
    if minor >= 33 or not go_type:
        return text
    if isinstance(value, dict) and go_type == "v1.LabelSelector":
        labels = json.dumps(value.get("matchLabels", {}), separators=(", ", ":"))
        return (
            f"v1.LabelSelector{{MatchLabels:map[string]string{labels}, "
            "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}"
        )
    if isinstance(value, list):
        return go_type + "{" + ", ".join(json.dumps(item) for item in value) + "}"
    return go_type + json.dumps(value, separators=(", ", ":"))


def _details(kind: Kind, name: str = "", **more: object) -> Json:
    details: Json = {}
    if name:
        details["name"] = name
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.plural
    details.update(more)
    return details


def not_found(kind: Kind, name: str) -> ApiError:
    """404 for one object."""
    message = f'{kind.qualified} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(kind, name))


def no_such_resource() -> ApiError:
    """404 for a resource or path of a known group that this server does not have."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(kind: Kind, name: str) -> ApiError:
    """409 for a create of a taken name."""
    message = f'{kind.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(kind, name))


def modified(kind: Kind, name: str) -> ApiError:
    """409 for a write based on an old resourceVersion."""
    message = (
        f'Operation cannot be fulfilled on {kind.qualified} "{name}": the object has been '
        "modified; please apply your changes to the latest version and try again"
    )
    return ApiError(409, "Conflict", message, _details(kind, name))


def precondition_failed(kind: Kind, name: str, word: str, wanted: str, found: str) -> ApiError:
    """409 for a precondition (``word`` is "UID" or "ResourceVersion") that does not hold."""
    message = (
        f'Operation cannot be fulfilled on {kind.kind}{_dot(kind.group)} "{name}": '
        f"the {word} in the precondition ({wanted}) does not match the {word} in record "
        f"({found}). The object might have been "
        + ("deleted and then recreated" if word == "UID" else "modified")
    )
    details: Json = {"name": name}
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.kind
    return ApiError(409, "Conflict", message, details)


def _dot(group: str) -> str:
    return f".{group}" if group else ""


def invalid(kind: Kind, name: str, causes: Iterable[FieldError], *, minor: int) -> ApiError:
    """422 with one cause per wrong field."""
    errors = list(causes)
    texts = [f"{error.field}: {error.message(minor=minor)}" for error in errors]
    together = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    details: Json = {"name": name}
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.kind
    details["causes"] = [
        {"reason": error.type, "message": error.message(minor=minor), "field": error.field}
        for error in errors
    ]
    message = f'{kind.kind}{_dot(kind.group)} "{name}" is invalid: {together}'
    return ApiError(422, "Invalid", message, details)


def bad_request(message: str) -> ApiError:
    """400 with this message."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """401: the credentials are not known."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(kind: Kind, name: str, message: str, **more: object) -> ApiError:
    """403 on a resource; ``message`` follows "is forbidden: "."""
    named = f' "{name}"' if name else ""
    text = f"{kind.qualified}{named} is forbidden: {message}"
    return ApiError(403, "Forbidden", text, _details(kind, name, **more))


def forbidden_path(user: str, verb: str, path: str) -> ApiError:
    """403 on a path that is no resource."""
    return ApiError(403, "Forbidden", f'forbidden: User "{user}" cannot {verb} path "{path}"', {})


def method_not_allowed() -> ApiError:
    """405."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def not_acceptable(*, minor: int) -> ApiError:
    """406: none of the media types of the Accept header can be produced."""
    message = "406: Not Acceptable"
    if minor >= 36:
        message += "\n\nAvailable representations: application/json"
    return ApiError(406, "NotAcceptable", message, {})


def unsupported_media_type() -> ApiError:
    """415: the body's media type cannot be read here."""
    return ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})


def rejected_patch() -> ApiError:
    """422 for a JSON patch whose test fails or whose path does not exist."""
    message = "the server rejected our request due to an error in our request"
    return ApiError(422, "Invalid", message, {})


def expired(message: str) -> ApiError:
    """410: the asked-for resourceVersion was compacted away."""
    return ApiError(410, "Expired", message)


def internal(message: str) -> ApiError:
    """500 for a defect of this server."""
    details = {"causes": [{"message": message}]}
    text = f"Internal error occurred: {message}"
    return ApiError(500, "InternalError", text, details)
