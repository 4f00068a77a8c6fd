"""The iptables chains, jumps and masquerading of one kube-proxy, by its version and configuration.

What belongs here: what ``pkg/proxy/ipvs/proxier.go`` writes into nat and filter, as far as its
version and configuration decide it. What doesn't: the members of ipsets, see ``proxy_sets``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.ipvs.netfilter import Rule
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules

Version = tuple[int, int, int]

MARK_MASQ = "KUBE-MARK-MASQ"
SERVICES = "KUBE-SERVICES"
POSTROUTING = "KUBE-POSTROUTING"
DEFAULT_MASQUERADE_BIT = 14
# ipset allows names of 31 characters.
_LONGEST_NAME = 31
_ALWAYS: Version = (1, 0, 0)


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
    the settings that decide it.
    """

    directions: str
    words: tuple[str, ...]
    because: str

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
        listed = str(rules.config.get("clusterCIDR") or "").split(",")
    else:
        return None
    for text in listed:
        if text.strip() and (":" in text) == (family == "IPv6"):
            network = normal_network(text.strip())
            return MasqueradeForm(
                directions="dst,dst", words=("!", "-s", network), because=f"{mode} {network}"
            )
    return MasqueradeForm(
        directions="src,dst", words=(), because=f"{mode} without a CIDR of this family"
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
