"""Where the nodes' IPVS had sent a tuple, asked of them while their entries still live."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.ipvs.connections import Connection, parse_connections
from pytest_ipvs.ipvs.tables import TableError
from pytest_ipvs.traffic.results import Sample

TUPLES = 20
"""Asked for at once: few enough for a command line, and for a record in which some are many."""

Failed = tuple[Sample, str, int]
"""A failed connection, and the address and port that it went to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One connection entry on one node; ``at``: when it was read (Unix seconds)."""

    node: str
    connection: Connection
    at: float


def find_entries(pool: Any, nodes: Sequence[str], failed: Sequence[Failed]) -> tuple[Entry, ...]:
    """Entries of the failed connections' tuples, on whichever node has them.

    Of more than `TUPLES` every second one is asked for, or every third …: they tell of all the time
    since the last look. The file is filtered on the node: it can have millions of lines. Nodes
    that can't be asked are left out, since this only explains what is already known to have failed.
    """
    known = sorted((one for one in failed if one[0].source), key=lambda one: -one[0].t)
    patterns = [_pattern(*one) for one in known[:: -(-len(known) // TUPLES) or 1]]
    if not patterns or not nodes:
        return ()
    words = " ".join("-e %s" for _ in patterns)
    command = f"grep -i -F {words} /proc/net/ip_vs_conn"
    found = []
    for node, answer in pool.map(lambda name: pool.run(name, command, *patterns), nodes).items():
        text = getattr(answer, "stdout", "")
        now = time.time()
        try:
            entries = [Entry(node=node, connection=c, at=now) for c in parse_connections(text)]
        except TableError:
            continue
        found += entries
    return tuple(found)


def _pattern(sample: Sample, address: str, port: int) -> str:
    """How /proc/net/ip_vs_conn writes the client's and the virtual side of a TCP entry."""
    client = f"{_hexadecimal(sample.source)} {sample.source_port:04X}"
    return f"TCP {client} {_hexadecimal(address)} {port:04X} "


def _hexadecimal(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    if parsed.version == 6:
        return parsed.exploded
    return f"{int(parsed):08X}"
