"""How a kernel before 7.1 gives /proc/net/ip_vs to one of several namespaces, in Python."""

from __future__ import annotations

from dataclasses import dataclass

PAGE = 4096
HEAD = (
    "IP Virtual Server version 1.2.1 (size=4096)\n"
    "Prot LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)


def record(number: int, servers: int, protocol: str = "TCP") -> str:
    """One virtual server with so many real servers."""
    lines = [f"{protocol}  0A60{number:04X}:0050 rr  "]
    server = "  -> 0AF4{:04X}:1F90      Masq    1      0          0         "
    return "\n".join([*lines, *(server.format(n) for n in range(servers)), ""])


@dataclass(frozen=True, slots=True)
class SharedKernel:
    """``records``: the header and our own virtual servers. ``others`` stand between any two."""

    records: tuple[str, ...]
    others: int = 3

    @property
    def text(self) -> str:
        """The whole table."""
        return "".join(self.records)

    def read(self, offset: int, size: int) -> str:
        """What one read gives after a seek to ``offset``; fewer than ``size`` if a page is full."""
        start = 0
        for number, one in enumerate(self.records):
            if offset and start == offset:
                # At the border it has counted all namespaces, and looks for that among its own.
                return self._fill("", self._jump(number), size)
            if start + len(one) > offset:
                if not offset:
                    return self._fill("", 0, size)
                return self._fill(one[offset - start :], self._jump(number + 1), size)
            start += len(one)
        return ""

    def _jump(self, number: int) -> int:
        return 1 + (number - 1) * (1 + self.others)

    def _fill(self, text: str, number: int, size: int) -> str:
        for one in self.records[number:]:
            if text and len(text) + len(one) > PAGE:
                break
            text += one
        return text[:size]
