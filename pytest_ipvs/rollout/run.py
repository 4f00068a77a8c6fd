"""A scripted disruption under traffic, from the first connection to the verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from pytest_ipvs.rollout.cause import diagnose
from pytest_ipvs.rollout.errors import DisruptionNotAllowed, RolloutError
from pytest_ipvs.rollout.lookup import Entry
from pytest_ipvs.rollout.probe import probe
from pytest_ipvs.rollout.protocols import ClusterLike, Say, silent
from pytest_ipvs.rollout.recorder import Recorder, Sources
from pytest_ipvs.rollout.result import Result, StaleServer
from pytest_ipvs.rollout.scenarios import Scenarios
from pytest_ipvs.rollout.tables import TableReader, wait_programmed
from pytest_ipvs.rollout.target import Target, find_target
from pytest_ipvs.rollout.timeline import Timeline
from pytest_ipvs.rollout.trace import PortWatch, Tracer
from pytest_ipvs.rollout.verdict import baseline_problem, judge
from pytest_ipvs.rollout.ways import Way, parse, remarks
from pytest_ipvs.traffic.placement import Place, place
from pytest_ipvs.traffic.plan import Plan, address_text
from pytest_ipvs.traffic.results import Results
from pytest_ipvs.traffic.run import TrafficError, TrafficRun

SAY_SECONDS = 10.0
FRESH_PART = 0.1
"""The pace of the client with fresh ports, as a part of the main client's."""

WAY_PART = 0.5
"""The pace of the clients on further ways, as a part of the main client's."""


class Rollout(Scenarios):
    """``with Rollout(cluster, "shop/web") as run: run.restart()``; afterwards ``run.result``.

    Entering starts recorder and client and lets ``baseline`` seconds pass. Inside the block the
    methods of `Scenarios` (`restart`, `scale`, `drain`, …) change it, each until it is complete.
    Leaving the block lets ``settle`` seconds pass, looks for causes, stops everything and judges.

    ``target`` is "namespace/deployment" or a `Workload`. ``rate``, ``ports``, ``baseline``,
    ``settle`` and ``client`` (see `place`) default to the settings. ``avoid`` names nodes on which
    no client may be, such as one to drain. ``fresh_ports`` adds a slow client whose ports the
    kernel chooses; by default where the Service has affinity. ``timeout`` seconds are given to each
    disruption. ``plan`` takes further fields of `Plan`. ``also`` names further ways to the pods,
    each with a client of its own, as "VIA" or "VIA@CLIENT" ("node-port", "node-port@local",
    "192.0.2.7:80"); see `through`.
    """

    def __init__(
        self,
        cluster: ClusterLike,
        target: Any,
        *,
        service: str | None = None,
        port: int | str | None = None,
        via: str = "cluster-ip",
        rate: float | None = None,
        ports: int | None = None,
        baseline: float | None = None,
        settle: float | None = None,
        client: str | None = None,
        avoid: Sequence[str] = (),
        fresh_ports: bool | None = None,
        also: Sequence[str] = (),
        timeout: float = 300.0,
        progress: Say = silent,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        settings = cluster.settings
        self._cluster = cluster
        self._wanted = str(getattr(target, "target", target))
        self._service = service or getattr(target, "service", None)
        self._port, self._via = port, via
        self._rate = settings.rate if rate is None else rate
        self._ports = settings.source_ports if ports is None else ports
        self._baseline = settings.baseline if baseline is None else baseline
        self._settle = settings.settle if settle is None else settle
        self._client = client
        self._avoid = tuple(avoid)
        self._fresh_ports = fresh_ports
        self._timeout = timeout
        self._say = progress
        self._plan = dict(plan or {})
        self._also = {way: parse(way) for way in also}
        self._ways: dict[str, Way] = {}
        self._through: dict[str, Result] = {}
        self._client_node: str | None = None
        self._tracer: Tracer | None = None
        self._watches: dict[str, PortWatch] = {}  # by way, "" is the main client's
        self._abandoned = False
        self._unfinished: list[str] = []
        self._doubts: list[str] = []
        self._stack = ExitStack()
        self._main: TrafficRun | None = None
        self._fresh: TrafficRun | None = None
        self._recorder: Recorder | None = None
        self._target: Target | None = None
        self._where = ""
        self._result: Result | None = None
        self.pause: Callable[[float], None] = wait_seconds

    def __enter__(self) -> Rollout:
        if not self._cluster.settings.allow_disruption:
            raise DisruptionNotAllowed(f"a rollout of {self._wanted}")
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        there = place(self._cluster, self._client, avoid=self._avoid)
        self._target = target = self._find(self._via, there)
        self._where, self._client_node = there.label, there.node
        wait_programmed(
            self._cluster,
            target,
            timeout=self._cluster.settings.converge_timeout,
            say=self._say,
            pause=self.pause,
        )
        self._recorder = recorder = Recorder(self._sources(target))
        recorder.start()
        self._stack.callback(recorder.stop)
        recorder.begin("baseline")
        fields = {
            "host": target.address,
            "port": target.address_port,
            "slow_ms": self._cluster.policy.slow_connect_ms,
            **self._plan,
        }
        pace = {"rate": self._rate, "ports": self._ports}
        self._main = TrafficRun(there.host, Plan(**{**pace, **fields}), where=there.label)
        # Half the pace over half the ports: they come back after as many seconds.
        ports = max(1, round(self._ports * WAY_PART)) if self._ports else 0
        slower = {"rate": max(1.0, self._rate * WAY_PART), "ports": ports}
        for name, (via, client_name) in self._also.items():
            self._add_way(name, via, client_name, dict(slower))
        affinity = target.service.affinity_timeout is not None
        if affinity if self._fresh_ports is None else self._fresh_ports:
            slow = {"rate": max(1.0, self._rate * FRESH_PART), "ports": 0}
            self._fresh = TrafficRun(there.host, Plan(**{**fields, **slow}), where=there.label)
        self._start_clients([self._main] if self._fresh is None else [self._main, self._fresh])
        told = f"{self._rate:g} connections a second over {self._ports or 'free'} ports"
        self._say(f"{target}: {told} from {there.label} to {self._main.plan.target}")
        self._wait("baseline", self._baseline)
        if problem := self._baseline_problem():
            raise RolloutError(f"{target} through {self._main.plan.target}: {problem}")
        for way in self._ways.values():
            if not way.problem and (problem := self._baseline_problem(way.client)):
                way.problem = f"{target} through {way.client.plan.target}: {problem}"
                self._say(f"{way.problem}, from {way.place.label}: this way is not measured")
                way.client.abort()
        nodes = [node.name for node in self._cluster.nodes]
        main = Way(name="", target=target, place=there, client=self._main)
        for way in (main, *self._ways.values()):
            if not way.problem and (watch := way.watch_ports(self._cluster.pool, nodes)):
                self._watches[way.name] = watch
        watches = tuple(self._watches.values())
        self._tracer = Tracer(self._cluster.pool, nodes, self._seen, watches)
        self._stack.callback(self._tracer.stop)
        self._tracer.start()

    def _start_clients(self, needed: list[TrafficRun]) -> None:
        """Start all clients side by side: shipping and starting one takes seconds on a slow node.

        Those of the other ways may fail: then that way is not measured.
        """
        ways = self._ways.values()
        clients = [*needed, *(way.client for way in ways)]
        for client in clients:
            self._stack.callback(client.abort)
        with ThreadPoolExecutor(len(clients)) as beside:
            main = [beside.submit(client.start) for client in needed]
            others = [(way, beside.submit(way.client.start)) for way in ways]
            try:
                wait((*main, *(start for _, start in others)))
            except BaseException:
                # Ctrl-C: leaving the block waits for all of them.
                for client in clients:
                    client.give_up()
                raise
        for way, start in others:
            try:
                start.result()
            except TrafficError as error:
                way.problem = str(error)
        for start in main:
            start.result()

    def _find(self, via: str, there: Place) -> Target:
        nodes = sorted(self._cluster.nodes, key=lambda node: (node.name != there.node, node.name))
        addresses = [ip for node in nodes for ip in node.internal_ips]
        return find_target(
            self._cluster.api,
            self._wanted,
            service=self._service,
            port=self._port,
            via=via,
            node_address=addresses[0] if addresses else None,
        )

    def _add_way(self, name: str, via: str, client: str | None, fields: dict[str, Any]) -> None:
        there = place(self._cluster, client or self._client, avoid=self._avoid)
        target = self._find(via, there)
        fields |= {"host": target.address, "port": target.address_port}
        fields |= {"slow_ms": self._cluster.policy.slow_connect_ms, **self._plan}
        run = TrafficRun(there.host, Plan(**fields), where=there.label)
        self._ways[name] = Way(name=name, target=target, place=there, client=run)

    def _seen(self) -> list[tuple[Results, str, int]]:
        """What each client saw so far, and where it goes."""
        assert self._main is not None
        clients = [self._main, *(w.client for w in self._ways.values() if not w.problem)]
        return [(c.results(), c.plan.host, c.plan.port) for c in clients]

    def _baseline_problem(self, client: TrafficRun | None = None) -> str:
        """Why the target must not be disrupted; the client speaks once a second, so it may take."""
        client = client or self._main
        assert client is not None
        deadline = time.monotonic() + client.plan.connect_timeout + 2 * client.plan.tick
        while problem := baseline_problem(client.refresh()):
            if time.monotonic() > deadline or not client.running:
                break
            self.pause(0.2)
        return problem

    def _sources(self, target: Target) -> Sources:
        cluster = self._cluster
        api = cluster.api
        tables = TableReader(cluster, target)
        self._stack.callback(tables.close)
        path, query = target.slices_list(api)
        return Sources(
            pods=lambda: target.pods(api),
            slices=lambda: target.slices(api),
            tables=tables,
            watches={
                "pods": lambda: api.watch(target.pods_path, labelSelector=target.selector),
                "slices": lambda: api.watch(path, **query),
                "events": lambda: api.watch(target.events_path),
            },
            slices_of=lambda item: target.slices_in(api, item),
            about=target.name,
        )

    def _wait(self, phase: str, seconds: float) -> None:
        """Let time pass and tell of it; a dead client ends it early."""
        assert self._main is not None
        end = time.monotonic() + seconds
        told = time.monotonic()
        while (left := end - time.monotonic()) > 0 and self._main.running:
            if time.monotonic() - told >= SAY_SECONDS:
                told = time.monotonic()
                results = self.results
                self._say(
                    f"{self.target}: {phase}, {left:.0f} s to go, {results.connections} "
                    f"connections, {sum(results.failures.values())} failures"
                )
            self.pause(min(left, 0.5))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None and not self._abandoned:
                self._finish()

    def _finish(self) -> None:
        assert self._main is not None
        assert self._recorder is not None
        if self._recorder.timeline().disrupted_at is None:
            self._recorder.begin("settle")
        self._wait("settling", self._settle)
        self._main.refresh()
        assert self._tracer is not None
        # Before the client stops: entries of failed tuples live for a minute at most.
        self._tracer.finish()
        entries = self._tracer.entries
        # Each waits until its last connections are judged; none has to wait for the others.
        ways = {way.name: way.client for way in self._ways.values() if not way.problem}
        with ThreadPoolExecutor(2 + len(ways)) as beside:
            stopping = {name: beside.submit(client.stop) for name, client in ways.items()}
            ending = beside.submit(self._fresh.stop) if self._fresh is not None else None
            main = self._main.stop()
            fresh = ending.result() if ending else None
            others = {name: stop.result() for name, stop in stopping.items()}
        self._recorder.read_tables()
        self._recorder.stop()
        results = main if fresh is None else Results.merge((main, fresh))
        seen = (results, *others.values())
        needed = self._released or any(part.failures or part.resent for part in seen)
        facts = self._facts() if needed else {}
        timeline = self._recorder.timeline()
        target = self.target
        self._through = {
            name: self._judge(self._ways[name].target, part, None, timeline, facts, entries)
            for name, part in others.items()
        }
        for name, part in self._through.items():
            self._say(f"{target} through {name}: {part.verdict}")
        self._result = self._judge(target, results, fresh, timeline, facts, entries)
        self._say(f"{target}: {self._result.verdict}, {results.connections} connections")

    def _judge(
        self,
        target: Target,
        results: Results,
        fresh: Results | None,
        timeline: Timeline,
        facts: Mapping[str, Any],
        entries: tuple[Entry, ...],
    ) -> Result:
        policy = self._cluster.policy
        way = next((w for w in self._ways.values() if w.target is target), None)
        watch = self._watches.get(way.name if way else "")
        unseen = watch.reason if watch else ""
        verdict, reasons = judge(results, timeline, policy, fresh=fresh, unseen=unseen)
        if self._unfinished:
            # Who catches the error of a disruption must not get a pass for what did not happen.
            reasons = (*reasons, f"not complete: {', '.join(self._unfinished)}")
            verdict = "inconclusive" if verdict == "passed" else verdict
        if self._doubts:
            reasons = (*reasons, *self._doubts)
            verdict = "inconclusive" if verdict == "passed" else verdict
        affinity = target.service.affinity_timeout is not None
        own = tuple(e for e in entries if e.connection.virtual_port == target.address_port)
        return Result(
            target=str(target),
            address=address_text(target.address, target.address_port),
            results=results,
            timeline=timeline,
            verdict=verdict,
            reasons=reasons,
            drain_budget=policy.drain_budget,
            affinity=affinity,
            fresh=fresh,
            cause=diagnose(
                results, timeline, facts=facts, entries=own, policy=policy, affinity=affinity
            ),
            client=way.place.label if way else self._where,
            probe=probe(results, timeline, facts, self._released) if self._released else None,
            remarks=remarks(
                way.client if way else self._main, watch, () if way else self._ways.values()
            ),
        )

    def _facts(self) -> Mapping[str, Any]:
        try:
            facts: Mapping[str, Any] = self._cluster.snapshot().facts
        except Exception as error:  # explaining must not cost the result
            self._say(f"the nodes' sysctls were not read: {error}")
            return {}
        return facts

    @property
    def target(self) -> Target:
        """The Deployment and its Service."""
        if self._target is None:
            raise RolloutError("the run has not begun: use it as 'with ... as run'")
        return self._target

    @property
    def entry_nodes(self) -> tuple[str, ...]:
        """Nodes whose tables carry the main client's traffic, most of it first; () if unknown."""
        # A node's own address is virtual on that node alone, wherever the client is.
        entered = tuple(
            node.name for node in self._cluster.nodes if self.target.address in node.internal_ips
        )
        return entered or super().entry_nodes or _pods_nodes(self._main)

    @property
    def client_nodes(self) -> frozenset[str]:
        """Nodes with a client of this run, of whatever way."""
        places = {self._client_node, *(way.place.node for way in self._ways.values())}
        return self.client_pod_nodes | {name for name in places if name}

    @property
    def client_pod_nodes(self) -> frozenset[str]:
        """Nodes with a client that is a pod of a Job."""
        others = (way.client for way in self._ways.values() if not way.problem)
        clients = (self._main, self._fresh, *others)
        return frozenset(name for client in clients for name in _pods_nodes(client))

    @property
    def results(self) -> Results:
        """What the clients saw up to now, or to the end."""
        if self._result is not None:
            return self._result.results
        return Results.merge(c.results() for c in (self._main, self._fresh) if c is not None)

    def abandon(self) -> None:
        """Let the run end without a result when its block is left: there is nothing to judge."""
        self._abandoned = True

    @property
    def over(self) -> bool:
        """Whether the run has not begun or has ended."""
        return self._recorder is None or self._result is not None

    def through(self, way: str) -> Result:
        """The result of one of the ways of ``also``.

        Raises `RolloutError` where its client never got an answer, before anything was disrupted.
        """
        self._ended()
        if way not in self._ways:
            raise RolloutError(f"there is no way {way!r}, expected one of {', '.join(self._ways)}")
        if problem := self._ways[way].problem:
            raise RolloutError(problem)
        return self._through[way]

    @property
    def result(self) -> Result | None:
        """The result, once the block has ended without an error."""
        return self._result

    def _ended(self) -> Result:
        if self._result is None:
            raise RolloutError("the run has no result before its with block has ended")
        return self._result

    @property
    def verdict(self) -> str:
        """ "passed", "failed" or "inconclusive"."""
        return self._ended().verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not "passed"."""
        return self._ended().reasons

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed connections by class; empty when all is well."""
        return self._ended().failures

    @property
    def slow_connects(self) -> tuple[Any, ...]:
        """Samples of connects that were slow or needed a resent SYN."""
        return self._ended().slow_connects

    @property
    def reused_tuples(self) -> int:
        """Re-used tuples since the last old pod left."""
        return self._ended().reused_tuples

    @property
    def bound(self) -> float | None:
        """The failure rate that zero failures exclude with 95 % confidence."""
        return self._ended().bound

    @property
    def share_of_new_pods(self) -> float | None:
        """The part of the answers that new pods gave since they were ready."""
        return self._ended().share_of_new_pods

    @property
    def timeline(self) -> Timeline:
        """What the recorder saw."""
        return self._ended().timeline

    @property
    def evidence(self) -> str:
        """Numbers, timeline and cause as text."""
        return self._ended().evidence

    def stale_real_servers(self, after: float | None = None) -> tuple[StaleServer, ...]:
        """See `Result.stale_real_servers`."""
        return self._ended().stale_real_servers(after)


def _pods_nodes(client: TrafficRun | None) -> tuple[str, ...]:
    """The nodes of a client that is a Job's pods."""
    return tuple(getattr(client, "nodes", ()))


def wait_seconds(seconds: float) -> None:
    """Let time pass."""
    threading.Event().wait(seconds)
