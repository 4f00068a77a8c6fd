"""The kernel's spelling of an address and port: its *place*, and what a table is compared by.

IPv4 is b"0AF40105:1F90", IPv6 b"[fd44:0000:…:0005]:1F90": hexadecimal, each in one spelling only,
so that equal places are equal bytes. Comparing tables needs no address in its usual spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from socket import AF_INET6, inet_aton, inet_ntoa, inet_pton

from pytest_ipvs.ipvs._fields import canonical_address


def place_of(address: str, port: int) -> bytes:
    """The place of an address in canonical spelling. Raises ``ValueError`` for anything else."""
    (place,) = places_of((address,), port)
    return place


def places_of(addresses: Sequence[str], port: int) -> list[bytes]:
    """The places of addresses of one family, in their order, with the same port."""
    if not addresses:
        return []
    tail = f":{port:04X}"
    try:
        if ":" in addresses[0]:
            packed = [inet_pton(AF_INET6, address) for address in addresses]
            return [f"[{number.hex(':', 2)}]{tail}".encode() for number in packed]
        # All at once: an expected table holds 100,000 of them.
        numbers = b"".join(map(inet_aton, addresses)).hex(",", 4).upper()
    except OSError:
        raise ValueError(f"{list(addresses)!r} are not IP addresses of one family") from None
    return (numbers.replace(",", tail + ",") + tail).encode().split(b",")


@lru_cache(maxsize=65536)
def read_place(place: bytes) -> tuple[str, int]:
    """The address in canonical spelling and the port of a place."""
    address, _, port = place.decode().rpartition(":")
    if address[0] == "[":
        return canonical_address(address[1:-1]), int(port, 16)
    return inet_ntoa(bytes.fromhex(address)), int(port, 16)
