"""Programs IPVS by generic netlink from the words of ``ipvsadm-save``.

One message per line instead of one process: a sync of a hundred services takes milliseconds on an
emulated processor. Numbers are those of include/uapi/linux/ip_vs.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import shlex
import socket
import struct
from typing import Any

from pytest_ipvs.lab.hand_netlink import Netlink, attribute, attributes

__all__ = ["TABLE", "Ipvs", "parse_line", "read_table"]

TABLE = "/proc/net/ip_vs"

_COMMANDS = {"-A": 1, "-E": 2, "-D": 3, "-a": 5, "-e": 6, "-d": 7, "-C": 17}
_FORWARD = {"-m": 0, "-i": 2, "-g": 3}
_PROTOCOLS = {"-t": socket.IPPROTO_TCP, "-u": socket.IPPROTO_UDP, "--sctp-service": 132}
_LONG = {
    "--add-service": "-A", "--edit-service": "-E", "--delete-service": "-D", "--add-server": "-a",
    "--edit-server": "-e", "--delete-server": "-d", "--clear": "-C", "--tcp-service": "-t",
    "--udp-service": "-u", "--fwmark-service": "-f", "--scheduler": "-s", "--persistent": "-p",
    "--netmask": "-M", "--sched-flags": "-b", "--ops": "-o", "--real-server": "-r",
    "--masquerading": "-m", "--ipip": "-i", "--gatewaying": "-g", "--weight": "-w",
}  # fmt: skip
_NETLINK_GENERIC = 16
_PERSISTENT, _ONE_PACKET = 0x1, 0x4
_SCHEDULER_FLAGS = {
    "flag-1": 0x8, "flag-2": 0x10, "flag-3": 0x20, "sh-fallback": 0x8, "sh-port": 0x10,
    "mh-fallback": 0x8, "mh-port": 0x10,
}  # fmt: skip
_MEANING = {
    errno.ESRCH: "no such virtual server",
    errno.ENOENT: "no such real server or scheduler",
    errno.EEXIST: "it exists already",
}


def _endpoint(text: str) -> tuple[bytes, int]:
    host, _, port = text.rpartition(":")
    if not host:
        host, port = text, "0"
    return ipaddress.ip_address(host.strip("[]")).packed, int(port)


def parse_line(line: str) -> tuple[int, bytes]:
    """The command and payload for one line; raises ValueError that names the word."""
    words = [_LONG.get(word, word) for word in shlex.split(line)]
    if not words or words[0] not in _COMMANDS:
        raise ValueError(f"expected one of {' '.join(_COMMANDS)}, not {words[:1]}")
    command = _COMMANDS[words.pop(0)]
    if command == 17:
        return command, b""
    values: dict[str, Any] = {"scheduler": "wlc", "forward": 3, "weight": 1, "flags": 0}
    while words:
        word = words.pop(0)
        if word in _FORWARD:
            values["forward"] = _FORWARD[word]
            continue
        if word == "-o":
            values["flags"] |= _ONE_PACKET
            continue
        if word == "-p" and (not words or not words[0].isdigit()):
            words.insert(0, "360")
        if not words:
            raise ValueError(f"{word} needs a value")
        value = words.pop(0)
        if word in _PROTOCOLS:
            values["service"] = (_PROTOCOLS[word], *_endpoint(value))
        elif word == "-f":
            values["fwmark"] = int(value)
        elif word == "-s":
            values["scheduler"] = value
        elif word == "-p":
            values["flags"] |= _PERSISTENT
            values["timeout"] = int(value)
        elif word == "-M":
            values["netmask"] = value
        elif word == "-b":
            for flag in value.split(","):
                values["flags"] |= _SCHEDULER_FLAGS[flag]
        elif word == "-r":
            values["server"] = _endpoint(value)
        elif word == "-w":
            values["weight"] = int(value)
        elif word not in ("-x", "-y"):
            raise ValueError(f"unknown word {word}")
    return command, _payload(command, values)


def _payload(command: int, values: dict[str, Any]) -> bytes:
    if "fwmark" in values:
        family = socket.AF_INET
        service = attribute(1, struct.pack("=H", family)) + attribute(5, values["fwmark"])
    elif "service" in values:
        protocol, packed, port = values["service"]
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        service = (
            attribute(1, struct.pack("=H", family))
            + attribute(2, struct.pack("=H", protocol))
            + attribute(3, packed.ljust(16, b"\0"))
            + attribute(4, struct.pack("!H", port))
        )
    else:
        raise ValueError("expected a virtual server: -t, -u, --sctp-service or -f")
    if command in (1, 2):
        service += attribute(6, values["scheduler"])
        service += attribute(7, struct.pack("=II", values["flags"], 0xFFFFFFFF))
        service += attribute(8, values.get("timeout", 0))
        mask = values.get("netmask")
        if family == socket.AF_INET:
            service += attribute(9, ipaddress.ip_address(mask or "255.255.255.255").packed)
        else:
            service += attribute(9, int(mask or 128))
    payload = attribute(1, service)
    if command in (5, 6, 7):
        if "server" not in values:
            raise ValueError("expected a real server: -r ADDRESS:PORT")
        packed, port = values["server"]
        server = attribute(1, packed.ljust(16, b"\0")) + attribute(2, struct.pack("!H", port))
        server += attribute(
            11, struct.pack("=H", socket.AF_INET if len(packed) == 4 else socket.AF_INET6)
        )
        if command != 7:
            server += attribute(3, values["forward"]) + attribute(4, values["weight"])
            server += attribute(5, 0) + attribute(6, 0)
        payload += attribute(2, server)
    return payload


_CHUNK = 65536
_FIRST = {b"CP": b"T", b"DP": b"U", b"CT": b"S", b"WM": b"F"}


def read_table(path: str = TABLE) -> str:
    """The whole table, though several nodes share the kernel.

    Why it takes a seek for each virtual server tells ``pytest_ipvs.cluster.script_table``.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        for _ in range(10):
            text = os.pread(file, _CHUNK, 0)
            while piece := os.pread(file, _CHUNK, len(text) + 1):
                if (first := _FIRST.get(piece[:2])) is None:
                    break
                text += re.split(rb"\n(?=[TUSF])", first + piece.rstrip(b"\n"))[0] + b"\n"
            else:
                return text.decode()
        raise OSError(errno.EAGAIN, f"{path} changes while it is read")
    finally:
        os.close(file)


class Ipvs:
    """IPVS of the network namespace in which this was made."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETLINK_GENERIC)
        try:
            answer = self._netlink.request(
                16, 0, struct.pack("=BBH", 3, 1, 0) + attribute(2, "IPVS")
            )
        except OSError:
            self._netlink.close()
            raise OSError(errno.ENOENT, "this kernel has no IPVS: ip_vs is not loaded") from None
        values = dict(attributes(answer[0][4:]))
        (self._family,) = struct.unpack("=H", values[1])

    def restore(self, lines: list[str]) -> dict[str, Any]:
        """Applies every line; ``{"applied": count, "errors": [{line, text, errno, message}]}``."""
        errors = []
        applied = 0
        for number, line in enumerate(lines):
            try:
                command, payload = parse_line(line)
                self._netlink.request(self._family, 0, struct.pack("=BBH", command, 1, 0) + payload)
                applied += 1
            except (ValueError, KeyError) as error:
                errors.append(
                    {"line": number, "text": line, "errno": "EINVAL", "message": str(error)}
                )
            except OSError as error:
                code = error.errno or 0
                message = _MEANING.get(code, os.strerror(code))
                name = errno.errorcode.get(code, str(code))
                errors.append({"line": number, "text": line, "errno": name, "message": message})
        return {"applied": applied, "errors": errors}
