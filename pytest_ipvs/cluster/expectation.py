"""What one node's table should be at one moment, and how long it may differ from that.

What belongs here: bringing a snapshot, a node's facts and the policy to the pure functions of
``ipvs``. Waiting and judging both start from here, so that they agree. What doesn't belong here:
deciding what a difference means; ``checks`` do that.
"""

from __future__ import annotations

from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects, Snapshot
from pytest_ipvs.cluster.proxy_config import effective_config, image_version
from pytest_ipvs.ipvs.compare import Difference, compare
from pytest_ipvs.ipvs.expected import ExpectedTable, expected_table
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.overtime import Budgets
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.policy import Policy

# Two of kube-proxy's default sync periods: what the policy's default converge budget stands for.
_DEFAULT_LAG = Policy().converge_budget


def node_of(snapshot: Snapshot, name: str) -> Node:
    """The API's object of a node, or one that has a name only."""
    return next((node for node in snapshot.nodes if node.name == name), Node(name=name))


def rules_of(
    facts: NodeFacts,
    node: Node,
    server_version: str = "",
    *,
    objects: ProxyObjects | None = None,
    detailed: NodeFacts | None = None,
) -> ProxyRules:
    """The rules of one node's kube-proxy, by its effective configuration.

    kube-proxy's own word comes first, then its image's tag. The kubelet's in the Node object is a
    guess, and servers from 1.33 on leave it out. The API server's version is at most three minors
    off.

    Raises:
        ValueError: no source tells a version, or what it tells is none.
    """
    told = (
        facts.proxy.version,
        image_version(node.name, objects),
        node.kube_proxy_version,
        node.kubelet_version,
        server_version,
    )
    version = next(filter(None, told), None)
    if not version:
        raise ValueError("kube-proxy's version was not read")
    config = effective_config(facts, objects, detailed or facts)
    return ProxyRules(version=version, config=config.values if config is not None else {})


def budgets_of(policy: Policy, rules: ProxyRules) -> Budgets:
    """How long differences on one node may last, in seconds.

    The policy's time, or longer where the node's kube-proxy is configured to need it. A policy
    that is shorter than the default counts as it is, but for the releases that force a resync
    once an hour only: there a difference of an hour is what that kube-proxy does.
    """
    converge = policy.converge_budget
    if rules.hourly_resync or converge >= _DEFAULT_LAG:
        converge = max(converge, rules.sync_lag)
    return Budgets(converge=converge, drain=policy.drain_budget)


def differences_of(
    snapshot: Snapshot, facts: NodeFacts, rules: ProxyRules, policy: Policy, hz: int | None = None
) -> tuple[tuple[Difference, ...], ExpectedTable]:
    """One node's differences at one moment, and the table it should have. Needs its table."""
    if facts.table is None:
        raise ValueError(f"node {facts.node} has no table to compare")
    expected = expected_table(
        services=snapshot.services,
        slices=snapshot.endpoint_slices,
        node=node_of(snapshot, facts.node),
        addresses=facts.addresses,
        rules=rules,
    )
    found = compare(
        expected,
        facts.table,
        foreign=policy.foreign_virtual_servers,
        moving=snapshot.moving,
        hz=hz,
    )
    return found, expected
