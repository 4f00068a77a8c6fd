"""The URI template of ``--ipvs-connect``: from a Node of the API to a testinfra host.

Values come from the API, where anybody who may edit Nodes can put anything, and end up in
commands: each is checked for its form before it is put in.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from string import Formatter
from urllib.parse import parse_qsl, unquote, urlsplit

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

# What testinfra reads of a query. It leaves out every other key without a word, so that a
# mistyped "sudo" would be no sudo.
_QUERY = ("sudo", "sudo_user")
_SSH_QUERY = ("ssh_config", "ssh_identity_file", "timeout", "controlpersist")
_QUERIES = {
    "ssh": _SSH_QUERY,
    "safe-ssh": _SSH_QUERY,
    "kubectl": ("namespace", "container", "kubeconfig", "context"),
    "openshift": ("namespace", "container", "kubeconfig"),
}
# Whose name may be more than a plain word: lxc has "remote:name", chroot takes a directory.
_FREE_NAMES = ("lxc", "chroot")
MAX_PORT = 65535

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
                # A brace of a password is no field that may be shown.
                name = f"{{{wrong}}}" if f"{{{wrong}" in shown else "a field before the @"
                raise ClusterError(
                    f"{origin} is {shown!r}, but {name} is not known, expected {known}"
                )
            used.append(field)
        scheme, separator, _ = text.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ClusterError(
                f"{origin} is {shown!r}, expected a testinfra URI with one of "
                + ", ".join(f"{name}://" for name in SCHEMES)
            )
        if any(character.isspace() or not character.isprintable() for character in text):
            raise ClusterError(f"{origin} is {shown!r}, expected a URI without spaces")
        template = cls(text=text, scheme=scheme, fields=tuple(dict.fromkeys(used)), origin=origin)
        if expected := _missed(scheme, template.uri(_ANY_NODE)):
            raise ClusterError(f"{origin} is {shown!r}, expected {expected}")
        return template

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


# A node that has everything: what its URI is refused for, the URI of each node would be.
_ANY_NODE = Node(
    name="node", internal_ips=("192.0.2.1",), external_ips=("192.0.2.2",), hostname="node"
)


def _missed(scheme: str, uri: str) -> str:
    """What was expected where testinfra can't use a URI as it was meant, or "".

    It shows nothing of the URI: any part may be of a password that was written without %.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "a host, or an IPv6 address in brackets, and other brackets as %5B and %5D"
    if scheme != "local":
        if "@" in parts.netloc.partition("@")[2]:
            return "one @, before the host, and others as %40"
        if not parts.netloc:
            return f"a host after {scheme}://"
        problem = _ssh_host(parts.netloc) if scheme in SSH_SCHEMES else _name(scheme, parts.netloc)
        if problem:
            # A / or # or ? in a password ends what testinfra takes for the host.
            cut = "@" in uri.partition(parts.netloc)[2]
            return problem + (", and / # ? before the @ as %2F %23 %3F" if cut else "")
        if parts.path.strip("/") or parts.fragment:
            return "nothing but ? and its options after the host"
    return _query(scheme, parts.query)


def _ssh_host(netloc: str) -> str:
    place = netloc.rpartition("@")[2]
    if place.startswith("["):
        address, _, port = place[1:].partition("]")
        fits = ":" in address and _is_address(unquote(address).partition("%")[0])
        fits = fits and port[:1] in ("", ":")
        port = port[1:]
    else:
        host, _, port = place.partition(":")
        fits = bool(_WORD.match(unquote(host)))
    if not fits:
        return "a plain host name or address, an IPv6 address in brackets"
    # No number at all leaves the port to ssh.
    number = port.isascii() and port.isdecimal() and 1 <= int(port) <= MAX_PORT
    return "" if number or not port else f"a port from 1 to {MAX_PORT} after the host"


def _name(scheme: str, netloc: str) -> str:
    with_user = scheme in ("docker", "podman")
    name = netloc.rpartition("@")[2] if with_user else netloc
    fits = not name.startswith("-") if scheme in _FREE_NAMES else _WORD.match(name)
    return "" if name and fits else f"a plain name after {scheme}://"


def _query(scheme: str, text: str) -> str:
    known = (*_QUERY, *_QUERIES.get(scheme, ()))
    for key, value in parse_qsl(text, keep_blank_values=True):
        if key not in known:
            return f"only {', '.join(known)} after the ?"
        if key == "sudo" and value.lower() not in ("true", "false"):
            return "true or false for sudo"
        whole = value.isascii() and value.isdecimal()
        if key in ("timeout", "controlpersist") and not whole:
            return f"whole seconds for {key}"
        if not value:
            return f"a value for {key}"
    return ""


def redacted(uri: str) -> str:
    """The URI without a password ("ssh://root:…@host").

    A password may have any sign, also those that end a host in a URI. So everything up to the
    last @ goes: rather lose text than show a password.
    """
    return re.sub(r"://([^:]*):.*@", r"://\1:…@", uri, flags=re.DOTALL)
