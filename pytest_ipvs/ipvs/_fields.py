"""Reading fields of API objects, with one sentence when a field is not what it must be."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=65536)
def canonical_address(text: str) -> str:
    """The one spelling of an IP address used throughout: dotted IPv4, compressed lower-case IPv6.

    Leading zeros of IPv4 parts are read as decimal, as Kubernetes reads its older objects.
    Raises ``ValueError`` for anything that is not an IP address.
    """
    if ":" not in text:
        parts = text.split(".")
        if len(parts) == 4 and all(part.isascii() and part.isdigit() for part in parts):
            text = ".".join(str(int(part)) for part in parts)
        return str(ipaddress.IPv4Address(text))
    address = ipaddress.IPv6Address(text)
    # A zone ("%eth0") belongs to an interface, not to the address.
    return str(ipaddress.IPv6Address(int(address)))


class Fields:
    """One API object being read. Every error names the kind, namespace/name and field."""

    __slots__ = ("kind", "name", "namespace", "root")

    def __init__(self, kind: str, root: object) -> None:
        if not isinstance(root, Mapping):
            raise ValueError(f"{kind}: the object is {root!r}, expected a mapping")
        self.kind = kind
        self.root = root
        self.namespace = ""
        self.name = "(no name)"
        metadata = self.mapping(root, "metadata")
        self.namespace = self.text(metadata, "metadata.namespace")
        name = self.text(metadata, "metadata.name")
        if not name:
            raise self.wrong("metadata.name", None, "a name")
        self.name = name

    def wrong(self, path: str, value: object, expected: str) -> ValueError:
        """The error for a field whose value is not what it must be."""
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return ValueError(f"{self.kind} {where}: {path} is {value!r}, expected {expected}")

    def mapping(self, parent: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """A mapping, empty where absent."""
        value = parent.get(_last(path))
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(path, value, "a mapping")
        return value

    def strings(self, parent: Mapping[str, Any], path: str) -> dict[str, str]:
        """A mapping of strings, empty where absent."""
        value = self.mapping(parent, path)
        for key, item in value.items():
            if not isinstance(key, str) or not isinstance(item, str):
                raise self.wrong(f"{path}[{key!r}]", item, "a string")
        return dict(value)

    def items(self, parent: Mapping[str, Any], path: str) -> list[Any]:
        """A list, empty where absent."""
        value = parent.get(_last(path))
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(path, value, "a list")
        return value

    def mappings(self, parent: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
        """A list of mappings, empty where absent."""
        value = self.items(parent, path)
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                raise self.wrong(f"{path}[{index}]", item, "a mapping")
        return value

    def text(self, parent: Mapping[str, Any], path: str, default: str = "") -> str:
        """A string, ``default`` where absent."""
        value = parent.get(_last(path))
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(path, value, "a string")
        return value

    def flag(self, parent: Mapping[str, Any], path: str, default: bool) -> bool:
        """A boolean, ``default`` where absent."""
        value = parent.get(_last(path))
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(path, value, "true or false")
        return value

    def number(self, parent: Mapping[str, Any], path: str, low: int, high: int) -> int | None:
        """An integer from ``low`` to ``high``; ``None`` where absent."""
        value = parent.get(_last(path))
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(path, value, f"an integer from {low} to {high}")
        return value

    def address(self, value: object, path: str) -> str:
        """An IP address in its canonical spelling."""
        if isinstance(value, str):
            try:
                return canonical_address(value)
            except ValueError:
                pass
        raise self.wrong(path, value, "an IP address")


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
