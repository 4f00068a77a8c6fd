"""Waivers of the policy in a run: xfail, expiry, and what is told at the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from pytest_ipvs.policy import Waiver
from pytest_ipvs.report.rows import CheckRow
from pytest_ipvs.report.summary import unused_waivers

Run = Callable[..., pytest.RunResult]
WORLD = (
    "names=('node-1', 'node-2'), "
    "sysctls={name: {'net.ipv4.vs.expire_nodest_conn': '0'} for name in ('node-1', 'node-2')}"
)
TEST = "def test_it(ipvs_check): ipvs_check('SY-02')"


def policy(pytester: pytest.Pytester, waivers: str) -> tuple[str, str]:
    path = pytester.path / "ipvs.yaml"
    path.write_text(f"waivers:\n{waivers}", encoding="utf-8")
    return "--ipvs-policy", str(path)


def test_a_test_whose_findings_are_all_waived_is_xfailed_and_told_of(
    cluster_run: Run, pytester: pytest.Pytester
) -> None:
    options = policy(
        pytester,
        "- {check: SY-02, reason: agreed with the team, expires: 2999-12-31}\n"
        "- {check: SY-02, node: node-9, reason: gone long ago, expires: 2999-12-30}\n",
    )
    result = cluster_run(TEST, "-rx", *options, world=WORLD)
    result.assert_outcomes(xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "SY-02  waived *2 of 2*2 nodes (node-1, node-2): net.ipv4.vs.expire_nodest_conn: 0",
            "waived: SY-02 on 2 nodes*until 2999-12-31 by ipvs.yaml:2: agreed with the team",
            "unused waiver: ipvs.yaml:3: SY-02 matched no finding*gone long ago; until 2999-12-30*",
            "1 check: 1 waived",
            "XFAIL *SY-02 on 2 nodes*waived until 2999-12-31 by ipvs.yaml:2: agreed *",
        ]
    )


def test_what_is_not_waived_still_fails_and_what_is_waived_is_shown(
    cluster_run: Run, pytester: pytest.Pytester
) -> None:
    options = policy(pytester, "- {check: SY, node: node-1, reason: agreed, expires: 2999-12-31}\n")
    result = cluster_run(TEST, *options, world=WORLD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "  node-2: net.ipv4.vs.expire_nodest_conn",
            "  waived: SY-02 on node-1: *",
            "SY-02  failed *node-2: *",
            "waived: SY-02 on node-1: *",
        ]
    )


def test_an_expired_waiver_fails_by_its_name(cluster_run: Run, pytester: pytest.Pytester) -> None:
    options = policy(
        pytester,
        "- check: SY-0?\n  object: net.ipv4.vs.*\n  reason: agreed\n  expires: 2020-02-29\n",
    )
    result = cluster_run(TEST, *options, world=WORLD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["the waiver at ipvs.yaml:2 of SY-0? expired on 2020-02-29 (agreed)"]
    )
    assert "unused waiver" not in result.stdout.str()


def test_a_waiver_of_no_check_is_refused(cluster_run: Run, pytester: pytest.Pytester) -> None:
    options = policy(pytester, "- {check: XX-01, reason: x, expires: 2999-12-31}\n")
    result = cluster_run(TEST, *options, world=WORLD)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ipvs.yaml:2: waivers?1?.check is 'XX-01', expected a check *"])


def test_a_waiver_is_unused_only_where_all_its_checks_were_judged() -> None:
    day = date(2999, 1, 1)
    waivers = [
        Waiver(check="SY-02", reason="a", expires=day, where="f:1"),
        Waiver(check="SY", reason="b", expires=day, where="f:2"),
        Waiver(check="KP", reason="c", expires=day, where="f:3"),
        Waiver(check="TB", reason="d", expires=day, where="f:4"),
    ]
    rows = [
        CheckRow(check="SY-02", verdict="passed"),
        CheckRow(check="SY-03", verdict="not measured"),
        CheckRow(check="KP-01", verdict="waived", waivers="f:3"),
    ]
    told = unused_waivers(waivers, rows, ["SY-02", "SY-03", "KP-01", "TB-01"])
    assert [line.partition(" ")[0] for line in told] == ["f:1:"]
