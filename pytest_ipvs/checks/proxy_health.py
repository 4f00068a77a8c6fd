"""KP: kube-proxy's health, its syncs and its failures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.metrics import SYNC, at_least, by_family, total
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import (
    RESTART_PROXY,
    NodeView,
    rules_of,
    silent_nodes,
    views,
    why_unread,
)
from pytest_ipvs.checks.proxy_config import effective
from pytest_ipvs.checks.proxy_log import LOOK, logged, one_line
from pytest_ipvs.cluster.model import HttpAnswer, NodeFacts
from pytest_ipvs.ipvs.proxy import ProxyRules

_LIVEZ_SINCE = (1, 28)


def health(evidence: Evidence) -> Said:
    """kube-proxy is healthy, was not restarted lately, and logs no failed syncs.

    A node that is about to be deleted answers 503 for load balancers' sake: that is told, and no
    fault. Restarts warn only, as a reboot of the node counts as one. Errors in the log that are
    older than the policy's age, or not about syncing, don't count. A log that is kept elsewhere
    than under /var/log, as that of k3s, can't be read, so that nothing is known of its errors.
    Where the node has neither a log nor a process or pod of kube-proxy that would write one, its
    counters (KP-05) and the tables tell what its syncs failed to program.
    """
    check = "KP-03"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        yield from _healthz(check, view)
        yield from _restarts(check, evidence, view)
        yield from logged(check, evidence, view)


def _healthz(check: str, view: NodeView) -> Said:
    proxy = view.facts.proxy
    if proxy.healthz is None:
        config = view.config
        if config is not None and config.running and config.get("healthzBindAddress") == "":
            # Switched off: only the running configuration tells that from the default.
            return
        reason = why_unread(view.facts, "proxy.healthz", "kube-proxy's /healthz was not read")
        yield NotMeasured(check=check, node=view.name, fact="proxy.healthz", reason=reason)
        return
    status = proxy.healthz.status
    if status == 200:
        return
    alive = proxy.livez is not None and proxy.livez.status == 200
    told = _body(proxy.healthz)
    if alive or (told.get("nodeEligible") is False and told.get("healthy") is not False):
        yield _unhealthy(
            check,
            view,
            "info",
            f"/healthz answers {status}: the node gets no traffic of load balancers",
            "it is being deleted or has the taint ToBeDeletedByClusterAutoscaler; kube-proxy "
            "itself is well and says so on purpose",
            "nothing to do, or take the taint away",
        )
        return
    livez = _livez(view, proxy.livez)
    yield _unhealthy(
        check,
        view,
        "fail",
        f"/healthz answers {status}{livez}",
        "changes of Services have waited for longer than two sync periods, so the node's table "
        "falls behind",
        f"{LOOK}; then {RESTART_PROXY}",
    )


def _livez(view: NodeView, answer: HttpAnswer | None) -> str:
    """What /livez answers, in words; "" where the release has none."""
    if answer is None:
        return ""
    rules = rules_of("", view.facts, view.node)
    since = isinstance(rules, NotMeasured) or rules.number[:2] >= _LIVEZ_SINCE
    return f", /livez {answer.status}" if since or answer.status != 404 else ""


def _unhealthy(
    check: str, view: NodeView, severity: Severity, observed: str, reason: str, remedy: str
) -> Finding:
    return Finding(
        check=check,
        severity=severity,
        node=view.name,
        object="kube-proxy",
        observed=observed,
        expected="/healthz answers 200",
        reason=reason,
        remedy=remedy,
        evidence=one_line(view.facts.proxy.healthz.body) if view.facts.proxy.healthz else "",
    )


def _body(answer: HttpAnswer) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _restarts(check: str, evidence: Evidence, view: NodeView) -> Said:
    objects = evidence.proxy_objects
    if objects is None or "proxy_objects.pods" in objects.unread:
        reason = (
            objects.unread["proxy_objects.pods"]
            if objects is not None
            else "kube-proxy's objects were not read from the API"
        )
        yield NotMeasured(check=check, node=view.name, fact="proxy_objects.pods", reason=reason)
        return
    allowed = view.policy.threshold("proxy_restarts")
    young = view.policy.threshold("proxy_trouble_age")
    for pod in objects.pods:
        if pod.node != view.name or pod.restarted_at is None or pod.restarts <= allowed:
            continue
        age = evidence.last.taken_at - pod.restarted_at
        if age <= young:
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object="kube-proxy pod",
                observed=f"restarted within the last {young:g} s",
                expected=f"at most {allowed:g} restarts, or none as young",
                reason="a kube-proxy that restarts programs nothing meanwhile, and forgets which "
                "real servers drain",
                remedy="kubectl -n kube-system logs -p POD, or wait if the node was rebooted",
                evidence=f"{pod.name}: {pod.restarts} restarts, the last {age:.0f} s ago",
            )


def syncs(evidence: Evidence) -> Said:
    """kube-proxy's syncs are quick and regular, and no change waits for one.

    An idle kube-proxy syncs once per syncPeriod, so an old sync is a fault; not in 1.34.0 to
    1.34.3 and 1.35.0, which sync once an hour when nothing changes. Where the configuration was
    not read, a sync that is older than the default allows is not judged. A change that was queued
    after the last sync must wait itself before it counts, however old that sync is.
    """
    check = "KP-04"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        rules = rules_of(check, view.facts, view.node, evidence.last.server_version)
        if isinstance(rules, NotMeasured):
            yield rules
        elif lack := _no_metrics(check, view):
            yield lack
        else:
            yield from _slow(check, view)
            waits = list(_waiting(check, evidence, view, rules))
            yield from waits or _pending(check, evidence, view)


def _no_metrics(check: str, view: NodeView) -> NotMeasured | None:
    if any(sample.startswith(SYNC) for sample in view.facts.proxy.metrics):
        return None
    reason = why_unread(view.facts, "proxy.metrics", "kube-proxy's /metrics was not read")
    return NotMeasured(check=check, node=view.name, fact="proxy.metrics", reason=reason)


def _slow(check: str, view: NodeView) -> Said:
    limit = view.policy.threshold("sync_duration_p99")
    found = at_least(view.facts.proxy.metrics, f"{SYNC}duration_seconds", 0.99)
    for family, seconds in sorted(found.items()):
        if seconds >= limit:
            yield _sync_finding(
                check,
                view,
                family,
                "sync duration, 99th percentile",
                f"more than {limit:g} s",
                f"at most {limit:g} s",
                "while a sync runs, removed pods still get new connections and new pods get none",
                "give kube-proxy and the node more processor time, or have fewer Services",
                f"above {seconds:g} s",
            )


def _waiting(check: str, evidence: Evidence, view: NodeView, rules: ProxyRules) -> Said:
    metrics = view.facts.proxy.metrics
    queued_by = by_family(metrics, f"{SYNC}last_queued_timestamp_seconds")
    allowed = view.policy.threshold("sync_queue_age")
    now = _node_clock(view.facts)
    for family, last in sorted(by_family(metrics, f"{SYNC}last_timestamp_seconds").items()):
        queued = queued_by.get(family, 0.0)
        held = _held(evidence, view, partial(_unmoved, family, last))
        if queued > last:
            behind = _held(evidence, view, partial(_behind, family, last))
            waited = max(behind, now - queued if now is not None else 0.0)
            if waited > allowed:
                yield _sync_finding(
                    check,
                    view,
                    family,
                    "changes that wait for a sync",
                    f"for longer than {allowed:g} s",
                    f"programmed within {allowed:g} s",
                    "the node's table does not follow the API",
                    f"{LOOK}; then {RESTART_PROXY}",
                    f"queued {waited:.0f} s ago, the last sync is {queued - last:.0f} s older",
                )
                continue
        if not last or rules.hourly_resync:
            continue
        age = max(held, now - last if now is not None else 0.0)
        if age > rules.sync_lag and (lack := _period_unknown(check, view)):
            yield lack
            return
        if age > rules.sync_lag:
            yield _sync_finding(
                check,
                view,
                family,
                "age of the last sync",
                f"more than {rules.sync_lag:g} s",
                f"at most {rules.sync_lag:g} s, two sync periods",
                "kube-proxy repairs nothing any more and may have stopped",
                f"{LOOK}; then {RESTART_PROXY}",
                f"{age:.0f} s",
            )
        elif now is None:
            reason = "/healthz tells no time of the node, and the readings are too near together"
            yield NotMeasured(
                check=check,
                node=view.name,
                fact="proxy.healthz",
                reason=why_unread(view.facts, "proxy.healthz", reason),
            )
            return


def _period_unknown(check: str, view: NodeView) -> NotMeasured | None:
    """That nobody told how long kube-proxy may go without a sync, where that is so."""
    config = effective(check, view)
    if isinstance(config, NotMeasured):
        return config
    for key in ("ipvs.syncPeriod", "ipvs.minSyncPeriod"):
        if key in config.unknown:
            reason = f"{key} is set to a value that the {config.source} does not show"
            return NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)
    return None


def _unmoved(family: str, last: float, metrics: Mapping[str, float]) -> bool:
    return by_family(metrics, f"{SYNC}last_timestamp_seconds").get(family, 0.0) == last


def _behind(family: str, last: float, metrics: Mapping[str, float]) -> bool:
    queued = by_family(metrics, f"{SYNC}last_queued_timestamp_seconds").get(family, 0.0)
    return queued > last and _unmoved(family, last, metrics)


def _pending(check: str, evidence: Evidence, view: NodeView) -> Said:
    names = [f"{SYNC}{kind}_changes_pending" for kind in ("endpoint", "service")]
    metrics = view.facts.proxy.metrics
    lasts = by_family(metrics, f"{SYNC}last_timestamp_seconds")
    waited = _held(
        evidence,
        view,
        lambda m: (
            sum(total(m, name) for name in names) > 0
            and by_family(m, f"{SYNC}last_timestamp_seconds") == lasts
        ),
    )
    allowed = view.policy.threshold("sync_queue_age")
    if waited > allowed:
        count = sum(total(metrics, name) for name in names)
        yield _sync_finding(
            check,
            view,
            "",
            "changes that wait for a sync",
            f"pending for longer than {allowed:g} s",
            f"programmed within {allowed:g} s",
            "the node's table does not follow the API",
            f"{LOOK}; then {RESTART_PROXY}",
            f"{count:g} pending for at least {waited:.0f} s",
        )


def _held(
    evidence: Evidence, view: NodeView, holds: Callable[[Mapping[str, float]], bool]
) -> float:
    """Seconds for which something is known to hold: over the newest readings in a row."""
    since = None
    for one in reversed(evidence.snapshots):
        facts = one.facts.get(view.name)
        if facts is None or not facts.proxy.metrics:
            continue
        if not holds(facts.proxy.metrics):
            break
        since = facts.taken_at
    return 0.0 if since is None else view.facts.taken_at - since


_CLOCK = re.compile(
    r'"currentTime": *"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)? ?(Z|[+-]\d\d:?\d\d)'
)


def _node_clock(facts: NodeFacts) -> float | None:
    """The node's own time (Unix seconds) at the reading: the metrics' times are of that clock."""
    found = _CLOCK.search(facts.proxy.healthz.body) if facts.proxy.healthz is not None else None
    if found is None:
        return None
    date, clock, fraction, zone = found.groups()
    try:
        at = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        return None
    return at.timestamp() + float(fraction or 0)


def _sync_finding(
    check: str,
    view: NodeView,
    family: str,
    what: str,
    observed: str,
    expected: str,
    reason: str,
    remedy: str,
    evidence: str,
) -> Finding:
    return Finding(
        check=check,
        severity="warn",
        node=view.name,
        object=f"kube-proxy {what}{f' ({family})' if family else ''}",
        observed=observed,
        expected=expected,
        reason=reason,
        remedy=remedy,
        evidence=evidence,
    )


_FAILURES = f"{SYNC}iptables_restore_failures_total"


def restore_failures(evidence: Evidence) -> Said:
    """No iptables-restore of kube-proxy failed since the run began.

    A counter that a restart has set back counts from 0. From 1.33 on it is only there once a
    restore has failed, so its absence beside other metrics means none.
    """
    check = "KP-05"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        if lack := _no_metrics(check, view):
            yield lack
            continue
        before = next(_earlier(evidence, view), None)
        if before is None:
            reason = "there is one reading only: growth needs an earlier one"
            yield NotMeasured(check=check, node=view.name, fact="a later reading", reason=reason)
            continue
        was, now = before.proxy.metrics, view.facts.proxy.metrics
        count = f"{SYNC}duration_seconds_count"
        restarted = total(now, count) < total(was, count)
        failed = total(now, _FAILURES)
        if not restarted and failed >= total(was, _FAILURES):
            failed -= total(was, _FAILURES)
        if failed > 0:
            seconds = view.facts.taken_at - before.taken_at
            yield Finding(
                check=check,
                severity="fail",
                node=view.name,
                object="kube-proxy iptables-restore",
                observed="failures",
                expected="none since the run began",
                reason="masquerading and source ranges of Services stay as they were before",
                remedy=f"{LOOK}: it names the rule; another program that holds the xtables lock "
                "or an iptables too old are the usual causes",
                evidence=f"{failed:g} failures in {seconds:.0f} s",
            )


def _earlier(evidence: Evidence, view: NodeView) -> Iterator[NodeFacts]:
    first = (evidence.baseline,) if evidence.baseline is not None else ()
    for one in (*first, *evidence.snapshots[:-1]):
        facts = one.facts.get(view.name)
        if facts is not None and facts.proxy.metrics and facts.taken_at < view.facts.taken_at:
            yield facts


CHECKS = (
    Check(
        id="KP-03",
        title="kube-proxy is healthy, was not restarted and logs no failed syncs",
        group="KP",
        severity="fail",
        permission="proxy",
        needs=frozenset({"proxy.healthz", "proxy_objects", "details.proxy_log"}),
        source="kube-proxy pkg/proxy/healthcheck/proxy_health.go; KEP-3836",
        run=health,
    ),
    Check(
        id="KP-04",
        title="kube-proxy's syncs are quick and regular, and no change waits",
        group="KP",
        severity="warn",
        permission="proxy",
        needs=frozenset({"proxy.metrics", "proxy.healthz", "proxy.config", "proxy.version"}),
        source="kube-proxy pkg/proxy/metrics/metrics.go; kubernetes/kubernetes issue 134147",
        run=syncs,
    ),
    Check(
        id="KP-05",
        title="no iptables-restore of kube-proxy fails",
        group="KP",
        severity="fail",
        permission="proxy",
        needs=frozenset({"proxy.metrics"}),
        source="kube-proxy pkg/proxy/metrics/metrics.go",
        run=restore_failures,
    ),
)
