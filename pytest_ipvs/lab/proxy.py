"""A stand-in for kube-proxy in IPVS mode on one node: watches the API, programs the kernel.

It does what the original does (``pkg/proxy/ipvs`` of 1.36): sysctls once at start, a full
comparison with the kernel's table on each sync, and graceful termination of TCP real servers:
weight 0, then removed by a sweep once they have no connections. Two things differ. Its sweep comes
every ``sweep_period`` seconds (the original's is 60, ours 5, so that tests need not wait), and
its programming goes through the lab's machine in few batches.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_ipvs.lab import proxy_http, proxy_rules
from pytest_ipvs.lab.client import NODES, SERVICES, SLICES, Object, Resource
from pytest_ipvs.lab.informers import Cluster, WorkQueue
from pytest_ipvs.lab.machine import HandError, LabError, Machine
from pytest_ipvs.lab.proxy_model import ZONE, Server, VirtualKey, Wanted, wanted

log = logging.getLogger(__name__)

DEVICE = "kube-ipvs0"
RESYNC_PERIOD = 30.0
COALESCE = 0.05
Known = tuple[list[Object], list[Object]]
OPTION = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}


@dataclass(slots=True)
class Present:
    """One virtual server as the kernel has it; servers map to (weight, connections)."""

    scheduler: str
    persistent: bool
    servers: dict[Server, tuple[int, int]] = field(default_factory=dict)


def _address(text: str) -> Server:
    host, _, port = text.partition(":")
    number = int(host, 16)
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)), int(port, 16)


def read_table(text: str) -> dict[VirtualKey, Present]:
    """The IPv4 part of ``/proc/net/ip_vs``; fwmark and IPv6 are not ours and are left out."""
    table: dict[VirtualKey, Present] = {}
    current: Present | None = None
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] in OPTION and "[" not in words[1]:
            host, port = _address(words[1])
            current = Present(words[2], "persistent" in words)
            table[(words[0], host, port)] = current
        elif words[:1] == ["->"] and len(words) == 6 and words[1] != "RemoteAddress:Port":
            if current is not None and "[" not in words[1]:
                connections = int(words[4]) + int(words[5])
                current.servers[_address(words[1])] = (int(words[3]), connections)
        elif words and words[0] not in ("IP", "Prot"):
            current = None
    return table


def conn_reuse_mode(kernel: str, version: str) -> int | None:
    """What a kube-proxy writes into ``conn_reuse_mode``; ``None``: it leaves it.

    Before 4.1 there is no such key. From 5.9 on the kernel needs no help, which kube-proxy knows
    since 1.22.
    """

    def numbers(text: str) -> tuple[int, int]:
        found = re.match(r"v?(\d+)\.(\d+)", text)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    if numbers(kernel) < (4, 1) or (numbers(kernel) >= (5, 9) and numbers(version) >= (1, 22)):
        return None
    return 0


class Proxy:
    """The kube-proxy of one node, a thread of its own."""

    def __init__(
        self,
        cluster: Cluster,
        machine: Machine,
        node: str,
        *,
        version: str,
        cluster_cidr: str,
        scheduler: str = "rr",
        sweep_period: float = 5.0,
        slices: Resource = SLICES,
    ) -> None:
        self.node = node
        self.synced = threading.Event()
        self.bend: dict[str, Callable[[Wanted], None]] = {}
        """Faults by name: each changes the wanted state before it is programmed."""
        self.abrupt = False
        """Delete real servers at once, as kube-proxies before 1.13 did."""
        self._cluster = cluster
        self._machine = machine
        self._version = version
        self._cidr = cluster_cidr
        self._scheduler = scheduler
        self._sweep_period = sweep_period
        self._services = cluster.informer(SERVICES)
        self._slices = cluster.informer(slices)
        self._nodes = cluster.informer(NODES)
        self._lag = 0.0
        self._past: deque[tuple[float, Known]] = deque()
        self._queue: WorkQueue[str] = WorkQueue()
        self._programming = threading.Lock()
        self._ending: dict[tuple[VirtualKey, Server], float] = {}
        self._persistence: dict[VirtualKey, int | None] = {}
        self._goal = Wanted()
        self._bound: set[str] = set()
        self._sets: dict[str, set[str]] = {}
        self._rules = ""
        self._own: list[str] = []
        self._own_read = 0.0
        self._checks: dict[int, tuple[str, int]] = {}
        self._statistics = proxy_http.SyncStatistics()
        self._config = proxy_http.configuration(
            node, cluster_cidr=cluster_cidr, scheduler=scheduler
        )
        self._thread = threading.Thread(target=self._run, name=f"proxy-{node}", daemon=True)

    def start(self) -> None:
        """Write the sysctls, then follow the API."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; the kernel keeps what was programmed."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(5)

    def lag(self, seconds: float) -> None:
        """Learn of each change ``seconds`` after it from now on; 0 ends that, with a sync."""
        self._past = deque([(time.monotonic() - seconds, self._known())])
        self._lag = seconds
        if not seconds:
            self._later()

    def sync_now(self) -> None:
        """One sync in the calling thread; returns when the kernel has it."""
        self._sync(fresh=True)
        self._finish()

    def _prepare(self) -> None:
        values: dict[str, str] = {
            "net.ipv4.vs.conntrack": "1",
            "net.ipv4.vs.expire_nodest_conn": "1",
            "net.ipv4.vs.expire_quiescent_template": "1",
            "net.ipv4.ip_forward": "1",
            "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
        }
        mode = conn_reuse_mode(self._machine.kernel, self._version)
        if mode is not None:
            values["net.ipv4.vs.conn_reuse_mode"] = str(mode)
        self._machine.call("sysctl", node=self.node, values=values)
        self._run_restore("ipset", ["ipset", "-exist", "restore"], proxy_rules.set_creation())
        self._machine.call(
            "http_serve",
            node=self.node,
            port=proxy_http.METRICS_PORT,
            address="127.0.0.1",
            routes=proxy_http.metrics_routes(self._statistics, self._config, self._version),
        )
        self._machine.call(
            "http_serve",
            node=self.node,
            port=proxy_http.HEALTH_PORT,
            address="0.0.0.0",
            routes=proxy_http.health_routes(time.time(), healthy=False),
        )

    def _run(self) -> None:
        tries = 0
        while True:
            try:
                self._prepare()
                break
            except LabError as error:
                tries += 1
                log.warning("proxy of %s: %s", self.node, error)
                if tries == 5:
                    return
                time.sleep(0.2 * tries)
        self._services.on_event(self._on_service)
        self._slices.on_event(self._on_slice)
        self._nodes.on_event(self._on_node)
        self._queue.add("sync")
        self._queue.add("resync", RESYNC_PERIOD)
        self._queue.add("sweep", self._sweep_period)
        while (task := self._queue.take()) is not None:
            try:
                if task == "sweep":
                    self._queue.add("sweep", self._sweep_period)
                    self._sweep()
                elif task == "finish":
                    self._finish()
                else:
                    if task == "resync":
                        self._queue.add("resync", RESYNC_PERIOD)
                    self._sync(fresh=task == "resync")
            except Exception as error:
                # The original logs and tries again as well.
                log.warning("proxy of %s: %s", self.node, error, exc_info=True)
                if task != "sweep" and self._machine.alive:
                    self._queue.add("sync", 1.0)

    def _on_service(self, _kind: str, _item: Object) -> None:
        self._statistics.change(endpoints=False)
        self._later()

    def _on_slice(self, _kind: str, _item: Object) -> None:
        self._statistics.change(endpoints=True)
        self._later()

    def _on_node(self, _kind: str, item: Object) -> None:
        if item["metadata"]["name"] == self.node and not self.synced.is_set():
            self._later()

    def _later(self) -> None:
        self._statistics.last_queued = time.time()
        if self._lag:
            self._past.append((time.monotonic(), self._known()))
        self._queue.add("sync", max(COALESCE, self._lag))

    def _known(self) -> Known:
        return self._services.items(), self._slices.items()

    def _known_in_time(self) -> Known:
        """Services and slices as they are, or as they were before the lag."""
        if not self._lag:
            return self._known()
        until = time.monotonic() - self._lag
        while len(self._past) > 1 and self._past[1][0] <= until:
            self._past.popleft()
        if len(self._past) > 1:
            self._queue.add("sync", self._past[1][0] - until)
        return self._past[0][1]

    def _own_addresses(self, *, fresh: bool) -> list[str]:
        """The node's IPv4 addresses but those of loopback and kube-ipvs0; read now and then."""
        if not fresh and self._own and time.monotonic() - self._own_read < RESYNC_PERIOD:
            return self._own
        answer = self._machine.call("exec", node=self.node, argv=["ip", "-4", "-o", "addr", "show"])
        found = []
        for line in answer["out"].splitlines():
            words = line.split()
            if len(words) > 3 and words[1] != DEVICE and words[2] == "inet":
                address = words[3].partition("/")[0]
                if not address.startswith("127."):
                    found.append(address)
        self._own = sorted(set(found))
        self._own_read = time.monotonic()
        return self._own

    def _table(self) -> dict[VirtualKey, Present]:
        text = self._machine.call("proc", node=self.node, path="/proc/net/ip_vs")
        return read_table(text)

    def _sync(self, *, fresh: bool) -> None:
        began = time.monotonic()
        with self._programming:
            node = self._nodes.get("", self.node) or {"metadata": {}}
            goal = wanted(
                *self._known_in_time(),
                node=self.node,
                zone=(node["metadata"].get("labels") or {}).get(ZONE),
                node_addresses=self._own_addresses(fresh=fresh),
                scheduler=self._scheduler,
            )
            for change in list(self.bend.values()):
                change(goal)
            self._program_addresses(goal, fresh=fresh)
            self._program_table(goal)
            self._goal = goal
        self._statistics.record(time.monotonic() - began)
        # Until the slower half is done, the metrics must say that a change is not programmed yet.
        self._report_metrics()
        self._queue.add("finish", COALESCE)

    def _finish(self) -> None:
        """The slower half of a sync: what forks programs in the guest, and the HTTP answers.

        On a busy host it waits for the next table, whose delay would cost connections.
        """
        with self._programming:
            goal = self._goal
            self._program_rules(goal)
            self._serve_checks(goal)
            self._statistics.finish()
            self._report()
        self.synced.set()

    def _program_addresses(self, goal: Wanted, *, fresh: bool) -> None:
        want = {f"{address}/32" for address in goal.addresses}
        if want == self._bound and not fresh:
            return
        present = self._machine.call("addresses", node=self.node, device=DEVICE)
        have = {entry for entry in present if ":" not in entry}
        if want != have:
            self._machine.call(
                "addresses",
                node=self.node,
                device=DEVICE,
                add=sorted(want - have),
                remove=sorted(have - want),
            )
        self._bound = want

    def _program_table(self, goal: Wanted) -> None:
        present = self._table()
        lines: list[str] = []
        for key, virtual in goal.virtuals.items():
            service = f"{OPTION[key[0]]} {key[1]}:{key[2]}"
            options = f"-s {virtual.scheduler}"
            if virtual.persistence is not None:
                options += f" -p {virtual.persistence}"
            have = present.get(key)
            if have is None:
                lines.append(f"-A {service} {options}")
                have = Present(virtual.scheduler, False)
            elif (
                have.scheduler != virtual.scheduler
                or have.persistent != (virtual.persistence is not None)
                or self._persistence.get(key, virtual.persistence) != virtual.persistence
            ):
                lines.append(f"-E {service} {options}")
            self._persistence[key] = virtual.persistence
            lines += self._server_lines(key, service, virtual.servers, have)
        for key in present:
            if key not in goal.virtuals:
                # There is no graceful way for a whole virtual server.
                lines.append(f"-D {OPTION[key[0]]} {key[1]}:{key[2]}")
                self._persistence.pop(key, None)
        self._restore(lines)

    def _server_lines(
        self, key: VirtualKey, service: str, servers: dict[Server, int], have: Present
    ) -> list[str]:
        lines = []
        for server, weight in servers.items():
            target = f"{service} -r {server[0]}:{server[1]}"
            now = have.servers.get(server)
            if now is None:
                lines.append(f"-a {target} -m -w {weight}")
            elif self._ending.pop((key, server), None) is not None and weight:
                # The original deletes and adds it again, which can cut its connections.
                lines += [f"-d {target}", f"-a {target} -m -w {weight}"]
            elif now[0] != weight:
                lines.append(f"-e {target} -m -w {weight}")
        for server, (weight, connections) in have.servers.items():
            if server in servers or (key, server) in self._ending:
                continue
            target = f"{service} -r {server[0]}:{server[1]}"
            if key[0] != "TCP" or connections == 0 or self.abrupt:
                lines.append(f"-d {target}")
                continue
            if weight:
                lines.append(f"-e {target} -m -w 0")
            self._ending[(key, server)] = time.monotonic()
        return lines

    def _sweep(self) -> None:
        """Remove the real servers in graceful termination that have no connections left.

        An abrupt proxy removes the others too.
        """
        with self._programming:
            if not self._ending:
                return
            table = self._table()
            lines = []
            for key, server in list(self._ending):
                virtual = table.get(key)
                now = virtual.servers.get(server) if virtual else None
                if now is None:
                    del self._ending[(key, server)]
                elif now[1] == 0 or self.abrupt:
                    option = f"{OPTION[key[0]]} {key[1]}:{key[2]}"
                    lines.append(f"-d {option} -r {server[0]}:{server[1]}")
                    del self._ending[(key, server)]
            self._restore(lines)

    def _restore(self, lines: list[str]) -> None:
        if not lines:
            return
        answer = self._machine.call("ipvs_restore", node=self.node, lines=lines)
        for error in answer.get("errors") or []:
            log.warning("proxy of %s: %s: %s", self.node, error.get("text"), error.get("message"))

    def _program_rules(self, goal: Wanted) -> None:
        changes = proxy_rules.set_changes(self._sets, goal.sets)
        if changes:
            self._run_restore("ipset", ["ipset", "-exist", "restore"], changes)
            self._sets = {name: set(members) for name, members in goal.sets.items()}
        text = proxy_rules.rules(goal.sets, self._cidr)
        if text != self._rules:
            first = not self._rules
            lines = (text + (proxy_rules.jumps() if first else "")).splitlines()
            self._run_restore("iptables", ["iptables-restore", "--noflush", "-w"], lines)
            self._rules = text

    def _run_restore(self, what: str, argv: list[str], lines: list[str]) -> None:
        answer = self._machine.call(
            "exec", node=self.node, argv=argv, stdin="\n".join([*lines, ""]), timeout=60
        )
        if answer["rc"]:
            raise HandError("exec", f"{what} on {self.node}: {answer['err'].strip()}")

    def _serve_checks(self, goal: Wanted) -> None:
        for port, (service, ready) in goal.health_checks.items():
            routes = proxy_http.check_routes(service, ready)
            if port not in self._checks:
                self._machine.call(
                    "http_serve", node=self.node, port=port, address="0.0.0.0", routes=routes
                )
            elif self._checks[port] != (service, ready):
                self._machine.call("http_update", node=self.node, port=port, routes=routes)
        for port in set(self._checks) - set(goal.health_checks):
            self._machine.call("http_stop", node=self.node, port=port)
        self._checks = dict(goal.health_checks)

    def _report_metrics(self) -> None:
        self._machine.call(
            "http_update",
            node=self.node,
            port=proxy_http.METRICS_PORT,
            routes=proxy_http.metrics_routes(self._statistics, self._config, self._version),
        )

    def _report(self) -> None:
        self._report_metrics()
        self._machine.call(
            "http_update",
            node=self.node,
            port=proxy_http.HEALTH_PORT,
            routes=proxy_http.health_routes(self._statistics.last, healthy=True),
        )
