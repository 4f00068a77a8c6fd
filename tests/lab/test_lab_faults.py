"""Faults do on the real kernel what they say, and clearing undoes it.

What the faults of pods and of re-used ports do to traffic is shown by the checks that tell them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = pytest.mark.lab
NODE_NAMES = ("node-1", "node-2", "node-3")
VS = "net.ipv4.vs"


def _stale(before: dict[str, int], after: dict[str, int]) -> bool:
    return after == before | {"10.244.2.199:8080": 1}


def _missing(before: dict[str, int], after: dict[str, int]) -> bool:
    return len(after) == len(before) - 1 and after.items() <= before.items()


def _quiesced(before: dict[str, int], after: dict[str, int]) -> bool:
    return set(after) == set(before) and sorted(after.values()) == [0, 1, 1]


def _lingering(before: dict[str, int], after: dict[str, int]) -> bool:
    return after == before | {"10.244.2.198:8080": 0}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("stale_real_server", _stale),
        ("missing_real_server", _missing),
        ("wanted_at_weight_zero", _quiesced),
        ("never_drains", _lingering),
    ],
)
def test_faults_of_real_servers(
    lab: RunningLab,
    eventually: Callable[..., Any],
    fault: str,
    expected: Callable[[dict[str, int], dict[str, int]], bool],
) -> None:
    eventually(lambda: lab.web("node-2") == dict.fromkeys(lab.addresses(), 1), "a clean table")
    before = lab.web("node-2")
    lab.handle.fault(fault)
    assert expected(before, lab.web("node-2"))
    assert not expected(before, lab.web("node-1"))
    lab.handle.clear(fault)
    eventually(lambda: lab.web("node-2") == before, "the table as it was")


def test_faults_of_virtual_servers(lab: RunningLab) -> None:
    lab.handle.fault("orphan_virtual_server", "node-3")
    lab.handle.fault("wrong_scheduler", "node-3")
    table = lab.table("node-3")
    assert table["10.96.255.254:80"]["servers"] == {}
    assert table["10.96.10.1:80"]["scheduler"] == "lc"
    lab.handle.clear()
    table = lab.table("node-3")
    assert "10.96.255.254:80" not in table
    assert table["10.96.10.1:80"]["scheduler"] == "rr"


@pytest.mark.parametrize(
    ("fault", "keys"),
    [
        ("reuse_leftover", ["conn_reuse_mode", "expire_nodest_conn"]),
        ("template_sticks", ["expire_quiescent_template"]),
        ("conntrack_off", ["conntrack"]),
    ],
)
def test_faults_of_sysctls(lab: RunningLab, fault: str, keys: list[str]) -> None:
    lab.handle.fault(fault)
    for node in NODE_NAMES:
        assert [lab.sysctl(node, f"{VS}.{key}") for key in keys] == ["0"] * len(keys)
    lab.handle.clear(fault)
    for node in NODE_NAMES:
        assert [lab.sysctl(node, f"{VS}.{key}") for key in keys] == ["1"] * len(keys)


def test_the_first_syn_of_a_reused_port_is_dropped(lab: RunningLab) -> None:
    lab.handle.fault("syn_dropped")
    result = lab.connect(12, 6)
    assert result["errors"] == {}
    assert result["slow"] == 6
    lab.handle.clear("syn_dropped")
    assert lab.connect(12, 6)["slow"] == 0
    for node in NODE_NAMES:
        assert "LAB-" not in lab.ssh(node, "iptables-save")
        assert "LAB-" not in lab.ssh(node, "ipset", "list", "-n")


def test_an_unreachable_node_refuses_ssh_until_cleared(lab: RunningLab) -> None:
    lab.handle.fault("node_unreachable")
    with pytest.raises(AssertionError):
        lab.ssh("node-2", "true")
    lab.ssh("node-1", "true")
    lab.handle.clear()
    lab.ssh("node-2", "true")
