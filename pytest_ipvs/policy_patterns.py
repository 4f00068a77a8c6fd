"""Patterns of virtual servers that others make: whether one can fit any virtual server at all."""

from __future__ import annotations

import ipaddress
import re
from fnmatch import fnmatchcase

_PROTOCOLS = ("TCP", "UDP", "SCTP")


def can_match(pattern: str) -> bool:
    """Whether a virtual server may fit the pattern; * and ? stand for anything.

    One that fits none would be accepted and do nothing.
    """
    if pattern.split() != [pattern]:
        return False
    if pattern.startswith("fwmark:"):
        mark = pattern.removeprefix("fwmark:")
        wild = re.fullmatch(r"[0-9]*[*?][0-9*?]*", mark) is not None
        return wild or (re.fullmatch(r"[0-9]+", mark) is not None and 0 < int(mark) < 2**32)
    if "*" in pattern or "?" in pattern:
        _, slash, protocol = pattern.rpartition("/")
        return any(fnmatchcase(one, protocol) for one in _PROTOCOLS) if slash else "*" in pattern
    whole = re.fullmatch(r"(.+):([0-9]{1,5})/(TCP|UDP|SCTP)", pattern)
    if whole is None:
        return _is_network(pattern)
    bare = whole[1].removeprefix("[").removesuffix("]")
    # Only an IPv6 address has colons, and only it is written in brackets.
    right = (":" in bare) == (whole[1] == f"[{bare}]") and "/" not in bare
    return right and _is_network(bare) and int(whole[2]) < 65536


def _is_network(text: str) -> bool:
    """Whether a text is an address or a CIDR."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True
