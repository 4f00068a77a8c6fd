"""``assert node.table == other.table``: what differs, in the words of IPVS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_ipvs.ipvs.tables import RealServer, Table, VirtualServer

LINES_SHOWN = 20


def explain_difference(left: Table, right: Table) -> list[str]:
    """Lines for pytest's explanation of a comparison; the first is its headline."""
    ours = {str(server.key): server for server in left.virtual_servers}
    theirs = {str(server.key): server for server in right.virtual_servers}
    lines = list(_differences(ours, theirs))
    more = len(lines) - LINES_SHOWN
    return [
        f"IPVS tables differ: {len(ours)} and {len(theirs)} virtual servers",
        *lines[:LINES_SHOWN],
        *([f"… and {more} more differences"] if more > 0 else []),
    ]


def _differences(
    ours: Mapping[str, VirtualServer], theirs: Mapping[str, VirtualServer]
) -> Iterator[str]:
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs or key not in ours:
            yield f"{key} is only in the {'left' if key in ours else 'right'} table"
            continue
        one, other = ours[key], theirs[key]
        for name in ("scheduler", "flags", "persistence_jiffies", "netmask"):
            if getattr(one, name) != getattr(other, name):
                what = name.replace("_", " ")
                yield f"{key} {what}: {getattr(one, name)} and {getattr(other, name)}"
        yield from _server_differences(key, _servers(one), _servers(other))


def _servers(server: VirtualServer) -> dict[str, RealServer]:
    return {f"{real.address} port {real.port}": real for real in server.real_servers}


def _server_differences(
    key: str, ours: Mapping[str, RealServer], theirs: Mapping[str, RealServer]
) -> Iterator[str]:
    for address in sorted(ours.keys() | theirs.keys()):
        where = f"{key} -> {address}"
        if address not in theirs or address not in ours:
            yield f"{where} is only in the {'left' if address in ours else 'right'} table"
            continue
        one, other = ours[address], theirs[address]
        for name in ("forward", "weight", "active", "inactive"):
            if getattr(one, name) != getattr(other, name):
                yield f"{where} {name}: {getattr(one, name)} and {getattr(other, name)}"
