"""One node in the hands of a test: its sysctls, kernel, table, connections and testinfra host."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_ipvs.cluster.errors import ClusterError, FactsError
from pytest_ipvs.cluster.model import NodeDetails, NodeFacts
from pytest_ipvs.cluster.nodes import NodePool
from pytest_ipvs.ipvs.connections import Connection, parse_connections
from pytest_ipvs.ipvs.kernel import KernelRelease
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.tables import Table, TableError

# Seconds that a reading serves further questions: a test that asks ten sysctls in a row reads
# the node once, one that changes something and looks again does not see the past.
MAX_AGE = 1.0
MAX_CONNECTIONS = 20_000

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_/:@-]*(\.[A-Za-z0-9_][A-Za-z0-9_/:@-]*)+\Z")
# One number as the kernel writes it: Python's int() takes more, such as "1_0".
_NUMBER = re.compile(r"-?[0-9]+\Z")


class NodeHandle:
    """One node. What it tells was read at most a second ago; `refresh` reads at once."""

    def __init__(
        self,
        node: Node,
        pool: NodePool,
        read: Callable[..., NodeFacts],
        facts: NodeFacts | None = None,
    ) -> None:
        self.node = node
        self._pool = pool
        self._read = read
        self._facts = facts
        self._detailed: NodeFacts | None = None
        self._read_at = time.monotonic() if facts is not None else 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<node {self.name}>"

    @property
    def name(self) -> str:
        """The Node's name."""
        return self.node.name

    @property
    def host(self) -> Any:
        """The testinfra host, for everything that testinfra can look at."""
        return self._pool.host(self.name)

    @property
    def facts(self) -> NodeFacts:
        """Everything the facts script reads. Raises `NodeUnreachableError`."""
        with self._lock:
            if self._facts is None or time.monotonic() - self._read_at > MAX_AGE:
                self._facts = self._read(self.name)
                self._read_at = time.monotonic()
            return self._facts

    @property
    def details(self) -> NodeDetails:
        """What is dear to read (rules, ipsets, modules …), read once and kept until `refresh`.

        A field that could not be read is ``None``. Raises `NodeUnreachableError`.
        """
        with self._lock:
            if self._detailed is None:
                self._detailed = self._read(self.name, details=True)
            return self._detailed.details or NodeDetails()

    def refresh(self) -> NodeFacts:
        """Read the node now."""
        with self._lock:
            self._facts = self._detailed = None
        return self.facts

    @property
    def kernel(self) -> KernelRelease:
        """The kernel that runs."""
        facts = self.facts
        self._need(facts, "kernel")
        return KernelRelease.parse(facts.kernel_release, facts.kernel_version)

    @property
    def table(self) -> Table | None:
        """The IPVS table; ``None`` where the kernel has no ip_vs loaded."""
        facts = self.facts
        self._need(facts, "table")
        return facts.table

    @property
    def sysctl(self) -> Mapping[str, SysctlValue]:
        """Sysctls by full dotted key; one that the facts don't have is read from the node.

        A value is a text that equals its number too: ``sysctl[key] == 1``.
        """
        return _Sysctls(self)

    def connections(
        self,
        *,
        protocol: str | None = None,
        client: str | None = None,
        client_port: int | None = None,
        virtual: str | None = None,
        virtual_port: int | None = None,
        real: str | None = None,
        real_port: int | None = None,
        limit: int = MAX_CONNECTIONS,
    ) -> tuple[Connection, ...]:
        """IPVS connection entries that match, filtered on the node.

        At least one filter is needed: a whole table can have a million entries. Entries move
        while the kernel lists them, so one may be missing or there twice. Raises `ClusterError`
        if more than ``limit`` match.
        """
        filters = (client, client_port, virtual, virtual_port, real, real_port)
        if protocol is None and all(value is None for value in filters):
            raise ValueError("connections() needs at least one filter, such as virtual=ADDRESS")
        pattern = "^" + " +".join(
            (
                protocol or "[A-Z]+",
                *(_hexadecimal(value, port=index % 2 == 1) for index, value in enumerate(filters)),
                "",
            )
        )
        # grep's status 1 means no match; -m bounds what a busy node sends.
        output = self._pool.run(
            self.name, "grep -E -m %s -e %s /proc/net/ip_vs_conn", str(limit + 1), pattern
        )
        if output.rc > 1 or output.stderr.strip():
            reason = (output.stderr.strip().splitlines() or [f"exit status {output.rc}"])[-1]
            raise ClusterError(f"node {self.name}: connections can't be read: {reason}")
        try:
            found = tuple(parse_connections(output.stdout))
        except TableError as error:
            raise FactsError(f"node {self.name}: {error}") from None
        if len(found) > limit:
            raise ClusterError(
                f"node {self.name}: more than {limit} connections match, filter closer"
            )
        return found

    def _need(self, facts: NodeFacts, fact: str) -> None:
        if fact in facts.unread:
            raise FactsError(f"node {self.name}: {fact} was not read: {facts.unread[fact]}")

    def _sysctl(self, key: str) -> str:
        facts = self.facts
        if key in facts.sysctls:
            return facts.sysctls[key]
        if not _KEY.match(key) or ".." in key or "//" in key:
            raise KeyError(f"{key} is not a full dotted key such as net.ipv4.vs.conntrack")
        path = "/proc/sys/" + key.translate(str.maketrans("./", "/."))
        output = self._pool.run(self.name, "[ -e %s ] || exit 3; cat -- %s", path, path)
        if output.rc == 3:
            raise KeyError(f"{key} does not exist on node {self.name}")
        if output.rc != 0:
            reason = (output.stderr.strip().splitlines() or [f"exit status {output.rc}"])[-1]
            raise FactsError(f"node {self.name}: {key} was not read: {reason}")
        return " ".join(output.stdout.split())


class SysctlValue(str):
    """What a sysctl was on a node: its text, with runs of white space as one space.

    It equals a number too where the whole text is that number, as ``sysctl[key] == 1`` reads.
    Its hash is the text's, so a number is not found in a set or a dictionary.
    """

    __slots__ = ("key", "node")

    key: str
    node: str

    def __new__(cls, text: str, key: str, node: str) -> SysctlValue:
        value = super().__new__(cls, text)
        value.key, value.node = key, node
        return value

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]
        return str(self), self.key, self.node

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return _NUMBER.match(self) is not None and int(self) == other
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class _Sysctls(Mapping[str, SysctlValue]):
    def __init__(self, handle: NodeHandle) -> None:
        self._handle = handle

    def __getitem__(self, key: str) -> SysctlValue:
        return SysctlValue(self._handle._sysctl(key), key, self._handle.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle.facts.sysctls)

    def __len__(self) -> int:
        return len(self._handle.facts.sysctls)

    def __repr__(self) -> str:
        return f"<sysctls of node {self._handle.name}>"


def _hexadecimal(value: str | int | None, *, port: bool) -> str:
    """An address or port as /proc/net/ip_vs_conn writes it, as a regular expression."""
    if value is None:
        return "[^ ]+"
    if port:
        return f"{int(value):04X}"
    address = ipaddress.ip_address(str(value))
    return address.exploded if address.version == 6 else f"{int(address):08X}"
