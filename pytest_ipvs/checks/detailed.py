"""The moment at which a node's details were read, and whether kube-proxy was at rest then.

Details are read once per run, so that time can't tell a lasting difference from the lag of a
sync. A difference in rules or sets counts only if nothing was about to change it:

* the Service is equal in the API before and after the reading (it is not *moving*),
* the node's table has no difference at that moment that concerns the Service or its address,
* kube-proxy's metrics say that a whole sync has run since the last change was queued. It writes
  sets and rules at the end of a sync, after the table: an equal table alone proves nothing.

Where one of these can't be shown, the difference is told as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pytest_ipvs.checks.findings import NotMeasured
from pytest_ipvs.checks.metrics import SYNC, by_family, samples, total
from pytest_ipvs.checks.model import Evidence
from pytest_ipvs.checks.nodes import NodeView, rules_of, why_unread
from pytest_ipvs.cluster.expectation import differences_of, node_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.compare import Difference
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_sets import used_families

_QUEUED = f"{SYNC}last_queued_timestamp_seconds"
_SYNCED = f"{SYNC}last_timestamp_seconds"
_DURATION = f"{SYNC}duration_seconds"
_LONG = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Why a difference may be mere lag, and the fact that would tell."""

    fact: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One node at the moment its details were read.

    ``differences`` are those of its table; ``None`` where it was not read. ``families`` are those
    in use. ``starting`` says that kube-proxy has not finished its first sync, ``restless`` why it
    may not have been at rest.
    """

    snapshot: Snapshot
    facts: NodeFacts
    node: Node
    rules: ProxyRules
    families: tuple[str, ...]
    differences: tuple[Difference, ...] | None
    starting: Doubt | None
    restless: Doubt | None

    def doubt(self, service: str, place: str) -> Doubt | None:
        """Why a difference of a Service ("" for none) at an address or port may be mere lag."""
        moving = self.snapshot.moving
        if (service in moving) if service else moving:
            return Doubt(fact="a later reading", reason="the Service changed while it was read")
        if self.differences is None:
            why = why_unread(self.facts, "table", "the module ip_vs is not loaded")
            return Doubt(fact="table", reason=why)
        for item in self.differences:
            if item.kind == "foreign":
                continue
            if (service and item.service == service) or place in (
                item.key.address,
                str(item.key.port),
            ):
                return Doubt(fact="a later reading", reason="the node's table differed as well")
        return self.restless


def moment(check: str, evidence: Evidence, view: NodeView) -> Moment | NotMeasured:
    """The moment at which the node's details were read; computed once for all checks."""
    memo: dict[str, Moment | NotMeasured] = evidence.memo.setdefault("moments", {})
    if view.name not in memo:
        memo[view.name] = _moment(evidence, view)
    found = memo[view.name]
    if isinstance(found, NotMeasured):
        return NotMeasured(check=check, node=view.name, fact=found.fact, reason=found.reason)
    return found


def _moment(evidence: Evidence, view: NodeView) -> Moment | NotMeasured:
    for snapshot in evidence.snapshots:
        facts = snapshot.facts.get(view.name)
        if facts is not None and facts.details is not None:
            break
    else:
        reason = "the node's details were not read"
        return NotMeasured(check="", node=view.name, fact="details", reason=reason)
    # Where kube-proxy did not say itself how it is configured, the view knows it from elsewhere.
    facts = replace(facts, proxy=replace(view.facts.proxy, metrics=facts.proxy.metrics))
    node = node_of(snapshot, view.name)
    rules = rules_of("", facts, node, snapshot.server_version)
    if isinstance(rules, NotMeasured):
        return rules
    differences = None
    if facts.table is not None:
        differences, _ = differences_of(snapshot, facts, rules, view.policy)
    return Moment(
        snapshot=snapshot,
        facts=facts,
        node=node,
        rules=rules,
        families=used_families(snapshot.services, rules, node),
        differences=differences,
        starting=_starting(facts.proxy.metrics),
        restless=_restless(facts),
    )


def _starting(metrics: Mapping[str, float]) -> Doubt | None:
    if any(at <= 0 for at in by_family(metrics, _SYNCED).values()):
        return Doubt(fact="a later reading", reason="kube-proxy had not synced yet")
    return None


def _restless(facts: NodeFacts) -> Doubt | None:
    """Why kube-proxy may have had something left to program.

    A sync that was at work when a change came in does not take it, but ends after it. So the last
    sync must have ended later than a change by the time that the longest of them took.
    """
    metrics = facts.proxy.metrics
    synced = by_family(metrics, _SYNCED)
    if not synced:
        return Doubt(
            fact="proxy.metrics",
            reason=why_unread(facts, "proxy.metrics", "they do not say when kube-proxy synced"),
        )
    longest = _longest(metrics)
    for label, at in by_family(metrics, _QUEUED).items():
        if at and synced.get(label, 0.0) - at < longest:
            return Doubt(fact="a later reading", reason="kube-proxy may have had changes left")
    return _starting(metrics)


def _longest(metrics: Mapping[str, float]) -> float:
    """Seconds that no sync has outlasted; a long time where that is not known."""
    count = total(metrics, f"{_DURATION}_count")
    buckets: dict[float, float] = {}
    for labels, value in samples(metrics, f"{_DURATION}_bucket"):
        if "le" in labels:
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    enough = [bound for bound, value in buckets.items() if value >= count > 0]
    return min([_LONG, *enough])


def not_settled(check: str, node: str, what: str, doubt: Doubt, more: int = 0) -> NotMeasured:
    """The answer for differences that may be mere lag."""
    others = f" (and {more} more)" if more else ""
    return NotMeasured(
        check=check,
        node=node,
        fact=doubt.fact,
        reason=f"{what}: not judged, {doubt.reason}{others}",
    )
