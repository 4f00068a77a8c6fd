"""Reading request bodies: JSON or YAML, of the right kind, with no field the kind lacks."""

from __future__ import annotations

import json
from typing import Any

from pytest_ipvs.lab.api import errors, protobuf
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.messages import Request

Json = dict[str, Any]

_YAML = frozenset({"application/yaml", "application/apply-patch+yaml"})


def decode(request: Request, *, kind_name: str) -> Json:
    """The body as an object; raises a 400 or 415 ``ApiError``."""
    media_type = request.content_type or "application/json"
    if media_type in _YAML:
        value = _yaml(request.body)
    elif media_type == "application/vnd.kubernetes.protobuf":
        value = protobuf.decode(request.body)
    elif media_type == "application/json":
        value = _json(request.body, kind_name)
    else:
        raise errors.unsupported_media_type()
    if not isinstance(value, dict):
        raise errors.bad_request(
            f"the object provided is unrecognized (must be of type {kind_name}): couldn't get "
            "version/kind; json parse error: json: cannot unmarshal into Go value of type struct"
        )
    return value


def _json(body: bytes, kind_name: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        shown = body[:64].decode("utf-8", "replace")
        raise errors.bad_request(
            f"the object provided is unrecognized (must be of type {kind_name}): couldn't get "
            f"version/kind; json parse error: {_go_json_error(body, error)} ({shown})"
        ) from None


def _go_json_error(body: bytes, error: Exception) -> str:
    """Go's words for the most frequent error; ours for the others."""
    text = body.decode("utf-8", "replace").lstrip()
    if text.startswith("{") and (rest := text[1:].lstrip()) and rest[0] not in '"}':
        return f"invalid character {rest[0]!r} looking for beginning of object key string"
    return str(error)


def _yaml(body: bytes) -> Any:
    # JSON is YAML: kubectl sends JSON under this media type.
    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise errors.bad_request(
            "the body is YAML, and this server has no YAML parser: send it as JSON"
        ) from None
    try:
        return yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise errors.bad_request(f"error decoding YAML: {error}") from None


def check_kind(body: Json, kind: Kind, *, kind_name: str = "", api_version: str = "") -> None:
    """Refuse an object of another kind or version than the URL's; fill in what is left out.

    ``kind_name`` and ``api_version`` are those of a subresource that carries another kind.
    """
    wanted_kind = kind_name or kind.kind
    wanted_version = api_version or kind.api_version
    sent_kind = body.get("kind") or wanted_kind
    sent_version = body.get("apiVersion") or wanted_version
    if sent_kind != wanted_kind:
        group, _, version = str(sent_version).rpartition("/")
        package = group.partition(".")[0]
        package = f"{package}/{version}" if package else version
        internal = kind.group.partition(".")[0] or "core"
        raise errors.bad_request(
            f'{sent_kind} in version "{version}" cannot be handled as a {wanted_kind}: converting '
            f"({package.rpartition('/')[2]}.{sent_kind}) to ({internal}.{wanted_kind}): "
            "unknown conversion"
        )
    if sent_version != wanted_version:
        raise errors.bad_request(
            f"the API version in the data ({sent_version}) does not match the expected API "
            f"version ({wanted_version})"
        )
    body["kind"], body["apiVersion"] = sent_kind, sent_version
