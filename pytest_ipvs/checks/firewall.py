"""CT-07: the node's own firewall lets traffic to virtual addresses pass.

IPVS takes packets behind the filter table's INPUT chain, where an address of kube-ipvs0 is one of
the node. What INPUT drops never becomes a connection to a real server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.masquerade import RulesView, rules_views
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import silent_nodes
from pytest_ipvs.ipvs.expected import programmed
from pytest_ipvs.ipvs.netfilter import Rule, RuleSet
from pytest_ipvs.ipvs.proxy_chains import conditions, set_name

# Whether a rule matches the new connections to every ClusterIP, none of them, or can't be told.
Match = Literal["all", "none", "some"]
_OPPOSITE: Mapping[Match, Match] = {"all": "none", "none": "all", "some": "some"}
_LONGEST_WAY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    """What should pass: new connections to these addresses, found in these sets."""

    addresses: tuple[str, ...]
    sets: frozenset[str]


@dataclass(slots=True, kw_only=True)
class _Way:
    """A walk through rules: ``some_accepted`` once a rule that can't be told may accept."""

    some_accepted: bool = False


Verdict = Literal["accepted", "dropped", "returned"]


def input_policy(evidence: Evidence) -> Said:
    """INPUT accepts new connections to ClusterIPs, as far as its rules decide it.

    Rules that match by source, interface or port decide nothing about all clients. Where only
    such rules accept, a probe must tell.
    """
    check = "CT-07"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        ipv6 = view.family == "IPv6"
        traffic = _Traffic(
            addresses=tuple(
                address
                for service in view.moment.snapshot.services
                if programmed(service)
                for address in service.cluster_ips
                if (":" in address) == ipv6
            ),
            sets=frozenset(
                set_name(name, view.family) for name in ("KUBE-CLUSTER-IP", "KUBE-IPVS-IPS")
            ),
        )
        yield from _judge(check, view, traffic)


def _judge(check: str, view: RulesView, traffic: _Traffic) -> Said:
    chain = view.found.chains.get(("filter", "INPUT"))
    if chain is None:
        return  # The table is not loaded: it drops nothing.
    way = _Way()
    verdict, rule = _walk(view.found, "INPUT", traffic, way, 0)
    if verdict == "returned":
        verdict = "accepted" if chain.policy == "ACCEPT" else "dropped"
    if verdict == "accepted":
        return
    observed = f"policy {chain.policy}" if rule is None else str(rule)
    if way.some_accepted:
        yield NotMeasured(
            check=check,
            node=view.node,
            fact="a probe of a ClusterIP",
            reason=f"{view.prefix}filter INPUT drops what no rule accepts ({observed}), and the "
            "rules that accept are limited to some clients or ports",
        )
        return
    yield Finding(
        check=check,
        severity="fail",
        node=view.node,
        object=f"{view.prefix}filter INPUT",
        observed=f"{observed}, and no rule before accepts traffic to ClusterIPs",
        expected="new connections to ClusterIPs are accepted",
        reason="IPVS gets packets behind INPUT: what it drops never reaches a Service",
        remedy="on the node: iptables -I INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"
        if view.family == "IPv4"
        else "on the node: ip6tables -I INPUT -m set --match-set KUBE-6-CLUSTER-IP dst,dst "
        "-j ACCEPT",
    )


def _walk(
    rules: RuleSet, name: str, traffic: _Traffic, way: _Way, depth: int
) -> tuple[Verdict, Rule | None]:
    """Follow the traffic through a chain of filter."""
    if depth > _LONGEST_WAY:
        return "returned", None
    unsure = False
    for rule in rules.rules("filter", name):
        match = _matches(rule, traffic)
        if match == "none":
            continue
        certain = match == "all" and not unsure
        target = rule.target
        if target == "ACCEPT":
            if certain:
                return "accepted", rule
            way.some_accepted = True
        elif target in ("DROP", "REJECT"):
            if certain:
                return "dropped", rule
        elif target == "RETURN":
            if certain:
                return "returned", rule
            unsure = True
        elif ("filter", target) in rules.chains and not target.startswith("KUBE-"):
            verdict, where = _walk(rules, target, traffic, way, depth + 1)
            if certain and verdict != "returned":
                return verdict, where
            # What may happen to some of the traffic there leaves the rest to later rules.
            way.some_accepted |= verdict == "accepted"
    return "returned", None


def _matches(rule: Rule, traffic: _Traffic) -> Match:
    words = conditions(rule)
    found: Match = "all"
    for index, word in enumerate(words):
        if not word.startswith("-"):
            continue
        negated = index > 0 and words[index - 1] == "!"
        value = words[index + 1] if index + 1 < len(words) else ""
        one = _matches_one(word, value, traffic)
        if negated:
            one = _OPPOSITE[one]
        if one == "none":
            return "none"
        if one == "some":
            found = "some"
    return found


def _matches_one(option: str, value: str, traffic: _Traffic) -> Match:
    if option in ("--ctstate", "--state"):
        return "all" if "NEW" in value.split(",") else "none"
    if option == "-i":
        return "none" if value == "lo" else "some"
    if option == "-p":
        return "none" if "icmp" in value else "some"
    if option == "--match-set":
        return "all" if value in traffic.sets else "some"
    if option == "-d":
        return _within(value, traffic.addresses)
    return "some"


def _within(network: str, addresses: Iterable[str]) -> Match:
    try:
        parsed = ipaddress.ip_network(network, strict=False)
    except ValueError:
        return "some"
    inside = [ipaddress.ip_address(address) in parsed for address in addresses]
    return "all" if all(inside) else "some" if any(inside) else "none"
