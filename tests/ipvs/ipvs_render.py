"""The kernel's text of a table, and records of what ipvsadm printed: for tests only."""

from __future__ import annotations

import ipaddress

from ipvs_oracle import Server

from pytest_ipvs.ipvs.expected import ExpectedTable
from pytest_ipvs.ipvs.tables import RealServer, RealServerState, Table, VirtualServer

HEADER = (
    "IP Virtual Server version {version} (size={size})\n"
    "Prot LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)


def render(table: Table) -> str:
    """The text of /proc/net/ip_vs for a table."""
    lines = [HEADER.format(version=table.version, size=table.size)]
    for virtual in table.virtual_servers:
        if virtual.fwmark is not None:
            place = f"{virtual.fwmark:08X}"
        else:
            place = _place(virtual.address, virtual.port)
        flags = "".join(f"{flag} " for flag in virtual.flags)
        persistent = ""
        if virtual.persistence_jiffies is not None:
            persistent = f"persistent {virtual.persistence_jiffies} {_mask(virtual)}"
        lines.append(f"{virtual.protocol}  {place} {virtual.scheduler} {flags}{persistent}\n")
        lines += [
            f"  -> {_place(r.address, r.port)}      {r.forward:<7} {r.weight:<6} "
            f"{r.active:<10} {r.inactive:<10}\n"
            for r in virtual.real_servers
        ]
    return "".join(lines)


def _place(address: str, port: int) -> str:
    parsed = ipaddress.ip_address(address)
    if parsed.version == 6:
        return f"[{parsed.exploded}]:{port:04X}"
    return f"{int(parsed):08X}:{port:04X}"


def _mask(virtual: VirtualServer) -> str:
    assert virtual.netmask is not None
    if "." in virtual.netmask:
        return f"{int(ipaddress.IPv4Address(virtual.netmask)):08X}"
    return int(virtual.netmask).to_bytes(4, "little").hex().upper()


def table_of(servers: dict[tuple[str, str], Server], hz: int) -> Table:
    """What ipvsadm printed as a table, for recordings whose /proc text was cut off."""
    found = []
    for server in servers.values():
        address, port = _split(server.place)
        found.append(
            VirtualServer(
                protocol=server.protocol,
                address=address,
                port=port,
                fwmark=None,
                scheduler=server.scheduler,
                flags=(),
                persistence_jiffies=None if server.persistence is None else server.persistence * hz,
                netmask=None if server.persistence is None else "255.255.255.255",
                real_servers=tuple(
                    RealServer.at(*_split(place), *rest) for place, *rest in sorted(server.real)
                ),
            )
        )
    return Table(version="1.2.1", size=4096, virtual_servers=tuple(found))


def _split(place: str) -> tuple[str, int]:
    address, _, port = place.rpartition(":")
    return address.strip("[]"), int(port)


def as_table(expected: ExpectedTable, hz: int = 250) -> Table:
    """The expected table as an actual one."""
    return Table(
        version="1.2.1",
        size=4096,
        virtual_servers=tuple(
            VirtualServer(
                *key,
                None,
                should.scheduler,
                (),
                should.persistence_seconds and should.persistence_seconds * hz,
                should.persistence_seconds and "255.255.255.255",
                tuple(RealServer((place, _WANTED)) for place in sorted(should.wanted)),
            )
            for key, should in expected.virtual_servers.items()
        ),
    )


_WANTED = RealServerState("Masq", 1, 0, 0)
