"""What a kernel's behaviour says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_records import (
    ZERO,
    healthy_seconds,
    pod,
    restart_timeline,
    results_of,
    server,
)

from pytest_ipvs.rollout.probe import probe
from pytest_ipvs.traffic.results import Second


def facts(mode: str, expire: str = "1", conntrack: str = "1") -> dict[str, Any]:
    """Two nodes that agree."""
    keys = ("conn_reuse_mode", "expire_nodest_conn", "conntrack")
    pairs = zip(keys, (mode, expire, conntrack), strict=True)
    node = SimpleNamespace(sysctls={f"net.ipv4.vs.{key}": value for key, value in pairs})
    return {"node-1": node, "node-2": node}


def seconds(**change: Any) -> list[Second]:
    """Weight 0 at 6 s; from 7 s on as ``change`` says."""
    return [replace(s, **change) if s.t >= ZERO + 7 else s for s in healthy_seconds()]


MET = {"old-1": 10, "stays": 10}
OLD = {"old-1": 10, "stays": 10}
LIVE = {"new-1": 10, "stays": 10}


@pytest.mark.parametrize(
    ("settings", "pods", "resent", "fix_b", "fix_d"),
    [
        (("1",), LIVE, 0, True, None),
        (("1",), LIVE, 19, False, None),
        (("1",), LIVE, 1, None, None),
        (("1", "1", "0"), LIVE, 0, None, None),
        (("0",), LIVE, 0, None, True),
        (("0",), OLD, 0, None, False),
        (("0", "0"), OLD, 0, None, None),
    ],
)
def test_settings_decide_what_can_be_told(
    settings: tuple[str, ...],
    pods: dict[str, int],
    resent: int,
    fix_b: bool | None,
    fix_d: bool | None,
) -> None:
    results = results_of(seconds(pods=pods, reused_after=MET, resent=resent))
    told = probe(results, restart_timeline(), facts(*settings), "old-1")
    assert (told.fix_b, told.fix_d) == (fix_b, fix_d)
    assert (told.exposed, told.resent) == (630, 63 * resent)
    assert told.old_answers == (630 if pods is OLD else 0)
    assert "conn_reuse_mode=" in str(told)


def test_nodes_that_disagree_tell_nothing() -> None:
    mixed = {"node-1": facts("0")["node-1"], "node-2": facts("1")["node-2"]}
    told = probe(results_of(healthy_seconds()), restart_timeline(), mixed, "old-1")
    assert (told.fix_b, told.fix_d) == (None, None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"servers": ()}, "no node's table showed the pod's real servers"),
        (
            {"servers": (server("node-2", "10.244.1.5", zero=None, gone=None),)},
            "node-2 did not take the pod's real server to weight 0",
        ),
        ({"pods": (pod("stays", "10.244.2.5", old=True),)}, "the pod was not seen"),
    ],
)
def test_what_was_not_seen_is_a_problem(change: dict[str, Any], problem: str) -> None:
    told = probe(results_of(healthy_seconds()), restart_timeline(**change), {}, "old-1")
    assert told.problem == problem
