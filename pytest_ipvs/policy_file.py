"""Reading ipvs.yaml: what each key may be, and one sentence with file and line where it is not.

What belongs here: the file's keys, their values, their schema. What doesn't: what a policy means
(`policy`). Imported only when a file is read, because it needs YAML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from pytest_ipvs.policy import (
    BUDGET_OPTIONS,
    SYSCTL_CHECKS,
    THRESHOLDS,
    NodeRule,
    Policy,
    PolicyError,
    Waiver,
    sysctl_check,
    sysctl_pattern,
)
from pytest_ipvs.policy_patterns import can_match
from pytest_ipvs.policy_yaml import Spot, load
from pytest_ipvs.selectors import LabelSelector, check_matches
from pytest_ipvs.settings import SettingsError, check_setting

SEVERITIES = ("fail", "warn", "info")
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: the field of `Policy` that it fills, how it is read, and its schema.

    ``per_node``: it may also stand in an entry of ``nodes``.
    """

    field: str
    read: Callable[[Spot], Any]
    schema: Schema
    meaning: str
    per_node: bool = False


def read(path: str | Path, checks: Iterable[str] | None = None) -> Policy:
    """Read one policy file. Raises `PolicyError`.

    With the ids of all checks, names of checks that don't exist are refused too.
    """
    document = load(path)
    if checks is not None:
        document = replace(document, checks=frozenset(checks))
    values = _values(document, KEYS)
    settings: dict[str, Any] = dict(values.get("settings", {}))
    for key, option in BUDGET_OPTIONS.items():
        if key not in values:
            continue
        written = {str(k).replace("-", "_"): k for k in settings}
        if option in written:
            spot = document.child(key, key)
            raise PolicyError(
                f"{spot.place}: {key} and settings.{written[option]} say the same thing, "
                "expected only one of them"
            )
        settings[option] = values[key]
    values["settings"] = settings
    return Policy(path=str(path), **values)


def _values(spot: Spot, keys: Mapping[str, Key]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, child in spot.mapping("a mapping of keys").items():
        if name not in keys:
            raise PolicyError(f"{child.place}: {child.key} is not a key, {_one_of(keys)}")
        values[keys[name].field] = keys[name].read(child)
    return values


def _one_of(names: Mapping[str, object]) -> str:
    return f"expected one of {', '.join(names)}" if names else "expected none"


def _settings(spot: Spot) -> dict[str, Any]:
    for name, child in spot.mapping().items():
        try:
            check_setting(name, child.value, child.place)
        except SettingsError as error:
            raise PolicyError(str(error)) from None
    return dict(spot.value)


def _kernel_fixes(spot: Spot) -> tuple[tuple[str, Mapping[str, bool]], ...]:
    overrides = []
    for pattern, child in spot.mapping().items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise PolicyError(
                f"{child.place}: {child.key} is not a regular expression: {error}"
            ) from None
        for fix, present in child.mapping("fixes b, c and d to true or false").items():
            if fix not in ("b", "c", "d"):
                raise PolicyError(
                    f"{present.place}: {child.key} is {fix!r}, expected the fixes b, c or d"
                )
            if not isinstance(present.value, bool):
                raise present.fail("true or false")
        overrides.append((pattern, dict(child.value)))
    return tuple(overrides)


SYSCTL_KEY = r"[A-Za-z0-9_/-]+(\.[A-Za-z0-9_/-]+)+"
SYSCTL_VALUE = "a number or text, a list of them, or null"
# Without those that a later and wider pattern has in it.
SYSCTLS = tuple(
    one
    for n, one in enumerate(SYSCTL_CHECKS)
    if not re.match(sysctl_pattern(*[*SYSCTL_CHECKS][n + 1 :]), one)
)


def _sysctls(spot: Spot) -> dict[str, tuple[str, ...] | None]:
    accepted: dict[str, tuple[str, ...] | None] = {}
    for sysctl, child in spot.mapping().items():
        if not re.fullmatch(SYSCTL_KEY, sysctl):
            raise PolicyError(
                f"{child.place}: {spot.key} is {sysctl!r}, "
                "expected a full dotted key such as net.ipv4.vs.conntrack"
            )
        if sysctl_check(sysctl) is None:
            raise child.fail(
                f"a key that checks read instead: one of {', '.join(SYSCTLS)}; a dot in an "
                "interface's name is written as a slash"
            )
        if child.value is None:
            accepted[sysctl] = None
            continue
        alone = not isinstance(child.value, list)
        many = [spot.value for spot in ([child] if alone else child.items(SYSCTL_VALUE))]
        # YAML's true is not a sysctl's 1: refuse it rather than expect the text "True".
        if not many or any(isinstance(v, bool) or not isinstance(v, (int, str)) for v in many):
            raise child.fail(SYSCTL_VALUE)
        accepted[sysctl] = tuple(" ".join(str(v).split()) for v in many)
    return accepted


def _patterns(spot: Spot) -> tuple[str, ...]:
    for child in spot.items("a list of patterns"):
        if not isinstance(child.value, str) or not can_match(child.value):
            raise child.fail(
                "a pattern such as 10.0.0.0/24, 10.0.0.5, 10.0.0.5:443/TCP with * and ?, or "
                "fwmark:7"
            )
    return tuple(spot.value)


def _names(spot: Spot) -> tuple[str, ...]:
    found = spot.items("a list of node names")
    if not found:
        raise spot.fail("at least one node name")
    return tuple(child.text("a node name, * and ? allowed") for child in found)


def _number(low: float, high: float, what: str) -> tuple[Callable[[Spot], float], Schema]:
    def number(spot: Spot) -> float:
        value = spot.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise spot.fail(what)
        if not math.isfinite(value) or not low <= value <= high:
            raise spot.fail(what)
        return float(value)

    return number, {"type": "number", "minimum": low, "maximum": high}


def _count(spot: Spot) -> int:
    if isinstance(spot.value, bool) or not isinstance(spot.value, int) or spot.value < 0:
        raise spot.fail("a whole number of at least 0")
    return spot.value


def _severities(spot: Spot) -> dict[str, str]:
    for check, child in spot.mapping().items():
        if spot.checks is not None and check not in spot.checks:
            raise PolicyError(
                f"{child.place}: {child.key} is not a check, expected an id of --ipvs-list-checks"
            )
        if child.value not in SEVERITIES:
            raise child.fail("fail, warn or info")
    return dict(spot.value)


MOST = 1e15
_threshold, _THRESHOLD_SCHEMA = _number(0, MOST, "a number of at least 0")


def _thresholds(spot: Spot) -> dict[str, float]:
    found = {}
    for name, child in spot.mapping().items():
        if name not in THRESHOLDS:
            raise PolicyError(
                f"{child.place}: {child.key} is not a threshold, {_one_of(THRESHOLDS)}"
            )
        found[name] = _threshold(child)
        if (choices := THRESHOLDS[name].choices) and found[name] not in choices:
            raise child.fail(THRESHOLDS[name].unit)
    return found


def _selector(spot: Spot) -> LabelSelector:
    try:
        return LabelSelector.parse(spot.value)
    except ValueError:
        raise spot.fail("a label selector such as 'pool=blue,!gpu'") from None


def _nodes(spot: Spot) -> tuple[NodeRule, ...]:
    rules = []
    for child in spot.items("a list of rules for nodes"):
        values = _values(child, NODE_KEYS)
        selector, names = values.pop("selector", None), values.pop("names", ())
        if selector is None and not names:
            raise PolicyError(f"{child.place}: {child.key} chooses no node, {_CHOICE}")
        if not values:
            raise PolicyError(
                f"{child.place}: {child.key} says nothing of its nodes, {_one_of(PER_NODE)}"
            )
        rules.append(NodeRule(values=values, selector=selector, names=names))
    return tuple(rules)


_CHOICE = "expected selector, names or both"


def _waivers(spot: Spot) -> tuple[Waiver, ...]:
    found = []
    for child in spot.items("a list of waivers"):
        values = _values(child, WAIVER_KEYS)
        for needed in ("check", "reason", "expires"):
            if needed not in values:
                raise PolicyError(
                    f"{child.place}: {child.key} has no {needed}, "
                    "expected check, reason and expires"
                )
        found.append(Waiver(where=child.place, **values))
    return tuple(found)


def _day(spot: Spot) -> date:
    if isinstance(spot.value, str) and (
        found := re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", spot.value)
    ):
        try:
            return date(*map(int, found.groups()))
        except ValueError:
            pass
    raise spot.fail("the last day on which it counts, such as 2027-01-31")


def _check(spot: Spot) -> str:
    pattern = spot.text("a check id, group or pattern")
    if spot.checks is not None and not any(check_matches(pattern, one) for one in spot.checks):
        raise spot.fail("a check id, group or pattern of --ipvs-list-checks")
    return pattern


def _text(what: str) -> Callable[[Spot], str]:
    return lambda spot: spot.text(what)


TEXT: Schema = {"type": "string", "pattern": r"\S"}
_fraction, _FRACTION = _number(0, 1, "a number between 0 and 1")
_seconds, _SECONDS = _number(1, 86400, "a number of seconds of at least 1")
_milliseconds, _MILLISECONDS = _number(1, 60000, "milliseconds between 1 and 60000")

KEYS: dict[str, Key] = {
    "settings": Key(
        field="settings",
        read=_settings,
        schema={"type": "object"},
        meaning="Values of options, by their names",
    ),
    "kernel_fixes": Key(
        field="kernel_fix_overrides",
        read=_kernel_fixes,
        schema={
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {fix: {"type": "boolean"} for fix in "bcd"},
                "additionalProperties": False,
            },
        },
        meaning="Regular expression searched in uname -r, to the fixes that those kernels have",
        per_node=True,
    ),
    "sysctls": Key(
        field="sysctls",
        read=_sysctls,
        schema={
            "type": "object",
            "propertyNames": {"pattern": sysctl_pattern(*SYSCTLS)},
            "additionalProperties": {
                "anyOf": [
                    {"type": ["integer", "string", "null"]},
                    {"type": "array", "minItems": 1, "items": {"type": ["integer", "string"]}},
                ]
            },
        },
        meaning="Sysctl to the values demanded instead of the general rule; null: not judged",
        per_node=True,
    ),
    "foreign_virtual_servers": Key(
        field="foreign_virtual_servers",
        read=_patterns,
        schema={"type": "array", "items": {"type": "string", "pattern": r"^\S+$"}},
        meaning="Virtual servers that another program makes: 10.0.0.0/24, 10.0.0.5:443/TCP with "
        "* and ?, or fwmark:7",
        per_node=True,
    ),
    "drain_budget": Key(
        field="drain_budget",
        read=_seconds,
        schema=_SECONDS,
        meaning="Seconds that a real server may stay at weight 0",
        per_node=True,
    ),
    "converge_budget": Key(
        field="converge_budget",
        read=_seconds,
        schema=_SECONDS,
        meaning="Seconds that a table may lag behind the API",
        per_node=True,
    ),
    "min_reused_tuples": Key(
        field="min_reused_tuples",
        read=_count,
        schema={"type": "integer", "minimum": 0},
        meaning="Re-used client tuples below which a rolling update is inconclusive",
    ),
    "min_new_pod_share": Key(
        field="min_new_pod_share",
        read=_fraction,
        schema=_FRACTION,
        meaning="Least part of its fair share that a new pod must get",
    ),
    "slow_connect_ms": Key(
        field="slow_connect_ms",
        read=_milliseconds,
        schema=_MILLISECONDS,
        meaning="Milliseconds from which a connect counts as slow",
    ),
    "severities": Key(
        field="severities",
        read=_severities,
        schema={"type": "object", "additionalProperties": {"enum": list(SEVERITIES)}},
        meaning="Check id to its severity, instead of the check's own",
        per_node=True,
    ),
    "thresholds": Key(
        field="thresholds",
        read=_thresholds,
        schema={
            "type": "object",
            "properties": {
                name: {
                    **_THRESHOLD_SCHEMA,
                    "description": f"{threshold.meaning} ({threshold.unit})",
                    "default": threshold.default,
                    **({"enum": list(threshold.choices)} if threshold.choices else {}),
                }
                for name, threshold in THRESHOLDS.items()
            },
            "additionalProperties": False,
        },
        meaning="Numbers that checks compare with",
        per_node=True,
    ),
}
PER_NODE = {name: key for name, key in KEYS.items() if key.per_node}
NODE_KEYS: dict[str, Key] = {
    "selector": Key(
        field="selector",
        read=_selector,
        schema=TEXT,
        meaning="Label selector of the nodes, as kubectl takes it",
    ),
    "names": Key(
        field="names",
        read=_names,
        schema={"type": "array", "minItems": 1, "items": TEXT},
        meaning="Names of the nodes; * and ? are allowed",
    ),
    **PER_NODE,
}
WAIVER_KEYS: dict[str, Key] = {
    "check": Key(
        field="check",
        read=_check,
        schema=TEXT,
        meaning="Check id (TB-03), group (TB) or pattern (TB-*)",
    ),
    "node": Key(
        field="node",
        read=_text("a node name, * and ? allowed"),
        schema=TEXT,
        meaning="Name of the node; * and ? are allowed; left out: any",
    ),
    "object": Key(
        field="object",
        read=_text("the object of a finding, * and ? allowed"),
        schema=TEXT,
        meaning="Object of the finding as it is shown; * and ? are allowed; left out: any",
    ),
    "reason": Key(
        field="reason",
        read=_text("the reason in words"),
        schema=TEXT,
        meaning="Why the finding is accepted",
    ),
    "expires": Key(
        field="expires",
        read=_day,
        schema={"type": "string", "format": "date", "pattern": r"^\d{4}-\d\d-\d\d$"},
        meaning="Last day on which the waiver counts; after it the finding fails again",
    ),
}


def _entry(keys: Mapping[str, Key], **more: Any) -> Schema:
    return {"type": "object", "properties": properties(keys), "additionalProperties": False, **more}


def properties(keys: Mapping[str, Key]) -> Schema:
    """The schema of each key, with its meaning for editors to show."""
    return {name: {**key.schema, "description": key.meaning} for name, key in keys.items()}


KEYS["nodes"] = Key(
    field="nodes",
    read=_nodes,
    schema={
        "type": "array",
        "items": _entry(
            NODE_KEYS,
            allOf=[
                {"anyOf": [{"required": [name]} for name in ("selector", "names")]},
                {"anyOf": [{"required": [name]} for name in PER_NODE]},
            ],
        ),
    },
    meaning="What holds on some nodes only",
)
KEYS["waivers"] = Key(
    field="waivers",
    read=_waivers,
    schema={
        "type": "array",
        "items": _entry(WAIVER_KEYS, required=["check", "reason", "expires"]),
    },
    meaning="Findings that are accepted for a time",
)
