"""IPVS connection entries: the text of ``/proc/net/ip_vs_conn``, whole or filtered on the node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from socket import inet_ntoa
from typing import NamedTuple

from pytest_ipvs.ipvs._fields import canonical_address
from pytest_ipvs.ipvs.tables import TableError


class Connection(NamedTuple):
    """One entry. ``expires`` is in seconds; ``state`` is the kernel's word (TIME_WAIT, …).

    Persistence templates look like connections, with client port 0: see ``template``.
    A named tuple for the same reason as in ``tables``: there can be a million of them.
    """

    protocol: str
    client: str
    client_port: int
    virtual: str
    virtual_port: int
    real: str
    real_port: int
    state: str
    expires: int

    @property
    def template(self) -> bool:
        """Whether this is a persistence template rather than a connection."""
        return self.client_port == 0


def parse_connections(text: str) -> Iterator[Connection]:
    """Read entries one by one; title lines and empty lines are passed over.

    Raises ``TableError`` at the first line it can't read.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("Pro FromIP"):
            continue
        found = _LINE.fullmatch(line)
        try:
            if not found:
                raise ValueError(line)
            (
                protocol,
                client,
                client_port,
                virtual,
                virtual_port,
                real,
                real_port,
                state,
                seconds,
            ) = found.groups()
            yield Connection(
                protocol,
                _address(client),
                int(client_port, 16),
                _address(virtual),
                int(virtual_port, 16),
                _address(real),
                int(real_port, 16),
                state,
                int(seconds),
            )
        except ValueError:
            raise TableError(number, line, _FORM) from None


def _address(text: str) -> str:
    return canonical_address(text) if ":" in text else inet_ntoa(bytes.fromhex(text))


_ADDRESS = r"([0-9A-F]{8}|(?:[0-9a-f]{4}:){7}[0-9a-f]{4})"
_PORT = r"([0-9A-F]{4})"
# After the time there may be the name and data of a persistence engine.
_LINE = re.compile(
    rf"(\S+) +{_ADDRESS} {_PORT} {_ADDRESS} {_PORT} {_ADDRESS} {_PORT} "
    r"(\S+) +([0-9]{1,19})(?: .*)?"
)
_FORM = "'PROTOCOL CLIENT PORT VIRTUAL PORT REAL PORT STATE SECONDS' with addresses in hexadecimal"
