"""Why connections failed or were slow, as far as it can be told. Unknown is said as unknown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_ipvs.rollout.lookup import Entry
from pytest_ipvs.rollout.power import own_limit_share
from pytest_ipvs.rollout.result import clock_text, readings, resent_apart, unexplained
from pytest_ipvs.rollout.sent import Sent
from pytest_ipvs.rollout.sorting import Kind, Share, Sorter
from pytest_ipvs.rollout.sysctls import SysctlView, remedy_for, sysctl_views
from pytest_ipvs.rollout.timeline import ServerTrace, Timeline
from pytest_ipvs.traffic.results import Results, Sample, plural, spell

SHOWN = 3
EVENT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause: how many connections it explains, of which classes, and the explanation.

    ``nodes`` whose IPVS is concerned, ``pods`` that the connections went to or died too early (the
    address of a real server that is no pod's), ``example`` a connection, ``remedy`` commands or
    settings, one a line. ``decisive``: nodes said where the connections were sent; else it is what
    fits the times.
    """

    kind: Kind
    count: int
    classes: Mapping[str, int]
    text: str
    nodes: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    example: Sample | None = None
    sysctls: tuple[SysctlView, ...] = ()
    remedy: str = ""
    decisive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All causes, the one that explains most first."""

    causes: tuple[Cause, ...]

    @property
    def text(self) -> str:
        """The causes as readable text."""
        return "\n".join(cause.text for cause in self.causes)

    def __str__(self) -> str:
        return self.text


def diagnose(
    results: Results,
    timeline: Timeline,
    *,
    facts: Mapping[str, Any] | None = None,
    entries: Iterable[Entry] = (),
    policy: Any = None,
    affinity: bool = False,
) -> Diagnosis | None:
    """Join failures and slow connects with the record; ``None`` when there is nothing to explain.

    ``facts`` maps node names to ``NodeFacts``; ``entries`` are from `lookup.find_entries`.
    """
    facts = facts or {}
    sorter = Sorter(results, timeline, entries, affinity=affinity, facts=facts, policy=policy)
    found: dict[Kind, _Found] = {}
    for second in results.seconds:
        for share in sorter.sort_out(second):
            found.setdefault(share.kind, _Found()).add(share, second.t)
    writer = _Writer(results, timeline, facts, policy, sorter)
    failures = [writer.write(kind, what) for kind, what in found.items()]
    causes = [*failures, *writer.slow(), *writer.limits()]
    if not causes:
        return None
    causes.sort(key=_rank_among(causes))
    beside = results.resent - resent_apart(results, timeline)
    first = next((cause for cause in causes if cause in failures), None)
    exact = "; ".join([clock_text(results.clock_error), *readings(timeline)])
    return Diagnosis(
        causes=tuple(
            _ended(c, beside if c is first else 0, exact if c is causes[0] else "") for c in causes
        )
    )


def _ended(cause: Cause, beside: int, exact: str) -> Cause:
    """With what the text of each cause ends with: consequences, and how sure it is.

    ``exact``: how far its times may be off, which is said once.
    """
    text = cause.text
    if beside:
        text += f"\n  besides, {plural(beside, 'connect')} needed a resent SYN: on the tuple of a"
        text += " connection that had failed, around lost ones, without an endpoint, or by a client"
        text += " behind"
    if exact:
        text += f"\n  how exact the times are: {exact}"
    # The word that stays the same, for whoever looks for it in a report.
    text += f"\n  kind of cause: {cause.kind}"
    if cause.decisive:
        text += ", told by the nodes' connection entries"
    elif cause.pods:
        text += ", by what fits the times"
    return replace(cause, text=text)


def _rank_among(causes: Collection[Cause]) -> Callable[[Cause], tuple[Any, ...]]:
    """What explains most comes first. The client's own limits explain no failure, so they are last.

    Unknown explains nothing either, unless it is the largest of all.
    """
    most = max((c.count for c in causes if c.kind != "client_limit"), default=0)

    def rank(cause: Cause) -> tuple[Any, ...]:
        unknown = cause.kind == "unknown" and cause.count < most
        return cause.kind == "client_limit", unknown, -cause.count, not cause.decisive

    return rank


class _Found:
    """All that was found of one kind."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.pods: set[str] = set()
        self.times: set[int] = set()
        self.told = 0

    def add(self, share: Share, t: int) -> None:
        """A part of one second's failures."""
        self.classes += share.classes
        self.pods |= share.pods
        self.times.add(t)
        self.told += share.decisive * sum(share.classes.values())

    @property
    def decisive(self) -> bool:
        """Whether entries spoke for most of it."""
        return 2 * self.told > sum(self.classes.values())


class _Writer:
    """Finds the words for one kind of cause."""

    def __init__(
        self,
        results: Results,
        timeline: Timeline,
        facts: Mapping[str, Any],
        policy: Any,
        sorter: Sorter,
    ) -> None:
        self.sorter = sorter
        self.conduct = sorter.conduct
        self.results = results
        self.timeline = timeline
        self.facts = facts
        self.policy = policy
        self.zero = timeline.disrupted_at or timeline.started
        self.sent: dict[Sample, list[Sent]] = {}
        for sent in sorter.sent:
            self.sent.setdefault(sent.sample, []).append(sent)

    def write(self, kind: Kind, found: _Found) -> Cause:
        """The cause in words."""
        if kind in ("reuse_leftover", "template_sticks"):
            return self._leftover(kind, found)
        count = sum(found.classes.values())
        pods, times = tuple(sorted(found.pods)), found.times
        example = self._example(pods, times)
        text = f"{plural(count, 'connection')} failed ({spell(found.classes)}): "
        remedy = ""
        if kind == "pod_dies_early":
            text += "the application stopped before the nodes stopped sending it new connections."
            text += "".join(f"\n  {line}" for line in self._lives(pods))
            remedy = (
                "let the pod serve on after its deletion for longer than that: a preStop pause, "
                "within terminationGracePeriodSeconds"
            )
        elif kind == "stale_real_server":
            strange = any(self.timeline.pod_named(name) is None for name in pods)
            whom = "real servers that no endpoint has" if strange else "pods that had left"
            text += f"a node went on sending new connections to {whom}."
            text += "".join(f"\n  {line}" for line in self._lives(pods))
            remedy = (
                "look at kube-proxy on that node: its log, its /healthz on port 10256, and "
                "whether it still follows the API"
            )
        elif kind == "ready_before_listening":
            text += "a new pod was sent connections before its application listened."
            text += "".join(f"\n  {line}" for line in self._starts(pods))
            remedy = (
                "give the container a readinessProbe that asks the port which the Service targets"
            )
        elif kind == "readiness_lag":
            text += "a pod had stopped serving while its endpoint was still ready."
            text += "".join(f"\n  {line}" for line in self._silences(pods, times))
            remedy = (
                "let the readinessProbe notice sooner (periodSeconds 1, failureThreshold 1 or 2), "
                "and find out why the application stops (its log, restarts, memory limit)"
            )
        elif kind == "no_endpoints":
            text += "the Service had no ready endpoint."
            for start, end in self.timeline.no_endpoints:
                text += f"\n  from {start - self.zero:+.0f} s to {end - self.zero:+.0f} s"
            remedy = "keep replicas available: maxUnavailable 0, readiness probe, more replicas"
        elif kind == "client_starved":
            text += "the client itself had fallen behind, so they may be its own fault."
            remedy = "give the client's machine more processor time, or lower the rate"
        elif kind == "before_disruption":
            text += "they failed before anything was disrupted, so it is not the rollout's doing."
        else:
            text += "the cause is unknown; the record shows nothing that explains it."
            text += "".join(f"\n  {line}" for line in self._around(times))
        if example is not None:
            text += f"\n  example: {describe(example)}"
            text += "".join(f"\n{line}" for line in self._where_sent(example))
        if remedy:
            text += f"\n  remedy: {remedy}"
        return Cause(
            kind=kind,
            count=count,
            classes=dict(found.classes),
            text=text,
            pods=pods,
            example=example,
            remedy=remedy,
            decisive=found.decisive,
        )

    def _leftover(self, kind: Kind, found: _Found) -> Cause:
        affinity = kind == "template_sticks"
        count = sum(found.classes.values())
        pods = tuple(sorted(found.pods))
        example = self._example(pods, found.times)
        nodes = self._nodes(pods)
        views = tuple(
            view
            for node in nodes
            for view in sysctl_views(node, self.facts.get(node), self.policy, affinity=affinity)
        )
        what = "clients with session affinity" if affinity else "re-used tuples"
        whom = "a pod that was" if len(pods) == 1 else "pods that were"
        fate = f"IPVS went on sending {what} to {whom} on the way out or gone."
        lines = [f"{plural(count, 'connection')} failed ({spell(found.classes)}): {fate}"]
        if example is not None:
            lines.append(f"  example: {describe(example)}")
            lines += self._where_sent(example)
        lines += [f"  {line}" for line in self._lives(pods, nodes)]
        lines += [f"  {view}" for view in views]
        if nodes and not views:
            lines.append(f"  the sysctls of {', '.join(nodes)} were not read")
        if not nodes:
            lines.append("  no node's table had these real servers, so the node is not known")
        remedy = remedy_for(views, affinity=affinity)
        lines += [f"  remedy: {line}" for line in remedy.splitlines()]
        return Cause(
            kind=kind,
            count=count,
            classes=dict(found.classes),
            text="\n".join(lines),
            nodes=nodes,
            pods=pods,
            example=example,
            sysctls=views,
            remedy=remedy,
            decisive=found.decisive,
        )

    def _nodes(self, pods: tuple[str, ...]) -> tuple[str, ...]:
        """Nodes whose entries sent the tuples, else those whose old servers had connections."""
        sure = {sent.entry.node for sent in self.sorter.sent if sent.name in pods}
        if sure:
            return tuple(sorted(sure))
        traces = [pod for pod in self.timeline.pods if pod.name in pods]
        servers = [server for pod in traces for server in self.timeline.servers_of(pod)]
        busy = {s.node for s in servers if s.gone_at is None and s.active + s.inactive}
        return tuple(sorted(busy or {s.node for s in servers if s.gone_at is None}))

    def _where_sent(self, example: Sample) -> list[str]:
        return [
            f"  {sent.entry.node} holds it in state {sent.entry.connection.state} for "
            f"{sent.entry.connection.real}:{sent.entry.connection.real_port} ({whose(sent)})"
            for sent in self.sent.get(example, ())[:SHOWN]
        ]

    def _starts(self, pods: tuple[str, ...]) -> list[str]:
        """When new pods were sent connections, and when they answered."""
        lines = []
        for name in pods[:SHOWN]:
            since = self.conduct.in_service_since(name)
            first = self.conduct.first_answer(name)
            told = f"its first answer came at {first - self.zero:+.0f} s"
            if first == math.inf:
                told = "it never answered"
            lines.append(f"new pod {name}: a real server since {since - self.zero:+.1f} s, {told}")
        return lines

    def _silences(self, pods: tuple[str, ...], times: Collection[int]) -> list[str]:
        """What is known of pods that were endpoints and did not answer."""
        first, last = min(times) - self.zero, max(times) + 1 - self.zero
        whom = ", ".join(pods[:SHOWN])
        lines = [f"{whom}: no answer for a while between {first:+.0f} s and {last:+.0f} s"]
        for name in pods[:SHOWN]:
            pod = self.timeline.pod_named(name)
            if pod is not None and (pod.restarts or pod.stopped_at is not None):
                lines.append(f"{name}: its containers had restarted {pod.restarts} times")
        return lines + self._events(times)

    def _around(self, times: Collection[int]) -> list[str]:
        """What the record has of these seconds, for somebody who must find out by hand."""
        first, last = min(times), max(times) + 1
        lines = [f"between {first - self.zero:+.0f} s and {last - self.zero:+.0f} s"]
        lines += [str(g) for g in self.timeline.gaps if g.start < last and g.end > first]
        return lines + self._events(times)

    def _events(self, times: Collection[int]) -> list[str]:
        first, last = min(times) - EVENT_SECONDS, max(times) + EVENT_SECONDS
        told = [e for e in self.timeline.events if first <= e.at <= last and e.kind == "Warning"]
        return [f"event at {event.at - self.zero:+.0f} s: {event}" for event in told[:SHOWN]]

    def limits(self) -> list[Cause]:
        """The client's own limits, where they are too many to say nothing."""
        own, due = self.results.own_limits, self.results.due
        count = sum(own.values())
        if not due or count / due <= own_limit_share(self.policy):
            return []
        remedy = "run the client where it has more ports and processor time, or lower the rate"
        text = f"the client itself did not do what was planned for {count} of {due} connections: "
        text += spell(own)
        return [
            Cause(
                kind="client_limit",
                count=count,
                classes=dict(own),
                text=f"{text}\n  remedy: {remedy}",
                remedy=remedy,
            )
        ]

    def _lives(self, pods: tuple[str, ...], nodes: tuple[str, ...] = ()) -> list[str]:
        lines = [self._life(name, nodes) for name in pods[:SHOWN]]
        more = len(pods) - SHOWN
        return [*lines, f"and {more} more pods"] if more > 0 else lines

    def _life(self, name: str, nodes: tuple[str, ...]) -> str:
        pod = self.timeline.pod_named(name)
        if pod is None:
            parts = [f"real server {name}, which is no endpoint's"]
            servers = tuple(s for s in self.timeline.servers if s.address == name)
        else:
            parts = [f"{'old pod' if pod.old else 'pod'} {name} ({pod.address})"]
            servers = self.timeline.servers_of(pod)
            parts += [
                f"{what} at {when - self.zero:+.0f} s"
                for when, what in (
                    (pod.left_at, "left the endpoints"),
                    (pod.stopped_at, "stopped"),
                    (pod.gone_at, "was gone"),
                )
                if when is not None
            ]
        by_node: dict[str, dict[str, list[str]]] = {}
        for server in servers:
            if not nodes or server.node in nodes:
                told = by_node.setdefault(server.node, {})
                told.setdefault(self._service_life(server), []).append(str(server.key))
        for node, told in list(by_node.items())[:SHOWN]:
            # What is so for all virtual servers is said once.
            parts += [
                f"{node}: {words}" + (f" ({', '.join(sorted(keys))})" if len(told) > 1 else "")
                for words, keys in told.items()
            ]
        return "; ".join(parts)

    def _service_life(self, server: ServerTrace) -> str:
        """What became of one real server on one node."""
        words = []
        if server.weight_zero_at is not None:
            words.append(f"weight 0 at {server.weight_zero_at - self.zero:+.0f} s")
        if server.gone_at is not None:
            words.append(f"removed at {server.gone_at - self.zero:+.0f} s")
        else:
            since = "" if server.weight_zero_at is not None else f"weight {server.weight} and "
            words.append(f"{since}still there at {server.last_seen - self.zero:+.0f} s")
        return ", ".join(words)

    def _example(self, pods: tuple[str, ...], times: Collection[int]) -> Sample | None:
        """The newest failure of these seconds that says most."""
        failed = [sample for sample in self.results.failed if int(sample.t) in times]

        def tells(sample: Sample) -> tuple[bool, bool, float]:
            there = {sent.name for sent in self.sent.get(sample, ())}
            return not there.isdisjoint(pods), sample.previous_pod in pods, sample.t

        return max(failed, key=tells, default=None)

    def slow(self) -> list[Cause]:
        """Resent SYNs that nothing else explains."""
        results = self.results
        count = resent_apart(results, self.timeline)
        if not count:
            return []
        told = [s for s in results.slow_connects if s.previous_ending != "failed"]
        example = max(told, key=lambda s: s.resent, default=None)
        seconds = unexplained(results, self.timeline)
        resets = sum(second.resent_after.get("server_rst", 0) for second in seconds)
        text = f"{plural(count, 'connect')} needed a resent SYN, about 1 s each: "
        kind: Kind = "syn_dropped"
        if resets * 2 >= count:
            kind = "server_resets"
            text += (
                f"{resets} of them on a tuple whose last connection the application had ended "
                "with RST. With conn_reuse_mode 1 and vs.conntrack 1 the first SYN on such a "
                "tuple is dropped."
            )
            remedy = "let the application end its connections with FIN (no SO_LINGER 0)"
        else:
            text += "something on the way drops the first SYN."
            if told:
                reused = sum(1 for sample in told if sample.reused)
                text += f" {reused} of {len(told)} told in full re-used a tuple."
            remedy = (
                "look for rules that drop SYNs on the client's node (iptables, conntrack INVALID), "
                "and whether its kernel has the fix for re-used tuples (5.9, 4.19.140)"
            )
        if example is not None:
            text += f"\n  example: {describe(example)}"
        text += f"\n  remedy: {remedy}"
        return [
            Cause(
                kind=kind,
                count=count,
                classes={"slow": count},
                text=text,
                example=example,
                remedy=remedy,
            )
        ]


def whose(sent: Sent) -> str:
    """The pod that had the real server's address."""
    return f"pod {sent.name}" if sent.pod else "no endpoint's"


def describe(sample: Sample) -> str:
    """One connection in one line."""
    parts = [f"{sample.tuple_text}: {sample.name.replace('_', ' ')}"]
    if sample.errno:
        parts[0] += f" ({sample.errno})"
    if sample.connect_ms is not None and sample.kind == "slow":
        parts.append(f"connected after {sample.connect_ms:.0f} ms")
    if sample.resent:
        parts.append(f"{sample.resent} resent SYN")
    if sample.previous_pod:
        ago = f" {sample.t - sample.previous_at:.0f} s earlier" if sample.previous_at else ""
        parts.append(f"the same tuple was answered by {sample.previous_pod}{ago}")
    return ", ".join(parts)
