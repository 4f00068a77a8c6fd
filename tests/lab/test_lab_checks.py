"""Every fault that only traffic shows is told by the check that is for it, and by no other.

The ready-made suite runs as a user runs it, against a cluster that it did not start itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lab_suite import EMULATED, EXAMPLES, ROLLING, ROLLING_LONG, Run, failed, found

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.lab.faults import FAULTS

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = pytest.mark.lab
# Two clients share an emulated processor. All ports come round in 4 s, well within the 10 s for
# which IPVS remembers a reset connection.
FAST = (
    *("--ipvs-allow-disruption", "--ipvs-rate", "25", "--ipvs-source-ports", "75"),
    *("--ipvs-baseline", "4", "--ipvs-settle", "5", "--ipvs-pre-stop", "4"),
)
GROUPS = sorted({check.group for check in CATALOGUE.values()})
# What some fault trips; what needs a node's details takes long on the lab.
WATCHED = ",".join(
    sorted(
        check
        for check in {check for fault in FAULTS.values() for check in fault.checks}
        if not CATALOGUE[check].needs_details
    )
)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        *ROLLING.items(),
        *(pytest.param(*pair, marks=pytest.mark.lab_long) for pair in ROLLING_LONG.items()),
    ],
)
def test_fault_under_traffic_is_told_by_its_check_alone(
    lab: RunningLab, conformance: Run, fault: str, test: str
) -> None:
    lab.handle.fault(fault)
    chosen = f"not data_path or {test}" + " or test_node_ports" * (test == "test_rolling_restart")
    result, verdicts = conformance("-k", chosen, "--ipvs-checks", WATCHED, *FAST)
    # While connections are lost, the run can't tell what other SYNs would have met.
    assert found(verdicts) == set(FAULTS[fault].checks), result.stdout.str()
    # Each of these faults bears the name of the cause that it brings about.
    assert f"kind of cause: {fault}" in result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_example_tells_all_that_one_needs_to_mend_it(
    lab: RunningLab, pytester: pytest.Pytester
) -> None:
    lab.handle.fault("reuse_leftover")
    result = pytester.runpytest_subprocess(
        *(str(EXAMPLES / "rolling_update_502"), "-p", "no:cacheprovider"),
        *(*lab.words, *FAST, "--ipvs-policy", str(EMULATED)),
        timeout=540,
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.re_match_lines_random(
        [
            r".* \d+ of \d+ connections failed: .*(connect timeout|no route|refused)",
            r".* 10\.244\.1\.250:\d+ -> 10\.96\.\d+\.\d+:80",
            r".* old pod web-\S+ \(10\.244\.\d+\.\d+\); .*node-1: weight 0 at ",
            r".* node-1: net\.ipv4\.vs\.conn_reuse_mode is 0, expected 1",
            r".* node-1: net\.ipv4\.vs\.expire_nodest_conn is 0, expected 1",
            r".* remedy: on node-1: sysctl -w net\.ipv4\.vs\.conn_reuse_mode=1 ",
        ]
    )


def test_healthy_cluster_has_no_finding(conformance: Run) -> None:
    chosen = ("test_rolling_restart", "test_node_ports", "test_affine_client")
    result, verdicts = conformance("-k", " or ".join(("not data_path", *chosen)), *FAST)
    assert failed(verdicts) == set(), result.stdout.str()
    assert {"DP-01", "DP-02", "DP-04", "PS-02", "PS-03", "CT-01"} <= set(verdicts)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.lab_long
def test_healthy_cluster_stands_every_scenario(conformance: Run) -> None:
    # Single paths have tests of their own.
    paths = ",".join(f"-{check.id}" for check in CATALOGUE.values() if check.judges_paths)
    named = f"{','.join(GROUPS)},DP-12,{paths}"
    result, verdicts = conformance("-k", "data_path", *FAST, "--ipvs-checks", named)
    assert failed(verdicts) == set(), result.stdout.str()
    assert {"DP-01", "DP-02", "DP-04", "DP-05", "DP-06", "DP-07", "DP-12"} <= set(verdicts)
    assert result.ret == pytest.ExitCode.OK
