"""The schema for editors says what the code accepts, and the shipped file is that schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import test_policy
import yaml

from pytest_ipvs.policy import PolicyError, load_policy
from pytest_ipvs.policy_schema import FILE, schema, text

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
GOOD = (
    "drain_budget: 1",
    "sysctls: {net.ipv4.vs.conntrack: null, net.ipv4.conf.eth0/7.rp_filter: [1, x]}",
    "settings: {jobs: 4, node-selector: a}",
    "kernel_fixes: {'el8': {b: true}}",
    "nodes: [{names: [a], severities: {SY-01: info}}, {selector: 'a=b', sysctls: {}}]",
    "waivers: [{check: SY, reason: x, expires: 2027-01-31}]",
)
# What a schema can't say, and the code does.
BEYOND_A_SCHEMA = re.compile(
    r"is given twice|say the same thing|regular expression|label selector|contains itself"
    r"|nan, expected|2026-02-30|2027-13-01|settings\.jobs|10\.0\.0\.0/33|is 010|is 1:30"
)


def accepts(rule: Mapping[str, Any], value: Any) -> bool:
    """As much of JSON schema as ours uses."""
    if "type" in rule:
        names = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        if not any(
            isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
            for name in names
        ):
            return False
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    if isinstance(value, (int, float)) and not (
        rule.get("minimum", value) <= value <= rule.get("maximum", value)
    ):
        return False
    if isinstance(value, list):
        return len(value) >= rule.get("minItems", 0) and all(
            accepts(rule.get("items", {}), item) for item in value
        )
    if isinstance(value, dict) and not accepts_mapping(rule, value):
        return False
    return all(accepts(one, value) for one in rule.get("allOf", ())) and (
        "anyOf" not in rule or any(accepts(one, value) for one in rule["anyOf"])
    )


def accepts_mapping(rule: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    known = rule.get("properties", {})
    rest = rule.get("additionalProperties", {})
    return (
        set(rule.get("required", ())) <= set(value)
        and all(accepts(rule.get("propertyNames", {}), name) for name in value)
        and all(
            accepts(known[name], item)
            if name in known
            else rest is not False and accepts(rest, item)
            for name, item in value.items()
        )
    )


def plain(value: Any) -> Any:
    """As an editor sees it: JSON has no dates."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, date) else value


def test_the_shipped_file_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run python -m pytest_ipvs.policy_schema"


@pytest.mark.parametrize("good", GOOD)
def test_what_the_code_accepts_the_schema_accepts(tmp_path: Path, good: str) -> None:
    path = tmp_path / "ipvs.yaml"
    path.write_text(good, encoding="utf-8")
    load_policy(path)
    assert accepts(schema(), plain(yaml.safe_load(good)))


def test_what_the_schema_says_no_to_the_code_refuses(tmp_path: Path) -> None:
    rule = schema()
    path = tmp_path / "ipvs.yaml"
    for bad, sentence in test_policy.BAD:
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(PolicyError):
            load_policy(path)
        if not BEYOND_A_SCHEMA.search(sentence):
            assert not accepts(rule, plain(yaml.safe_load(bad))), bad
