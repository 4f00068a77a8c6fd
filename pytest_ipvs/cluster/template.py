"""The URI template of ``--ipvs-connect``: from a Node of the API to a testinfra host.

Values come from the API, where anybody who may edit Nodes can put anything, and end up in
commands: each is checked for its form before it is put in.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from string import Formatter
from urllib.parse import urlsplit

from pytest_ipvs.cluster.errors import ClusterError, NodeUnreachableError
from pytest_ipvs.ipvs.objects import Node

FIELDS = ("name", "internal_ip", "external_ip", "hostname")

# The transports of testinfra that start a local process, which a time limit can end.
# paramiko, salt, ansible and winrm don't.
SCHEMES = (
    "ssh",
    "safe-ssh",
    "docker",
    "podman",
    "kubectl",
    "openshift",
    "lxc",
    "chroot",
    "local",
)
SSH_SCHEMES = ("ssh", "safe-ssh")

# No leading "-": ssh and docker would take it for an option.
_WORD = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A validated template. ``fields`` are those it uses, ``origin`` names its setting."""

    text: str
    scheme: str
    fields: tuple[str, ...]
    origin: str = "--ipvs-connect"

    @classmethod
    def parse(cls, text: str, origin: str = "--ipvs-connect") -> Template:
        """Check a template without connecting to anything. Raises `ClusterError`."""
        shown = redacted(text)
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ClusterError(
                f"{origin} is {shown!r}, expected braces in pairs: {error}"
            ) from None
        used: list[str] = []
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            if field not in FIELDS or spec or conversion:
                wrong = (
                    field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                )
                known = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise ClusterError(
                    f"{origin} is {shown!r}, but {{{wrong}}} is not known, expected {known}"
                )
            used.append(field)
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ClusterError(
                f"{origin} is {shown!r}, expected a testinfra URI with one of "
                + ", ".join(f"{name}://" for name in SCHEMES)
            )
        if any(character.isspace() or not character.isprintable() for character in text):
            raise ClusterError(f"{origin} is {shown!r}, expected a URI without spaces")
        if scheme != "local" and not rest.partition("?")[0]:
            raise ClusterError(f"{origin} is {shown!r}, expected a host after {scheme}://")
        return cls(text=text, scheme=scheme, fields=tuple(dict.fromkeys(used)), origin=origin)

    @property
    def distinguishes_nodes(self) -> bool:
        """Whether two nodes get two URIs."""
        return bool(self.fields)

    def uri(self, node: Node) -> str:
        """The testinfra URI of one node. Raises `NodeUnreachableError` where a value is missing."""
        values = {field: self._value(field, node) for field in self.fields}
        if self.scheme in SSH_SCHEMES:
            values = {k: f"[{v}]" if ":" in v else v for k, v in values.items()}
        return self.text.format(**values)

    def _value(self, field: str, node: Node) -> str:
        addresses = {"internal_ip": node.internal_ips, "external_ip": node.external_ips}
        if field in addresses:
            value = next(iter(addresses[field]), "")
        else:
            value = node.name if field == "name" else node.hostname
        if not value:
            raise NodeUnreachableError(
                node.name,
                f"{self.origin} uses {{{field}}}, which the API does not tell for this node",
            )
        if not (_is_address(value) if field in addresses else _WORD.match(value)):
            raise NodeUnreachableError(
                node.name,
                f"{self.origin} uses {{{field}}}, but the API tells {value!r}, no plain host name",
            )
        return value


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    # A zone ("fe80::1%eth0") is legal in ipaddress, but % is not for a command's template.
    return "%" not in value


def redacted(uri: str) -> str:
    """The URI without a password ("ssh://root:…@host")."""
    try:
        netloc = urlsplit(uri).netloc
    except ValueError:
        netloc = ""
    user, at, _ = netloc.rpartition("@")
    if at and ":" in user:
        return uri.replace(f"{user}@", f"{user.partition(':')[0]}:…@", 1)
    # urlsplit refuses some malformed URIs: rather lose text than show a password.
    return re.sub(r"://([^:/@]*):[^/@]*@", r"://\1:…@", uri)
