"""CT-07: the node's own firewall lets traffic to virtual addresses and to pods pass.

IPVS takes packets behind the filter table's INPUT chain, where an address of kube-ipvs0 is one of
the node. What INPUT drops never becomes a connection to a real server. FORWARD sees what another
node's IPVS sent to a pod of this one.

The rules are followed as the first packets of connections would meet them, by protocol.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.masquerade import RulesView, rules_views
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import silent_nodes
from pytest_ipvs.cluster.model import Snapshot
from pytest_ipvs.ipvs.expected import programmed
from pytest_ipvs.ipvs.netfilter import Rule, RuleSet
from pytest_ipvs.ipvs.proxy_chains import (
    cluster_cidrs,
    mark_and_mask,
    pod_interfaces,
    set_name,
    terms,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Whether a rule matches all the packets followed, surely a part of them, perhaps some, only what
# is plainly something else (another interface, an address that no pod has), or none.
Match = Literal["all", "part", "some", "other", "none"]
Verdict = Literal["accepted", "dropped", "returned"]
Hook = Literal["INPUT", "FORWARD"]
_BY_STRENGTH: tuple[Match, ...] = ("none", "other", "some", "part", "all")
_OPPOSITE: Mapping[Match, Match] = {
    "all": "none",
    "none": "all",
    "part": "some",
    "some": "some",
    "other": "some",
}
# The same for sources: all but something else has the pods in it, all but the pods has them not.
_OTHER_SOURCES: Mapping[Match, Match] = {**_OPPOSITE, "part": "other", "other": "part"}
_LONGEST_WAY = 16
# Chains of programs that keep network policies, publish ports or have networks of their own. What
# they drop in part is what somebody asked them for.
_OF_PROGRAMS = ("cali-", "CILIUM_", "WEAVE-", "ANTREA-", "CNI-", "DOCKER", "LIBVIRT_")
_POD_BRIDGES = frozenset({"cni0", "cbr0", "docker0", "kube-bridge", "weave"})
# How CNI plugins begin the names of what leads to pods, of this node or through a tunnel.
_PERHAPS_PODS = (
    *("cali", "veth", "lxc", "eni", "azv", "gke", "cni", "cbr", "kube-bridge", "weave"),
    *("flannel", "tunl", "vxlan", "geneve", "wireguard", "cilium", "antrea", "ovn"),
)
_NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
# Where a client takes its port from, unless somebody changed it.
_CLIENT_PORTS = (32768, 60999)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pods:
    """Where pods are: networks of all of them, of the node's ``own``, and interfaces of these.

    ``prefix`` begins the names of the node's ends of pods, where kube-proxy is told so.
    """

    networks: tuple[Network, ...]
    own: tuple[Network, ...]
    bridges: frozenset[str]
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    """The packets followed: the first ones of connections to these (address, port)."""

    hook: Hook
    protocol: str
    targets: tuple[tuple[str, int], ...]
    sets: frozenset[str]
    pods: _Pods


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    """What a rule matches: how much, of which targets, and how much whatever the source is."""

    match: Match
    targets: tuple[tuple[str, int], ...]
    any_source: Match


@dataclass(slots=True, kw_only=True)
class _Way:
    """What a walk through rules met.

    ``some_accepted`` once a rule that can't be told may accept, ``others_accepted`` once one
    accepts what is plainly something else, ``pods_accepted`` once a rule has accepted all that the
    node's pods send. ``dropping`` are rules that surely drop a part, ``doubtful`` those that may.
    """

    some_accepted: bool = False
    others_accepted: bool = False
    pods_accepted: bool = False
    dropping: list[tuple[str, Rule]] = field(default_factory=list)
    doubtful: list[tuple[str, Rule]] = field(default_factory=list)


def input_policy(evidence: Evidence) -> Said:
    """INPUT accepts new connections to ClusterIPs, FORWARD those to pods, as far as rules decide.

    A rule that drops what surely comes from or goes to pods is a finding. One that may do so, and
    one behind rules that accept some clients, are told as not measured: a probe must tell. The
    policy of FORWARD is not judged: Docker sets it to DROP, and CNI plugins accept by marks.
    """
    check = "CT-07"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        places = _Places.of(evidence, view.moment.snapshot, view.family)
        pods = _pods(view, places)
        hooks: tuple[Hook, ...] = ("INPUT", "FORWARD")
        for hook in hooks:
            told = [
                said
                for traffic in _kinds(view, hook, places, pods)
                for said in _judge(check, view, traffic)
            ]
            # A rule may drop packets of several protocols. What is a finding for one of them needs
            # no probe for another.
            found = [said for said in told if isinstance(said, Finding)]
            yield from dict.fromkeys(found or told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where pods are by the API: networks, those by node, and targets by node and protocol."""

    networks: tuple[Network, ...]
    by_node: Mapping[str, frozenset[Network]]
    targets: Mapping[tuple[str, str], tuple[tuple[str, int], ...]]

    @classmethod
    def of(cls, evidence: Evidence, snapshot: Snapshot, family: str) -> _Places:
        """Those of a reading; computed once for all nodes."""
        memo: dict[tuple[int, str], _Places] = evidence.memo.setdefault("places of pods", {})
        key = (id(snapshot), family)
        if key not in memo:
            memo[key] = cls._read(snapshot, family)
        return memo[key]

    @classmethod
    def _read(cls, snapshot: Snapshot, family: str) -> _Places:
        ipv6 = family == "IPv6"
        hosts = {address for node in snapshot.nodes for address in node.internal_ips}
        subnets: dict[str, set[str]] = {}
        targets: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for item in snapshot.endpoint_slices:
            for endpoint in item.endpoints if item.family == family else ():
                address, node = endpoint.addresses[0], endpoint.node_name
                if node is None or address in hosts:
                    continue
                # The neighbours of a pod are, or may soon be, pods as well.
                subnets.setdefault(node, set()).add(address + ("/64" if ipv6 else "/24"))
                for port in item.ports:
                    if port.port is not None:
                        place = (node, port.protocol.lower())
                        targets.setdefault(place, set()).add((address, port.port))
        by_node = {node: _networks(texts, ipv6) for node, texts in subnets.items()}
        assigned = _networks((cidr for node in snapshot.nodes for cidr in node.pod_cidrs), ipv6)
        every: list[Any] = list(assigned.union(*by_node.values()))
        return cls(
            networks=tuple(ipaddress.collapse_addresses(every)),
            by_node=by_node,
            targets={place: tuple(sorted(found)) for place, found in targets.items()},
        )


def _pods(view: RulesView, places: _Places) -> _Pods:
    rules, node = view.moment.rules, view.moment.node
    ipv6 = view.family == "IPv6"
    configured = _networks(cluster_cidrs(rules), ipv6)
    by_endpoints = places.by_node.get(rules.node_name(node), frozenset())
    own = _networks(node.pod_cidrs, ipv6) or configured or by_endpoints
    bridge, prefix = pod_interfaces(rules)
    bridges = {bridge} if bridge else set()
    for interface, text in view.moment.facts.addresses:
        if interface in _POD_BRIDGES and (":" in text) == ipv6:
            address = _address(text.partition("/")[0].partition("%")[0])
            if any(address in network for network in own):
                bridges.add(interface)
    return _Pods(
        networks=(*configured, *places.networks),
        own=tuple(own),
        bridges=frozenset(bridges),
        prefix=prefix,
    )


def _kinds(view: RulesView, hook: Hook, places: _Places, pods: _Pods) -> Iterator[_Traffic]:
    """The packets to follow through a chain, protocol by protocol."""
    ipv6 = view.family == "IPv6"
    virtual: dict[str, list[tuple[str, int]]] = {}
    for service in view.moment.snapshot.services:
        if programmed(service):
            for address in service.cluster_ips:
                for port in service.ports if (":" in address) == ipv6 else ():
                    virtual.setdefault(port.protocol.lower(), []).append((address, port.port))
    name = view.moment.rules.node_name(view.moment.node)
    sets = frozenset(set_name(one, view.family) for one in ("KUBE-CLUSTER-IP", "KUBE-IPVS-IPS"))
    for protocol in sorted(virtual):
        own = places.targets.get((name, protocol), ())
        targets = tuple(virtual[protocol]) if hook == "INPUT" else own
        yield _Traffic(hook=hook, protocol=protocol, targets=targets, sets=sets, pods=pods)


def _networks(texts: Iterable[str], ipv6: bool) -> frozenset[Network]:
    """The networks of a family among texts."""
    found: set[Network] = set()
    for text in texts:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if (network.version == 6) == ipv6:
            found.add(network)
    return frozenset(found)


@lru_cache(maxsize=65536)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def _judge(check: str, view: RulesView, traffic: _Traffic) -> Said:
    hook = traffic.hook
    chain = view.found.chains.get(("filter", hook))
    if chain is None:
        return  # The table is not loaded: it drops nothing.
    way = _Way()
    verdict, rule = _walk(view.found, hook, traffic, way, within="all", depth=0)
    if verdict == "returned":
        rule = None
        if hook == "INPUT" and chain.policy != "ACCEPT":
            verdict = "dropped"
    observed = f"policy {chain.policy}" if rule is None else str(rule)
    where = f"{view.prefix}filter {hook}"
    what = "ClusterIPs" if hook == "INPUT" else "pods"
    program = "iptables" if view.family == "IPv4" else "ip6tables"
    # Without an endpoint on the node it is not known what FORWARD has to do for pods.
    certain = bool(traffic.targets)
    accepted = way.some_accepted or (way.others_accepted and hook == "INPUT")
    if verdict == "dropped" and certain and not accepted:
        yield _finding(
            check,
            view,
            hook,
            observed=f"{observed}, and no rule before accepts traffic to {what}",
            remedy=f"on the node: {program} -I INPUT -m set --match-set "
            f"{set_name('KUBE-CLUSTER-IP', view.family)} dst,dst -j ACCEPT"
            if hook == "INPUT"
            else "on the node: take the rule out, or accept traffic to pods before",
        )
    elif way.dropping and certain:
        name, rule = way.dropping[0]
        yield _finding(
            check,
            view,
            hook,
            observed=str(rule),
            remedy=f"on the node: {program} -D {name} {rule}, or accept traffic to {what} before",
        )
    elif verdict == "dropped":
        yield NotMeasured(
            check=check,
            node=view.node,
            fact="a probe of a ClusterIP",
            reason=f"{where} drops what no rule accepts ({observed}), and "
            + (
                "the rules that accept are limited to some clients or ports"
                if certain
                else f"no endpoint on the node takes {traffic.protocol}: it may have no pods"
            ),
        )
    elif doubtful := way.dropping + way.doubtful:
        name, rule = doubtful[0]
        more = f", and {len(doubtful) - 1} more rules" if len(doubtful) > 1 else ""
        yield NotMeasured(
            check=check,
            node=view.node,
            fact="a probe of a ClusterIP",
            reason=f"{where}: '-A {name} {rule}' may drop connections to {what}{more}: a probe "
            "must tell",
        )


def _finding(check: str, view: RulesView, hook: Hook, *, observed: str, remedy: str) -> Finding:
    of_input = hook == "INPUT"
    return Finding(
        check=check,
        severity="fail",
        node=view.node,
        object=f"{view.prefix}filter {hook}",
        observed=observed,
        expected=f"new connections to {'ClusterIPs' if of_input else 'pods'} are accepted",
        reason="IPVS gets packets behind INPUT: what it drops never reaches a Service"
        if of_input
        else "what IPVS of another node sends to pods of this one goes through FORWARD",
        remedy=remedy,
    )


def _walk(
    rules: RuleSet, name: str, traffic: _Traffic, way: _Way, *, within: Match, depth: int
) -> tuple[Verdict, Rule | None]:
    """Follow the traffic through a chain of filter, ``within`` is how much of it gets there."""
    if depth > _LONGEST_WAY:
        return "returned", None
    unsure = False
    for rule in rules.rules("filter", name):
        hit = _hit(rule, traffic)
        match = _weaker(within, hit.match)
        if match == "none":
            continue
        certain = match == "all" and not unsure
        target = rule.target
        if target == "ACCEPT":
            if certain:
                return "accepted", rule
            # CNI plugins mark what their policies let pass, and accept it by the mark.
            if match == "other" and rule.option("--mark") is None:
                way.others_accepted = True
                continue
            way.some_accepted = True
            of_pods = match == "part" and hit.any_source == "all"
            way.pods_accepted |= of_pods and within == "all" and not unsure
        elif target in ("DROP", "REJECT"):
            if certain:
                return "dropped", rule
            if not way.pods_accepted and match != "other":
                doubtful = match == "some" or unsure or way.some_accepted
                (way.doubtful if doubtful else way.dropping).append((name, rule))
        elif target == "RETURN":
            if certain:
                return "returned", rule
            unsure |= match != "other"
        elif target.startswith("KUBE-"):
            # kube-proxy's and the kubelet's own; kube-router's accept by marks.
            way.some_accepted |= target.startswith("KUBE-ROUTER-")
        elif ("filter", target) in rules.chains:
            inner = replace(traffic, targets=hit.targets)
            before = len(way.dropping), len(way.doubtful)
            deeper: Match = "some" if unsure and match != "other" else match
            verdict, where = _walk(rules, target, inner, way, within=deeper, depth=depth + 1)
            if target.startswith(_OF_PROGRAMS):
                del way.dropping[before[0] :], way.doubtful[before[1] :]
            if certain and verdict != "returned":
                return verdict, where
            if rule.option("-g") is not None:
                if certain:
                    return "returned", rule
                unsure |= match != "other"
    return "returned", None


def _weaker(one: Match, other: Match) -> Match:
    return min(one, other, key=_BY_STRENGTH.index)


def _hit(rule: Rule, traffic: _Traffic) -> _Hit:
    targets = traffic.targets
    any_source: Match = "all"
    source: Match = "all"
    for term in terms(rule):
        negated = term[0] == "!"
        option, *values = term[1:] if negated else term
        value = values[0] if values else ""
        if option in ("-s", "-i", "-o"):
            source = _weaker(source, _source(option, value, negated, traffic))
        elif option in ("-d", "--dport", "--dports"):
            aim = _aim(option, value)
            if not traffic.targets:
                any_source = _weaker(any_source, "other")
            elif aim is None:
                any_source = _weaker(any_source, "some")
            else:
                targets = tuple(one for one in targets if aim(one) != negated)
        else:
            one = _matches(option, values, traffic)
            any_source = _weaker(any_source, _OPPOSITE[one] if negated else one)
    if len(targets) < len(traffic.targets):
        any_source = _weaker(any_source, "part" if targets else "none")
    return _Hit(match=_weaker(source, any_source), targets=targets, any_source=any_source)


def _source(option: str, value: str, negated: bool, traffic: _Traffic) -> Match:
    """How much of the traffic comes from an address or through an interface."""
    if option == "-o" and traffic.hook == "INPUT":
        found: Match = "none"
    elif option == "-s":
        found = _from(value, traffic.pods)
    elif value == "lo":
        found = "none"
    else:
        found = _through(value, traffic.pods)
    if negated and found == "part" and traffic.hook == "FORWARD":
        return "some"  # What comes from another node is not from this node's pods.
    return _OTHER_SOURCES[found] if negated else found


def _from(value: str, pods: _Pods) -> Match:
    for network in _networks([value], ":" in value):
        if pods.own and all(
            network.overlaps(one) and network.prefixlen <= one.prefixlen for one in pods.own
        ):
            return "part"
        if pods.networks and not any(network.overlaps(one) for one in pods.networks):
            return "other"
    return "some"


def _through(value: str, pods: _Pods) -> Match:
    begin = value.removesuffix("+")
    if value in pods.bridges or (pods.prefix and value == f"{pods.prefix}+"):
        return "part"
    if value == begin:
        perhaps = begin.startswith((*_PERHAPS_PODS, *filter(None, [pods.prefix])))
        return "some" if perhaps else "other"
    if any(bridge.startswith(begin) for bridge in pods.bridges):
        return "part"
    perhaps = any(one.startswith(begin) or begin.startswith(one) for one in _PERHAPS_PODS)
    return "some" if perhaps else "other"


def _aim(option: str, value: str) -> Callable[[tuple[str, int]], bool] | None:
    """Whether a target is in a network or has one of some ports; ``None`` for an unknown form."""
    if option == "-d":
        for network in _networks([value], ":" in value):
            return lambda target: _address(target[0]) in network
        return None
    ranges = _ranges(value)
    if ranges is None:
        return None
    return lambda target: any(low <= target[1] <= high for low, high in ranges)


def _ranges(value: str) -> list[tuple[int, int]] | None:
    """Ports as iptables-save spells them: "80", "80:90" or "80,443,8000:8100"."""
    try:
        ends = [part.partition(":") for part in value.split(",")]
        return [(int(low), int(high) if colon else int(low)) for low, colon, high in ends]
    except ValueError:
        return None


def _matches(option: str, values: list[str], traffic: _Traffic) -> Match:
    """How much of the traffic one condition lets through, whatever its source and target are."""
    value = values[0] if values else ""
    of_input = traffic.hook == "INPUT"
    if option in ("--ctstate", "--state"):
        return "all" if "NEW" in value.split(",") else "none"
    if option == "-p":
        return "all" if _NUMBERS.get(value, value) == traffic.protocol else "none"
    if option == "--match-set":
        # FORWARD sees addresses of Services only where the node lacks them.
        virtual = of_input and value in traffic.sets and values[1:2] in (["dst"], ["dst,dst"])
        return "all" if virtual else "some"
    if option in ("--sport", "--sports"):
        low, high = _CLIENT_PORTS
        ranges = _ranges(value) or [_CLIENT_PORTS]
        if any(first <= low and high <= last for first, last in ranges):
            return "part"
        return "some" if any(last >= 1024 for _, last in ranges) else "other"
    if option == "--dst-type":
        return "all" if value == ("LOCAL" if of_input else "UNICAST") else "none"
    if option == "--src-type":
        return "all" if value == "UNICAST" else "none"
    if option == "--pkt-type":
        return "all" if value == "unicast" else "none"
    if option == "--tcp-flags":
        # The first packet of a connection has SYN and no other flag.
        mask, flags = (set(text.split(",")) - {"NONE"} for text in values[:2])
        seen = {"SYN"} if mask & {"SYN", "ALL"} else set()
        return "all" if flags == seen else "none"
    if option == "--mark":
        # Who marks packets does it for an end. Why one has no mark can't be told.
        mark, masked = mark_and_mask(value)
        return "other" if mark & masked else "some"
    return "none" if option in ("-f", "--icmp-type", "--icmpv6-type") else "some"
