"""Evidence of nodes whose rules and sets differ from what kube-proxy wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from evidence_builder import on_node

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import NodeFacts
from pytest_ipvs.ipvs.netfilter import Chain, Rule


def rules_changed(
    evidence: Evidence, change: Callable[[Mapping[tuple[str, str], Chain]], Mapping]
) -> Evidence:
    """The evidence with other chains on node-2."""

    def one(old: NodeFacts) -> NodeFacts:
        assert old.details is not None
        assert old.details.iptables is not None
        rules = old.details.iptables
        return replace(
            old,
            details=replace(
                old.details, iptables=replace(rules, chains=change(dict(rules.chains)))
            ),
        )

    return on_node(evidence, one)


def chain_changed(
    table: str, name: str, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]], policy: str = ""
) -> Callable[[Evidence], Evidence]:
    """A fault: the rules of one chain changed on node-2."""

    def one(chains: Mapping[tuple[str, str], Chain]) -> Mapping[tuple[str, str], Chain]:
        old = chains.get((table, name), Chain())
        made = replace(old, rules=change(old.rules), policy=policy or old.policy)
        return {**chains, (table, name): made}

    return lambda evidence: rules_changed(evidence, one)


def rule(text: str) -> Rule:
    """One rule from its words."""
    return Rule(words=tuple(text.split()))


def set_changed(
    name: str, change: Callable[[frozenset[str]], frozenset[str]]
) -> Callable[[Evidence], Evidence]:
    """A fault: the members of one ipset changed on node-2."""

    def one(old: NodeFacts) -> NodeFacts:
        assert old.details is not None
        assert old.details.ipsets is not None
        sets = dict(old.details.ipsets)
        sets[name] = replace(sets[name], members=change(sets[name].members))
        return replace(old, details=replace(old.details, ipsets=sets))

    return lambda evidence: on_node(evidence, one)


def set_lost(name: str) -> Callable[[Evidence], Evidence]:
    """A fault: an ipset that node-2 does not have."""

    def one(old: NodeFacts) -> NodeFacts:
        assert old.details is not None
        assert old.details.ipsets is not None
        sets = {key: value for key, value in old.details.ipsets.items() if key != name}
        return replace(old, details=replace(old.details, ipsets=sets))

    return lambda evidence: on_node(evidence, one)
