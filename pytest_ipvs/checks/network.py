"""SY: settings of the node's network that Services in IPVS mode depend on."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, rules_of, why_unread
from pytest_ipvs.checks.values import (
    IP_FORWARD,
    VS,
    Rule,
    by_policy,
    each_node,
    effective,
    interface_key,
    judge,
    lack,
    number_of,
    value_of,
    waived,
)

IPV6_FORWARD = "net.ipv6.conf.all.forwarding"
ARP_IGNORE = "net.ipv4.conf.all.arp_ignore"
ARP_ANNOUNCE = "net.ipv4.conf.all.arp_announce"
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
RP_FILTER = "net.ipv4.conf.all.rp_filter"
BRIDGE = {
    "IPv4": "net.bridge.bridge-nf-call-iptables",
    "IPv6": "net.bridge.bridge-nf-call-ip6tables",
}
# Pods hang on these; docker0 is there wherever docker is installed, with pods or without.
_POD_BRIDGES = ("cni0", "cbr0", "kube-bridge", "weave")
_PERHAPS_POD_BRIDGES = ("docker0",)
# There the network itself knows who has an address: nobody asks the nodes by ARP.
_CLOUD_LABELS = (
    "eks.amazonaws.com/",
    "kubernetes.azure.com/",
    "cloud.google.com/",
    "alibabacloud.com/",
    "cloud.tencent.com/",
)
_OFF_REASONS = {
    "drop_entry": "connections are forgotten at random while it is on",
    "drop_packet": "packets are dropped at random while it is on",
    "sloppy_tcp": "a packet that opens no connection makes an entry, so a stray packet of an old "
    "connection reaches a pod that does not know it",
    "secure_tcp": "connections time out sooner while it is on, so idle ones are cut",
}


def forwarding(evidence: Evidence) -> Said:
    """The node forwards packets: IPv4 always, IPv6 where the cluster or the node uses it.

    kube-proxy writes the IPv4 setting at its start. It never writes the IPv6 one.
    """
    ipv6 = _services_use_ipv6(evidence)
    yield from each_node("SY-07", evidence, partial(_forwarding, ipv6=ipv6))


def _forwarding(check: str, evidence: Evidence, view: NodeView, *, ipv6: bool) -> Said:
    keys = [IP_FORWARD]
    if ipv6 and _has_ipv6(view):
        keys.append(IPV6_FORWARD)
    for key in keys:
        rule = Rule(
            key=key,
            accepted=("1",),
            severity="fail",
            reason="the node does not forward packets between pods, Services and other nodes",
            remedy=f"sysctl -w {key}=1, and set it in a file of /etc/sysctl.d",
            absent="lack" if key == IP_FORWARD else "skip",
        )
        yield from judge(check, view, rule)


def _services_use_ipv6(evidence: Evidence) -> bool:
    return any(":" in ip for service in evidence.last.services for ip in service.cluster_ips)


def _has_ipv6(view: NodeView) -> bool:
    """Whether the node takes part in IPv6, as far as the API says."""
    return any(":" in address for address in (*view.node.internal_ips, *view.node.pod_cidrs))


def arp(evidence: Evidence) -> Said:
    """Who answers ARP for virtual addresses: arp_ignore and arp_announce follow strictARP.

    With ``ipvs.strictARP`` kube-proxy writes 1 and 2 at its start. The larger of "all" and the
    interface's own value counts, so a node whose uplinks have the right ones is right too.
    Without strictARP every node answers ARP for the load balancers' addresses on kube-ipvs0. That
    is wrong only where somebody asks: a warning where such an address lies in the /24 of a
    node's, information elsewhere and in clouds, whose networks don't ask.
    """
    virtual = sorted(
        {
            address
            for service in evidence.last.services
            if service.proxy_name is None
            for address in service.load_balancer_ips
            if ":" not in address
        }
    )
    yield from each_node("SY-08", evidence, partial(_arp, virtual=virtual))


def _arp(check: str, evidence: Evidence, view: NodeView, *, virtual: list[str]) -> Said:
    if view.facts.proxy.config is None:
        reason = why_unread(view.facts, "proxy.config", "kube-proxy's configuration was not read")
        yield NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)
        return
    ipvs = view.facts.proxy.config.get("ipvs")
    if isinstance(ipvs, Mapping) and ipvs.get("strictARP") is True:
        yield from _strict_arp(check, evidence, view)
    elif virtual:
        yield from _answered_by_all(check, evidence, view, virtual)


# 1 and 2 answer for the interface's own addresses only, 8 for none. 2 is the strictest announce.
_STRICT = {"arp_ignore": (1, 2, 8), "arp_announce": (2,)}


def _strict_arp(check: str, evidence: Evidence, view: NodeView) -> Iterator[Finding | NotMeasured]:
    for name, right in _STRICT.items():
        key = interface_key("all", name)
        rule = Rule(
            key=key,
            accepted=tuple(map(str, right)),
            severity="fail",
            reason="kube-proxy is told strictARP, but the node answers ARP for every virtual "
            "address, so traffic for a load balancer's address goes to any node",
            remedy=f"sysctl -w {key}={right[0]}, and remove what sets it to another value: "
            "kube-proxy writes it at its start only",
        )
        found = tuple(judge(check, view, rule))
        if any(isinstance(one, NotMeasured) for one in found) or key in view.policy.sysctls:
            yield from found
        elif found:
            yield from _unless_uplinks(check, evidence, view, name, right, found)


def _unless_uplinks(
    check: str,
    evidence: Evidence,
    view: NodeView,
    name: str,
    right: tuple[int, ...],
    found: tuple[Finding | NotMeasured, ...],
) -> Iterator[Finding | NotMeasured]:
    """What was found of "all", unless every uplink's own value makes it right."""
    uplinks = detail(check, evidence, view, "uplinks")
    if isinstance(uplinks, NotMeasured):
        yield uplinks
        return
    values = [effective(check, evidence, view, name, interface) for interface in uplinks]
    if wrong := [v for v in values if not isinstance(v, NotMeasured) and v not in right]:
        told = f"it is {wrong[0]} on an uplink ({', '.join(uplinks)})"
        yield from (replace(f, evidence=told) if isinstance(f, Finding) else f for f in found)
    elif not uplinks:
        yield from found
    else:
        yield from (value for value in values if isinstance(value, NotMeasured))


def _answered_by_all(
    check: str, evidence: Evidence, view: NodeView, virtual: list[str]
) -> Iterator[Finding | NotMeasured]:
    if waived(view, ARP_IGNORE):
        return
    value = value_of(check, view, ARP_IGNORE)
    if not isinstance(value, str):
        yield value or lack(check, view, ARP_IGNORE)
        return
    answer = by_policy(check, view, ARP_IGNORE, value)
    if answer is not None:
        yield from answer
        return
    if value != "0":
        return
    uplinks = detail(check, evidence, view, "uplinks")
    own = () if isinstance(uplinks, NotMeasured) else uplinks
    ignored = [effective(check, evidence, view, "arp_ignore", interface) for interface in own]
    if ignored and all(not isinstance(v, NotMeasured) and v != 0 for v in ignored):
        return
    near = [address for address in virtual if _near(address, evidence)]
    cloud = any(label.startswith(_CLOUD_LABELS) for label in view.node.labels)
    yield Finding(
        check=check,
        severity="warn" if near and not cloud else "info",
        node=view.name,
        object=ARP_IGNORE,
        observed="0",
        expected="1, with arp_announce 2, where load balancers' addresses are announced by ARP",
        reason="kube-ipvs0 has the load balancers' addresses on every node, so every node answers "
        "ARP for them",
        remedy="set ipvs.strictARP: true in kube-proxy's configuration and restart it, if MetalLB, "
        "kube-vip or keepalived announces these addresses; else name the key in the policy file "
        "under sysctls",
        evidence=f"{', '.join((near or virtual)[:3])} of {len(virtual)} such addresses",
    )


def _near(address: str, evidence: Evidence) -> bool:
    """Whether a node is likely in the same network segment. Prefix lengths are not known."""
    network = ipaddress.ip_network(f"{address}/24", strict=False)
    return any(
        ipaddress.ip_address(ip) in network
        for node in evidence.last.nodes
        for ip in node.internal_ips
        if ":" not in ip
    )


def exposure(evidence: Evidence) -> Said:
    """Loopback is not reachable from outside, and replies on uplinks are not filtered.

    kube-proxy up to 1.20 sets route_localnet itself; there it is not judged. Strict rp_filter
    (the larger of "all" and the interface's value) drops replies that come by another interface.
    With one uplink they can't, so it is information there, and a warning with several.
    """
    yield from each_node("SY-09", evidence, _exposure)


def _exposure(check: str, evidence: Evidence, view: NodeView) -> Said:
    rules = rules_of(check, view.facts, view.node, evidence.last.server_version)
    if isinstance(rules, NotMeasured):
        yield rules
    elif rules.number >= (1, 21):
        rule = Rule(
            key=ROUTE_LOCALNET,
            accepted=("0",),
            severity="warn",
            reason="neighbours of the node reach what listens on its 127.0.0.1 "
            "(CVE-2020-8558); kube-proxy has not needed it since 1.21",
            remedy=f"sysctl -w {ROUTE_LOCALNET}=0, and remove what sets it",
        )
        yield from judge(check, view, rule)
    yield from _reverse_path(check, evidence, view)


def _reverse_path(
    check: str, evidence: Evidence, view: NodeView
) -> Iterator[Finding | NotMeasured]:
    if waived(view, RP_FILTER):
        return
    overall = number_of(check, view, RP_FILTER)
    if not isinstance(overall, int):
        yield overall or lack(check, view, RP_FILTER)
        return
    if RP_FILTER in view.policy.sysctls:
        yield from by_policy(check, view, RP_FILTER, str(overall)) or ()
        return
    if overall == 2:
        # Loose for every interface, whatever their own values.
        return
    uplinks = detail(check, evidence, view, "uplinks")
    if isinstance(uplinks, NotMeasured):
        yield uplinks
        return
    for interface in uplinks:
        key = interface_key(interface, "rp_filter")
        own = view.facts.sysctls.get(key)
        if waived(view, key):
            continue
        if own is not None and (answer := by_policy(check, view, key, own.strip())) is not None:
            yield from answer
            continue
        value = effective(check, evidence, view, "rp_filter", interface)
        if isinstance(value, NotMeasured):
            yield value
        elif value == 1:
            yield Finding(
                check=check,
                severity="warn" if len(uplinks) > 1 else "info",
                node=view.name,
                object=key,
                observed="1 (strict)",
                expected="0 or 2",
                reason="a reply that comes back by another interface than the request left by is "
                "dropped without a trace",
                remedy=f"sysctl -w {key}=2",
            )


def bridged(evidence: Evidence) -> Said:
    """Packets between pods on one bridge pass iptables and IPVS.

    Judged only where pods hang on a bridge that has an address: cni0, cbr0, kube-bridge, weave,
    the bridge that kube-proxy's detectLocal.bridgeInterface names where detectLocalMode is
    BridgeInterface, or docker0 where its address is one of the node's pod network. A CNI's bridge
    of another name is not known. Without br_netfilter the setting does not exist.
    """
    yield from each_node("SY-10", evidence, _bridged)


def _bridged(check: str, evidence: Evidence, view: NodeView) -> Said:
    if not view.facts.addresses:
        reason = why_unread(view.facts, "addresses", "the node's addresses were not read")
        yield NotMeasured(check=check, node=view.name, fact="addresses", reason=reason)
        return
    families = sorted({"IPv6" if ":" in ip else "IPv4" for ip in _bridges(view)})
    if not families and view.config is None:
        # It may name the bridge that no list of names has.
        reason = why_unread(view.facts, "proxy.config", "kube-proxy's configuration was not read")
        yield NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)
    for family in families:
        key = BRIDGE[family]
        rule = Rule(
            key=key,
            accepted=("1",),
            severity="warn",
            reason="replies between pods of one node stay on the bridge and keep the pod's "
            "address instead of the Service's, so connections to a Service hang",
            remedy=f"modprobe br_netfilter && sysctl -w {key}=1, and name br_netfilter in a "
            "file of /etc/modules-load.d",
            absent="finding",
        )
        yield from judge(check, view, rule)


def _bridges(view: NodeView) -> Iterator[str]:
    """Addresses of bridges that pods hang on."""
    networks = [
        ipaddress.ip_network(cidr, strict=False) for cidr in view.node.pod_cidrs if "/" in cidr
    ]
    named = [*_POD_BRIDGES]
    if view.config is not None and view.config.get("detectLocalMode") == "BridgeInterface":
        named.append(str(view.config.get("detectLocal.bridgeInterface") or ""))
    for interface, text in view.facts.addresses:
        address = ipaddress.ip_address(text)
        if address.is_link_local:
            continue
        if interface in named or (
            interface in _PERHAPS_POD_BRIDGES and any(address in network for network in networks)
        ):
            yield text


def defences_off(evidence: Evidence) -> Said:
    """IPVS's defences against overload, and its sloppy ways, are off.

    Other settings of IPVS are judged here where the policy names them and no other check has them.
    """
    yield from each_node("SY-11", evidence, _defences_off)


def _defences_off(check: str, evidence: Evidence, view: NodeView) -> Said:
    # One key stands for all where the module is not loaded or nothing was read.
    any_read = any(key.startswith(VS) for key in view.facts.sysctls)
    for name, reason in _OFF_REASONS.items() if any_read else [*_OFF_REASONS.items()][:1]:
        rule = Rule(
            key=VS + name,
            accepted=("0",),
            severity="warn",
            reason=reason,
            absent="skip" if any_read else "lack",
        )
        yield from judge(check, view, rule)


_CHECK = Check(
    id="SY-07",
    title="the node forwards packets",
    group="SY",
    severity="fail",
    permission="node",
    needs=frozenset({"sysctls"}),
    source="kube-proxy pkg/proxy/ipvs/proxier.go; Linux ip-sysctl.rst, forwarding",
    run=forwarding,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="SY-08",
        title="arp_ignore and arp_announce follow strictARP",
        needs=frozenset({"sysctls", "proxy.config", "details.uplinks"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go, strictARP; kubernetes/kubernetes #59976",
        run=arp,
    ),
    replace(
        _CHECK,
        id="SY-09",
        title="route_localnet is 0 and rp_filter is not strict on uplinks",
        severity="warn",
        needs=frozenset({"sysctls", "proxy.version", "details.uplinks"}),
        source="kubernetes/kubernetes PR 92938; Linux ip-sysctl.rst, rp_filter",
        run=exposure,
    ),
    replace(
        _CHECK,
        id="SY-10",
        title="packets on a bridge of pods pass iptables",
        severity="warn",
        needs=frozenset({"sysctls", "addresses", "proxy.config"}),
        source="Linux br_netfilter; kube-proxy's log line on bridge-nf-call-iptables",
        run=bridged,
    ),
    replace(
        _CHECK,
        id="SY-11",
        title="drop_entry, drop_packet, sloppy_tcp and secure_tcp are 0",
        severity="warn",
        source="Linux ipvs-sysctl.rst",
        run=defences_off,
    ),
)
