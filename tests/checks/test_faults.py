"""Every registered fault trips what it names and nothing else; the state before it, nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import fault_registry
import pytest
from evidence_builder import healthy, outcomes, text_of
from fault_registry import FAULTS, HEALTHY, ROLLOUT_FAULTS, Change
from faults_settings import expire_nodest_conn_is_0
from faults_tables import missing_virtual_server_of_a_node_port
from rollout_result import PATHS, Result

from pytest_ipvs.checks import CATALOGUE, Evidence, Outcome, judge_rollout, run_check
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.report.findings import explain, group

fault_registry.load()


@cache
def before(given: Change) -> Mapping[str, Outcome]:
    """What all checks say of the state before a fault; the same for most."""
    return outcomes(given(healthy()))


def found(said: Mapping[str, Outcome]) -> dict[str, set[str]]:
    """Check id to the severities of its findings."""
    return {
        check: {finding.severity for finding in outcome.findings}
        for check, outcome in said.items()
        if outcome.findings
    }


def lacking(said: Mapping[str, Outcome]) -> dict[str, set[str]]:
    """Check id to the facts it lacks."""
    return {
        check: {lack.fact for lack in outcome.not_measured}
        for check, outcome in said.items()
        if outcome.not_measured
    }


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_trips_its_check_only(name: str) -> None:
    fault = FAULTS[name]
    sound = before(fault.given)
    assert (found(sound), lacking(sound)) == ({}, {}), "the state before the fault is not healthy"
    said = outcomes(fault.change(fault.given(healthy())))
    assert found(said) == {check: {severity} for check, severity in fault.trips.items()}
    assert lacking(said) == {}
    text = text_of(said[fault.first].findings[0])
    assert [word for word in fault.words if word not in text] == []
    for outcome in said.values():
        for finding in outcome.findings:
            assert all((finding.object, finding.observed, finding.expected))
            assert all((finding.reason, finding.remedy))


@pytest.mark.parametrize("name", HEALTHY)
def test_an_odd_healthy_state_trips_nothing(name: str) -> None:
    state = HEALTHY[name]
    said = outcomes(state.change(healthy()))
    assert found(said) == {}
    assert {check: facts for check, facts in lacking(said).items() if check in state.checks} == {}


@pytest.mark.parametrize("name", ROLLOUT_FAULTS)
def test_a_spoilt_rollout_trips_its_checks_only(name: str) -> None:
    fault = ROLLOUT_FAULTS[name]
    of_paths = CATALOGUE[fault.first].judges_paths
    facts = PATHS if of_paths else Result()
    checks = [c.id for c in CATALOGUE.values() if c.data_path and c.judges_paths == of_paths]
    good = {check: judge_rollout(check, facts) for check in checks}
    assert (found(good), lacking(good)) == ({}, {})
    said = {check: judge_rollout(check, fault.change(facts)) for check in checks}
    assert found(said) == {check: {severity} for check, severity in fault.trips.items()}
    for check in fault.trips:
        (finding,) = said[check].findings
        assert [word for word in fault.words if word not in text_of(finding)] == []


def own_address(text: str, more: int) -> str:
    """An address of node-2 or of its pods' network, as it is on another node."""
    host = f"198.18.{more // 250}.{more % 250 + 1}"
    # The cluster's network has room for 256 nodes: behind that they begin anew.
    return re.sub(
        r"^10\.244\.2\.(?=1$|0/)",
        f"10.244.{more % 250 + 3}.",
        re.sub(r"^192\.0\.2\.2(?=,|$)", host, text),
    )


def other_numbers(facts: NodeFacts, name: str, more: int) -> NodeFacts:
    """The same node by another name, with what differs between two healthy nodes different."""
    table, details = facts.table, facts.details
    own = {address for interface, address in facts.addresses if interface != "kube-ipvs0"}
    if table is not None:
        table = table._replace(
            virtual_servers=tuple(
                virtual._replace(
                    address=own_address(virtual.address, more)
                    if virtual.address in own
                    else virtual.address,
                    real_servers=tuple(
                        real._replace(active=real.active + more, inactive=real.inactive + more)
                        for real in virtual.real_servers
                    ),
                )
                for virtual in table.virtual_servers
            )
        )
    if details is not None:
        details = replace(
            details,
            port_use=details.port_use
            and tuple(replace(use, entries=use.entries + more) for use in details.port_use),
            ipsets=details.ipsets
            and {
                key: replace(one, members=frozenset(own_address(m, more) for m in one.members))
                for key, one in details.ipsets.items()
            },
            syn_sent=details.syn_sent and {to: n + more for to, n in details.syn_sent.items()},
        )
    count = "net.netfilter.nf_conntrack_count"
    sysctls = dict(facts.sysctls)
    if count in sysctls:
        sysctls[count] = str(int(sysctls[count]) + more)
    return replace(
        facts,
        node=name,
        taken_at=facts.taken_at + more / 1000,
        addresses=tuple(
            (interface, own_address(address, more)) for interface, address in facts.addresses
        ),
        table=table,
        details=details,
        sysctls=sysctls,
        conntrack={key: value + more for key, value in facts.conntrack.items()},
    )


def clones(evidence: Evidence, number: int) -> Evidence:
    """The evidence with node-2 many times over, by names of its own and other readings."""

    def more(one: Snapshot) -> Snapshot:
        (node,) = (node for node in one.nodes if node.name == "node-2")
        names = [f"node-{n:03}" for n in range(3, 3 + number)]
        nodes = [
            replace(
                node,
                name=name,
                internal_ips=tuple(own_address(ip, n) for ip in node.internal_ips),
                pod_cidrs=tuple(own_address(cidr, n) for cidr in node.pod_cidrs),
            )
            for n, name in enumerate(names, 1)
        ]
        facts = {
            name: other_numbers(one.facts["node-2"], name, n) for n, name in enumerate(names, 1)
        }
        return replace(
            one,
            nodes=(*one.nodes, *nodes),
            facts={**one.facts, **facts},
        )

    baseline = evidence.baseline and more(evidence.baseline)
    return replace(evidence, snapshots=tuple(map(more, evidence.snapshots)), baseline=baseline)


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_fault_on_many_nodes_is_as_many_findings_as_on_one(name: str) -> None:
    fault = FAULTS[name]
    before_it = clones(fault.given(healthy()), 3)
    evidence = fault.change(fault.given(healthy()))
    for check in fault.trips:
        if run_check(check, before_it).findings:
            # A clone is no like of its model where the model's own pods count.
            continue
        one = group(run_check(check, evidence).findings)
        many = group(run_check(check, clones(evidence, 3)).findings)
        assert len(many) <= len(one)


def test_a_node_port_that_is_lost_on_many_nodes_is_one_finding() -> None:
    evidence = clones(missing_virtual_server_of_a_node_port(healthy()), 98)
    findings = run_check("TB-10", evidence).findings
    assert len({finding.evidence for finding in findings}) == len(findings) == 99
    (one,) = group(findings)
    assert one.finding.object == "node port 30080/TCP of demo/web"


def test_a_fault_on_three_hundred_nodes_is_one_finding() -> None:
    findings = run_check("SY-02", clones(expire_nodest_conn_is_0(healthy()), 299)).findings
    assert len(findings) == 300
    text = explain("SY-02", "expire_nodest_conn is 1", findings)
    assert text.count("observed") == 1
    assert "300 nodes (node-003, node-004, node-005, …): net.ipv4.vs.expire_nodest_conn" in text
