"""What one client is told to do."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["http", "tcp", "echo", "hold"]
Ending = Literal["server", "client", "rst"]
Order = Literal["rotate", "random", "recent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The target and pace of one client; times are seconds unless named otherwise.

    ``rate``: connections started each second, whatever the answers do. ``duration`` 0: until
    stopped. ``mode``: "http" (GET ``path``), "tcp" (connect only), "echo" (one line),
    "hold" (``hold`` connections stay, each says a line every ``hold_every`` seconds, and those
    that break are made anew). ``http``: the version in the request.
    ``ending``: who closes first; "server" leaves no TIME_WAIT on the client's side, so that its
    ports return at once. ``ports`` source ports from ``first_port`` on are used, 0 leaves the
    choice to the kernel. ``first_port`` 0: the client takes ports that are free on its machine,
    that its kernel gives to nobody and no other client of ours has. ``order``: "rotate" (the one
    that waited longest), "random" (shuffled once), "recent" (the one that came back last).
    ``moves``: tell when another pod answers than before (session affinity). ``processes``:
    share ports and schedule between so many. ``reuse_window``: how long IPVS remembers a closed
    connection (TIME_WAIT, 120 s: L7.1.8 ip_vs_proto_tcp.c:330). What ended with RST is forgotten
    10 s after its end (CLOSE), and a SYN that nothing answered after 60 s (SYN_RECV); both are
    measured with these numbers where they are below ``reuse_window``. ``late_tolerance``: a start
    later than this is counted against the client; later than ``give_up`` it is not made.
    ``read_timeout``: for the whole answer, from the request on.
    ``slow_ms``: a connect of this many milliseconds counts as slow (a resent SYN costs 1,000).
    ``sample``: so many of each class are told in full before that becomes one a second.
    ``tick``: time between two outputs.
    """

    host: str
    port: int
    rate: float = 20.0
    duration: float = 0.0
    mode: Mode = "http"
    ending: Ending = "server"
    http: str = "1.0"
    path: str = "/"
    host_header: str = ""
    pod_header: str = ""
    first_port: int = 0
    ports: int = 200
    order: Order = "rotate"
    source: str = ""
    connect_timeout: float = 3.0
    read_timeout: float = 5.0
    close_wait: float = 2.0
    late_tolerance: float = 0.5
    give_up: float = 2.0
    reuse_window: float = 120.0
    slow_ms: float = 900.0
    sample: int = 200
    tick: float = 1.0
    hold: int = 20
    hold_every: float = 1.0
    moves: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        def expect(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"plan: {name} is {getattr(self, name)!r}, expected {expected}")

        expect("host", bool(self.host), "an address or a name")
        expect("port", 0 < self.port < 65536, "a port from 1 to 65535")
        expect("rate", 0 < self.rate <= 100_000, "connections per second, more than 0")
        expect("duration", self.duration >= 0, "seconds, or 0 for 'until stopped'")
        modes = ("http", "tcp", "echo", "hold")
        expect("mode", self.mode in modes, "http, tcp, echo or hold")
        expect("ending", self.ending in ("server", "client", "rst"), "server, client or rst")
        expect("order", self.order in ("rotate", "random", "recent"), "rotate, random or recent")
        expect("http", self.http in ("1.0", "1.1"), "1.0 or 1.1")
        expect("hold", self.hold >= 1, "1 or more connections")
        expect("processes", 1 <= self.processes <= 256, "1 to 256")
        expect("ports", 0 <= self.ports <= 64000, "0 (the kernel chooses) to 64000 ports")
        expect(
            "first_port",
            not self.first_port
            or (self.first_port >= 1024 and self.first_port + self.ports <= 65536),
            f"0 (free ones) or 1024 or more, with room for {self.ports} ports below 65536",
        )
        for name in ("connect_timeout", "read_timeout", "close_wait", "tick", "hold_every"):
            expect(name, getattr(self, name) > 0, "seconds, more than 0")
        for name in ("path", "host_header", "pod_header"):
            value = getattr(self, name)
            expect(name, value.isprintable() and " " not in value, "printable text without spaces")

    @property
    def return_time(self) -> float | None:
        """Seconds until a source port comes round again; ``None`` where the kernel chooses."""
        return self.ports / self.rate if self.ports else None

    @property
    def target(self) -> str:
        """ "10.96.0.10:80", "[fd00::a]:80"."""
        return address_text(self.host, self.port)

    def to_dict(self) -> dict[str, Any]:
        """The keys and values that ``client.py`` takes."""
        return asdict(self)


def address_text(address: str, port: int) -> str:
    """An address and a port as one writes them, IPv6 in brackets."""
    try:
        if ipaddress.ip_address(address).version == 6:
            return f"[{address}]:{port}"
    except ValueError:
        pass
    return f"{address}:{port}"
