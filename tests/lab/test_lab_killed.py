"""What is taken away in the middle of a run on a real cluster: never a pass, nothing left behind.

The same with a cluster in memory: ``tests/rollout/test_killed.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ipvs.cluster import Cluster
from pytest_ipvs.lab.client import DEPLOYMENTS, LEASES, NAMESPACES
from pytest_ipvs.rollout import Rollout, Workload, remove_stale

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]
OURS = "pytest-ipvs-"
# Two clients would share an emulated processor.
WORDS = (
    *("--ipvs-allow-disruption", "--ipvs-rate", "25", "--ipvs-baseline", "7"),
    *("-k", "test_rolling_restart", "--ipvs-settle", "120"),
)
# [p]: not the program that looks.
LEFT = (
    "'grep -ls [p]ytest-ipvs- /proc/[0-9]*/cmdline; ls -d /tmp/[p]ytest-ipvs-* 2>/dev/null; true'"
)
# Longer ago than any of our leases lasts.
LONG_AGO = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    with lab.cluster(
        ipvs_client=lab.handle.client,
        ipvs_allow_disruption=True,
        ipvs_rate="25",
        ipvs_baseline="5",
        ipvs_settle="5",
    ) as opened:
        yield opened


@contextmanager
def restarted(cluster: Cluster) -> Iterator[Rollout]:
    """A run whose restart is complete; it ends, and all that it made, with the block."""
    with Workload(cluster) as web, Rollout(cluster, web) as run:
        run.restart()
        yield run


def is_clean(lab: RunningLab) -> bool:
    """Whether nothing of ours is left: no namespace, lease, process or file."""
    return not namespaces(lab) and not leases(lab) and not lab.ssh("client", "sh", "-c", LEFT)


def namespaces(lab: RunningLab) -> list[str]:
    names = [item["metadata"]["name"] for item in lab.api.list_all(NAMESPACES)[0]]
    return [name for name in names if name.startswith(OURS)]


def leases(lab: RunningLab) -> list[str]:
    found = [item["metadata"]["namespace"] for item in lab.api.list_all(LEASES)[0]]
    return [namespace for namespace in found if namespace.startswith(OURS.rstrip("-"))]


def reasons_of(run: Rollout, words: str) -> list[str]:
    """The reasons of a run that did not pass, those with these words."""
    assert run.verdict == "inconclusive", run.evidence
    return [reason for reason in run.reasons if words in reason]


def gaps(run: Rollout, what: str) -> bool:
    assert run._recorder is not None
    return any(gap.what == what for gap in run._recorder.timeline().gaps)


def test_the_client_is_killed(
    lab: RunningLab, cluster: Cluster, eventually: Callable[..., Any]
) -> None:
    with restarted(cluster) as run:
        main = run._main
        assert main is not None
        lab.ssh("client", "kill", "-9", str(main._pid))
        eventually(lambda: not main.running, "the client's end")
    assert reasons_of(run, "died before its end")
    eventually(lambda: is_clean(lab), "a clean cluster")


def test_the_nodes_ssh_is_killed(
    lab: RunningLab, cluster: Cluster, eventually: Callable[..., Any]
) -> None:
    with restarted(cluster) as run:
        lab.handle.fault("node_unreachable", "node-1")
        eventually(lambda: gaps(run, "node-1"), "the gap")
    assert reasons_of(run, "gap in the record: node-1 was not read")
    eventually(lambda: is_clean(lab), "a clean cluster")


def test_the_api_server_stands_still(
    lab: RunningLab, cluster: Cluster, eventually: Callable[..., Any]
) -> None:
    """It takes connections, and answers nobody: the worst way to be away."""
    with restarted(cluster) as run:
        os.kill(lab.handle.pid, signal.SIGSTOP)
        try:
            eventually(lambda: gaps(run, "API"), "the gap")
        finally:
            os.kill(lab.handle.pid, signal.SIGCONT)
    assert reasons_of(run, "gap in the record: API was not read")
    eventually(lambda: is_clean(lab), "a clean cluster")


@contextmanager
def suite_under_way(lab: RunningLab, eventually: Callable[..., Any]) -> Iterator[Any]:
    """The ready-made suite in a process of its own, its restart begun; yields process and name."""
    words = ["-m", "pytest", "--pyargs", "pytest_ipvs.conformance", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [sys.executable, *words, *lab.words, *WORDS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets programs in the background ignore Ctrl-C, and they hand that on to theirs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            eventually(lambda: namespaces(lab), "the suite's namespace", 120)
            (name,) = namespaces(lab)
            eventually(lambda: restarting(lab, name), "the restart", 120)
            yield process, name
        finally:
            process.kill()


def restarting(lab: RunningLab, namespace: str) -> bool:
    web = lab.api.get(DEPLOYMENTS, namespace, "web")
    return web is not None and web["metadata"]["generation"] > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pytest_is_interrupted(
    lab: RunningLab, eventually: Callable[..., Any], number: signal.Signals
) -> None:
    with suite_under_way(lab, eventually) as (process, _):
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "passed" not in output.splitlines()[-1]
    eventually(lambda: is_clean(lab), "a clean cluster")


def test_pytest_is_killed(
    lab: RunningLab, cluster: Cluster, eventually: Callable[..., Any]
) -> None:
    with suite_under_way(lab, eventually) as (process, name):
        process.kill()
    # Nobody tells the client: it misses its heartbeat, and takes its files along.
    eventually(lambda: not lab.ssh("client", "sh", "-c", LEFT), "the client's end", 120)
    # The lease is fresh, so a run that lives may hold it.
    assert remove_stale(cluster.api) == []
    lab.api.patch(LEASES, name, "owner", {"spec": {"renewTime": LONG_AGO}})
    with Workload(cluster):
        assert name not in namespaces(lab) or is_ending(lab, name)
    eventually(lambda: is_clean(lab), "a clean cluster")


def is_ending(lab: RunningLab, namespace: str) -> bool:
    item = lab.api.get(NAMESPACES, None, namespace)
    return item is None or "deletionTimestamp" in item["metadata"]
