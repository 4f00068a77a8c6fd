"""Links, addresses and routes by rtnetlink: an ``ip`` process costs 20 ms on an emulated processor.

A :class:`Netlink` works on the network namespace in which it was made, wherever its user is later.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["Netlink", "attribute", "attributes"]

_REQUEST: Final = 0x1
_ACK: Final = 0x4
_CREATE: Final = 0x400
_EXCL: Final = 0x200
_REPLACE: Final = 0x100
_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3

_NEWLINK, _DELLINK, _SETLINK = 16, 17, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE = 24, 25
_NEWNEIGH = 28

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 10, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_NUD_PERMANENT = 0x80
_RT_SCOPE_LINK, _RT_SCOPE_UNIVERSE, _RT_SCOPE_HOST = 253, 0, 254
_RTN_UNICAST = 1


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """One netlink attribute, padded; str gets its zero byte, int is 32 bits."""
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif isinstance(value, int):
        value = struct.pack("=I", value)
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in a message's tail: (kind, value)."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Netlink:
    """A netlink socket; errors of the kernel are raised as :class:`OSError`."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Closes the socket; a namespace whose last user it was ends."""
        self._socket.close()

    def request(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """Sends one message and returns the payloads that came before its acknowledgement."""
        self._sequence += 1
        header = struct.pack(
            "=IHHII", 16 + len(payload), kind, _REQUEST | _ACK | flags, self._sequence, 0
        )
        self._socket.send(header + payload)
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 18)
            while data:
                length, answer, _, sequence, _ = struct.unpack_from("=IHHII", data)
                body, data = data[16:length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return answers
                if answer == _NLMSG_DONE:
                    return answers
                answers.append(body)

    def index(self, device: str) -> int:
        """The interface's number in this socket's namespace."""
        payload = _link_header() + attribute(_IFLA_IFNAME, device)
        answers = self.request(18, 0, payload)
        index: int = struct.unpack_from("=xxxxi", answers[0])[0]
        return index

    def add_link(self, device: str, kind: str) -> None:
        """Makes a "bridge" or "dummy"."""
        info = attribute(_IFLA_INFO_KIND, kind.encode())
        payload = _link_header() + attribute(_IFLA_IFNAME, device)
        self.request(_NEWLINK, _CREATE | _EXCL, payload + attribute(_IFLA_LINKINFO, info))

    def add_veth(
        self, device: str, mac: str, peer: str, peer_mac: str, peer_namespace: int
    ) -> None:
        """Makes a veth pair; ``peer`` goes to the namespace of that file descriptor."""
        other = (
            _link_header()
            + attribute(_IFLA_IFNAME, peer)
            + attribute(_IFLA_ADDRESS, _mac(peer_mac))
            + attribute(_IFLA_NET_NS_FD, peer_namespace)
        )
        data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other))
        info = attribute(_IFLA_INFO_KIND, b"veth") + data
        payload = (
            _link_header()
            + attribute(_IFLA_IFNAME, device)
            + attribute(_IFLA_ADDRESS, _mac(mac))
            + attribute(_IFLA_LINKINFO, info)
        )
        self.request(_NEWLINK, _CREATE | _EXCL, payload)

    def set_link(
        self,
        device: str,
        *,
        up: bool | None = None,
        master: str | None = None,
        noarp: bool | None = None,
    ) -> None:
        """Sets flags and the bridge of an interface; None leaves a flag as it is."""
        flags = change = 0
        for bit, wanted in ((_IFF_UP, up), (_IFF_NOARP, noarp)):
            if wanted is not None:
                change |= bit
                flags |= bit if wanted else 0
        payload = _link_header(self.index(device), flags, change)
        if master is not None:
            payload += attribute(_IFLA_MASTER, self.index(master))
        self.request(_SETLINK, 0, payload)

    def delete_link(self, device: str) -> None:
        """Removes an interface and what hangs on it: addresses, routes, the other end."""
        self.request(_DELLINK, 0, _link_header(self.index(device)))

    def change_address(self, device: str, address: str, *, remove: bool = False) -> None:
        """Adds or removes "ADDRESS/PREFIX"; adding one that is there is an error (EEXIST)."""
        interface = ipaddress.ip_interface(address)
        packed = interface.ip.packed
        family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        # No duplicate address detection: it makes a new IPv6 address useless for a second.
        flags = 0x02 if interface.version == 6 else 0
        payload = struct.pack(
            "=BBBBI", family, interface.network.prefixlen, flags, 0, self.index(device)
        )
        payload += attribute(2, packed) + attribute(1, packed)
        if remove:
            self.request(_DELADDR, 0, payload)
        else:
            self.request(_NEWADDR, _CREATE | _EXCL, payload)

    def addresses(self, device: str) -> list[str]:
        """Addresses with prefix on an interface, as the kernel lists them."""
        number = self.index(device)
        found = []
        for answer in self.request(_GETADDR, _DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
            _, prefix, _, _, index = struct.unpack_from("=BBBBI", answer)
            if index != number:
                continue
            values = dict(attributes(answer[8:]))
            packed = values.get(2) or values[1]
            found.append(f"{ipaddress.ip_address(packed)}/{prefix}")
        return found

    def add_route(
        self,
        destination: str,
        *,
        via: str | None = None,
        device: str | None = None,
        source: str | None = None,
    ) -> None:
        """Adds or replaces a route; "default" is allowed."""
        name = "0.0.0.0/0" if destination == "default" else destination
        network = ipaddress.ip_network(name)
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        scope = _RT_SCOPE_UNIVERSE if via else _RT_SCOPE_LINK
        payload = struct.pack(
            "=BBBBBBBBI", family, network.prefixlen, 0, 0, 254, 4, scope, _RTN_UNICAST, 0
        )
        payload += attribute(1, network.network_address.packed)
        if via:
            payload += attribute(5, ipaddress.ip_address(via).packed)
        if device:
            payload += attribute(4, self.index(device))
        if source:
            payload += attribute(7, ipaddress.ip_address(source).packed)
        self.request(_NEWROUTE, _CREATE | _REPLACE, payload)

    def delete_route(self, destination: str) -> None:
        """Removes the route to a destination from the main table."""
        network = ipaddress.ip_network(destination)
        payload = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, network.prefixlen, 0, 0, 254, 0, 255, 0, 0
        )
        self.request(_DELROUTE, 0, payload + attribute(1, network.network_address.packed))

    def add_neighbour(self, device: str, address: str, mac: str) -> None:
        """A permanent neighbour entry: no ARP, so that a first packet never waits."""
        payload = struct.pack(
            "=BBHiHBB", socket.AF_INET, 0, 0, self.index(device), _NUD_PERMANENT, 0, 0
        )
        payload += attribute(1, ipaddress.ip_address(address).packed) + attribute(2, _mac(mac))
        self.request(_NEWNEIGH, _CREATE | _REPLACE, payload)


def _link_header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", 0, 0, 0, index, flags, change)
