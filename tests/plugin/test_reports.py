"""Texts: a failure, the final table, the header's parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.report.findings import explain, group, named, waiver_line
from pytest_ipvs.report.header import server_name
from pytest_ipvs.report.rows import CheckRow, NodeRow, RolloutRow, Row, from_plain, to_plain
from pytest_ipvs.report.summary import summary

FINDING = Finding(
    check="SY-02",
    severity="fail",
    node="node-1",
    object="net.ipv4.vs.expire_nodest_conn",
    observed="0",
    expected="1",
    reason="clients are sent to pods that are gone",
    remedy="sysctl -w net.ipv4.vs.expire_nodest_conn=1",
)


def test_explanation() -> None:
    findings = [replace(FINDING, node=f"node-{n}") for n in (3, 1, 2, 4)]
    lack = NotMeasured(check="SY-02", node="node-5", fact="sysctls", reason="permission denied")
    assert explain("SY-02", "expire_nodest_conn is 1", findings, [lack]).splitlines() == [
        "SY-02: expire_nodest_conn is 1",
        "",
        "  4 nodes (node-1, node-2, node-3, …): net.ipv4.vs.expire_nodest_conn",
        "    observed  0",
        "    expected  1",
        "    why       clients are sent to pods that are gone",
        "    remedy    sysctl -w net.ipv4.vs.expire_nodest_conn=1",
        f"    waive     {waiver_line(group(findings)[0])}",
        "",
        "  not measured on node-5: sysctls: permission denied",
    ]


def test_different_faults_stay_apart_and_worst_is_first() -> None:
    warning = replace(FINDING, severity="warn", node="node-9")
    other = replace(FINDING, observed="2", node="node-2")
    groups = group([warning, FINDING, other, replace(FINDING, node="node-7")])
    assert [g.nodes for g in groups] == [("node-1", "node-7"), ("node-2",), ("node-9",)]
    assert "(warn)" in explain("SY-02", "", [warning])


def test_evidence_of_one_finding_is_told_as_such() -> None:
    first = replace(FINDING, evidence="virtual server 192.0.2.1:30080/TCP")
    second = replace(FINDING, evidence="virtual server 10.244.1.1:30080/TCP")
    text = explain("TB-10", "", [first, second])
    assert "virtual server 192.0.2.1:30080/TCP (the first of 2 findings)" in text
    assert "of 2 findings" not in explain("TB-10", "", [first, replace(second, node="node-2")])


def test_many_findings_are_cut() -> None:
    many = [replace(FINDING, object=f"object {n}") for n in range(25)]
    assert "… and 5 more findings of SY-02" in explain("SY-02", "", many)


def test_long_texts_stay_aligned() -> None:
    text = explain("SY-02", "", [replace(FINDING, reason="first line\nsecond line")])
    assert "    why       first line\n              second line\n" in text


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ((), "the cluster"),
        (("a",), "a"),
        (("a", "b"), "2 nodes (a, b)"),
        (("a", "b", "c", "d"), "4 nodes (a, b, c, …)"),
    ],
)
def test_named(nodes: tuple[str, ...], text: str) -> None:
    assert named(nodes) == text


ROWS: tuple[Row, ...] = (
    CheckRow(check="SY-02", verdict="failed", nodes="3 of 3", note="node-1: x"),
    CheckRow(check="TB-01", verdict="passed", nodes="3 of 3"),
    CheckRow(check="SY-03", verdict="warned", nodes="3 of 3", warnings="SY-03: text"),
    RolloutRow(
        target="demo/web",
        verdict="failed",
        connections=2000,
        failures=12,
        reused_tuples=1600,
        slow_connects=0,
        new_pod_share=0.111,
        drained_after=9.6,
        note="12 no route",
    ),
    NodeRow(node="node-3", reason="no route to host"),
)


def test_summary() -> None:
    assert summary(ROWS) == [
        "check  verdict  nodes   note",
        "SY-02  failed   3 of 3  node-1: x",
        "TB-01  passed   3 of 3",
        "SY-03  warned   3 of 3",
        "",
        "rollout   verdict  connections  failed  re-used  slow  new pods  drained",
        "demo/web  failed   2,000        12      1,600    0     11%       10 s",
        "  demo/web: 12 no route",
        "",
        "warning: SY-03: text",
        "",
        "node-3 did not answer: no route to host",
        "",
        "3 checks: 1 failed, 1 warned, 1 passed",
    ]


def test_summary_of_nothing_is_nothing() -> None:
    assert summary(()) == []


@pytest.mark.parametrize("row", ROWS)
def test_rows_travel(row: Row) -> None:
    plain = to_plain(row)
    assert all(isinstance(value, (str, int, float, type(None))) for value in plain.values())
    assert from_plain(plain) == row


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
        ("https://user:secret@h:1/k8s/clusters/c-1?token=secret", "https://h:1/k8s/clusters/c-1"),
        ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
    ],
)
def test_server_name_has_no_secret(url: str, shown: str) -> None:
    assert server_name(url) == shown


TABLE = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr
  -> 0AF40105:1F90      Masq    1      0          3
"""


def test_tables_that_differ_are_explained(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        from pytest_ipvs.ipvs.tables import parse_table

        TEXT = {TABLE!r}

        def test_equal():
            assert parse_table(TEXT) == parse_table(TEXT)

        def test_differing():
            other = TEXT.replace("0050 rr", "0050 wrr").replace("1F90", "1F91")
            assert parse_table(TEXT) == parse_table(other)

        def test_extra():
            head = "".join(TEXT.splitlines(True)[:3])
            assert parse_table(TEXT) == parse_table(head)
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "E *IPVS tables differ: 1 and 1 virtual servers",
            "E *10.96.0.10:80* scheduler: rr and wrr",
            "E *10.96.0.10:80* -> 10.244.1.5 port 8080 is only in the left table",
            "E *10.96.0.10:80* -> 10.244.1.5 port 8081 is only in the right table",
            "E *IPVS tables differ: 1 and 0 virtual servers",
            "E *10.96.0.10:80* is only in the left table",
        ]
    )
