"""What a kube-proxy at rest leaves in netfilter, for evidence built by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from ipvs_recorded import netfilter

from pytest_ipvs.cluster.expectation import node_of, rules_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.netfilter import IpSet, RuleSet, parse_rules
from pytest_ipvs.ipvs.proxy_sets import expected_sets, used_families, virtual_addresses


@cache
def recorded_rules(version: str) -> RuleSet:
    """The rules that a real kube-proxy made."""
    row = next(netfilter(f"{version}-A", "iptables-save", "node-1"))
    return parse_rules(row["out"])


def with_netfilter(snapshot: Snapshot) -> Snapshot:
    """The reading with kube-ipvs0, ipsets and rules that fit each node's objects."""
    return replace(
        snapshot, facts={name: _facts(snapshot, told) for name, told in snapshot.facts.items()}
    )


def _facts(snapshot: Snapshot, old: NodeFacts) -> NodeFacts:
    node = node_of(snapshot, old.node)
    rules = rules_of(old, node, snapshot.server_version)
    families = used_families(snapshot.services, rules, node)
    own = tuple(pair for pair in old.addresses if pair[0] != "kube-ipvs0")
    bound = tuple(
        ("kube-ipvs0", address)
        for family in families
        for address in virtual_addresses(snapshot.services, own, rules, family).required
    )
    addresses = (*own, *bound)
    sets = {
        one.name: IpSet(name=one.name, kind=one.kind, members=frozenset(one.required))
        for family in families
        for one in expected_sets(
            services=snapshot.services,
            slices=snapshot.endpoint_slices,
            node=node,
            addresses=addresses,
            rules=rules,
            family=family,
        )
    }
    assert old.details is not None
    return replace(
        old,
        addresses=addresses,
        details=replace(
            old.details,
            iptables=recorded_rules("1.20.2" if rules.number < (1, 24, 0) else "1.36.2"),
            ipsets=sets,
        ),
    )
