"""Fields that a kind does not have: found, named by their paths, and dropped as a server does."""

from __future__ import annotations

from functools import cache
from typing import Any

from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.schema_types import TYPES

Json = dict[str, Any]


@cache
def _fields(type_: str) -> dict[str, tuple[str, bool]]:
    """The fields of a type: name to (type, whether a list)."""
    found = {}
    for word in TYPES[type_].split():
        name, _, value = word.partition(":")
        found[name] = (value.removeprefix("[]"), value.startswith("[]"))
    return found


def drop_unknown_fields(kind: Kind, object_: Json) -> list[str]:
    """Remove in place the fields that the kind does not have; answers their paths.

    A kind whose fields are not written down is left alone.
    """
    if kind.kind not in TYPES:
        return []
    unknown: list[str] = []
    _prune(kind.kind, object_, "", unknown)
    return unknown


def _prune(type_: str, value: Json, path: str, unknown: list[str]) -> None:
    fields = _fields(type_)
    for name in list(value):
        here = f"{path}.{name}" if path else name
        if name not in fields:
            unknown.append(here)
            del value[name]
            continue
        below, is_list = fields[name]
        item = value[name]
        if not below:
            continue
        if is_list and isinstance(item, list):
            for index, element in enumerate(item):
                if isinstance(element, dict):
                    _prune(below, element, f"{here}[{index}]", unknown)
        elif not is_list and isinstance(item, dict):
            _prune(below, item, here, unknown)
