"""Rolling updates of real clusters: what the checks say of them, reading by reading."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from typing import Any

import ipvs_oracle
import pytest
import recorded_proxy
from evidence_builder import KERNEL, tripped, unmeasured
from ipvs_recorded import HZ, addresses, nodes, readings, said, services, slices
from ipvs_render import table_of

from pytest_ipvs.checks import Evidence
from pytest_ipvs.checks import tables as checks_of_tables
from pytest_ipvs.cluster.expectation import differences_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.objects import EndpointSlice
from pytest_ipvs.ipvs.tables import Table, parse_table
from pytest_ipvs.policy import Policy

# Seconds between two snapshots.
STEP = 10.0


@cache
def tables(run: str, node: str) -> tuple[list[float], list[Table]]:
    """Times and tables of one node, as the recorder read them."""
    found: list[tuple[float, Table]] = []
    for row in readings(run):
        if row.get("node") != node:
            continue
        # One read() gave the first 4096 characters only: from 1.20.2, ipvsadm has the whole.
        if row["what"] == "cat /proc/net/ip_vs" and run.startswith("1.36"):
            found.append((row["t"], parse_table(row["out"])))
        elif row["what"] == "ipvsadm -Ln" and run.startswith("1.20"):
            found.append((row["t"], table_of(ipvs_oracle.parse_list(row["out"]), HZ)))
    return [at for at, _ in found], [table for _, table in found]


def facts(run: str, node: str, at: float) -> NodeFacts:
    times, known = tables(run, node)
    index = max(bisect_right(times, at) - 1, 0)
    values: dict[str, str] = {}
    for row in said(run, "sysctl net.ipv4.vs", node):
        if row["t"] <= at or not values:
            values = dict(re.findall(r"^(\S+) = (.*)$", row["out"], re.MULTILINE))
    return NodeFacts(
        node=node,
        taken_at=times[index],
        kernel_release=KERNEL[0],
        kernel_version=KERNEL[1],
        sysctls=values,
        table=known[index],
        addresses=addresses(run.partition("-")[0], node),
        proxy=recorded_proxy.proxy_facts(run, node, at),
        details=recorded_proxy.proxy_details(run, node),
    )


def snapshots(run: str) -> Iterator[Snapshot]:
    """The run, a snapshot each STEP seconds from its first to its last reading."""
    version = run.partition("-")[0]
    names = ("node-1", "node-2", "node-3")
    fixed = tuple(item for item in slices(version) if item.namespace == "default")
    # The recorder's own Services were deleted as the runs began.
    lasting = tuple(item for item in services(version) if item.namespace != "rec")
    lists: list[dict[str, Any]] = list(said(run, "endpointslices"))
    starts, ends = zip(
        *((tables(run, name)[0][0], tables(run, name)[0][-1]) for name in names), strict=True
    )
    at = max(starts)
    while at <= min(ends):
        index = max(bisect_right([row["t"] for row in lists], at) - 1, 0)
        yield Snapshot(
            taken_at=at,
            server_version=f"v{version}",
            nodes=tuple(nodes(version)[name] for name in names),
            services=lasting,
            endpoint_slices=(*fixed, *map(EndpointSlice.from_api, lists[index]["items"])),
            facts={name: facts(run, name, at) for name in names},
            proxy_objects=recorded_proxy.OBJECTS,
        )
        at += STEP


def waiting(evidence: Evidence) -> dict[str, set[str]]:
    """Checks that wait for a later reading; facts that nobody recorded are missing besides."""
    later = {"a later reading"}
    return {check: later for check, facts in unmeasured(evidence).items() if facts >= later}


@pytest.fixture
def _compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The evidence grows by a snapshot at a time; what was compared before stays as it was.
    known: dict[tuple[int, str], Any] = {}

    def remembered(snapshot: Snapshot, facts: NodeFacts, *rest: Any) -> Any:
        key = (id(snapshot), facts.node)
        if key not in known:
            # The snapshot is kept, so that no other gets its number.
            known[key] = (snapshot, differences_of(snapshot, facts, *rest))
        return known[key][1]

    monkeypatch.setattr(checks_of_tables, "differences_of", remembered)


@pytest.mark.usefixtures("_compared_once")
@pytest.mark.parametrize(
    ("run", "always"),
    [
        ("1.36.2-A", {}),
        # kube-proxy 1.20.2 itself sets conn_reuse_mode to 0, which this kernel does not need.
        ("1.20.2-A", {"SY-01": {"warn"}}),
        ("1.36.2-B", {"SY-01": {"fail"}, "SY-02": {"fail"}}),
        ("1.20.2-B", {"SY-01": {"warn"}, "SY-02": {"fail"}}),
    ],
)
def test_a_recorded_run_trips_what_is_true_and_nothing_else(
    run: str, always: dict[str, set[str]]
) -> None:
    taken = tuple(snapshots(run))
    assert len(taken) >= 14
    seen_open = False
    # Judged at every moment, whatever the rolling update is doing then.
    for end in range(2, len(taken) + 1):
        evidence = Evidence(snapshots=taken[:end], policy=Policy())
        # The emulated processor makes syncs slow: test_recorded_proxy.py tells when.
        found = {check: told for check, told in tripped(evidence).items() if check != "KP-04"}
        assert found == always, f"after {end} readings"
        seen_open |= bool(waiting(evidence))
    # Real servers drained in between. 1.20.2 was recorded until some were still there.
    assert seen_open
    assert waiting(evidence) == ({"TB-04": {"a later reading"}} if run.startswith("1.20") else {})


@pytest.mark.usefixtures("_compared_once")
def test_real_servers_that_are_kept_alive_by_reused_ports_outlast_a_shorter_budget() -> None:
    # They were at weight 0 for 187 s, and 35 s where the settings were right.
    for run, found in (("1.36.2-B", {"TB-04": {"fail"}}), ("1.36.2-A", {})):
        taken = tuple(snapshots(run))
        worst: dict[str, set[str]] = {}
        for end in range(2, len(taken) + 1, 3):
            policy = Policy(drain_budget=100.0)
            worst |= tripped(Evidence(snapshots=taken[:end], policy=policy))
        assert {check: worst[check] for check in worst if check.startswith("TB")} == found
