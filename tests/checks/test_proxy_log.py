"""KP-03 and kube-proxy's log: what its lines say, and what it means that there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from evidence_builder import details, healthy, on_node, proxy_objects, tripped, unmeasured
from faults_proxy import JSON_LOG
from proxy_builder import objects, proxied

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects

NO_LOG = "no log of kube-proxy is under /var/log"
NO_PROCESS = "no process is named kube-proxy"
LAB = {"details.proxy_log": NO_LOG, "details.proxy_command": NO_PROCESS}


def unread(evidence: Evidence, reasons: Mapping[str, str], **more: Any) -> Evidence:
    """node-2's details without the log, and why."""
    evidence = on_node(evidence, lambda old: replace(old, unread=reasons))
    return details(evidence, proxy_log=None, **more)


def like_the_lab(evidence: Evidence) -> Evidence:
    """Neither a log, nor a process, nor a pod of kube-proxy; but its metrics."""
    evidence = objects(evidence, replace(proxy_objects(), pods=()))
    return unread(evidence, LAB, proxy_command=None)


@pytest.mark.parametrize(
    "reason", ["grep ended with status 2", "the time limit on the node ended the reading", NO_LOG]
)
def test_a_log_that_was_not_read_is_no_pass(reason: str) -> None:
    evidence = unread(healthy(), {"details.proxy_log": reason})
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {"KP-03": {"details.proxy_log"}})
    (lack,) = run_check("KP-03", evidence).not_measured
    assert (lack.node, lack.reason) == ("node-2", reason)


def test_k3s_keeps_its_log_where_nobody_reads_it() -> None:
    evidence = objects(healthy(), ProxyObjects())
    evidence = unread(
        evidence, {"details.proxy_log": NO_LOG}, proxy_command=("/usr/local/bin/k3s", "server")
    )
    (lack,) = run_check("KP-03", evidence).not_measured
    assert lack.reason == NO_LOG


def test_where_nothing_writes_a_log_the_counters_and_tables_tell() -> None:
    evidence = like_the_lab(healthy())
    found = run_check("KP-03", evidence)
    assert (found.findings, found.not_measured) == ((), ())


def without_table(old: NodeFacts) -> NodeFacts:
    return replace(old, table=None)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: proxied(e, metrics={}),
        lambda e: on_node(e, without_table),
        lambda e: objects(e, proxy_objects()),
        lambda e: objects(e, ProxyObjects(unread={"proxy_objects.pods": "forbidden"})),
        lambda e: objects(e, None),
        lambda e: on_node(e, lambda old: replace(old, unread={**LAB, "details.proxy_log": "?"})),
        lambda e: on_node(
            e, lambda old: replace(old, unread={**LAB, "details.proxy_command": "?"})
        ),
    ],
    ids=["metrics", "table", "a pod", "pods unread", "objects unread", "log unread", "process"],
)
def test_what_does_not_tell_instead_of_a_log(change: Callable[[Evidence], Evidence]) -> None:
    lacks = run_check("KP-03", change(like_the_lab(healthy()))).not_measured
    assert ("node-2", "details.proxy_log") in {(one.node, one.fact) for one in lacks}


def test_details_that_nobody_read_are_no_pass() -> None:
    evidence = on_node(healthy(), lambda old: replace(old, details=None))
    (lack,) = run_check("KP-03", evidence).not_measured
    assert (lack.fact, lack.reason) == ("details.proxy_log", "the node's details were not read")


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        (JSON_LOG, True),
        (JSON_LOG.removeprefix("E0000 "), True),
        # Cut short, as the node does with long lines.
        (JSON_LOG[:80], True),
        # An hour and more before the newest readings, which are of 1970 here.
        (JSON_LOG.replace("1795225000000.1", "-1"), True),
        (JSON_LOG.replace("1795225000000.1", "1000.5"), False),
        (JSON_LOG.replace("ipvs/proxier.go", "config/config.go"), False),
        (JSON_LOG.replace("Failed to execute", "Can't set sysctl"), False),
    ],
)
def test_lines_in_json_count_like_others(line: str, counts: bool) -> None:
    evidence = details(healthy(5000.0, 5300.0), proxy_log=(line,))
    # What was written after the reading is as young as can be.
    assert bool(run_check("KP-03", evidence).findings) == counts
