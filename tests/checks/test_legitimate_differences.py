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
from legitimate_cases import CASES as PLAIN_CASES
from legitimate_cases import SET_CHECKS, TABLE_CHECKS, Case, Servers
from legitimate_hints import HINT_CASES
from netfilter_builder import with_netfilter

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyFacts, Snapshot
from pytest_ipvs.ipvs.objects import EndpointSlice, Service
from pytest_ipvs.ipvs.tables import RealServer, Table, VirtualServer
from pytest_ipvs.policy import Policy

CASES = {**PLAIN_CASES, **HINT_CASES}
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
            proxy=ProxyFacts(
                mode="ipvs",
                version=version,
                config={"mode": "ipvs", **config},
                metrics=old.proxy.metrics,
            ),
        )

    first = case.table if case.first is None else case.first
    told = replace(
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
    fitted = with_netfilter(told)
    served = {
        address
        for one in told.services
        for address in (
            *(*one.cluster_ips, *one.external_ips),
            *(*one.load_balancer_ips, *one.proxied_ips),
        )
    }
    members = {"node-2": case.members}
    return replace(
        told,
        facts={
            name: with_device(
                replace(one, details=fitted.facts[name].details), served, members.get(name, {})
            )
            for name, one in told.facts.items()
        },
    )


def with_device(
    facts: NodeFacts, served: set[str], members: Mapping[str, frozenset[str]]
) -> NodeFacts:
    """The node with kube-ipvs0 by its table, not by what is expected, and with more members."""
    assert facts.table is not None
    assert facts.details is not None
    bound = served & {virtual.address for virtual in facts.table.virtual_servers}
    sets = dict(facts.details.ipsets or {})
    for name, family in (("KUBE-IPVS-IPS", "IPv4"), ("KUBE-6-IPVS-IPS", "IPv6")):
        mine = frozenset(address for address in bound if (":" in address) == (family == "IPv6"))
        if name in sets:
            sets[name] = replace(sets[name], members=mine)
    for name, more in members.items():
        sets[name] = replace(sets[name], members=sets[name].members | more)
    return replace(
        facts,
        addresses=(*facts.addresses, *(("kube-ipvs0", address) for address in sorted(bound))),
        details=replace(facts.details, ipsets=sets),
    )


def verdict(
    case: Case, more: tuple[str, ...] = ()
) -> tuple[dict[str, set[str | None]], dict[str, set[str]]]:
    """Check to the nodes of its findings, and check to the facts it lacks."""
    evidence = Evidence(snapshots=tuple(reading(case, at) for at in case.times), policy=case.policy)
    found: dict[str, set[str | None]] = {}
    lacks: dict[str, set[str]] = {}
    for check in {*TABLE_CHECKS, case.trips, *more} - case.true:
        outcome = run_check(check, evidence)
        for finding in outcome.findings:
            found.setdefault(check, set()).add(finding.node)
        for lack in outcome.not_measured:
            if check in SET_CHECKS or not lack.fact.startswith(NOT_GIVEN):
                lacks.setdefault(check, set()).add(lack.fact)
    return found, lacks


@pytest.mark.parametrize("name", CASES)
def test_a_legitimate_difference_is_no_finding(name: str) -> None:
    case = CASES[name]
    lacks = {check: {fact} for check, fact in case.lacks.items()}
    assert verdict(case, SET_CHECKS) == ({}, lacks)


@pytest.mark.parametrize("name", CASES)
def test_the_closest_fault_is_found(name: str) -> None:
    case = CASES[name]
    found, lacks = verdict(replace(case, **case.contrast))
    assert (found, lacks) == ({case.trips: {"node-2"}}, {})


def test_an_address_that_this_kube_proxy_should_leave_out_is_bound_and_in_sets() -> None:
    case = PLAIN_CASES["09-a-kube-proxy-that-knows-no-mode"]
    found, lacks = verdict(replace(case, **case.contrast), SET_CHECKS)
    assert found == {"TB-01": {"node-2"}, "TB-09": {"node-2"}}
    # A member is in doubt while the table is wrong at the same address.
    assert lacks == {"TB-11": {"a later reading"}}


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
