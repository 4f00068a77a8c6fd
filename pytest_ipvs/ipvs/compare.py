"""Comparison of the table that is with the table that should be, at one moment."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Literal

from pytest_ipvs.ipvs._collector import paused
from pytest_ipvs.ipvs._places import read_place
from pytest_ipvs.ipvs.expected import (
    WANTED_FORWARD,
    WANTED_WEIGHT,
    ExpectedTable,
    ExpectedVirtualServer,
    WantedSet,
)
from pytest_ipvs.ipvs.proxy import PROBE_ADDRESS, PROBE_PORT, in_networks
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, Table, VirtualServer, join_host_port

# "-node-port": a virtual server at an address of the node. "-local": the traffic policy Local
# chose other endpoints. "datagram-at-zero": of UDP or SCTP, which kube-proxy never drains.
# "unlike-other-nodes" comes from comparing nodes with each other, not from here.
Kind = Literal[
    "missing-virtual-server",
    "missing-node-port",
    "unexplained-virtual-server",
    "unexplained-node-port",
    "no-real-server",
    "missing",
    "missing-local",
    "stale",
    "stale-local",
    "datagram-at-zero",
    "quiesced-but-wanted",
    "wrong-weight",
    "wrong-forward",
    "wrong-scheduler",
    "wrong-persistence",
    "draining",
    "draining-overdue",
    "moving",
    "foreign",
    "unlike-other-nodes",
]
# Ticks per second that Linux is built with. /proc tells persistence in ticks, not in seconds.
HZ_CANDIDATES = (100, 250, 300, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference between the table and what it should be.

    ``real_server`` is "10.244.1.5:8080", ``None`` where the whole virtual server is meant.
    ``observed`` and ``expected`` are short texts, the same on each node that has the difference;
    ``detail`` holds what is not, such as connection counts. ``service`` is "namespace/name", ""
    where no Service explains the virtual server.
    """

    kind: Kind
    key: ServiceKey
    real_server: str | None
    observed: str
    expected: str
    service: str
    detail: str = ""

    @property
    def object(self) -> str:
        """What it is about: "10.96.0.10:80/TCP -> 10.244.1.5:8080"."""
        return f"{self.key} -> {self.real_server}" if self.real_server else str(self.key)


def compare(
    expected: ExpectedTable,
    table: Table,
    *,
    foreign: Iterable[str] = (),
    moving: Set[str] = frozenset(),
    hz: int | None = None,
) -> tuple[Difference, ...]:
    """Every difference at one moment, sorted; the order of the table does not matter.

    ``foreign`` are patterns of virtual servers that others program: "10.0.0.0/24",
    "10.0.0.5:443/TCP" with * and ?, "fwmark:7". ``moving`` are Services that changed while the
    table was read: their differences are of kind "moving". ``hz`` is the kernel's ticks per
    second; where it is not known, the value that explains most virtual servers is taken.
    """
    patterns = tuple(foreign)
    wanted = expected.virtual_servers
    found: list[Difference] = []
    seen: set[tuple[str, str, int]] = set()
    persistent: list[tuple[VirtualServer, ExpectedVirtualServer]] = []
    with paused():
        for virtual in table.virtual_servers:
            place = virtual[:3]
            should = wanted.get(place)  # type: ignore[call-overload]
            if should is None:
                found.extend(_not_expected(expected, virtual, patterns))
                continue
            seen.add(place)
            if should.judged and not _as_wanted(virtual.real_servers, should.wanted):
                found.extend(_real_servers(virtual, should))
            if virtual.scheduler != should.scheduler:
                found.append(
                    _difference(
                        "wrong-scheduler",
                        virtual.key,
                        None,
                        virtual.scheduler,
                        should.scheduler,
                        should,
                    )
                )
            if virtual.persistence_jiffies is not None or should.persistence_seconds is not None:
                persistent.append((virtual, should))
    found.extend(_persistence(persistent, hz))
    if len(seen) < len(wanted):
        found.extend(
            _difference(
                "missing-node-port" if should.node_port else "missing-virtual-server",
                key,
                None,
                "absent",
                "present",
                should,
            )
            for key, should in wanted.items()
            if key not in seen and not should.optional
        )
    if moving:
        found = [replace(item, kind="moving") if item.service in moving else item for item in found]
    return tuple(sorted(found, key=_order))


def _as_wanted(servers: tuple[RealServer, ...], wanted: WantedSet) -> bool:
    """Whether that is all. Nearly all virtual servers are right, and a large node has 10,000."""
    return len(servers) == len(wanted) and wanted == {
        place
        for place, (forward, weight, _, _) in servers
        if weight == WANTED_WEIGHT and forward == WANTED_FORWARD
    }


def _order(difference: Difference) -> tuple[object, ...]:
    return (difference.key, difference.real_server or "", difference.kind)


def _difference(
    kind: Kind,
    key: ServiceKey,
    real_server: str | None,
    observed: str,
    expected: str,
    should: ExpectedVirtualServer,
    detail: str = "",
) -> Difference:
    return Difference(
        kind=kind,
        key=key,
        real_server=real_server,
        observed=observed,
        expected=expected,
        service=should.service,
        detail=detail,
    )


def _real_servers(virtual: VirtualServer, should: ExpectedVirtualServer) -> Iterable[Difference]:
    """The differences of one virtual server's real servers."""
    choices = (should.wanted, *should.alternatives)
    # Real servers that drain say nothing about which of several right sets is meant.
    serving = frozenset(server.place for server in virtual.real_servers if server.weight != 0)
    everywhere = frozenset().union(*choices)
    here = {server.place: server for server in virtual.real_servers}
    wanted = should.wanted
    if serving in choices:
        wanted = serving
    elif should.alternatives:
        wanted = should.wanted.intersection(*should.alternatives)
    local = should.endpoints
    if not here and all(choices) and local is None:
        yield _difference(
            "no-real-server",
            virtual.key,
            None,
            "no real server",
            "at least one real server",
            should,
            f"{len(should.wanted)} endpoints should get traffic",
        )
        return
    datagram = virtual.protocol in ("UDP", "SCTP")
    missing: Kind = "missing" if local is None else "missing-local"
    at_zero: Kind = "datagram-at-zero" if datagram else "quiesced-but-wanted"
    right = f"weight {WANTED_WEIGHT}"
    for place in wanted:
        server = here.get(place)
        if server is None:
            name = join_host_port(*read_place(place))
            yield _difference(missing, virtual.key, name, "absent", right, should)
            continue
        name = str(server)
        if server.weight != WANTED_WEIGHT:
            yield _difference(
                "wrong-weight" if server.weight else at_zero,
                virtual.key,
                name,
                f"weight {server.weight}",
                right,
                should,
                connections(server),
            )
        if server.forward != WANTED_FORWARD:
            yield _difference(
                "wrong-forward", virtual.key, name, server.forward, WANTED_FORWARD, should
            )
    for server in virtual.real_servers:
        if server.place in everywhere:
            continue
        # An endpoint elsewhere is no stale one: the policy was not followed.
        elsewhere = local is not None and server.place in local
        kind: Kind = "stale-local" if elsewhere else "stale"
        if not server.weight:
            kind = "datagram-at-zero" if datagram else "draining"
        yield _difference(
            kind,
            virtual.key,
            str(server),
            f"weight {server.weight}",
            "absent: the traffic policy is Local"
            if kind == "stale-local"
            else "absent: no endpoint wants it",
            should,
            connections(server),
        )


def connections(server: RealServer) -> str:
    """A real server's counters in words."""
    return f"{server.active} active and {server.inactive} inactive connections"


def _not_expected(
    expected: ExpectedTable, virtual: VirtualServer, patterns: tuple[str, ...]
) -> Iterable[Difference]:
    service = ""
    kind: Kind = "unexplained-virtual-server"
    family = "IPv6" if ":" in virtual.address else "IPv4"
    of_node_port = expected.node_ports.get((family, virtual.protocol, virtual.port))
    if is_foreign(virtual.key, patterns, expected.rules.exclude_cidrs):
        kind = "foreign"
    elif of_node_port is not None:
        if not expected.addresses_known:
            # It may be right: which addresses the node has was not read.
            return
        service = of_node_port.service
        kind = "unexplained-node-port"
    yield Difference(
        kind=kind,
        key=virtual.key,
        real_server=None,
        observed=f"present with {len(virtual.real_servers)} real servers",
        expected="absent: no such address of the node"
        if service
        else "absent: no Service has this address and port",
        service=service,
    )


def is_foreign(key: ServiceKey, patterns: Iterable[str], excluded: tuple[str, ...] = ()) -> bool:
    """Whether somebody else than kube-proxy answers for this virtual server."""
    if key.protocol == "FWM":
        return any(fnmatch.fnmatchcase(f"fwmark:{key.port}", pattern) for pattern in patterns)
    if (key.address, key.port, key.protocol) == (PROBE_ADDRESS, PROBE_PORT, "TCP"):
        return True
    if excluded and in_networks(key.address, excluded):
        return True
    text = str(key)
    return any(
        fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))
        or key.address == pattern
        or ("/" in pattern and in_networks(key.address, (pattern,)))
        for pattern in patterns
    )


def _persistence(
    pairs: list[tuple[VirtualServer, ExpectedVirtualServer]], hz: int | None
) -> Iterable[Difference]:
    if not pairs:
        return
    known = hz or likely_hz(
        (virtual.persistence_jiffies, should.persistence_seconds) for virtual, should in pairs
    )
    for virtual, should in pairs:
        ticks, seconds = virtual.persistence_jiffies, should.persistence_seconds
        if ticks is not None and seconds is not None and ticks == seconds * known:
            continue
        observed = (
            "none" if ticks is None else f"{ticks / known:g} s ({ticks} ticks of 1/{known} s)"
        )
        expected = "none" if seconds is None else f"{seconds} s"
        yield _difference(
            "wrong-persistence", virtual.key, None, observed, f"persistence {expected}", should
        )


def likely_hz(pairs: Iterable[tuple[int | None, int | None]]) -> int:
    """The kernel's ticks per second that explains most (ticks, seconds) pairs."""
    listed = [(ticks, seconds) for ticks, seconds in pairs if ticks and seconds]
    # Of equally good answers the most common build is taken.
    return max(
        (250, 1000, 100, 300),
        key=lambda hz: sum(ticks == seconds * hz for ticks, seconds in listed),
    )
