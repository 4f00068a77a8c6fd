"""The kernel's IPVS table: the text of ``/proc/net/ip_vs`` as records.

The records are tuples with names, not dataclasses: a large node has 100,000 real servers, and a
frozen dataclass costs several times what the whole rest of the parser costs. They are
immutable, slotted and have names all the same.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial
from itertools import chain
from socket import inet_ntoa
from sys import intern
from typing import Any, NamedTuple, cast

from pytest_ipvs.ipvs._collector import paused
from pytest_ipvs.ipvs._places import place_of, read_place


class ServiceKey(NamedTuple):
    """What identifies a virtual server: "TCP"/"UDP"/"SCTP", address and port.

    For a firewall-mark service it is ("FWM", "", mark).
    """

    protocol: str
    address: str
    port: int

    def __str__(self) -> str:
        if self.protocol == "FWM":
            return f"FWM {self.port}"
        return f"{join_host_port(self.address, self.port)}/{self.protocol}"


class RealServerState(NamedTuple):
    """What a real server's line says behind its place: see :class:`RealServer`."""

    forward: str
    weight: int
    active: int
    inactive: int


class RealServer(tuple[bytes, RealServerState]):
    """One real server. ``forward`` is the kernel's word: Masq, Local, Tunnel, Route, Bypass.

    ``place`` is its address and port as the kernel writes them: b"0AF40105:1F90" or
    b"[fd44:0000:0000:0000:0000:0000:0000:0005]:1F90". ``address`` and ``port`` are read from it.
    ``active`` counts established and half-open connections, ``inactive`` all others.

    It is a pair, because what follows the place is the same in many lines: their real servers
    share one :class:`RealServerState`. A constructor of its own would make parsing slower.
    """

    __slots__ = ()

    @classmethod
    def at(
        cls, address: str, port: int, forward: str, weight: int, active: int, inactive: int
    ) -> RealServer:
        """One at an address in canonical spelling: ``at("10.244.1.5", 8080, "Masq", 1, 0, 0)``.

        Raises ``ValueError`` where ``address`` is none.
        """
        return cls((place_of(address, port), RealServerState(forward, weight, active, inactive)))

    @property
    def place(self) -> bytes:
        """Its address and port in the kernel's spelling."""
        return self[0]

    @property
    def address(self) -> str:
        """Its address: dotted IPv4, compressed lower-case IPv6."""
        return read_place(self[0])[0]

    @property
    def port(self) -> int:
        """Its port."""
        return read_place(self[0])[1]

    @property
    def forward(self) -> str:
        """How packets get to it."""
        return self[1].forward

    @property
    def weight(self) -> int:
        """Its share of new connections; 0 while it drains."""
        return self[1].weight

    @property
    def active(self) -> int:
        """Its established and half-open connections."""
        return self[1].active

    @property
    def inactive(self) -> int:
        """Its other connections."""
        return self[1].inactive

    def _replace(self, **changes: Any) -> RealServer:
        """One at the same place with another forward, weight, active or inactive."""
        return RealServer((self[0], self[1]._replace(**changes)))

    def __str__(self) -> str:
        return join_host_port(*read_place(self[0]))

    def __repr__(self) -> str:
        return f"RealServer.at({self.address!r}, {self.port}, {', '.join(map(repr, self[1]))})"


class VirtualServer(NamedTuple):
    """One virtual server with its real servers in the kernel's order.

    ``persistence_jiffies`` is in the kernel's ticks, whose length the file does not tell.
    ``netmask`` is that of persistence: dotted for IPv4, a prefix length ("64") for IPv6.
    """

    protocol: str
    address: str
    port: int
    fwmark: int | None
    scheduler: str
    flags: tuple[str, ...]
    persistence_jiffies: int | None
    netmask: str | None
    real_servers: tuple[RealServer, ...]

    @property
    def key(self) -> ServiceKey:
        """What identifies this virtual server."""
        return ServiceKey(self.protocol, self.address, self.port)


class Table(NamedTuple):
    """A node's table. ``size`` is what the header says: its meaning depends on the kernel."""

    version: str
    size: int
    virtual_servers: tuple[VirtualServer, ...]


class TableError(ValueError):
    """A line that is not what the kernel writes. ``line_no`` counts from 1."""

    def __init__(self, line_no: int, line: str, expected: str) -> None:
        super().__init__(f"IPVS table line {line_no}: {line!r}, expected {expected}")
        self.line_no = line_no
        self.line = line
        self.expected = expected


def join_host_port(address: str, port: int) -> str:
    """ "10.0.0.1:80" or "[fd00::1]:80"."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_table(text: str) -> Table:
    """Read the text of ``/proc/net/ip_vs``. Raises ``TableError`` at the first line it can't read.

    An empty table still has its three header lines: an empty text is an error, because it
    means that the file was not read.
    """
    version, size = _read_header(text[:_HEADER_CHARACTERS].split("\n"))
    with paused():
        # Splitting all of it, and not what follows the header, saves a copy of a large text.
        _, titles, *blocks = _BLOCK_BOUNDARY.split(text)
        if titles.count("\n") > 1:
            raise TableError(4, titles.split("\n")[2], _VIRTUAL_SERVER_FORM)
        while blocks and not blocks[-1]:
            del blocks[-1]
        try:
            _BLOCKS.read([block for block in blocks if block not in _BLOCKS])
        except _UnreadableLineError as error:
            before = blocks.index(error.block)
            number = 4 + sum(block.count("\n") + 1 for block in blocks[:before]) + error.offset
            raise TableError(number, error.line, error.expected) from None
        table = Table(version, size, tuple(map(_BLOCKS.__getitem__, blocks)))
        if _BLOCKS.characters > _REMEMBERED_CHARACTERS:
            # Counters of busy nodes make ever new lines.
            forget()
    return table


def forget() -> None:
    """Forget the lines that :func:`parse_table` remembers; only time and memory change by it."""
    _BLOCKS.forget()


def _read_header(lines: list[str]) -> tuple[str, int]:
    found = _HEADER.fullmatch(lines[0])
    if not found:
        raise TableError(1, lines[0], "'IP Virtual Server version N.N.N (size=N)'")
    for number, titles in ((2, _TITLES[0]), (3, _TITLES[1])):
        line = lines[number - 1] if len(lines) >= number else ""
        if line.rstrip() != titles:
            raise TableError(number, line, f"the column titles {titles!r}")
    return found[1], int(found[2])


class _UnreadableLineError(Exception):
    """A line of a block that can't be read; ``offset`` counts lines from the block's first."""

    def __init__(self, block: str, offset: int, expected: str) -> None:
        super().__init__(block, offset, expected)
        self.block = block
        self.offset = offset
        self.line = block.split("\n")[offset]
        self.expected = expected


class _States(dict[str, RealServerState]):
    """What "Masq    1      0          2" says."""

    def __missing__(self, text: str) -> RealServerState:
        found = _STATE.fullmatch(text)
        if not found:
            raise ValueError(text)
        numbers = map(int, found.groups()[1:])
        state = self[text] = RealServerState(intern(found[1]), *numbers)
        return state


class _StatesInColumns(dict[bytes, RealServerState]):
    """The same for what stands between two places: spaces ahead, the next arrow behind."""

    def __init__(self, states: _States) -> None:
        self.states = states

    def __missing__(self, line: bytes) -> RealServerState:
        text = line.decode("ascii")
        if text[0] != " " or not text.endswith(_ARROW):
            raise ValueError(text)
        state = self[line] = self.states[text.removesuffix(_ARROW)]
        return state


class _Forms(dict[str, "_Form"]):
    """An IPv4 virtual server's line without its place, "TCP   rr  ", to its other values."""

    def __missing__(self, text: str) -> _Form:
        found = _VIRTUAL_SERVER.fullmatch(f"{text[:5]}00000000:0000{text[5:]}")
        if not found or found.span(2) != (5, 18):
            raise ValueError(text)
        form = self[text] = _read_form(found, ipv6=False)
        return form


class _Blocks(dict[str, VirtualServer]):
    """The lines of one virtual server to its record.

    The same lines come back at each reading and on each node. Remembering them is what makes the
    parser faster than splitting the text. The records are immutable, so they can be shared.
    """

    def __init__(self) -> None:
        self.states = _States()
        self.columns = _StatesInColumns(self.states)
        self.forms = _Forms()
        self.characters = 0

    def read(self, blocks: list[str]) -> None:
        """Add the records of these blocks; raises ``_UnreadableLineError`` for the first wrong."""
        self.characters += sum(map(len, blocks))
        columned = [
            block
            for block in blocks
            if (len(block) - block.find("\n")) % _LINE == 0 and block[13] == ":"
        ]
        for start in range(0, len(columned), _TOGETHER):
            together = columned[start : start + _TOGETHER]
            try:
                servers = self._in_columns(together)
            except (ValueError, struct.error):
                # Which line is wrong, or only unusual, is told by reading each block by itself.
                continue
            self.update(zip(together, servers, strict=True))
        self.update((block, self._in_words(block)) for block in blocks if block not in self)

    def _in_columns(self, blocks: list[str]) -> list[VirtualServer]:
        """Read blocks of IPv4 whose lines seem to be of the width that the kernel pads them to.

        Raises ``ValueError`` or ``struct.error`` where any of them can't be read. Every step is one
        call for many lines, because a step of Python for each real server costs more than all the
        rest.
        """
        parts = [block.partition("\n") for block in blocks]
        heads = [head for head, _, _ in parts]
        rests = [rest for _, _, rest in parts]
        own = "".join([head[5:18] for head in heads])
        places, behind = _split_columns("\n".join(rests))
        _check_places(own.encode("ascii") + b"".join(places), len(heads) + len(places))
        states = map(self.columns.__getitem__, behind)
        made = tuple(map(RealServer, zip(places, states, strict=True)))
        numbers = struct.iter_unpack("!4sH", bytes.fromhex(own.replace(":", "")))
        first, servers = 0, []
        for head, rest, (address, port) in zip(heads, rests, numbers, strict=True):
            protocol, scheduler, flags, ticks, mask = self.forms[head[:5] + head[18:]]
            end = first + (len(rest) + 1) // _LINE
            real, first = made[first:end], end
            values = (protocol, inet_ntoa(address), port, None, scheduler, flags, ticks, mask, real)
            servers.append(_virtual_server(values))
        return servers

    def _in_words(self, block: str) -> VirtualServer:
        """Read any lines; raises ``_UnreadableLineError``."""
        first, *rest = block.split("\n")
        found = _VIRTUAL_SERVER.fullmatch(first)
        if not found or (found[1] != "FWM" and not _PLACE.fullmatch(found[2])):
            raise _UnreadableLineError(block, 0, _VIRTUAL_SERVER_FORM)
        real = []
        for offset, line in enumerate(rest, 1):
            place, _, state = line.removeprefix(_ARROW[1:]).partition(" ")
            try:
                if not line.startswith(_ARROW[1:]) or not _PLACE.fullmatch(place):
                    raise ValueError(line)
                real.append(RealServer((place.encode(), self.states[state])))
            except ValueError:
                raise _UnreadableLineError(block, offset, _REAL_SERVER_FORM) from None
        fwmark = None
        if found[1] == "FWM":
            fwmark = int(found[2], 16)
            address, port = "", fwmark
            # The line of a firewall mark does not tell its family: its real servers do.
            ipv6 = bool(real) and ":" in real[0].address
        else:
            address, port = read_place(found[2].encode())
            ipv6 = ":" in address
        protocol, scheduler, flags, jiffies, mask = _read_form(found, ipv6)
        return VirtualServer(
            protocol, address, port, fwmark, scheduler, flags, jiffies, mask, tuple(real)
        )

    def forget(self) -> None:
        """Forget every line."""
        self.clear()
        self.states.clear()
        self.columns.clear()
        self.forms.clear()
        self.characters = 0


def _split_columns(text: str) -> tuple[list[bytes], list[bytes]]:
    """The places of lines in columns, and what stands behind each up to the next place.

    Raises ``ValueError`` or ``struct.error`` where the text is no such lines.
    """
    if not text.startswith(_ARROW[1:]):
        raise ValueError(text)
    lines = memoryview((text + _ARROW).encode("ascii"))[len(_ARROW) - 1 :]
    # Cutting many lines in one call takes half the time of cutting each.
    end = len(lines) - len(lines) % _MANY_LINES.size
    cuts = chain(_MANY_LINES.iter_unpack(lines[:end]), _ONE_LINE.iter_unpack(lines[end:]))
    places: list[bytes] = []
    rests: list[bytes] = []
    for cut in cuts:
        places += cut[::2]
        rests += cut[1::2]
    return places, rests


def _check_places(together: bytes, number: int) -> None:
    """``ValueError`` unless these are so many IPv4 places, one behind the other."""
    colons = number * b":"
    # Nothing but the colons is left without the digits.
    left = together.translate(None, b"0123456789ABCDEF")
    if together[8::_PLACE_WIDTH] != colons or left != colons:
        raise ValueError(together)


def _read_form(found: re.Match[str], ipv6: bool) -> _Form:
    protocol, _, scheduler, flags, jiffies, mask = found.groups()
    return (
        intern(protocol),
        intern(scheduler),
        tuple(flags.split()),
        None if jiffies is None else int(jiffies),
        mask and _netmask(mask, ipv6),
    )


def _netmask(mask: str, ipv6: bool) -> str:
    raw = bytes.fromhex(mask)
    # For IPv6 the kernel prints the prefix length as if it were an address in network order.
    return str(int.from_bytes(raw, "little")) if ipv6 else inet_ntoa(raw)


# Calling tuple's constructor itself skips the named tuple's own, which is written in Python.
_virtual_server = cast(
    Callable[[tuple[object, ...]], VirtualServer], partial(tuple.__new__, VirtualServer)
)
# (protocol, scheduler, flags, persistence_jiffies, netmask)
_Form = tuple[str, str, tuple[str, ...], int | None, str | None]
# A real server's line begins with the arrow. The kernel pads the values behind an IPv4 place to
# columns, so that a line has 61 characters while each value fits.
_ARROW = "\n  -> "
_PLACE_WIDTH = 13
_LINE = 61
_LINE_FORMAT = f"{_PLACE_WIDTH}s{_LINE - _PLACE_WIDTH}s"
_ONE_LINE, _MANY_LINES = struct.Struct(_LINE_FORMAT), struct.Struct(64 * _LINE_FORMAT)
# So many virtual servers are read at a time that they stay in the processor's cache.
_TOGETHER = 128
_HEADER_CHARACTERS = 1000
_TITLES = (
    "Prot LocalAddress:Port Scheduler Flags",
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
)
_HEADER = re.compile(r"IP Virtual Server version ([0-9.]+) \(size=([0-9]{1,19})\)\s*")
_BLOCK_BOUNDARY = re.compile(r"\n(?! )")
_PLACE = re.compile(r"(?:[0-9A-F]{8}|\[(?:[0-9a-f]{4}:){7}[0-9a-f]{4}\]):[0-9A-F]{4}")
_NUMBER = r"(-?[0-9]{1,19})"
_STATE = re.compile(rf" *(Masq|Local|Tunnel|Route|Bypass) +{_NUMBER} +{_NUMBER} +{_NUMBER} *")
_VIRTUAL_SERVER = re.compile(
    r"((?:TCP|UDP|SCTP)(?= +[^ ]*:)|FWM(?= +[0-9A-F]{8} )) +([0-9A-Fa-f:\[\]]+) +([!-~]+) *"
    r"((?:(?!persistent )[!-~]+ *)*)(?:persistent ([0-9]{1,19}) ([0-9A-F]{8}))? *"
)
_VIRTUAL_SERVER_FORM = (
    "'PROTOCOL ADDRESS:PORT SCHEDULER FLAGS' with the address in hexadecimal, or 'FWM MARK …'"
)
_REAL_SERVER_FORM = (
    "'  -> ADDRESS:PORT FORWARD WEIGHT ACTIVE INACTIVE' with the address in hexadecimal"
)
_REMEMBERED_CHARACTERS = 32 * 1024 * 1024
_BLOCKS = _Blocks()
