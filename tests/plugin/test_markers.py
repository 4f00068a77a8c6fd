"""Version ranges, label selectors and the choice of nodes."""

from __future__ import annotations

import pytest

from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.markers import VersionRange, select_nodes, spelled
from pytest_ipvs.selectors import LabelSelector


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        (">=5.9", "5.9.0", True),
        (">=5.9", "6.1.0-56-amd64", True),
        (">=5.9", "5.10.0-32-cloud-amd64", True),
        (">=5.9", "5.4.163", False),
        (">=5.4,<6", "5.15.6", True),
        (">=5.4,<6", "6.0", False),
        ("==5.10", "5.10.83", True),
        (">5.10", "5.10.83", False),
        ("<=5.10", "5.10.83", True),
        ("!=1.35", "v1.35.1", False),
        (">=1.29", "v1.36.2-gke.1", True),
        (">=1.20.3", "v1.20", False),
        ("<1.22", "not a version", False),
        (" >= 1.29 , < 1.40 ", "v1.36.2", True),
    ],
)
def test_version_range(text: str, version: str, expected: bool) -> None:
    assert VersionRange.parse(text).holds(version) is expected


@pytest.mark.parametrize("text", ["", "5.9", "=>5.9", ">=", ">=5.x", ">=5.9,", "~=5.9", 5.9, None])
def test_version_range_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="expected comparisons such as"):
        VersionRange.parse(text)


LABELS = {"pool": "blue", "zone": "a", "node-role.kubernetes.io/worker": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pool=blue", True),
        ("pool==blue,zone=a", True),
        ("pool=green", False),
        ("pool!=green", True),
        ("absent!=green", True),
        ("absent=green", False),
        ("pool", True),
        ("!pool", False),
        ("! absent", True),
        ("zone in (a, b)", True),
        ("zone in (b,c),pool", False),
        ("zone notin (b,c)", True),
        ("absent notin (b)", True),
        ("node-role.kubernetes.io/worker", True),
        ("node-role.kubernetes.io/worker=", True),
    ],
)
def test_label_selector(text: str, expected: bool) -> None:
    assert LabelSelector.parse(text).holds(LABELS) is expected


@pytest.mark.parametrize("text", ["", "a=b=c", "a in b", "=b", "a,,b", "a b", "-a", None, 3])
def test_label_selector_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="expected a label selector"):
        LabelSelector.parse(text)


def node(name: str, *, release: str = "6.1.0-56-amd64", **labels: str) -> Node:
    return Node(name=name, kernel_release=release, labels=labels)


NODES = (
    node("node-2", pool="blue"),
    node("node-1", pool="green", **{"node-role.kubernetes.io/control-plane": ""}),
    node("node-3", release="5.4.0", pool="blue"),
)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (pytest.mark.ipvs_nodes(), ("node-1", "node-2", "node-3")),
        (pytest.mark.ipvs_nodes(role="control-plane"), ("node-1",)),
        (pytest.mark.ipvs_nodes(selector="pool=blue"), ("node-2", "node-3")),
        (pytest.mark.ipvs_nodes(names="node-3"), ("node-3",)),
        (pytest.mark.ipvs_nodes(names=["node-3", "node-1", "gone"]), ("node-1", "node-3")),
        (pytest.mark.ipvs_nodes(kernel=">=5.9"), ("node-1", "node-2")),
        (pytest.mark.ipvs_nodes(selector="pool=blue", kernel=">=5.9"), ("node-2",)),
        (pytest.mark.ipvs_nodes(role="edge"), ()),
    ],
)
def test_select_nodes(mark: pytest.MarkDecorator, expected: tuple[str, ...]) -> None:
    assert tuple(n.name for n in select_nodes(NODES, [mark.mark])) == expected


def test_several_marks_narrow_each_other() -> None:
    marks = [pytest.mark.ipvs_nodes(selector="pool=blue").mark]
    marks.append(pytest.mark.ipvs_nodes(kernel="<5.9").mark)
    assert [n.name for n in select_nodes(NODES, marks)] == ["node-3"]


def test_spelled() -> None:
    assert spelled(pytest.mark.ipvs_nodes(role="edge").mark) == "ipvs_nodes(role='edge')"
