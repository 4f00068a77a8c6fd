"""CP: how much room is left in conntrack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, silent_nodes, views, why_unread
from pytest_ipvs.checks.values import number_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot

MAX = "net.netfilter.nf_conntrack_max"
COUNT = "net.netfilter.nf_conntrack_count"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
# Both mean that a packet was thrown away: no room, or a tuple that another connection has.
_LOSSES = ("insert_failed", "drop")


def conntrack_room(evidence: Evidence) -> Said:
    """conntrack has room left, and lost nothing since the run began.

    nf_conntrack_max is one number for the host, the count is that of the node's network
    namespace; the kernel compares just these two. The counters of losses are compared with those
    of the run's first reading. Where nf_conntrack is not loaded nothing is judged.
    """
    check = "CP-01"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        limit = number_of(check, view, MAX)
        count = number_of(check, view, COUNT)
        lacks = [one for one in (limit, count) if isinstance(one, NotMeasured)]
        yield from lacks
        if limit is None and count is None:
            continue
        if isinstance(limit, int) and isinstance(count, int) and limit > 0:
            yield from _fill(check, view, count, limit)
        yield from _losses(check, evidence, view)
        full = detail(check, evidence, view, "table_full")
        if isinstance(full, NotMeasured):
            yield full
        elif full > 0:
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object="kernel log",
                observed="nf_conntrack: table full",
                expected="no such line",
                reason="new connections were dropped since the node booted, because conntrack had "
                "no room",
                remedy=f"raise conntrack.maxPerCore in kube-proxy's configuration, or {MAX}",
                evidence=f"{full} lines",
            )


def _fill(check: str, view: NodeView, count: int, limit: int) -> Iterator[Finding]:
    share = 100 * count / limit
    for name, severity in _FILL:
        bound = view.policy.threshold(name)
        if share >= bound:
            yield Finding(
                check=check,
                severity=severity,
                node=view.name,
                object=COUNT,
                observed=f"at least {bound:g} % of {MAX}",
                expected=f"less than {view.policy.threshold('conntrack_warn'):g} %",
                reason="when the table is full, every new connection is dropped",
                remedy=f"raise conntrack.maxPerCore in kube-proxy's configuration, or {MAX}; look "
                "for what opens so many connections",
                evidence=f"{count} of {limit}",
            )
            return


_FILL: tuple[tuple[str, Severity], ...] = (("conntrack_fail", "fail"), ("conntrack_warn", "warn"))


def _losses(check: str, evidence: Evidence, view: NodeView) -> Iterator[Finding | NotMeasured]:
    if not view.facts.conntrack:
        reason = why_unread(view.facts, "conntrack", "the node has no /proc/net/stat/nf_conntrack")
        yield NotMeasured(check=check, node=view.name, fact="conntrack", reason=reason)
        return
    first = _first_counters(evidence, view)
    if first is None:
        reason = "a counter tells only by what it grew since an earlier reading, and there is none"
        yield NotMeasured(check=check, node=view.name, fact="a later reading", reason=reason)
        return
    allowed = view.policy.threshold("conntrack_losses")
    for name in _LOSSES:
        now = view.facts.conntrack.get(name, 0)
        before = first.conntrack.get(name, 0)
        # A node that booted in between counts from 0: all that it lost, it lost since then.
        grown = now - before if now >= before else now
        if grown > allowed:
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object=f"conntrack counter {name}",
                observed="grew during the run",
                expected=f"at most {allowed:g} more",
                reason="each of these is a packet that was dropped, and a connection that waits "
                "for it to be sent again",
                remedy="see conntrack -S; check CP-01's other findings, --random-fully of "
                "MASQUERADE, and the clients' port ranges",
                evidence=f"{grown} more in {view.facts.taken_at - first.taken_at:.0f} s",
            )


def _first_counters(evidence: Evidence, view: NodeView) -> NodeFacts | None:
    """The oldest reading of a node's counters that is older than its newest."""
    readings: tuple[Snapshot, ...] = evidence.snapshots
    if evidence.baseline is not None:
        readings = (evidence.baseline, *readings)
    for reading in readings:
        facts = reading.facts.get(view.name)
        if facts is not None and facts.conntrack and facts.taken_at < view.facts.taken_at:
            return facts
    return None


def conntrack_buckets(evidence: Evidence) -> Said:
    """The hash table of conntrack is not too small for its limit.

    kube-proxy writes a quarter of the limit to the module's hashsize; in a container that may
    not write /sys it can't.
    """
    check = "CP-02"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        limit, buckets = number_of(check, view, MAX), number_of(check, view, BUCKETS)
        yield from (one for one in (limit, buckets) if isinstance(one, NotMeasured))
        if not isinstance(limit, int) or not isinstance(buckets, int):
            continue
        per_bucket = view.policy.threshold("conntrack_per_bucket")
        # kube-proxy rounds down.
        if buckets < int(limit / per_bucket):
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object=BUCKETS,
                observed=f"{buckets} for a limit of {limit}",
                expected=f"at least {int(limit / per_bucket)}",
                reason="long chains in conntrack's table cost time for each packet",
                remedy=f"echo {int(limit / per_bucket)} > /sys/module/nf_conntrack/parameters/"
                "hashsize",
            )


_CHECK = Check(
    id="CP-01",
    title="conntrack has room and loses nothing",
    group="CP",
    severity="fail",
    permission="node",
    needs=frozenset({"sysctls", "conntrack", "details.table_full"}),
    source="Linux nf_conntrack-sysctl.rst; kubernetes/kubernetes #18604",
    run=conntrack_room,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="CP-02",
        title="conntrack's hash table fits its limit",
        severity="warn",
        needs=frozenset({"sysctls"}),
        source="kube-proxy pkg/proxy/conntrack/sysctls.go",
        run=conntrack_buckets,
    ),
)
