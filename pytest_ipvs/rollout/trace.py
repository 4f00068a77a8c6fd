"""Asking the nodes for connection entries while they are fresh: of failed connections, and
whether the client's ports are known at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from pytest_ipvs.rollout.lookup import Entry, Failed, find_entries
from pytest_ipvs.rollout.target import Target
from pytest_ipvs.traffic.placement import Place
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results

LOOK_SECONDS = 2.0
MOST_LOOKS = 30
JOIN_SECONDS = 5.0
SAME_SECONDS = 0.5
"""By less than this a failure's time changes while a client's clock is better and better known."""

MOST_PORTS = 200
"""Of a window as many are asked for at once: few enough for a command line."""
LOOKS_NEEDED = 2
"""So many times the nodes must not know any port before it counts."""

Seen = tuple[Results, str, int]


class Tracer:
    """Looks every other second whether something failed, and asks the nodes where it was sent.

    An entry of a refused connection lives for ten seconds, so the end of a run is too late to ask.
    ``seen`` gives, for each client, its results so far and the address and port it goes to. While
    the run goes on the nodes are asked `MOST_LOOKS` times at most, for all clients at once; once
    some of them have answered only those. ``watches`` look when it begins and when it ends.
    """

    def __init__(
        self,
        pool: Any,
        nodes: Sequence[str],
        seen: Callable[[], Iterable[Seen]],
        watches: Sequence[PortWatch] = (),
    ) -> None:
        self._pool = pool
        self._watches = tuple(watches)
        self._nodes = tuple(nodes)
        self._known: dict[tuple[str, int], set[str]] = {}
        self._seen = seen
        self._entries: list[Entry] = []
        self._asked: dict[tuple[str, int], dict[int, float]] = {}  # by way: source port and time
        self._looks = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ipvs-tracer", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a node that hangs is not waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def finish(self) -> None:
        """Look a last time, and stop."""
        self.stop()
        if not self._thread.is_alive():
            self._try_to_look()
            for watch in self._watches:
                watch.look()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was found, with the times at which it was read."""
        return tuple(self._entries)

    def _run(self) -> None:
        for watch in self._watches:
            watch.look()
        while self._looks < MOST_LOOKS and not self._stopping.wait(LOOK_SECONDS):
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except Exception:  # explaining must not cost the run
            pass

    def look(self) -> None:
        """Ask for what has failed since the last look."""
        failed: list[Failed] = []
        nodes: set[str] = set()
        for results, address, port in self._seen():
            asked = self._asked.setdefault((address, port), {})
            # By port: one that timed out is told after later ones that were refused.
            new = [s for s in results.failed if s.t > asked.get(s.source_port, 0.0) + SAME_SECONDS]
            asked |= {sample.source_port: sample.t for sample in new}
            failed += [(sample, address, port) for sample in new]
            if new:
                nodes |= self._known.get((address, port), set(self._nodes))
        if not failed:
            return
        self._looks += 1
        found = find_entries(self._pool, sorted(nodes), failed)
        self._entries += found
        for entry in found:
            way = (entry.connection.virtual, entry.connection.virtual_port)
            self._known.setdefault(way, set()).add(entry.node)


class PortWatch:
    """Whether the nodes' IPVS sees the source ports that one client uses.

    Where something on the way gives connections other ports, a port that the client uses again is
    a fresh one to IPVS, and a run proves nothing. ``windows`` gives the lowest and the highest port
    of each of the client's processes; ``ports`` is how many they have together, all of which must
    come round while entries live. ``served``: port numbers of the Service, node ports among them.
    One known port is enough. Only the client's port and the Service's are asked for: another
    address is no matter, and a load balancer may put a node's address in the place of its own.
    """

    def __init__(
        self,
        pool: Any,
        nodes: Sequence[str],
        windows: Callable[[], Iterable[tuple[int, int]]],
        *,
        ports: int,
        served: Collection[int],
    ) -> None:
        self._pool = pool
        self._nodes = tuple(nodes)
        self._windows = windows
        self._ports = ports
        self._served = tuple(sorted(served))
        self._known = False
        self._in_vain = 0
        self._problem = ""

    def look(self) -> None:
        """Ask all nodes, unless the ports are known already. Never raises."""
        if self._known or self._problem:
            return
        try:
            self._ask(_some_ports(self._windows(), self._ports))
        except Exception as error:  # this must not cost the run
            self._problem = (str(error) or type(error).__name__).splitlines()[0]

    def _ask(self, ports: Sequence[int]) -> None:
        if not ports or not self._nodes:
            self._problem = "the client's ports are not known"
            return
        pattern = f"^TCP [^ ]+ ({_either(ports)}) [^ ]+ ({_either(self._served)}) "
        # The first entry says enough. What is told of a failure to read is the reason below.
        command = "grep -m 1 -i -E -e %s /proc/net/ip_vs_conn"
        pool = self._pool
        answers = pool.map(lambda name: pool.run(name, command, pattern), self._nodes)
        problems = []
        for node, answer in answers.items():
            code, text = getattr(answer, "rc", None), getattr(answer, "stdout", "")
            if code == 0 and text.startswith("TCP "):
                self._known = True
                return
            # 1 means that grep has read all and found nothing. Anything else tells nothing.
            if code != 1 or text:
                problems.append(f"{node}: {_why(answer)}")
        if problems:
            self._problem = problems[0]
        else:
            self._in_vain += 1

    @property
    def reason(self) -> str:
        """Why re-used ports prove nothing, "" unless all nodes were read, more than once."""
        if self._known or self._problem or self._in_vain < LOOKS_NEEDED:
            return ""
        return (
            "IPVS does not see the client's ports: something on the way changes them, or the "
            "traffic enters by a node that is not selected"
        )

    @property
    def remark(self) -> str:
        """Why it could not be told whether IPVS sees the ports, "" where it could."""
        if self._known or not self._problem:
            return ""
        return f"whether IPVS sees the client's ports was not looked up ({self._problem})"


def watch_ports(
    pool: Any,
    nodes: Sequence[str],
    target: Target,
    place: Place,
    plan: Plan,
    windows: Callable[[], Iterable[tuple[int, int]]],
) -> PortWatch | None:
    """A watch of one client, ``None`` where nothing can be on the way or ports need not return.

    From a node, or from a pod on one, the Service's own addresses are reached by that node's IPVS.
    A node's address lies on another node for most pods, and network plugins give their connections
    other ports on the way there.
    """
    service = target.service
    virtual = {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips}
    node_ports = {port.node_port for port in service.ports if port.node_port}
    a_pod = hasattr(place.host, "client_class")
    if (place.node is not None or a_pod) and target.address in virtual:
        return None
    if place.node is not None and target.address_port in node_ports:
        return None
    # In any other order some ports of the window are never used.
    if not plan.ports or plan.order != "rotate" or plan.mode == "hold":
        return None
    served = {port.port for port in service.ports} | node_ports
    return PortWatch(pool, nodes, windows, ports=plan.ports, served=served)


def _some_ports(windows: Iterable[tuple[int, int]], wanted: int) -> list[int]:
    """Ports spread over all of the client's, none where a window is mostly not its own."""
    found = sorted({port for low, high in windows for port in range(low, high + 1)})
    if not wanted or len(found) > 2 * wanted:
        return []
    return found[:: -(-len(found) // MOST_PORTS) or 1]


def _either(ports: Iterable[int]) -> str:
    return "|".join(f"{port:04X}" for port in ports)


def _why(answer: Any) -> str:
    words = str(getattr(answer, "stderr", "") or getattr(answer, "reason", "")).strip().splitlines()
    return words[-1] if words else "its answer can't be understood"
