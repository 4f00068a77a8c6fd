"""Telling failures apart, second by second: which pod they have to do with, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_ipvs.rollout.conduct import Conduct
from pytest_ipvs.rollout.lookup import Entry
from pytest_ipvs.rollout.sent import NEVER_ANSWERED, Sent, destinations
from pytest_ipvs.rollout.sysctls import may_follow
from pytest_ipvs.rollout.timeline import Timeline
from pytest_ipvs.traffic.results import FAILURES, TIMEOUTS, Results, Second

Kind = Literal[
    "reuse_leftover",
    "template_sticks",
    "stale_real_server",
    "pod_dies_early",
    "ready_before_listening",
    "readiness_lag",
    "no_endpoints",
    "before_disruption",
    "client_starved",
    "client_limit",
    "server_resets",
    "syn_dropped",
    "unknown",
]
NEAR = 2
"""Seconds around a failure in which others of its class may speak for it."""

CONFINED = 0.7
"""Of the tuples that a removed pod had answered, this part must fail to say that they follow it
while another explanation is there."""

Guess = tuple[Kind, set[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Failures of one second that have one cause. ``decisive``: a node's entries told it."""

    kind: Kind
    classes: Counter[str]
    pods: frozenset[str] = frozenset()
    decisive: bool = False


class Sorter:
    """Sorts the failures of each second. ``entries``: see `lookup.find_entries`.

    ``facts`` (node name to ``NodeFacts``) tell whether a node can have sent re-used tuples to a
    real server that was out of service.
    """

    def __init__(
        self,
        results: Results,
        timeline: Timeline,
        entries: Iterable[Entry],
        *,
        affinity: bool,
        facts: Mapping[str, Any],
        policy: Any = None,
    ) -> None:
        entries = tuple(entries)
        self.timeline = timeline
        self.affinity = affinity
        self.starved = results.starved_seconds
        self.conduct = Conduct(results, timeline, (entry.node for entry in entries))
        self.sent = destinations(results, timeline, entries)
        self._told: dict[tuple[int, str], Counter[tuple[Kind, str]]] = {}
        for sent in self.sent:
            if kind := self._kind_of(sent):
                key = (int(sent.sample.t), sent.sample.name)
                self._told.setdefault(key, Counter())[kind, sent.name] += 1
        self._proven = {proven for told in self._told.values() for proven in told}
        nodes = self.conduct.nodes or {server.node for server in timeline.servers}
        may = {may_follow(facts.get(node), policy, affinity=affinity) for node in nodes}
        # What was seen is possible, whatever the settings say.
        seen = any(kind == self._out_of_service for kind, _ in self._proven)
        self._may_follow = True if seen or True in may else False if may == {False} else None

    @property
    def _out_of_service(self) -> Kind:
        return "template_sticks" if self.affinity else "reuse_leftover"

    def _kind_of(self, sent: Sent) -> Kind | None:
        """What a pod did to a connection that a node had sent there; ``None`` if not clear."""
        sample, pod, conduct = sent.sample, sent.pod, self.conduct
        t = int(sample.t)
        if pod is None:
            return "stale_real_server"
        # A tuple follows the pod that it had; where answers name no pods, that may be any.
        own = sample.reused and sample.previous_pod in (pod.name, "")
        if conduct.was_out(pod, sent.entry.node, sample.t):
            return self._out_of_service if own or self.affinity else None
        if pod.name in conduct.never_left(sample.t):
            return "stale_real_server"
        if conduct.has_died(pod, sample.t):
            return "pod_dies_early"
        # A SYN that is sent again may have been scheduled anew: the entry is the last one's.
        if sample.name in NEVER_ANSWERED or (sample.name in TIMEOUTS and t in self.starved):
            return None
        if conduct.listens_later(pod, t):
            return "ready_before_listening"
        # Only a port without a listener refuses. Anything else a pod may do while it serves.
        refused = sample.name == "refused" and conduct.is_back_later(pod, t)
        return "readiness_lag" if refused or conduct.is_silent(pod.name, t) else None

    def sort_out(self, second: Second) -> list[Share]:
        """The failures by cause, with the pods they have to do with."""
        failures = Counter({k: v for k, v in second.classes.items() if k in FAILURES and v})
        if not failures:
            return []
        at = second.t + 0.5
        began = self.timeline.disrupted_at
        if began is None or at < began - 1.0:
            return [Share(kind="before_disruption", classes=failures)]
        if self.conduct.nothing_there(at) and not second.classes.get("ok"):
            return [Share(kind="no_endpoints", classes=failures)]
        shares = self._shares_told(second.t, failures)
        for share in shares:
            failures -= share.classes
        return shares + (self._guess(second, at, failures) if failures else [])

    def _shares_told(self, t: int, failures: Counter[str]) -> list[Share]:
        """What nodes' entries tell of this second, else of the seconds around it."""
        parts: dict[Kind, Counter[str]] = {}
        pods: dict[Kind, set[str]] = {}
        for name, number in failures.items():
            told = self._told.get((t, name)) or sum(
                (self._told.get((t + d, name), Counter()) for d in range(-NEAR, NEAR + 1)),
                Counter(),
            )
            kinds: Counter[Kind] = Counter()
            for (kind, pod), count in told.items():
                kinds[kind] += count
                pods.setdefault(kind, set()).add(pod)
            for kind, count in split(number, kinds).items():
                parts.setdefault(kind, Counter())[name] += count
        return [
            Share(kind=kind, classes=classes, pods=frozenset(pods[kind]), decisive=True)
            for kind, classes in parts.items()
        ]

    def _guess(self, second: Second, at: float, failures: Counter[str]) -> list[Share]:
        """What fits by the times, where no node told anything."""
        shares = []
        followed = self._followed(second, at, failures)
        leftover = min(sum(failures.values()), sum(second.failed_after[n] for n in followed))
        if leftover:
            part = _part(failures, leftover)
            failures = failures - part
            shares.append(Share(kind=self._out_of_service, classes=part, pods=frozenset(followed)))
        timeouts = Counter({name: failures[name] for name in TIMEOUTS if failures[name]})
        if timeouts and second.t in self.starved:
            shares.append(Share(kind="client_starved", classes=timeouts))
            failures = failures - timeouts
        if failures:
            kind, pods = self._best_guess(second.t, at)
            shares.append(Share(kind=kind, classes=failures, pods=frozenset(pods)))
        return shares

    def _followed(self, second: Second, at: float, failures: Counter[str]) -> set[str]:
        """Pods out of service that had answered tuples which fail now, because of that."""
        if self._may_follow is False:
            return set()
        found = {
            name
            for name, since in self.conduct.quiesced.items()
            if second.failed_after.get(name) and at >= since - 0.5
        }
        if found and (self.conduct.late_at(at) or self.conduct.silent_at(second.t)):
            if self._may_follow is None:
                return set()
            failed = sum(second.failed_after[name] for name in found)
            tried = sum(second.reused_after.get(name, 0) for name in found)
            others = sum(failures.values()) - failed
            if failed < CONFINED * tried or others > failed / 4:
                return set()
        return found

    def _best_guess(self, t: int, at: float) -> Guess:
        conduct = self.conduct
        if conduct.nothing_there(at):
            return "no_endpoints", set()
        early = conduct.dead_at(at)
        sure = any(conduct.surely_early(name, at) for name in early)
        fitting: list[Guess] = [
            ("stale_real_server", conduct.never_left(at) | conduct.strange_at(at)),
            ("pod_dies_early", early if sure else set()),
            ("ready_before_listening", conduct.late_at(at)),
            ("readiness_lag", conduct.silent_at(t)),
            ("pod_dies_early", early),
        ]
        if self.affinity and self._may_follow is not False:
            fitting.append(("template_sticks", {n for n, s in conduct.left.items() if s <= at}))
        fitting = [(kind, pods) for kind, pods in fitting if pods]
        # What entries have proven of a pod at another moment goes before what merely fits.
        proven = [g for g in fitting if any((g[0], pod) in self._proven for pod in g[1])]
        return next(iter(proven or fitting), ("unknown", set()))


def split(number: int, weights: Counter[Kind]) -> Counter[Kind]:
    """``number`` shared out by weights, in whole parts, by largest remainders."""
    whole = sum(weights.values())
    if not whole:
        return Counter()
    parts = Counter({kind: number * weight // whole for kind, weight in weights.items()})
    rests = sorted(weights, key=lambda kind: (-(number * weights[kind] % whole), kind))
    for kind in rests[: number - sum(parts.values())]:
        parts[kind] += 1
    return +parts


def _part(failures: Counter[str], number: int) -> Counter[str]:
    """``number`` of the failures: which class each one had is not kept by tuple."""
    part: Counter[str] = Counter()
    for name, count in failures.most_common():
        taken = min(count, number - sum(part.values()))
        if taken > 0:
            part[name] = taken
    return part
