"""Under pytest-xdist the controller reaches and reads the cluster, and workers are told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.turns import Turns

pytestmark = pytest.mark.system

pytest.importorskip("xdist")

Run = Callable[..., pytest.RunResult]

TWO_WORKERS = ("-p", "xdist", "-n", "2")
COUNTING = """
import os, pathlib

read = FakeCluster.snapshot

def snapshot(self, nodes=None, **options):
    pathlib.Path("read").mkdir(exist_ok=True)
    pathlib.Path("read", str(os.getpid())).touch()
    return read(self, nodes, **options)

FakeCluster.snapshot = snapshot
"""


def test_workers_do_not_read_again(cluster_run: Run, pytester: pytest.Pytester) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.ipvs_requires(mode="ipvs")
        @pytest.mark.ipvs_sysctl({"net.ipv4.vs.conntrack": 1})
        def test_it(ipvs_node): assert ipvs_node.name
        """,
        *TWO_WORKERS,
        subprocess=True,
        conftest=COUNTING,
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["ipvs: 3 nodes: node-1, node-2, node-3"])
    assert len(list(Path(pytester.path, "read").iterdir())) == 1


def test_rows_come_from_workers(cluster_run: Run) -> None:
    result = cluster_run(
        "",
        "--pyargs",
        "pytest_ipvs.conformance",
        "-k",
        "SY or KP",
        *TWO_WORKERS,
        subprocess=True,
        world="sysctls={'node-1': {'net.ipv4.vs.conntrack': '0'}}",
    )
    others = sum(name.startswith(("SY", "KP")) for name in CATALOGUE) - 1
    result.assert_outcomes(passed=others, failed=1)
    result.stdout.fnmatch_lines(
        [
            "SY-04  failed *3 of 3*node-1: net.ipv4.vs.conntrack: 0",
            f"{others + 1} checks: 1 failed, {others} passed",
        ]
    )


WRONG = """
import pytest

@pytest.mark.ipvs_nodes(rol="x")
@pytest.mark.parametrize("number", range(4))
def test_it(number): open("ran", "w").close()

def test_other(): open("ran", "w").close()
"""


@pytest.mark.parametrize("cluster", [(), ("--ipvs-kubeconfig", "config")])
@pytest.mark.parametrize("dist", ["load", "loadscope", "worksteal"])
def test_wrong_marker_is_one_sentence(
    cluster_run: Run, pytester: pytest.Pytester, cluster: tuple[str, ...], dist: str
) -> None:
    options = (*TWO_WORKERS, "--dist", dist)
    result = cluster_run(WRONG, *options, subprocess=True, cluster=cluster)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    sentence = "marker ipvs_nodes got the unknown argument 'rol', expected role, selector, names *"
    assert len([line for line in result.errlines if line.strip()]) == 1
    result.stderr.fnmatch_lines([f"ERROR: test_it.py:3: {sentence}"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert not Path(pytester.path, "ran").exists()


def test_one_disruption_at_a_time(cluster_run: Run, pytester: pytest.Pytester) -> None:
    result = cluster_run(
        """
        import os
        import pytest

        @pytest.mark.ipvs_disruptive
        @pytest.mark.parametrize("number", range(6))
        def test_it(number):
            for _ in range(300):
                os.mkdir("busy")  # fails if another test is at it
                os.rmdir("busy")
        """,
        *TWO_WORKERS,
        "--ipvs-allow-disruption",
        subprocess=True,
    )
    result.assert_outcomes(passed=6)


def test_turns_are_exclusive_and_removed() -> None:
    turns = Turns.make()
    inside: list[str] = []

    def other() -> None:
        with turns.taken():
            inside.append("other")

    thread = threading.Thread(target=other)
    with turns.taken():
        thread.start()
        inside.append("first")
    thread.join(30)
    assert inside == ["first", "other"]
    turns.remove()
    turns.remove()
    assert not Path(turns.path).exists()


def test_silent_node_is_told_by_each_worker_at_most_once(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(ipvs_node, number): pass
        """,
        *TWO_WORKERS,
        subprocess=True,
        world="silent={'node-2': 'no route to host'}",
    )
    outcomes = result.parseoutcomes()
    assert 1 <= outcomes["errors"] <= 2
    assert outcomes["errors"] + outcomes["skipped"] == 6
    assert outcomes["passed"] == 12
