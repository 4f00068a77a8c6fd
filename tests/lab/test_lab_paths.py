"""Single paths through the nodes' tables: all well on a healthy lab, and what breaks one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from lab_suite import EMULATED

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]
Run = Callable[[str], tuple[pytest.RunResult, dict[str, str]]]
ROW = re.compile(r"(DP-\d\d)  (not applicable|not measured|\w+)")


@pytest.fixture
def run(lab: RunningLab, pytester: pytest.Pytester) -> Run:
    """Run some checks of the ready-made suite; their verdicts by id."""

    def run(checks: str) -> tuple[pytest.RunResult, dict[str, str]]:
        result = pytester.runpytest_subprocess(
            *("--pyargs", "pytest_ipvs.conformance", "-k", "data_path", "-p", "no:cacheprovider"),
            *(*lab.words, "--ipvs-policy", str(EMULATED)),
            # Three clients share an emulated processor. All ports come round in 4 s.
            *("--ipvs-allow-disruption", "--ipvs-rate", "16", "--ipvs-source-ports", "64"),
            *("--ipvs-baseline", "5", "--ipvs-settle", "10"),
            *("--ipvs-load-balancer", "auto", "--ipvs-checks", checks),
            timeout=290,
        )
        return result, {row[1]: row[2] for row in filter(None, map(ROW.match, result.outlines))}

    return run


def test_a_healthy_lab_stands_all_but_the_limit_of_ipvs(run: Run) -> None:
    passed = ("DP-03", "DP-08", "DP-10", "DP-11", "DP-14")
    result, verdicts = run(",".join((*passed, "DP-09")))
    # An emulated machine that stalls sends a SYN twice: few of them only warn.
    assert verdicts.pop("DP-09") in ("passed", "warned"), result.stdout.str()
    assert verdicts == dict.fromkeys(passed, "passed"), result.stdout.str()
    # What is told of every cluster fails none.
    result.stdout.fnmatch_lines(["DP-08  passed *the cluster IP, then its pod: * of * failed*"])


def test_real_servers_that_are_deleted_at_once_cut_their_connections(
    lab: RunningLab, run: Run
) -> None:
    lab.handle.fault("deleted_at_once")
    result, verdicts = run("DP-14")
    # Its severity is that of a warning.
    assert verdicts == {"DP-14": "warned"}, result.stdout.str()
    result.stdout.fnmatch_lines(["*held connections to the pod that leaves, until it is killed*"])
