"""The iptables chains, jumps and masquerading of one kube-proxy, by its version and configuration.

What belongs here: what ``pkg/proxy/ipvs/proxier.go`` writes into nat and filter, as far as its
version and configuration decide it. What doesn't: the members of ipsets, see ``proxy_sets``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.ipvs.netfilter import Rule, RuleSet
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules

Version = tuple[int, int, int]

MARK_MASQ = "KUBE-MARK-MASQ"
SERVICES = "KUBE-SERVICES"
POSTROUTING = "KUBE-POSTROUTING"
NODE_PORT = "KUBE-NODE-PORT"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
DEFAULT_MASQUERADE_BIT = 14
# ipset allows names of 31 characters.
_LONGEST_NAME = 31
_ALWAYS: Version = (1, 0, 0)
# What a packet meets in nat or filter and no rule behind it sees. SNAT and MASQUERADE end the way
# as well, but what they rewrote needs no masquerading any more.
_LAST = frozenset({"ACCEPT", "DROP", "REJECT", "DNAT", "REDIRECT"})
_LONGEST_WAY = 16

Terms = frozenset[tuple[str, ...]]
"""The conditions of a rule, each with its "!" and its values: all of them must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedChain:
    """A chain that must be there, the built-in chains that jump to it, and whether it has rules.

    ``filled`` is false where it may be right that the chain is empty.
    """

    table: str
    name: str
    hooks: tuple[str, ...] = ()
    filled: bool = True


_NAT = (
    ExpectedChain(table="nat", name=SERVICES, hooks=("PREROUTING", "OUTPUT")),
    ExpectedChain(table="nat", name=POSTROUTING, hooks=("POSTROUTING",)),
    ExpectedChain(table="nat", name=MARK_MASQ),
    # Without Services of type NodePort it has no rules. The jump to it is there all the same.
    ExpectedChain(table="nat", name=NODE_PORT, filled=False),
    ExpectedChain(table="nat", name=LOAD_BALANCER),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRule:
    """A rule of nat that must be there and be reached.

    ``words`` are its conditions. kube-proxy leaves the rule out where the ipset of that name
    (``when``) has no members; "" stands for a rule that is there always.
    """

    chain: str
    target: str
    words: tuple[str, ...] = ()
    when: str = ""


# From, to, ipset, directions and protocol.
_BY_SET = (
    (POSTROUTING, "MASQUERADE", "KUBE-LOOP-BACK", "dst,dst,src", ""),
    (SERVICES, LOAD_BALANCER, "KUBE-LOAD-BALANCER", "dst,dst", ""),
    (NODE_PORT, MARK_MASQ, "KUBE-NODE-PORT-TCP", "dst", "tcp"),
    (NODE_PORT, MARK_MASQ, "KUBE-NODE-PORT-UDP", "dst", "udp"),
    (NODE_PORT, MARK_MASQ, "KUBE-NODE-PORT-SCTP-HASH", "dst,dst", "sctp"),
)

# Chain, first release that certainly has it, last minor that has it. A release in between, of
# which no source says what it does, is not asked for the chain.
_BY_VERSION: tuple[tuple[ExpectedChain, Version, int], ...] = (
    (ExpectedChain(table="nat", name="KUBE-FIREWALL"), _ALWAYS, 23),
    (ExpectedChain(table="nat", name="KUBE-MARK-DROP", filled=False), _ALWAYS, 23),
    (ExpectedChain(table="filter", name="KUBE-FORWARD", hooks=("FORWARD",)), _ALWAYS, 999),
    (ExpectedChain(table="filter", name="KUBE-NODE-PORT", hooks=("INPUT",)), (1, 27, 0), 999),
    (
        ExpectedChain(
            table="filter", name="KUBE-PROXY-FIREWALL", hooks=("INPUT", "FORWARD"), filled=False
        ),
        (1, 27, 0),
        999,
    ),
    (ExpectedChain(table="filter", name="KUBE-SOURCE-RANGES-FIREWALL"), (1, 27, 0), 999),
    (ExpectedChain(table="filter", name="KUBE-IPVS-FILTER", hooks=("INPUT",)), (1, 27, 0), 999),
    (
        ExpectedChain(table="filter", name="KUBE-IPVS-OUT-FILTER", hooks=("OUTPUT",), filled=False),
        (1, 32, 5),
        999,
    ),
)


def masquerade_chains() -> tuple[ExpectedChain, ...]:
    """The chains of nat without which nothing is masqueraded; the same in all releases."""
    return _NAT


def masquerade_rules(family: str) -> tuple[ExpectedRule, ...]:
    """The rules that choose what is masqueraded, but for ClusterIPs; the same in all releases.

    What the proxiers of 1.20.2 and 1.36.2 wrote is alike; see ``ipsetWithIptablesChain``.
    """
    by_set = tuple(
        ExpectedRule(
            chain=chain,
            target=target,
            words=(
                *(("-p", protocol) if protocol else ()),
                "--match-set",
                set_name(name, family),
                directions,
            ),
            when=set_name(name, family),
        )
        for chain, target, name, directions, protocol in _BY_SET
    )
    return (
        ExpectedRule(chain=SERVICES, target=NODE_PORT, words=("--dst-type", "LOCAL")),
        ExpectedRule(chain=LOAD_BALANCER, target=MARK_MASQ),
        *by_set,
    )


def chains_by_version(rules: ProxyRules) -> tuple[ExpectedChain, ...]:
    """The other chains that this release certainly makes."""
    number = rules.number
    return tuple(
        chain
        for chain, first, last_minor in _BY_VERSION
        if number >= first and number[:2] <= (1, last_minor)
    )


def set_name(name: str, family: str) -> str:
    """The name of an ipset for a family: "KUBE-6-…" for IPv6, at most 31 characters."""
    if family == "IPv4":
        return name
    return f"KUBE-6-{name.removeprefix('KUBE-')}"[:_LONGEST_NAME]


def _section(rules: ProxyRules, name: str) -> Mapping[str, Any]:
    section = rules.config.get(name)
    return section if isinstance(section, Mapping) else {}


def masquerade_bit(rules: ProxyRules) -> int:
    """The number of the bit that marks what is to be masqueraded: 14 unless configured."""
    value = _section(rules, "iptables").get("masqueradeBit")
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 31:
        return value
    return DEFAULT_MASQUERADE_BIT


@dataclass(frozen=True, slots=True, kw_only=True)
class MasqueradeForm:
    """How traffic to ClusterIPs is chosen for masquerading.

    ``directions`` of the match on KUBE-CLUSTER-IP and the ``words`` besides it. ``because`` names
    the settings that decide it. ``node_cidr`` is the network in ``words`` where it is the node's
    own, so that no other node has it.
    """

    directions: str
    words: tuple[str, ...]
    because: str
    node_cidr: str = ""

    def __str__(self) -> str:
        what = "the source is a virtual address" if self.directions == "src,dst" else "all"
        return f"{' '.join(self.words) or what} ({self.because})"


def masquerade_form(rules: ProxyRules, node: Node, family: str) -> MasqueradeForm | None:
    """The form of the ClusterIP masquerade rule, ``None`` where it can't be known.

    masqueradeAll marks everything; a detector of local traffic (a CIDR, a bridge, a prefix of
    interface names) what is not local; without either only what has a virtual address as source.
    """
    if _section(rules, "iptables").get("masqueradeAll") is True:
        return MasqueradeForm(directions="dst,dst", words=(), because="masqueradeAll")
    mode = str(rules.config.get("detectLocalMode") or "ClusterCIDR")
    local = _section(rules, "detectLocal")
    if mode in ("BridgeInterface", "InterfaceNamePrefix"):
        bridge = mode == "BridgeInterface"
        name = str(local.get("bridgeInterface" if bridge else "interfaceNamePrefix") or "")
        if name:
            words = ("!", "-i", name if bridge else f"{name}+")
            return MasqueradeForm(directions="dst,dst", words=words, because=f"{mode} {name}")
        return None
    if mode == "NodeCIDR":
        listed: Iterable[str] = node.pod_cidrs
        if not node.pod_cidrs:
            return None
    elif mode == "ClusterCIDR":
        listed = cluster_cidrs(rules)
    else:
        return None
    for text in listed:
        if text.strip() and (":" in text) == (family == "IPv6"):
            network = normal_network(text.strip())
            own = mode == "NodeCIDR"
            return MasqueradeForm(
                directions="dst,dst",
                words=("!", "-s", network),
                because=mode if own else f"{mode} {network}",
                node_cidr=network if own else "",
            )
    return MasqueradeForm(
        directions="src,dst", words=(), because=f"{mode} without a CIDR of this family"
    )


def cluster_cidrs(rules: ProxyRules) -> tuple[str, ...]:
    """The networks of pods as configured, of both families."""
    listed = str(rules.config.get("clusterCIDR") or "").split(",")
    return tuple(text.strip() for text in listed if text.strip())


def pod_interfaces(rules: ProxyRules) -> tuple[str, str]:
    """The bridge of pods and how the names of their interfaces begin, as configured; "" if not."""
    mode = rules.config.get("detectLocalMode")
    local = _section(rules, "detectLocal")
    return (
        str(local.get("bridgeInterface") or "") if mode == "BridgeInterface" else "",
        str(local.get("interfaceNamePrefix") or "") if mode == "InterfaceNamePrefix" else "",
    )


def normal_network(text: str) -> str:
    """A CIDR as iptables-save spells it; text that is none stays as it is."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return text


def conditions(rule: Rule) -> tuple[str, ...]:
    """The words of a rule that decide what it matches: no comment, module name or target."""
    left: list[str] = []
    skip = False
    for word in rule.words:
        if skip:
            skip = False
            continue
        if word in ("-j", "-g"):
            break
        if word in ("-m", "--comment"):
            skip = True
            continue
        if left and left[-1] in ("-s", "-d"):
            word = normal_network(word)
        left.append(word)
    return tuple(left)


def terms_of(words: Iterable[str]) -> Terms:
    """Conditions as they are written one behind the other, each by itself."""
    found: list[list[str]] = []
    sign: list[str] = []
    for word in words:
        if word == "!":
            sign = [word]
        elif word.startswith("-") or not found:
            found.append([*sign, word])
            sign = []
        else:
            found[-1].append(word)
    return frozenset(map(tuple, found))


def terms(rule: Rule) -> Terms:
    """The conditions of a rule; empty for one that matches every packet.

    Some modules need no option to match less than everything ("-m socket"): these stand for
    themselves.
    """
    bare = {
        ("-m", name)
        for option, name, after in zip(
            rule.words, rule.words[1:], (*rule.words[2:], "-j"), strict=False
        )
        if option == "-m" and after in ("-m", "-j", "-g")
    }
    return terms_of(conditions(rule)) | bare


def first_end(rules: RuleSet, table: str, chain: str, wanted: Terms, before: Rule) -> Rule | None:
    """The rule in front of another that surely keeps all packets of these conditions from it.

    Rules that match some of the packets only are none, nor is a jump from which packets may
    come back.
    """
    for rule in rules.rules(table, chain):
        if rule is before:
            return None
        ends = rule.target == "RETURN" or rule.option("-g") is not None
        if terms(rule) <= wanted and (ends or _ends(rules, table, rule, 0)):
            return rule
    return None


def _ends(rules: RuleSet, table: str, rule: Rule, depth: int) -> bool:
    """Whether no packet comes back from a rule's target."""
    if rule.target in _LAST:
        return True
    if depth > _LONGEST_WAY:
        return False
    for inner in rules.rules(table, rule.target):
        # Behind "-g", what returns goes on behind the jump that led here.
        if inner.target == "RETURN" or inner.option("-g") is not None:
            return False
        if not terms(inner) and _ends(rules, table, inner, depth + 1):
            return True
    return False


def follow_mark(rules: Iterable[Rule], mark: int) -> tuple[bool, int]:
    """Whether a chain masquerades a packet that carries just this mark, and the mark it leaves.

    Rules with conditions on anything but the mark are passed over. Raises ``ValueError`` for a
    mark that is none.
    """
    for rule in rules:
        if not all(_holds(term, mark) for term in terms(rule)):
            continue
        if rule.target == "MASQUERADE":
            return True, mark
        if rule.target in _LAST or rule.target == "RETURN" or rule.option("-g") is not None:
            break
        if rule.target == "MARK":
            mark = _marked(rule, mark)
    return False, mark


def _holds(term: tuple[str, ...], mark: int) -> bool:
    negated = term[0] == "!"
    if term[negated] != "--mark":
        return False
    value, mask = mark_and_mask(term[-1])
    return (mark & mask == value) != negated


def _marked(rule: Rule, mark: int) -> int:
    for option in ("--set-xmark", "--set-mark", "--or-mark", "--and-mark", "--xor-mark"):
        if (text := rule.option(option)) is not None:
            value, mask = mark_and_mask(text)
            if option == "--set-xmark":
                return mark & ~mask ^ value
            if option == "--set-mark":
                return mark & ~mask | value
            if option == "--or-mark":
                return mark | value
            return mark & value if option == "--and-mark" else mark ^ value
    return mark


def sets_mark(rule: Rule, bit: int) -> bool:
    """Whether a rule's target turns the bit of the packet's mark on."""
    if rule.target != "MARK":
        return False
    for option in ("--set-xmark", "--set-mark", "--or-mark", "--xor-mark"):
        if (text := rule.option(option)) is not None:
            value, _ = mark_and_mask(text)
            return bool(value >> bit & 1)
    return False


def mark_and_mask(text: str) -> tuple[int, int]:
    """ "0x4000/0x4000" to both numbers; without a mask all 32 bits count.

    Raises ``ValueError`` for what is none.
    """
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF
