"""The markers: what their arguments mean, and one sentence where an argument is wrong.

What belongs here: validation, version ranges, the choice of nodes. What doesn't:
reading a cluster; the plugin hands in what it knows.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ipvs.selectors import LabelSelector

if TYPE_CHECKING:
    from pytest_ipvs.ipvs.objects import Node

PHASES = ("before", "during", "after")
# All that kube-proxy has ever had; userspace went away with 1.26.
MODES = ("ipvs", "iptables", "nftables", "kernelspace", "userspace")
ROLE_PREFIX = "node-role.kubernetes.io/"
_ARGUMENTS = {
    "ipvs_nodes": ("role", "selector", "names", "kernel"),
    "ipvs_requires": ("mode", "kubernetes", "kube_proxy", "kernel", "affinity", "nodes"),
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRange:
    """Comparisons that must all hold: ">=5.9", or ">=5.4,<6" ."""

    text: str
    clauses: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def parse(cls, text: object) -> VersionRange:
        """Read one range; ``ValueError`` says what was expected."""
        clauses = []
        for part in str(text).split(","):
            match = re.fullmatch(r"\s*(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)\s*", part)
            if match is None or not isinstance(text, str):
                raise ValueError(f"{text!r}, expected comparisons such as '>=1.29' or '>=5.4,<6'")
            clauses.append((match[1], tuple(int(n) for n in match[2].split("."))))
        return cls(text=text if isinstance(text, str) else "", clauses=tuple(clauses))

    def holds(self, version: str) -> bool:
        """Whether a version ("v1.36.2", "6.1.0-56-amd64") is in the range.

        Only as many numbers count as the range gives: 5.10.83 is "==5.10" and not ">5.10".
        A text without a number is in no range.
        """
        match = re.match(r"v?(\d+(?:\.\d+)*)", version)
        if match is None:
            return False
        numbers = tuple(int(n) for n in match[1].split("."))
        for name, wanted in self.clauses:
            cut = (numbers + (0,) * len(wanted))[: len(wanted)]
            if not _COMPARISONS[name](cut, wanted):
                return False
        return True


def problems(item: pytest.Item) -> list[str]:
    """One sentence with file and line for each wrong ipvs marker of a test."""
    path, line, _ = item.location
    where = f"{path}:{(line or 0) + 1}"
    found = []
    for mark in item.iter_markers():
        check = _CHECKERS.get(mark.name)
        if check is not None and (problem := check(mark)):
            found.append(f"{where}: marker {mark.name} {problem}")
    return found


def refuse_wrong(items: list[pytest.Item], worker: dict[str, Any] | None) -> None:
    """Raise ``UsageError`` with every wrong marker of a run.

    On a worker of pytest-xdist nothing is raised, because its controller would take that for a
    crash: no test is left there, and ``worker``, what it tells its controller, gets the sentences.
    """
    found = list(dict.fromkeys(problem for item in items for problem in problems(item)))
    if not found:
        return
    if worker is None:
        raise pytest.UsageError(*found)
    worker["ipvs_refused"] = found
    items.clear()


def _only_keywords(mark: pytest.Mark) -> str | None:
    allowed = _ARGUMENTS[mark.name]
    expected = f"expected {', '.join(allowed[:-1])} or {allowed[-1]}"
    if mark.args:
        return f"got {mark.args[0]!r} without a name, {expected}"
    for name in mark.kwargs:
        if name not in allowed:
            return f"got the unknown argument {name!r}, {expected}"
    return None


def _value_problem(mark: pytest.Mark) -> str | None:
    for name, value in mark.kwargs.items():
        try:
            _READERS[mark.name, name](value)
        except ValueError as error:
            return f"got {name}={error}"
    return None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r}, expected some text")
    return value


def _mode(value: object) -> str:
    # A text that no kube-proxy reports would skip the test on every run.
    if value not in MODES:
        raise ValueError(f"{value!r}, expected one of {', '.join(MODES)}")
    return str(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}, expected True or False")
    return value


def _names(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple, set, frozenset)) or not names:
        raise ValueError(f"{value!r}, expected a node name or a list of them")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{value!r}, expected a node name or a list of them")
    return tuple(names)


_READERS: dict[tuple[str, str], Callable[[object], object]] = {
    ("ipvs_nodes", "role"): _text,
    ("ipvs_nodes", "selector"): LabelSelector.parse,
    ("ipvs_nodes", "names"): _names,
    ("ipvs_nodes", "kernel"): VersionRange.parse,
    ("ipvs_requires", "mode"): _mode,
    ("ipvs_requires", "kubernetes"): VersionRange.parse,
    ("ipvs_requires", "kube_proxy"): VersionRange.parse,
    ("ipvs_requires", "kernel"): VersionRange.parse,
    ("ipvs_requires", "affinity"): _flag,
    ("ipvs_requires", "nodes"): VersionRange.parse,
}


def _check_keywords(mark: pytest.Mark) -> str | None:
    return _only_keywords(mark) or _value_problem(mark)


def _check_sysctl(mark: pytest.Mark) -> str | None:
    expected = "expected one mapping such as {'net.ipv4.vs.conntrack': 1}"
    if mark.kwargs:
        return f"got the unknown argument {next(iter(mark.kwargs))!r}, {expected}"
    if len(mark.args) != 1 or not isinstance(mark.args[0], Mapping) or not mark.args[0]:
        return f"got {', '.join(map(repr, mark.args)) or 'nothing'}, {expected}"
    for key, value in mark.args[0].items():
        if not isinstance(key, str) or "." not in key:
            return f"got the key {key!r}, expected a full dotted key such as net.ipv4.vs.conntrack"
        # True is an int to Python, but not a sysctl's value.
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            return f"got {key}={value!r}, expected a number or text"
    return None


def _check_nothing(mark: pytest.Mark) -> str | None:
    given = [repr(value) for value in mark.args] + list(mark.kwargs)
    return f"got {given[0]}, expected no argument" if given else None


def _check_phase(mark: pytest.Mark) -> str | None:
    if mark.kwargs or len(mark.args) != 1 or mark.args[0] not in PHASES:
        given = [repr(value) for value in mark.args] + list(mark.kwargs)
        return f"got {', '.join(given) or 'nothing'}, expected one of {', '.join(PHASES)}"
    return None


def _check_id(mark: pytest.Mark) -> str | None:
    if mark.kwargs or len(mark.args) != 1 or not isinstance(mark.args[0], str):
        return "got something else than one text, expected a check id such as 'TB-01'"
    # Not above: most runs have no such marker, and the catalogue takes a while to import.
    from pytest_ipvs.checks import CATALOGUE

    check = mark.args[0]
    if check not in CATALOGUE:
        return f"got {check!r}, expected an id that --ipvs-list-checks shows, such as 'TB-01'"
    return None


def _check_group(mark: pytest.Mark) -> str | None:
    # A keyword, because that is what pytest's -m can compare with.
    if mark.args or set(mark.kwargs) != {"name"} or not isinstance(mark.kwargs["name"], str):
        return "got something else than name=, expected a group such as name='TB'"
    from pytest_ipvs.checks import CATALOGUE

    groups = dict.fromkeys(check.group for check in CATALOGUE.values())
    if mark.kwargs["name"] not in groups:
        return f"got name={mark.kwargs['name']!r}, expected one of {', '.join(groups)}"
    return None


_CHECKERS: dict[str, Callable[[pytest.Mark], str | None]] = {
    "ipvs_nodes": _check_keywords,
    "ipvs_requires": _check_keywords,
    "ipvs_sysctl": _check_sysctl,
    "ipvs_disruptive": _check_nothing,
    "ipvs_phase": _check_phase,
    "ipvs_check": _check_id,
    "ipvs_group": _check_group,
}


def select_nodes(nodes: Sequence[Node], marks: Sequence[pytest.Mark]) -> tuple[Node, ...]:
    """The nodes that all ``ipvs_nodes`` marks of a test choose, sorted by name."""
    chosen = sorted(nodes, key=lambda node: node.name)
    for mark in marks:
        arguments = mark.kwargs
        if "role" in arguments:
            chosen = [n for n in chosen if ROLE_PREFIX + arguments["role"] in n.labels]
        if "selector" in arguments:
            selector = LabelSelector.parse(arguments["selector"])
            chosen = [n for n in chosen if selector.holds(n.labels)]
        if "names" in arguments:
            names = _names(arguments["names"])
            chosen = [n for n in chosen if n.name in names]
        if "kernel" in arguments:
            kernel = VersionRange.parse(arguments["kernel"])
            chosen = [n for n in chosen if kernel.holds(n.kernel_release)]
    return tuple(chosen)


def spelled(mark: pytest.Mark) -> str:
    """A mark as its author wrote it, for the reason of a skip."""
    given = [repr(value) for value in mark.args]
    given += [f"{name}={value!r}" for name, value in mark.kwargs.items()]
    return f"{mark.name}({', '.join(given)})"
