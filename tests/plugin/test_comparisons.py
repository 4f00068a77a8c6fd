"""A sysctl compares as text and as number, and a plain comparison that fails explains itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from pytest_ipvs.assertions import explain_sysctl
from pytest_ipvs.cluster.handle import SysctlValue

KEY = "net.ipv4.vs.conntrack"
ON = f"{KEY} on node-1 is"


def value(text: str, *, node: str = "node-1") -> SysctlValue:
    return SysctlValue(text, KEY, node)


@pytest.mark.parametrize(
    ("text", "other", "equal"),
    [
        ("1", 1, True),
        ("1", "1", True),
        ("-1", -1, True),
        ("1", 0, False),
        ("1", "01", False),
        ("0", False, True),
        ("3 50", 3, False),
        ("3 50", "3 50", True),
        ("", 0, False),
        ("1_0", 10, False),
        ("\u0661", 1, False),
        ("1", None, False),
        ("1", 1.5, False),
    ],
)
def test_equal_as_text_and_as_number(text: str, other: object, equal: bool) -> None:
    assert (value(text) == other) is equal
    assert (other == value(text)) is equal
    assert (value(text) != other) is not equal
    assert (value(text) in (other,)) is equal


def test_it_is_a_text_for_everything_else() -> None:
    assert hash(value("1")) == hash("1")
    assert {value("1"): "yes"}["1"] == "yes"
    assert f"{value('3 50')}".split() == ["3", "50"]
    assert int(value("7")) == 7
    assert repr(value("7")) == "'7'"
    for same in (pickle.loads(pickle.dumps(value("1"))), copy.deepcopy(value("1"))):
        assert (same, same.key, same.node) == ("1", KEY, "node-1")


@pytest.mark.parametrize(
    ("left", "op", "right", "lines"),
    [
        (value("0"), "==", 1, [f"{ON} 0, expected 1", f"to set it: sysctl -w {KEY}=1"]),
        (1, "==", value("0"), [f"{ON} 0, expected 1", f"to set it: sysctl -w {KEY}=1"]),
        (value("0"), "==", True, [f"{ON} 0, expected 1", f"to set it: sysctl -w {KEY}=1"]),
        (value(""), "==", "a b", [f"{ON} empty, expected a b", f"to set it: *{KEY}='a b'"]),
        (value("0"), "==", None, [f"{ON} 0, expected None"]),
        (
            value("3 50"),
            "==",
            "3\t50",
            [f"{ON} 3 50, expected 3\t50", "white space between numbers is one space here"],
        ),
        (value("0"), "in", (1, 2), [f"{ON} 0, expected 1 or 2", f"to set it: sysctl -w {KEY}=1"]),
        (value("9"), "in", range(7), [f"{ON} 9, expected 0 or * or 4 or one of 2 more", "to set*"]),
        (value("0"), "in", (), [f"{ON} 0, expected nothing"]),
        (
            value("1"),
            "in",
            {1},
            [f"{ON} 1, expected 1", "a set does not find a number among texts: use a tuple *"],
        ),
        (value("0"), "!=", 0, [f"{ON} 0, expected anything but 0"]),
        (value("0"), "not in", [0], [f"{ON} 0, expected none of [[]0]"]),
        (
            value("0"),
            "==",
            value("1", node="node-2"),
            [f"{ON} 0, expected the same as {KEY} on node-2, which is 1"],
        ),
        (
            value("0"),
            "!=",
            value("0", node="node-2"),
            [f"{ON} 0, expected another as {KEY} on node-2, which is 0"],
        ),
    ],
)
def test_explanation(left: Any, op: str, right: Any, lines: list[str]) -> None:
    told = explain_sysctl(op, left, right)
    assert told is not None
    pytest.LineMatcher(told).fnmatch_lines(lines, consecutive=True)
    assert len(told) == len(lines)


@pytest.mark.parametrize(
    ("left", "op", "right"),
    [("rr", "in", value("0")), (value("0"), "is", 0), (value("0"), "<", "1")],
)
def test_the_rest_is_left_to_pytest(left: Any, op: str, right: Any) -> None:
    assert explain_sysctl(op, left, right) is None


def test_plain_comparison_in_a_test(cluster_run: Callable[..., pytest.RunResult]) -> None:
    result = cluster_run(
        f"""
        def test_it(ipvs_node):
            assert ipvs_node.sysctl["{KEY}"] == 1

        def test_same(ipvs_nodes):
            assert ipvs_nodes[0].sysctl["{KEY}"] == ipvs_nodes[1].sysctl["{KEY}"]
        """,
        world=f"sysctls={{'node-2': {{{KEY!r}: '0'}}}}",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            f"E * assert {KEY} on node-2 is 0, expected 1",
            f"E * to set it: sysctl -w {KEY}=1",
            f"E * assert {KEY} on node-1 is 1, expected the same as {KEY} on node-2, which is 0",
        ]
    )
