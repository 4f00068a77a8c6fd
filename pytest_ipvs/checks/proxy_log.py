"""KP-03's part on kube-proxy's log: errors that nothing else tells, and logs that can't be had."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.metrics import SYNC
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import RESTART_PROXY, NodeView, detail

LOOK = (
    "kubectl -n kube-system logs POD, of the node's pod in kubectl -n kube-system get pods "
    "-l k8s-app=kube-proxy -o wide"
)
# The files whose errors mean that something was not programmed.
_SYNC_FILES = re.compile(
    r"\b(?:proxier|graceful_termination|ipset|ipvs_linux|netlink_linux|iptables|util_linux"
    r"|linux)\.go:\d+"
)
# Errors that say what a kernel lacks; the checks of groups SY and KM judge that.
_NO_SYNC = re.compile(r"Can't set sysctl|conn_reuse_mode|br-netfilter|deprecated", re.IGNORECASE)
_KLOG_TIME = re.compile(r"\b[EF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)")
# With --logging-format=json a line is an object, and its time milliseconds since 1970 (seconds in
# old releases). Such a line names no level: the mark before it says that it is an error.
_JSON_MARK = re.compile(r"E0000 (?=\{)")
_JSON_TIME = re.compile(r'"ts":(\d{1,15}(?:\.\d+)?)')
_FIRST_MILLISECONDS = 1e11
_YEAR = 366 * 86400.0
# How the node's reasons begin where there is nothing to read, unlike a reading that failed.
_NO_LOG = "no log of kube-proxy is under"
_NO_PROCESS = "no process is named kube-proxy"


def logged(check: str, evidence: Evidence, view: NodeView) -> Said:
    """Errors of syncs in a node's log of kube-proxy."""
    facts = evidence.detailed(view.name)
    lines = detail(check, evidence, view, "proxy_log")
    if isinstance(lines, NotMeasured):
        if not _metrics_tell(evidence, view):
            yield lines
        return
    now = facts.taken_at if facts is not None else view.facts.taken_at
    young = view.policy.threshold("proxy_trouble_age")
    errors = [
        line
        for line in lines
        if _SYNC_FILES.search(line) and not _NO_SYNC.search(line) and _age(line, now) <= young
    ]
    if errors:
        yield Finding(
            check=check,
            severity="fail",
            node=view.name,
            object="kube-proxy log",
            observed="errors of syncs",
            expected=f"none within {young:g} s",
            reason="what a sync fails to program is only logged: /healthz stays 200",
            remedy=f"{LOOK}; then {RESTART_PROXY}",
            evidence=f"{len(errors)} lines, the last: {one_line(_JSON_MARK.sub('', errors[-1]))}",
        )


def _metrics_tell(evidence: Evidence, view: NodeView) -> bool:
    """Whether there is nothing on the node that writes a log, and its syncs are counted instead.

    That is so where neither the node nor the API knows a process or a pod of kube-proxy, as in the
    embedded lab. The counters of KP-05 and the tables tell then what a sync failed to program.
    """
    facts, objects = evidence.detailed(view.name), evidence.proxy_objects
    if facts is None or objects is None or "proxy_objects.pods" in objects.unread:
        return False
    return (
        facts.unread.get("details.proxy_log", "").startswith(_NO_LOG)
        and facts.unread.get("details.proxy_command", "").startswith(_NO_PROCESS)
        and not any(pod.node == view.name for pod in objects.pods)
        and view.facts.table is not None
        and any(sample.startswith(SYNC) for sample in view.facts.proxy.metrics)
    )


def _age(line: str, now: float) -> float:
    """Seconds since a line was written; 0 where it does not say. klog writes no year."""
    if told := _JSON_TIME.search(line):
        at = float(told[1])
        return now - (at / 1000 if at >= _FIRST_MILLISECONDS else at)
    found = _KLOG_TIME.search(line)
    if found is None:
        return 0.0
    month, day, hour, minute, second = map(int, found.groups())
    year = datetime.fromtimestamp(now, UTC).year
    try:
        at = datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
    # A day ahead is a clock or a time zone; more than that is last year.
    return now - at if at <= now + 86400 else now - at + _YEAR


def one_line(text: str) -> str:
    """The beginning of a text, on one line."""
    return " ".join(text.split())[:300]
