"""CT-01 to CT-03 and CT-06: kube-proxy's chains, jumps and masquerading."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_ipvs.checks.detailed import Doubt, Moment, moment, not_settled
from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import (
    RESTART_PROXY,
    NodeView,
    detail,
    silent_nodes,
    views,
    why_unread,
)
from pytest_ipvs.ipvs.netfilter import Rule, RuleSet
from pytest_ipvs.ipvs.proxy_chains import (
    MARK_MASQ,
    POSTROUTING,
    SERVICES,
    ExpectedChain,
    Terms,
    chains_by_version,
    conditions,
    first_end,
    follow_mark,
    masquerade_bit,
    masquerade_chains,
    masquerade_form,
    masquerade_rules,
    normal_network,
    set_name,
    terms,
    terms_of,
)
from pytest_ipvs.ipvs.proxy_sets import expected_sets

_PROGRAMS = {"IPv4": "iptables", "IPv6": "ip6tables"}
# The first release of iptables whose MASQUERADE knows --random-fully.
_RANDOM_FULLY = (1, 6, 2)
_NODE_CIDR = "NODE-POD-CIDR"
_NOT_MASQUERADED = (
    "traffic to Services that needs masquerading keeps its source address, so that replies of "
    "pods on other nodes take another way and the connection fails"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesView:
    """The rules of one family on one node, at the moment they were read."""

    node: str
    family: str
    found: RuleSet
    moment: Moment

    @property
    def prefix(self) -> str:
        """What tells the families apart in the name of an object: nothing for IPv4."""
        return "" if self.family == "IPv4" else "ip6tables "


def rules_views(check: str, evidence: Evidence) -> Iterator[RulesView | NotMeasured]:
    """The rules of every family in use on every node."""
    for view in views(evidence):
        found = moment(check, evidence, view)
        if isinstance(found, NotMeasured):
            yield found
            continue
        for family in found.families:
            rules = detail(check, evidence, view, _PROGRAMS[family])
            if isinstance(rules, NotMeasured):
                yield rules
            else:
                yield RulesView(node=view.name, family=family, found=rules, moment=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrong:
    object: str
    observed: str
    expected: str
    evidence: str = ""
    # Why it may be right, for what depends on Services that may just have changed.
    doubt: Doubt | None = None


def _missing(view: RulesView, chain: ExpectedChain) -> Iterator[_Wrong]:
    """What a chain lacks: itself, its rules, the jumps to it."""
    name = f"{view.prefix}{chain.table} {chain.name}"
    if (chain.table, chain.name) not in view.found.chains:
        yield _Wrong(object=name, observed="no such chain", expected="present")
    elif chain.filled and not view.found.rules(chain.table, chain.name):
        yield _Wrong(object=name, observed="no rules", expected="kube-proxy's rules")
    for hook in chain.hooks:
        observed = _not_reached(view, chain.table, hook, chain.name, frozenset())
        if observed is not None:
            yield _Wrong(
                object=f"{view.prefix}{chain.table} {hook} -> {chain.name}",
                observed=observed or "no jump",
                expected="a jump for all packets that no rule in front of it ends",
            )


def _not_reached(view: RulesView, table: str, chain: str, target: str, wanted: Terms) -> str | None:
    """Why packets of these conditions do not reach a target: ``None`` if they do, "" for no rule.

    A rule with more conditions leaves some of the packets out. One with fewer is another rule: the
    last MASQUERADE of KUBE-POSTROUTING does not stand in for that of pods reaching themselves.
    """
    leading = [rule for rule in view.found.rules(table, chain) if rule.target == target]
    for rule in leading:
        if terms(rule) == wanted:
            end = first_end(view.found, table, chain, wanted, rule)
            return None if end is None else f"behind {end}"
    narrow = [rule for rule in leading if terms(rule) > wanted]
    return f"for some packets only: {narrow[0]}" if narrow else ""


def _told(
    check: str, view: RulesView, wrong: Iterator[_Wrong], severity: Severity, reason: str
) -> Said:
    """Findings, unless kube-proxy had not finished its first sync: rules change seldom later."""
    found = list(wrong)
    doubts = [(item, view.moment.starting or item.doubt) for item in found]
    unsettled = [(item, doubt) for item, doubt in doubts if doubt is not None]
    if unsettled:
        item, doubt = unsettled[0]
        what = f"{item.object}: {item.observed}, expected {item.expected}"
        yield not_settled(check, view.node, what, doubt, len(unsettled) - 1)
    for item in (item for item, doubt in doubts if doubt is None):
        yield Finding(
            check=check,
            severity=severity,
            node=view.node,
            object=item.object,
            observed=item.observed,
            expected=item.expected,
            reason=reason,
            remedy=RESTART_PROXY,
            evidence=item.evidence,
        )


def chains(evidence: Evidence) -> Said:
    """The chains that mark and masquerade are there, are reached first, and use the right bit."""
    check = "CT-01"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        yield from _told(check, view, _masquerading(view), "fail", _NOT_MASQUERADED)
        if view.moment.facts.proxy.config is None:
            yield _no_config(check, view)


def _no_config(check: str, view: RulesView) -> NotMeasured:
    reason = "kube-proxy's configuration was not read"
    why = why_unread(view.moment.facts, "proxy.config", reason)
    return NotMeasured(check=check, node=view.node, fact="proxy.config", reason=why)


def _masquerading(view: RulesView) -> Iterator[_Wrong]:
    for chain in masquerade_chains():
        yield from _missing(view, chain)
    for hook in ("PREROUTING", "OUTPUT"):
        jumps = [r.target for r in view.found.rules("nat", hook) if r.target.startswith("KUBE-")]
        if SERVICES in jumps and jumps[0] != SERVICES:
            yield _Wrong(
                object=f"{view.prefix}nat {hook} -> {SERVICES}",
                observed=f"behind the jump to {jumps[0]}",
                expected="the first jump to a KUBE- chain",
            )
    yield from _choosing(view)
    if view.moment.facts.proxy.config is None:
        return
    bit = masquerade_bit(view.moment.rules)
    mark = 1 << bit
    wanted = f"mark 0x{mark:x} (masqueradeBit {bit})"
    marking = view.found.rules("nat", MARK_MASQ)
    if marking and not follow_mark(marking, 0)[1] & mark:
        yield _Wrong(
            object=f"{view.prefix}nat {MARK_MASQ}",
            observed="; ".join(map(str, marking)),
            expected=f"a rule that sets {wanted}, and none in front of it that ends",
        )
    rules = view.found.rules("nat", POSTROUTING)
    if rules and not (follow_mark(rules, mark)[0] and not follow_mark(rules, 0)[0]):
        yield _Wrong(
            object=f"{view.prefix}nat {POSTROUTING}",
            observed="; ".join(map(str, rules)),
            expected=f"MASQUERADE of what carries {wanted}, and not of what carries no mark",
        )


def _choosing(view: RulesView) -> Iterator[_Wrong]:
    """The rules that choose what is masqueraded, where their chains are there."""
    filled = {chain.name for chain in masquerade_chains() if chain.filled}
    for should in masquerade_rules(view.family):
        chain = view.found.chains.get(("nat", should.chain))
        if chain is None or not (chain.rules or should.chain not in filled):
            continue  # That is told already.
        observed = _not_reached(view, "nat", should.chain, should.target, terms_of(should.words))
        if observed is None:
            continue
        asked, doubt = _asked(view, should.when) if should.when else (True, None)
        if not asked:
            continue
        of_set = f" of {should.when}" if should.when else ""
        yield _Wrong(
            object=f"{view.prefix}nat {should.chain} -> {should.target}{of_set}",
            observed=observed or "no rule",
            expected=shlex.join([*should.words, "-j", should.target]),
            doubt=doubt,
        )


def _asked(view: RulesView, name: str) -> tuple[bool, Doubt | None]:
    """Whether a Service has a member in an ipset, and why that may not count yet.

    kube-proxy writes the rule for a set together with its first member. This is asked for rules
    that are missing only: with many Services it takes a while.
    """
    services = {
        service
        for one in expected_sets(
            services=view.moment.snapshot.services,
            slices=view.moment.snapshot.endpoint_slices,
            node=view.moment.node,
            addresses=view.moment.facts.addresses,
            rules=view.moment.rules,
            family=view.family,
        )
        if one.name == name
        for service in one.required.values()
    }
    doubt: Doubt | None = None
    for service in sorted(services):
        doubt = view.moment.doubt(service, "")
        if doubt is None:
            break
    return bool(services), doubt


def _snat(rules: tuple[Rule, ...]) -> list[Rule]:
    """The rules that masquerade what is marked; that of pods reaching themselves is another."""
    return [r for r in rules if r.target == "MASQUERADE" and r.option("--match-set") is None]


def cluster_ip_rule(evidence: Evidence) -> Said:
    """The rule that marks traffic to ClusterIPs has the form that the configuration asks for."""
    check = "CT-02"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
        elif view.moment.facts.proxy.config is None:
            yield _no_config(check, view)
        else:
            yield from _cluster_ip_rule(check, view)


def _cluster_ip_rule(check: str, view: RulesView) -> Said:
    form = masquerade_form(view.moment.rules, view.moment.node, view.family)
    if form is None:
        yield NotMeasured(
            check=check,
            node=view.node,
            fact="proxy.config",
            reason="what detectLocalMode asks for is not in the configuration or the Node",
        )
        return
    if ("nat", SERVICES) not in view.found.chains:
        return  # CT-01 tells it.
    name = set_name("KUBE-CLUSTER-IP", view.family)
    rules = [
        rule
        for rule in view.found.rules("nat", SERVICES)
        if rule.target == MARK_MASQ and rule.option("--match-set") == name
    ]
    wanted = ("--match-set", name, form.directions)
    behind = ""
    for rule in rules:
        words = conditions(rule)
        at = words.index("--match-set")
        if words[at : at + 3] == wanted and words[:at] + words[at + 3 :] == form.words:
            end = first_end(view.found, "nat", SERVICES, terms(rule), rule)
            if end is None:
                return
            behind = f", behind {end}"
    # The node's own CIDR goes with the evidence: the same fault on many nodes is one finding.
    own = form.node_cidr

    def shown(word: str) -> str:
        return _NODE_CIDR if own and normal_network(word) == own else word

    wrong = _Wrong(
        object=f"{view.prefix}nat {SERVICES}: masquerading of ClusterIPs",
        observed="; ".join(shlex.join(map(shown, rule.words)) for rule in rules) + behind
        if rules
        else "no rule",
        expected=f"{' '.join([*map(shown, form.words), *wanted])} ({form.because})",
        evidence=f"{_NODE_CIDR} is {own}, the node's own" if own else "",
    )
    reason = (
        "the sources that are masqueraded on their way to a ClusterIP are not those that "
        "kube-proxy's configuration names"
    )
    yield from _told(check, view, iter([wrong]), "fail", reason)


def random_fully(evidence: Evidence) -> Said:
    """MASQUERADE picks ports at random where iptables can ask for it."""
    check = "CT-03"
    yield from silent_nodes(check, evidence)
    by_name = {view.name: view for view in views(evidence)}
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        version = _iptables_version(check, evidence, by_name[view.node], view.found)
        if isinstance(version, NotMeasured):
            yield version
        elif version >= _RANDOM_FULLY:
            rules = _snat(view.found.rules("nat", POSTROUTING))
            bare = [rule for rule in rules if "--random-fully" not in rule.words]
            yield from _told(
                check,
                view,
                (
                    _Wrong(
                        object=f"{view.prefix}nat {POSTROUTING}",
                        observed=str(rule),
                        expected="MASQUERADE --random-fully",
                    )
                    for rule in bare
                ),
                "warn",
                "connections that are masqueraded at the same time may pick the same source "
                "port, and the first packet of one of them is dropped",
            )


def _iptables_version(
    check: str, evidence: Evidence, view: NodeView, rules: RuleSet
) -> tuple[int, ...] | NotMeasured:
    tools = detail(check, evidence, view, "tools")
    told = "" if isinstance(tools, NotMeasured) else str(tools.get("iptables", ""))
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", told) or re.search(
        r"(\d+)\.(\d+)(?:\.(\d+))?", rules.program
    )
    if found:
        return tuple(int(part or 0) for part in found.groups())
    if isinstance(tools, NotMeasured):
        return tools
    reason = "the version of iptables is not known"
    return NotMeasured(check=check, node=view.name, fact="details.tools", reason=reason)


def version_chains(evidence: Evidence) -> Said:
    """The other chains that this release of kube-proxy makes are there and reached."""
    check = "CT-06"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        wrong = (
            item for chain in chains_by_version(view.moment.rules) for item in _missing(view, chain)
        )
        yield from _told(
            check,
            view,
            wrong,
            "warn",
            f"kube-proxy {view.moment.rules.version} filters in this chain: without it ports of "
            "the node answer on virtual addresses, or forwarding and source ranges are not kept",
        )
