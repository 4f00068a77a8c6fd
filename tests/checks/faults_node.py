"""Faults of a node's settings, modules and kernels, and the checks that they trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evidence_builder import configured, details, of_cluster, on_node, programmed, sysctl
from fault_registry import trips
from netfilter_changes import chain_changed, rule

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects, SysctlLine
from pytest_ipvs.ipvs.objects import Node, Service

VS = "net.ipv4.vs."
CONF = "net.ipv4.conf."
STRICT = {f"{CONF}all.arp_ignore": "1", f"{CONF}all.arp_announce": "2"}
BRIDGE = "net.bridge.bridge-nf-call-iptables"


def config(**ipvs: object) -> Callable[[NodeFacts], NodeFacts]:
    """Another ``ipvs`` section of kube-proxy's configuration."""

    def change(old: NodeFacts) -> NodeFacts:
        told = {**(old.proxy.config or {}), "ipvs": ipvs}
        return replace(old, proxy=replace(old.proxy, config=told))

    return change


def strict_arp(evidence: Evidence) -> Evidence:
    """kube-proxy is told strictARP everywhere; node-1 has its settings, node-2 lost them."""
    for name in ("node-1", "node-2"):
        evidence = on_node(evidence, config(strictARP=True), name)
    objects = evidence.proxy_objects
    if objects is not None:
        maps = {
            name: {**told, "ipvs": {"strictARP": True}}
            for name, told in objects.config_maps.items()
        }
        evidence = of_cluster(evidence, proxy_objects=replace(objects, config_maps=maps))
    return sysctl(evidence, STRICT, "node-1")


def line(key: str, value: str, path: str = "/etc/sysctl.d/90-tuning.conf") -> SysctlLine:
    return SysctlLine(path=path, line=3, key=key, value=value)


def second(**more: object) -> Callable[[tuple[Node, ...]], tuple[Node, ...]]:
    """Another node-2 in the API."""
    return lambda old: (old[0], replace(old[1], **more))  # type: ignore[arg-type]


def load_balancer(*addresses: str) -> Callable[[tuple[Service, ...]], tuple[Service, ...]]:
    """One more Service with addresses of a load balancer; without ports, so no table has them."""
    lb = Service(namespace="demo", name="lb", type="LoadBalancer", load_balancer_ips=addresses)
    return lambda old: (*old, lb)


def dual_stack(evidence: Evidence) -> Evidence:
    """A Service and nodes with IPv6 addresses, without ports."""
    v6 = Service(namespace="demo", name="v6", cluster_ips=("fd00:10:96::1",))
    return of_cluster(
        evidence,
        services=lambda old: (*old, v6),
        nodes=lambda old: tuple(replace(n, pod_cidrs=("10.244.0.0/24", "fd00::/64")) for n in old),
    )


@trips(
    "SY-05 warn",
    words=(f"{VS}expire_nodest_conn", "0 in sysctl.d", "1, which", "99-old.conf, line 3"),
)
def a_file_contradicts_a_setting(evidence: Evidence) -> Evidence:
    return details(
        evidence,
        sysctl_files=(
            line(f"{VS}expire_nodest_conn", "1"),
            line(f"{VS}expire_nodest_conn", "0", "/etc/sysctl.d/99-old.conf"),
        ),
    )


@trips(
    "SY-06 warn",
    words=(f"{VS}nat_icmp_send", "1 on node-2", "0, as on 1 of 2", "kernel 6.1.0-56-amd64"),
)
def a_node_has_another_setting(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}nat_icmp_send": "1"})


@trips("SY-07 fail", words=("net.ipv4.ip_forward", "sysctl -w net.ipv4.ip_forward=1"))
def ip_forward_is_0(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {"net.ipv4.ip_forward": "0"})


@trips("SY-07 fail", words=("net.ipv6.conf.all.forwarding",))
def ipv6_is_not_forwarded(evidence: Evidence) -> Evidence:
    return sysctl(dual_stack(evidence), {"net.ipv6.conf.all.forwarding": "0"})


@trips("SY-08 fail", words=(f"{CONF}all.arp_ignore", "strictARP", "0", "1 or 2 or 8", "eth0"))
def strictarp_was_told_and_undone(evidence: Evidence) -> Evidence:
    return strict_arp(evidence)


@trips("SY-08 warn", words=(f"{CONF}all.arp_ignore", "192.0.2.200", "strictARP: true"))
def all_nodes_answer_for_a_load_balancer(evidence: Evidence) -> Evidence:
    return sysctl(of_cluster(evidence, services=load_balancer("192.0.2.200")), STRICT, "node-1")


@trips("SY-09 warn", words=("CVE-2020-8558", "127.0.0.1"))
def loopback_is_routed(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{CONF}all.route_localnet": "1"})


@trips("SY-09 warn", words=(f"{CONF}eth0.rp_filter", "strict", "0 or 2"))
def strict_filter_on_one_of_two_uplinks(evidence: Evidence) -> Evidence:
    return details(
        sysctl(evidence, {f"{CONF}eth0.rp_filter": "1", f"{CONF}eth1/7.rp_filter": "0"}),
        uplinks=("eth0", "eth1.7"),
    )


@trips("SY-10 warn", words=(BRIDGE, "0", "modprobe br_netfilter"))
def a_bridge_bypasses_iptables(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {BRIDGE: "0"})


@trips("SY-10 warn", words=(BRIDGE, "absent"))
def a_bridge_without_br_netfilter(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {BRIDGE: None})


def other_bridge(evidence: Evidence, name: str) -> Evidence:
    """Pods of node-2 hang on a bridge of another name than cni0."""

    def change(old: NodeFacts) -> NodeFacts:
        told = tuple((name if one == "cni0" else one, at) for one, at in old.addresses)
        return replace(old, addresses=told)

    return on_node(evidence, change)


@trips("SY-10 warn", words=(BRIDGE, "0", "modprobe br_netfilter"))
def weave_s_bridge_bypasses_iptables(evidence: Evidence) -> Evidence:
    return sysctl(other_bridge(evidence, "weave"), {BRIDGE: "0"})


def with_a_named_bridge(evidence: Evidence) -> Evidence:
    """node-2's kube-proxy is told the bridge of its pods; what comes from elsewhere is marked."""
    named = {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "br-pods"}}
    others = rule("! -i br-pods -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ")
    marked = chain_changed(
        "nat",
        "KUBE-SERVICES",
        lambda old: tuple(others if "10.244.0.0/16" in str(one) else one for one in old),
    )
    return configured(marked(other_bridge(evidence, "br-pods")), named)


@trips("SY-10 warn", given=with_a_named_bridge, words=(BRIDGE, "0", "modprobe br_netfilter"))
def the_bridge_that_kube_proxy_names_bypasses_iptables(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {BRIDGE: "0"})


@trips("SY-11 fail", words=(f"{VS}nat_icmp_send", "0", "1", "the policy file says so"))
def a_setting_without_a_rule_is_not_what_the_policy_says(evidence: Evidence) -> Evidence:
    policy = replace(evidence.policy, sysctls={f"{VS}nat_icmp_send": ("1",)})
    return replace(evidence, policy=policy)


@trips("SY-11 warn", words=(f"{VS}drop_entry", "at random"))
def entries_are_dropped(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}drop_entry": "1"})


@trips("SY-12 info", words=("net.ipv4.tcp_tw_reuse", "1", "reused sooner"))
def ports_are_reused_in_a_hurry(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {"net.ipv4.tcp_tw_reuse": "1"})


@trips("SY-12 fail", words=("ip_local_port_range", "the policy file says so"))
def other_ports_than_the_policy_says(evidence: Evidence) -> Evidence:
    key = "net.ipv4.ip_local_port_range"
    evidence = sysctl(evidence, {key: "40000\t60999"})
    policy = replace(evidence.policy, sysctls={key: ("32768 60999",)})
    return replace(evidence, policy=policy)


def without_services(evidence: Evidence) -> Evidence:
    """A cluster that asks for no set, so that none shows that ip_set is there."""
    return replace(
        evidence,
        snapshots=tuple(
            programmed(replace(one, services=(), endpoint_slices=())) for one in evidence.snapshots
        ),
    )


@trips("KM-01 fail", given=without_services, words=("module ip_set", "absent", "modprobe ip_set"))
def a_module_is_missing(evidence: Evidence) -> Evidence:
    return details(evidence, modules=frozenset({"ip_vs", "ip_vs_rr", "nf_conntrack"}))


@trips("KM-04 info", words=("6.1.0-56-amd64 on 1, 6.12.107+deb13-amd64 on 1",))
def another_kernel(evidence: Evidence) -> Evidence:
    return of_cluster(evidence, nodes=second(kernel_release="6.12.107+deb13-amd64"))


@trips("KM-04 info", words=("a kernel of rhel", "kernel_fixes"))
def a_vendor_s_kernel(evidence: Evidence) -> Evidence:
    return of_cluster(evidence, nodes=second(kernel_release="5.14.0-362.el9.x86_64"))


@trips("KM-05 warn", words=("iptables", "1.6.1", "at least 1.6.2", "--random-fully"))
def an_old_iptables(evidence: Evidence) -> Evidence:
    return of_cluster(
        details(evidence, tools={"iptables": "v1.6.1", "ipset": "v6.0"}),
        proxy_objects=ProxyObjects(),
    )
