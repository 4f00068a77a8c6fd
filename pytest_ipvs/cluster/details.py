"""From the second half of the facts script's output to `NodeDetails`."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar, cast

from pytest_ipvs.cluster.model import NodeDetails, PortUse
from pytest_ipvs.cluster.script import Frame
from pytest_ipvs.cluster.sections import take
from pytest_ipvs.cluster.sysctl_files import parse_sysctl_files
from pytest_ipvs.ipvs._fields import canonical_address
from pytest_ipvs.ipvs.connections import Connection, parse_connections
from pytest_ipvs.ipvs.netfilter import Chain, IpSet, Rule, RuleSet, parse_rules, parse_sets

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)


class Shares:
    """One object for all that are equal: of a thousand nodes most have the same sets and rules."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Hashable] = {}
        self._lock = threading.Lock()

    def one(self, value: H) -> H:
        """The first object that was equal to this one."""
        with self._lock:
            return cast(H, self._known.setdefault(value, value))


def parse_details(
    frame: Frame,
    sysctls: Mapping[str, str],
    unread: dict[str, str],
    shares: Shares | None = None,
) -> NodeDetails:
    """Read the sections of the details. What was not read is ``None``, with a reason.

    ``sysctls``: those of the node by dotted key, which patterns in its files stand for.
    """
    shares = shares or Shares()

    def read(name: str, parse: Callable[[str], T]) -> T | None:
        fact = f"details.{name}"
        section = take(frame, fact, unread)
        if fact in unread:
            return None
        try:
            return parse(section.text)
        except ValueError as error:
            unread[fact] = " ".join(str(error).split())[:200] or "it can't be read"
            return None

    connections = read("connections", _connections)
    if connections is None:
        reason = unread.pop("details.connections")
        unread["details.port_use"] = unread["details.templates"] = reason
    return NodeDetails(
        modules=read("modules", _modules),
        cpus=read("cpus", _cpus),
        sysctl_files=read("sysctl_files", lambda text: parse_sysctl_files(text, sysctls)),
        uplinks=read("uplinks", _uplinks),
        iptables=read("iptables", lambda text: _shared_rules(parse_rules(text), shares)),
        ip6tables=read("ip6tables", lambda text: _shared_rules(parse_rules(text), shares)),
        ipsets=read("ipsets", lambda text: _shared_sets(parse_sets(text), shares)),
        ipvs_timeouts=read("ipvs_timeouts", _timeouts),
        syn_sent=read("syn_sent", _syn_sent),
        udp_sent=read("udp_sent", _udp_sent),
        port_use=connections[0] if connections is not None else None,
        templates=connections[1] if connections is not None else None,
        table_full=read("table_full", _count),
        proxy_command=read("proxy_command", _command),
        proxy_log=read("proxy_log", _log),
        tools=read("tools", _tools),
    )


def _shared_rules(rules: RuleSet, shares: Shares) -> RuleSet:
    chains = {
        key: shares.one(
            Chain(
                policy=sys.intern(chain.policy),
                rules=tuple(
                    shares.one(Rule(words=tuple(map(sys.intern, rule.words))))
                    for rule in chain.rules
                ),
            )
        )
        for key, chain in rules.chains.items()
    }
    return RuleSet(chains=chains, program=rules.program)


def _shared_sets(sets: Mapping[str, IpSet], shares: Shares) -> Mapping[str, IpSet]:
    return {name: shares.one(found) for name, found in sets.items()}


def _modules(text: str) -> frozenset[str]:
    """Loaded ones (of /proc/modules and /sys/module), a line "=", files of built-in ones."""
    known, _, builtin = text.partition("\n=\n")
    names = {line.strip().replace("-", "_") for line in known.splitlines() if line.strip()}
    if builtin.strip() == "none":
        if "ip_vs" not in names:
            # A scheduler that is built in would look as if it were missing.
            raise ValueError("the kernel's list of built-in modules is not on the node")
        return frozenset(names)
    files = (line.strip().partition(".ko")[0] for line in builtin.splitlines())
    return frozenset(names | {name.replace("-", "_") for name in files if name})


def _cpus(text: str) -> int:
    online, _, allowed = text.partition("Cpus_allowed_list:")
    both = _numbers(online) & _numbers(allowed)
    if not both:
        raise ValueError(f"the processors are {text.strip()[:80]!r}, expected two lists of numbers")
    return len(both)


def _numbers(text: str) -> set[int]:
    """The numbers of a list such as "0-3,8"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if match := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip()):
            first, last = match.groups()
            found.update(range(int(first), int(last or first) + 1))
    return found


_REJECT = 0x0200


def _uplinks(text: str) -> tuple[str, ...]:
    """Interfaces of default routes, in the order of the routing tables."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 11 and words[1] == words[7] == "00000000":
            flags, name = words[3], words[0]
        elif len(words) == 10 and words[0] == "0" * 32 and words[1] == "00":
            flags, name = words[8], words[9]
        else:
            continue
        # The IPv6 table ends with a route to nowhere, over lo.
        if name != "lo" and not int(flags, 16) & _REJECT:
            found[name] = None
    return tuple(found)


def _timeouts(text: str) -> tuple[int, int, int]:
    found = re.search(r"\(tcp tcpfin udp\): ([0-9]+) ([0-9]+) ([0-9]+)", text)
    if found is None:
        raise ValueError(f"ipvsadm says {text.strip()[:80]!r}, expected three times in seconds")
    tcp, tcpfin, udp = (int(number) for number in found.groups())
    return tcp, tcpfin, udp


def _syn_sent(text: str) -> Mapping[str, int]:
    """Lines "COUNT ADDRESS", most first."""
    return {address: count for count, (address,) in _counted(text, 1)}


def _udp_sent(text: str) -> Mapping[tuple[str, str], int]:
    """Lines "COUNT ASKED ANSWERED", two addresses, most first."""
    return {(asked, answered): count for count, (asked, answered) in _counted(text, 2)}


def _counted(text: str, addresses: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    for line in text.splitlines():
        count, *words = line.split() or [""]
        if len(words) == addresses and count.isascii() and count.isdigit():
            yield int(count), tuple(map(canonical_address, words))
        elif count:
            expected = "a count and an address" if addresses == 1 else "a count and two addresses"
            raise ValueError(f"a count of conntrack is {line[:80]!r}, expected {expected}")


def _connections(text: str) -> tuple[tuple[PortUse, ...], tuple[Connection, ...]]:
    """Templates as the kernel writes them; lines "= COUNT PROTOCOL CLIENT VIRTUAL PORT"."""
    used, others = [], []
    for line in text.splitlines():
        if not line.startswith("= "):
            others.append(line)
            continue
        _, count, protocol, client, address, port = line.split()
        use = PortUse(
            protocol=sys.intern(protocol),
            client=_address(client),
            address=_address(address),
            port=int(port, 16),
            entries=int(count),
        )
        used.append(use)
    used.sort(key=lambda use: (-use.entries, use.protocol, use.client, use.address, use.port))
    templates = tuple(c for c in parse_connections("\n".join(others)) if c.template)
    return tuple(used), templates


def _address(text: str) -> str:
    if ":" in text:
        return canonical_address(text)
    return str(ipaddress.IPv4Address(bytes.fromhex(text)))


def _count(text: str) -> int:
    return int(text.strip() or "0")


def _command(text: str) -> tuple[str, ...]:
    """The first argument list of the processes that are, or have in them, kube-proxy."""
    for block in text.split("\n="):
        words = [line[1:] for line in block.splitlines() if line.startswith(">")]
        while words and not words[-1]:
            words.pop()
        if words:
            return tuple(words)
    raise ValueError("the argument list of kube-proxy's process is empty")


_CRI = re.compile(r"[0-9T:.+Z-]+ (?:stdout|stderr) [FP] (.*)")


def _log(text: str) -> tuple[str, ...]:
    """klog lines of level error, without what a container runtime puts around them."""
    lines = []
    for line in text.splitlines():
        if failed := re.fullmatch(r"rc ([0-9]+)", line):
            raise ValueError(f"grep ended with status {failed[1]}")
        if match := _CRI.fullmatch(line):
            line = match.group(1)
        elif line.startswith("{"):
            # A line that was cut short is no JSON any more.
            found = re.match(r'\{"log":"((?:[^"\\]|\\.)*)', line)
            line = json.loads(f'"{found.group(1)}"').strip() if found else line
        if re.match(r"E[0-9]{4} ", line):
            lines.append(line)
    return tuple(lines)


def _tools(text: str) -> Mapping[str, str]:
    """Lines such as "iptables v1.8.9 (nf_tables)" and "ipset v7.17, protocol version: 7"."""
    pattern = re.compile(r"^(iptables|ipset) v([0-9][0-9.]*)(?:,.*| (\([a-z_]+\)))?$", re.MULTILINE)
    return {
        name: f"{version} {flavour}".strip() for name, version, flavour in pattern.findall(text)
    }
