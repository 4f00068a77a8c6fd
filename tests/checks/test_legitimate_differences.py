"""Why a node's table may rightly differ from the endpoint slices: 28 reasons, none a finding.

Each case has the API's objects and the table that node-2 has, written by hand. Next to it stands
its contrast: the closest state that is wrong, so that the leniency is no blindness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from evidence_builder import snapshot
from legitimate_cases import CASES, TABLE_CHECKS, Case, Servers

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyFacts, Snapshot
from pytest_ipvs.ipvs.objects import EndpointSlice, Service
from pytest_ipvs.ipvs.tables import RealServer, Table, VirtualServer
from pytest_ipvs.policy import Policy

# Interfaces of healthy nodes of which these clusters know nothing.
OTHERS = ("cni0", "kube-ipvs0")
# Facts of which these clusters have none, because no table depends on them.
NOT_GIVEN = ("details", "proxy_objects", "proxy.metrics", "proxy.healthz", "conntrack")


def place(text: str, port: int = 8080) -> tuple[str, int]:
    if text.startswith("[") or text.count(":") == 1:
        address, _, number = text.rpartition(":")
        return address.strip("[]"), int(number)
    return text, port


def real_server(text: str) -> RealServer:
    where, _, weight = text.partition("=")
    return RealServer.at(*place(where), "Masq", int(weight or 1), 0, 0)


def table(servers: Servers) -> Table:
    found = []
    for key, real in servers.items():
        protocol, where = key.split() if " " in key else ("TCP", key)
        real_servers = tuple(map(real_server, real.split()))
        found.append(
            VirtualServer(protocol, *place(where), None, "rr", (), None, None, real_servers)
        )
    return Table("1.2.1", 4096, tuple(found))


def reading(case: Case, at: float) -> Snapshot:
    plain = snapshot(at)
    last = at == case.times[-1]
    own: Servers = case.table if last or case.earlier is None else case.earlier

    def facts(name: str, servers: Servers, version: str, config: Mapping[str, Any]) -> NodeFacts:
        old = plain.facts[name]
        more = (*case.addresses, *(case.late if last else ())) if name == "node-2" else ()
        return replace(
            old,
            table=table(servers),
            addresses=(*(a for a in old.addresses if a[0] not in OTHERS), *more),
            proxy=ProxyFacts(mode="ipvs", version=version, config={"mode": "ipvs", **config}),
        )

    first = case.table if case.first is None else case.first
    return replace(
        plain,
        nodes=tuple(
            replace(node, zone=f"z{number}" if case.zones else None)
            for number, node in enumerate(plain.nodes, 1)
        ),
        services=tuple(Service.from_api(o) for o in case.objects if o["kind"] == "Service"),
        endpoint_slices=tuple(
            EndpointSlice.from_api(o) for o in case.objects if o["kind"] != "Service"
        ),
        facts={
            "node-1": facts("node-1", first, "v1.36.2", {}),
            "node-2": facts("node-2", own, case.version, case.config),
        },
        moving=case.moving,
    )


def verdict(case: Case) -> tuple[dict[str, set[str | None]], dict[str, set[str]]]:
    """Check to the nodes of its findings, and check to the facts it lacks."""
    evidence = Evidence(snapshots=tuple(reading(case, at) for at in case.times), policy=case.policy)
    found: dict[str, set[str | None]] = {}
    lacks: dict[str, set[str]] = {}
    for check in {*TABLE_CHECKS, case.trips} - case.true:
        outcome = run_check(check, evidence)
        for finding in outcome.findings:
            found.setdefault(check, set()).add(finding.node)
        for lack in outcome.not_measured:
            if not lack.fact.startswith(NOT_GIVEN):
                lacks.setdefault(check, set()).add(lack.fact)
    return found, lacks


@pytest.mark.parametrize("name", CASES)
def test_a_legitimate_difference_is_no_finding(name: str) -> None:
    case = CASES[name]
    assert verdict(case) == ({}, {check: {fact} for check, fact in case.lacks.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_closest_fault_is_found(name: str) -> None:
    case = CASES[name]
    found, lacks = verdict(replace(case, **case.contrast))
    assert (found, lacks) == ({case.trips: {"node-2"}}, {})


def test_all_reasons_have_a_case() -> None:
    assert {name[:2] for name in CASES} == {f"{number:02}" for number in range(1, 29)}


def test_another_network_namespace_is_told_as_such() -> None:
    case = CASES["23-another-network-namespace"]
    evidence = Evidence(snapshots=tuple(reading(case, at) for at in case.times), policy=Policy())
    for check in TABLE_CHECKS:
        (lack,) = run_check(check, evidence).not_measured
        assert lack.node == "node-2"
        assert "virtual servers are expected (1), and kube-ipvs0 was not found" in lack.reason
        assert "another network namespace" in lack.reason
