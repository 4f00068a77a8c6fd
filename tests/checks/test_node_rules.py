"""What the policy says of some nodes counts on those, for judging and for waiting."""

from __future__ import annotations

from dataclasses import replace

from evidence_builder import healthy
from faults_settings import expire_nodest_conn_is_0
from faults_tables import real_server_that_never_drains

from pytest_ipvs.checks import run_check
from pytest_ipvs.cluster.settle import Settling
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.policy import NodeRule, Policy
from pytest_ipvs.selectors import LabelSelector


def test_a_rule_for_some_nodes_counts_there_only() -> None:
    labels = {"pool": "edge"}
    values = {"sysctls": {"net.ipv4.vs.expire_nodest_conn": ("0",)}, "drain_budget": 900.0}
    rule = NodeRule(values=values, selector=LabelSelector.parse("pool=edge"))
    evidence = expire_nodest_conn_is_0(real_server_that_never_drains(healthy()))
    evidence = replace(evidence, policy=Policy(nodes=(rule,)))
    assert run_check("SY-02", evidence).findings
    assert run_check("TB-04", evidence).findings
    edge = replace(
        evidence,
        snapshots=tuple(
            replace(
                one,
                nodes=tuple(
                    replace(node, labels=labels) if node.name == "node-2" else node
                    for node in one.nodes
                ),
            )
            for one in evidence.snapshots
        ),
    )
    told = run_check("SY-02", edge).findings
    # node-1 has the general rule's value, and that is right there.
    assert told == ()
    assert run_check("TB-04", edge).findings == ()
    assert run_check("TB-04", edge).not_measured


def test_a_severity_for_some_nodes() -> None:
    rule = NodeRule(values={"severities": {"SY-02": "info"}}, names=("node-2",))
    evidence = replace(expire_nodest_conn_is_0(healthy()), policy=Policy(nodes=(rule,)))
    assert [f.severity for f in run_check("SY-02", evidence).findings] == ["info"]
    assert Policy(nodes=(rule,)).for_node(Node(name="node-1")).severities == {}


def test_waiting_knows_the_budget_of_each_node() -> None:
    early, late = real_server_that_never_drains(healthy(0.0, 30.0)).snapshots
    for names, settled in (("node-2",), True), (("node-1",), False):
        rule = NodeRule(values={"drain_budget": 20.0}, names=names)
        settling = Settling(Policy(nodes=(rule,)))
        assert not settling.add(early).settled
        assert settling.add(late).settled is settled
