"""What ipvsadm prints, read in another way than the package reads the kernel's text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pytest_ipvs.ipvs.connections import Connection
from pytest_ipvs.ipvs.tables import Table, join_host_port


class Server(NamedTuple):
    """One virtual server as ipvsadm -Ln shows it; persistence in seconds."""

    protocol: str
    place: str
    scheduler: str
    persistence: int | None
    mask: str
    one_packet: bool
    real: frozenset[tuple[str, str, int, int, int]]

    def without_counters(self) -> Server:
        """The same, but for connection counts, which move between two readings."""
        return self._replace(real=frozenset((*item[:3], 0, 0) for item in self.real))


def parse_list(text: str) -> dict[tuple[str, str], Server]:
    """``ipvsadm -Ln`` to {(protocol, address:port or mark): server}."""
    found: dict[tuple[str, str], Server] = {}
    current: tuple[str, str] | None = None
    real: list[tuple[str, str, int, int, int]] = []
    for line in text.splitlines()[3:]:
        words = line.split()
        if not words:
            continue
        if words[0] == "->":
            assert current is not None
            _, place, forward, weight, active, inactive = words
            real.append((place, forward, int(weight), int(active), int(inactive)))
        else:
            if words[2] == "IPv6":
                words.pop(2)
            protocol, place, scheduler, *rest = words
            current = (protocol, place)
            seconds = int(rest[rest.index("persistent") + 1]) if "persistent" in rest else None
            mask = rest[rest.index("mask") + 1] if "mask" in rest else ""
            real = []
            found[current] = Server(
                protocol, place, scheduler, seconds, mask, "ops" in rest, frozenset()
            )
        assert current is not None
        found[current] = found[current]._replace(real=frozenset(real))
    return found


def parse_saved(text: str) -> dict[tuple[str, str], Server]:
    """``ipvsadm -Sn`` to the same; it tells no counters."""
    found: dict[tuple[str, str], Server] = {}
    for line in text.splitlines():
        if not line.startswith("-"):
            continue
        words = line.split()
        protocol = {"-t": "TCP", "-u": "UDP", "--sctp-service": "SCTP", "-f": "FWM"}[words[1]]
        key = (protocol, words[2])
        if words[0] == "-A":
            seconds = int(words[words.index("-p") + 1]) if "-p" in words else None
            scheduler = words[words.index("-s") + 1]
            found[key] = Server(protocol, words[2], scheduler, seconds, "", False, frozenset())
        else:
            forward = "Masq" if "-m" in words else "Tunnel" if "-i" in words else "Route"
            weight = int(words[words.index("-w") + 1])
            real = (words[words.index("-r") + 1], forward, weight, 0, 0)
            found[key] = found[key]._replace(real=found[key].real | {real})
    return found


_EXPIRES = re.compile(r"(\d+):(\d\d)")


def parse_connections(text: str) -> list[tuple[str, str, str, str, str, int]]:
    """``ipvsadm -Lnc`` to (protocol, state, client, virtual, real, seconds), sorted."""
    found = []
    for line in text.splitlines()[2:]:
        words = line.split()
        if not words:
            continue
        protocol, expires, state, client, virtual, real = words[:6]
        minutes, seconds = _EXPIRES.fullmatch(expires).groups()  # type: ignore[union-attr]
        found.append((protocol, state, client, virtual, real, int(minutes) * 60 + int(seconds)))
    return sorted(found)


def as_oracle(table: Table, hz: int) -> dict[tuple[str, str], Server]:
    """A parsed table of the kernel in the oracle's words."""
    found = {}
    for virtual in table.virtual_servers:
        fwmark = virtual.fwmark
        place = str(fwmark) if fwmark is not None else join_host_port(virtual.address, virtual.port)
        seconds = None
        if virtual.persistence_jiffies is not None:
            seconds, rest = divmod(virtual.persistence_jiffies, hz)
            assert rest == 0
        # ipvsadm does not print a mask that selects single clients.
        mask = "" if virtual.netmask in (None, "255.255.255.255", "128") else virtual.netmask
        found[virtual.protocol, place] = Server(
            virtual.protocol,
            place,
            virtual.scheduler,
            seconds,
            mask or "",
            "ops" in virtual.flags,
            frozenset(
                (join_host_port(r.address, r.port), r.forward, r.weight, r.active, r.inactive)
                for r in virtual.real_servers
            ),
        )
    return found


def connections_as_oracle(
    entries: Iterable[Connection],
) -> list[tuple[str, str, str, str, str, int]]:
    """Parsed connection entries in the oracle's words, sorted."""
    found = []
    for entry in entries:
        found.append(
            (
                entry.protocol,
                entry.state,
                join_host_port(entry.client, entry.client_port),
                join_host_port(entry.virtual, entry.virtual_port),
                join_host_port(entry.real, entry.real_port),
                entry.expires,
            )
        )
    return sorted(found)
