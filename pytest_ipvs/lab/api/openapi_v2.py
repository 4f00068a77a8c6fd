"""The least of an OpenAPI v2 document, as protobuf: kubectl before 1.29 asks for it in ``apply``.

It says which query parameters PATCH knows for which kind, and has no schemas, so that kubectl
uses its own. Numbers are those of gnostic's ``OpenAPIv2.proto``.
"""

from __future__ import annotations

import json

from pytest_ipvs.lab.api.kinds import Registry

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def _field(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _query_parameter(name: str) -> bytes:
    schema = _field(2, "query") + _field(4, name) + _field(6, "string")
    # ParametersItem > Parameter > NonBodyParameter > QueryParameterSubSchema.
    return _field(1, _field(2, _field(3, schema)))


def document(registry: Registry) -> bytes:
    """The document of one server version."""
    names = ["dryRun", "fieldManager", "force"]
    if registry.minor >= 25:
        names.append("fieldValidation")
    parameters = b"".join(_field(8, _query_parameter(name)) for name in names)
    paths = b""
    for kind in registry.kinds:
        if "patch" not in kind.verbs:
            continue
        known = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        extension = _field(1, "x-kubernetes-group-version-kind")
        extension += _field(2, _field(2, json.dumps(known)))
        operation = parameters + _field(13, extension)
        root = f"/apis/{kind.group}" if kind.group else "/api"
        scope = "/namespaces/{namespace}" if kind.namespaced else ""
        path = f"{root}/{kind.version}{scope}/{kind.plural}/{{name}}"
        paths += _field(2, _field(1, path) + _field(2, _field(8, operation)))
    info = _field(1, "Kubernetes") + _field(2, f"v1.{registry.minor}.0")
    return _field(1, "2.0") + _field(2, info) + _field(8, paths)
