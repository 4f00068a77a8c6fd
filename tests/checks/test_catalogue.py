"""The catalogue's metadata is complete and consistent."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from pytest_ipvs.checks import CATALOGUE, Check, Evidence
from pytest_ipvs.cluster.model import NodeDetails
from pytest_ipvs.policy import Policy

FACTS = {
    "sysctls",
    "kernel",
    "table",
    "addresses",
    "conntrack",
    "api",
    "proxy_objects",
    "rollout",
    "paths",
    *(f"proxy.{name}" for name in ("mode", "version", "config", "metrics", "healthz", "livez")),
    *(f"details.{field.name}" for field in fields(NodeDetails)),
}


def test_ids_are_in_order_within_their_group() -> None:
    groups: dict[str, list[str]] = {}
    for name in CATALOGUE:
        assert re.fullmatch(r"[A-Z]{2}-\d\d", name)
        groups.setdefault(name[:2], []).append(name)
    assert groups == {group: sorted(names) for group, names in groups.items()}


@pytest.mark.parametrize("check", CATALOGUE.values(), ids=lambda check: check.id)
def test_metadata(check: Check) -> None:
    assert CATALOGUE[check.id] is check
    assert check.group == check.id[:2]
    assert check.needs
    assert check.needs <= FACTS
    assert check.data_path == (check.needs in ({"rollout"}, {"paths"}))
    assert check.source
    assert check.title
    assert not check.title.endswith(".")
    assert check.run.__doc__


def test_evidence_needs_a_snapshot() -> None:
    with pytest.raises(ValueError, match="evidence has no snapshot"):
        Evidence(snapshots=(), policy=Policy())
