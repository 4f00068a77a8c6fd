"""Faults of kube-proxy's rules, ipsets and addresses, and states that look like faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evidence_builder import (
    WEB,
    add_real,
    configured,
    details,
    of_cluster,
    on_node,
    programmed,
    proxy,
    sysctl,
    virtual,
)
from fault_registry import passes, trips
from netfilter_builder import recorded_rules
from netfilter_changes import (
    chain_changed,
    rule,
    rules_changed,
    set_changed,
    set_lost,
)
from proxy_builder import mapped

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import NodeFacts
from pytest_ipvs.ipvs.objects import ServicePort
from pytest_ipvs.ipvs.tables import RealServer

RANGE = "net.ipv4.ip_local_port_range"
RESERVED = "net.ipv4.ip_local_reserved_ports"
CT_02 = "nat KUBE-SERVICES: masquerading of ClusterIPs"


@trips("TB-09", words=("kube-ipvs0 10.96.0.10", "absent", "bound", "Service demo/web"))
def a_cluster_ip_is_not_bound(evidence: Evidence) -> Evidence:
    lost = ("kube-ipvs0", "10.96.0.10")

    def change(old: NodeFacts) -> NodeFacts:
        return replace(old, addresses=tuple(pair for pair in old.addresses if pair != lost))

    return on_node(evidence, change)


@trips("TB-09", words=("kube-ipvs0", "no address", "2 addresses lacking, such as 10.96.0."))
def the_device_is_bare(evidence: Evidence) -> Evidence:
    return on_node(
        evidence,
        lambda old: replace(old, addresses=tuple(a for a in old.addresses if "kube" not in a[0])),
    )


@trips("TB-09", words=("kube-ipvs0 10.96.7.7", "bound", "ip addr del 10.96.7.7 dev kube-ipvs0"))
def an_address_of_no_service_is_bound(evidence: Evidence) -> Evidence:
    more = ("kube-ipvs0", "10.96.7.7")
    return on_node(evidence, lambda old: replace(old, addresses=(*old.addresses, more)))


@trips("TB-09", words=("ipset KUBE-IPVS-IPS 10.96.0.20", "absent", "Service demo/sticky"))
def the_set_of_addresses_lacks_one(evidence: Evidence) -> Evidence:
    return set_changed("KUBE-IPVS-IPS", lambda old: old - {"10.96.0.20"})(evidence)


@trips("TB-09", words=("ipset KUBE-IPVS-IPS", "no such set", "hash:ip"))
def the_set_of_addresses_is_gone(evidence: Evidence) -> Evidence:
    return set_lost("KUBE-IPVS-IPS")(evidence)


@trips("TB-11", words=("ipset KUBE-CLUSTER-IP 10.96.0.10,tcp:80", "absent", "ipset add"))
def a_set_lacks_a_member(evidence: Evidence) -> Evidence:
    return set_changed("KUBE-CLUSTER-IP", lambda old: old - {"10.96.0.10,tcp:80"})(evidence)


@trips("TB-11", words=("ipset KUBE-NODE-PORT-TCP 31234", "present", "no Service asks for it"))
def a_set_has_a_member_too_many(evidence: Evidence) -> Evidence:
    return set_changed("KUBE-NODE-PORT-TCP", lambda old: old | {"31234"})(evidence)


@trips("TB-11", words=("ipset KUBE-LOOP-BACK", "no such set", "hash:ip,port,ip"))
def a_set_is_gone(evidence: Evidence) -> Evidence:
    return set_lost("KUBE-LOOP-BACK")(evidence)


@trips("CT-01", words=("nat KUBE-MARK-MASQ", "no such chain"))
def the_marking_chain_is_gone(evidence: Evidence) -> Evidence:
    return rules_changed(
        evidence, lambda old: {k: v for k, v in old.items() if k[1] != "KUBE-MARK-MASQ"}
    )


@trips("CT-01", words=("nat POSTROUTING -> KUBE-POSTROUTING", "no jump"))
def nothing_leads_to_the_masquerading(evidence: Evidence) -> Evidence:
    return chain_changed("nat", "POSTROUTING", lambda old: ())(evidence)


@trips("CT-01", words=("nat PREROUTING -> KUBE-SERVICES", "behind the jump to KUBE-OTHER"))
def another_chain_comes_first(evidence: Evidence) -> Evidence:
    other = rule("-j KUBE-OTHER")
    return chain_changed("nat", "PREROUTING", lambda old: (other, *old))(evidence)


@trips("CT-01", words=("nat KUBE-MARK-MASQ", "0x8000/0x8000", "0x4000 (masqueradeBit 14)"))
def another_bit_is_set(evidence: Evidence) -> Evidence:
    other = rule("-j MARK --set-xmark 0x8000/0x8000")
    return chain_changed("nat", "KUBE-MARK-MASQ", lambda old: (other,))(evidence)


@trips("CT-01", words=("nat KUBE-POSTROUTING", "MASQUERADE of what carries mark 0x4000"))
def nothing_is_masqueraded(evidence: Evidence) -> Evidence:
    return chain_changed("nat", "KUBE-POSTROUTING", lambda old: old[:-1])(evidence)


@trips("CT-01", words=("nat KUBE-NODE-PORT", "no such chain"))
def the_chain_of_node_ports_is_gone(evidence: Evidence) -> Evidence:
    gone = ("nat", "KUBE-NODE-PORT")
    return rules_changed(evidence, lambda old: {k: v for k, v in old.items() if k != gone})


@trips("CT-01", words=("nat KUBE-LOAD-BALANCER", "no such chain"))
def the_chain_of_load_balancers_is_gone(evidence: Evidence) -> Evidence:
    gone = ("nat", "KUBE-LOAD-BALANCER")
    return rules_changed(evidence, lambda old: {k: v for k, v in old.items() if k != gone})


@trips("CT-01", words=("nat KUBE-NODE-PORT -> KUBE-MARK-MASQ of KUBE-NODE-PORT-TCP", "no rule"))
def node_ports_are_not_marked(evidence: Evidence) -> Evidence:
    return chain_changed("nat", "KUBE-NODE-PORT", lambda old: ())(evidence)


@trips("CT-01", words=("nat KUBE-SERVICES -> KUBE-NODE-PORT", "--dst-type LOCAL"))
def nothing_leads_to_node_ports(evidence: Evidence) -> Evidence:
    return chain_changed(
        "nat", "KUBE-SERVICES", lambda old: tuple(r for r in old if r.target != "KUBE-NODE-PORT")
    )(evidence)


@trips("CT-01", words=("nat KUBE-POSTROUTING -> MASQUERADE of KUBE-LOOP-BACK", "no rule"))
def a_pod_does_not_reach_itself(evidence: Evidence) -> Evidence:
    return chain_changed("nat", "KUBE-POSTROUTING", lambda old: old[1:])(evidence)


@trips("CT-01", words=("nat PREROUTING -> KUBE-SERVICES", "behind -j ACCEPT"))
def all_is_accepted_before(evidence: Evidence) -> Evidence:
    accept = rule("-j ACCEPT")
    return chain_changed("nat", "PREROUTING", lambda old: (accept, *old))(evidence)


@trips("CT-01", words=("nat POSTROUTING -> KUBE-POSTROUTING", "behind -j OTHERS"))
def another_chain_ends_the_way(evidence: Evidence) -> Evidence:
    inner = tuple(map(rule, ("-p udp -j MARK --set-xmark 0x1/0x1", "-j ACCEPT")))
    evidence = chain_changed("nat", "OTHERS", lambda old: inner)(evidence)
    jump = rule("-j OTHERS")
    return chain_changed("nat", "POSTROUTING", lambda old: (jump, *old))(evidence)


@trips("CT-01", words=("nat PREROUTING -> KUBE-SERVICES", "for some packets only: -s 203.0.113.0"))
def some_clients_only_reach_the_services(evidence: Evidence) -> Evidence:
    narrow = rule("-s 203.0.113.0/24 -j KUBE-SERVICES")
    return chain_changed("nat", "PREROUTING", lambda old: (narrow,))(evidence)


@trips("CT-01", words=("nat KUBE-MARK-MASQ", "-j RETURN", "a rule that sets mark 0x4000"))
def the_marking_ends_before_it_begins(evidence: Evidence) -> Evidence:
    leave = rule("-j RETURN")
    return chain_changed("nat", "KUBE-MARK-MASQ", lambda old: (leave, *old))(evidence)


@trips("CT-01", words=("nat KUBE-POSTROUTING", "and not of what carries no mark"))
def everything_is_masqueraded(evidence: Evidence) -> Evidence:
    return chain_changed("nat", "KUBE-POSTROUTING", lambda old: tuple(reversed(old)))(evidence)


@trips("CT-02", words=(CT_02, "behind -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"))
def cluster_ips_are_accepted_unmarked(evidence: Evidence) -> Evidence:
    accept = rule("-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")
    return chain_changed("nat", "KUBE-SERVICES", lambda old: (accept, *old))(evidence)


@trips("CT-02", words=(CT_02, "-s 10.244.0.0/16", "! -s 10.8.0.0/16", "ClusterCIDR 10.8.0.0/16"))
def another_cluster_cidr(evidence: Evidence) -> Evidence:
    other = {"clusterCIDR": "10.8.0.0/16"}
    return configured(mapped(evidence, other), other)


@trips("CT-02", words=(CT_02, "(masqueradeAll)"))
def not_all_is_masqueraded(evidence: Evidence) -> Evidence:
    everything = {"iptables": {"masqueradeAll": True}}
    return configured(mapped(evidence, everything), everything)


@trips("CT-02", words=(CT_02, "no rule", "--match-set KUBE-CLUSTER-IP dst,dst"))
def no_rule_for_cluster_ips(evidence: Evidence) -> Evidence:
    keep = "--match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ"
    return chain_changed(
        "nat", "KUBE-SERVICES", lambda old: tuple(one for one in old if keep not in str(one))
    )(evidence)


@trips("CT-03", words=("nat KUBE-POSTROUTING", "-j MASQUERADE", "--random-fully"))
def ports_are_not_random(evidence: Evidence) -> Evidence:
    bare = rule("-j MASQUERADE")
    return chain_changed("nat", "KUBE-POSTROUTING", lambda old: (*old[:-1], bare))(evidence)


@trips(
    "CT-04 warn", words=(RANGE, "20000-60999", "node ports in it: 30080", f"{RESERVED}=30000-32767")
)
def the_nodes_ports_overlap_node_ports(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {RANGE: "20000\t60999"})


@trips("CT-05", words=("nat POSTROUTING", "0x4000/0x4000", "iptables.masqueradeBit"))
def another_program_sets_the_bit(evidence: Evidence) -> Evidence:
    more = rule("-s 10.9.0.0/16 -j MARK --set-xmark 0x4000/0x4000")
    return chain_changed("nat", "POSTROUTING", lambda old: (*old, more))(evidence)


@trips("CT-05", words=("filter FORWARD", "-j DROP"))
def another_program_drops_what_is_marked(evidence: Evidence) -> Evidence:
    more = rule("-m mark --mark 0x4000/0x4000 -j DROP")
    return chain_changed("filter", "FORWARD", lambda old: (*old, more))(evidence)


@trips("CT-06", words=("filter INPUT -> KUBE-IPVS-FILTER", "no jump", "v1.36.2"))
def nothing_leads_to_the_filter(evidence: Evidence) -> Evidence:
    return chain_changed(
        "filter",
        "INPUT",
        lambda old: tuple(one for one in old if one.target != "KUBE-IPVS-FILTER"),
    )(evidence)


@trips("CT-06", words=("filter KUBE-IPVS-FILTER", "no rules"))
def the_filter_is_empty(evidence: Evidence) -> Evidence:
    return chain_changed("filter", "KUBE-IPVS-FILTER", lambda old: ())(evidence)


@trips("CT-07", words=("filter INPUT", "policy DROP", "iptables -I INPUT -m set"))
def the_node_drops_what_it_does_not_know(evidence: Evidence) -> Evidence:
    few = tuple(
        map(
            rule,
            (
                "-i lo -j ACCEPT",
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-p icmp -j ACCEPT",
                "-d 192.0.2.0/24 -p tcp -m tcp --dport 22 -j ACCEPT",
            ),
        )
    )
    return chain_changed("filter", "INPUT", lambda old: (*old, *few), policy="DROP")(evidence)


@trips("CT-07", words=("filter INPUT", "-d 10.96.0.0/12 -j REJECT"))
def a_rule_rejects_virtual_addresses(evidence: Evidence) -> Evidence:
    reject = rule("-d 10.96.0.0/12 -j REJECT")
    jump = rule("-j GUARD")
    evidence = chain_changed("filter", "GUARD", lambda old: (reject,))(evidence)
    return chain_changed("filter", "INPUT", lambda old: (*old, jump))(evidence)


def drop(hook: str, text: str) -> Callable[[Evidence], Evidence]:
    """A rule behind kube-proxy's jumps."""
    return chain_changed("filter", hook, lambda old: (*old, rule(text)))


@trips("CT-07", words=("filter INPUT", "-p tcp -j DROP"))
def the_node_drops_tcp(evidence: Evidence) -> Evidence:
    return drop("INPUT", "-p tcp -j DROP")(evidence)


@trips("CT-07", words=("filter INPUT", "-p tcp -m set --match-set KUBE-CLUSTER-IP dst,dst -j DROP"))
def the_node_drops_what_goes_to_services(evidence: Evidence) -> Evidence:
    return drop("INPUT", "-p tcp -m set --match-set KUBE-CLUSTER-IP dst,dst -j DROP")(evidence)


@trips("CT-07", words=("filter INPUT", "-i cni0 -j DROP", "iptables -D INPUT -i cni0 -j DROP"))
def the_node_drops_what_its_pods_send(evidence: Evidence) -> Evidence:
    return drop("INPUT", "-i cni0 -j DROP")(evidence)


@trips("CT-07", words=("filter INPUT", "-s 10.0.0.0/8 -j DROP"))
def the_node_drops_what_pods_send(evidence: Evidence) -> Evidence:
    return drop("INPUT", "-s 10.0.0.0/8 -j DROP")(evidence)


@trips("CT-07", words=("filter INPUT", "-d 10.96.0.10/32 -j DROP"))
def one_service_is_dropped(evidence: Evidence) -> Evidence:
    # Accepting others before does not help pods.
    evidence = drop("INPUT", "-s 203.0.113.0/24 -j ACCEPT")(evidence)
    return drop("INPUT", "-d 10.96.0.10/32 -j DROP")(evidence)


@trips("CT-07", words=("filter FORWARD", "-p tcp -j REJECT", "IPVS of another node"))
def the_node_forwards_no_tcp(evidence: Evidence) -> Evidence:
    return drop("FORWARD", "-p tcp -j REJECT")(evidence)


@trips("CT-07", words=("filter FORWARD", "-o cni0 -j DROP"))
def the_node_forwards_nothing_to_its_pods(evidence: Evidence) -> Evidence:
    return drop("FORWARD", "-o cni0 -j DROP")(evidence)


@trips("CT-07", words=("filter FORWARD", "-s 10.244.0.0/16 -j DROP"))
def the_node_forwards_nothing_of_pods(evidence: Evidence) -> Evidence:
    evidence = drop("FORWARD", "-p tcp -j GUARD")(evidence)
    return drop("GUARD", "-s 10.244.0.0/16 -j DROP")(evidence)


@trips("CT-08", words=("SYN_SENT", "more than 10", "40: 40 to 10.244.9.9"))
def syns_to_a_dead_pod_pile_up(evidence: Evidence) -> Evidence:
    # It is a real server at weight 0 without connections, for a time that is no fault by itself.
    dead = RealServer.at("10.244.9.9", 8080, "Masq", 0, 40, 0)
    first = replace(evidence, snapshots=evidence.snapshots[:1])
    first = details(
        virtual(first, WEB, real_servers=add_real(dead)),
        syn_sent={"10.244.9.9": 40, "10.244.1.2": 500, "203.0.113.9": 500},
    )
    return replace(evidence, snapshots=(*first.snapshots, *evidence.snapshots[1:]))


@passes("TB-09")
def a_foreign_address_is_bound(evidence: Evidence) -> Evidence:
    evidence = an_address_of_no_service_is_bound(evidence)
    policy = replace(evidence.policy, foreign_virtual_servers=("10.96.7.0/24",))
    return replace(evidence, policy=policy)


@passes("TB-09")
def an_address_within_exclude_cidrs(evidence: Evidence) -> Evidence:
    evidence = an_address_of_no_service_is_bound(evidence)
    excluded = {"ipvs": {"excludeCIDRs": ["10.96.7.0/24"]}}
    return configured(mapped(evidence, excluded), excluded)


@passes("CT-04")
def overlapping_ports_are_reserved(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {RANGE: "1024 65535", RESERVED: "8080,30000-32767"})


@passes("CT-05")
def others_use_other_bits(evidence: Evidence) -> Evidence:
    more = tuple(
        map(
            rule,
            (
                "-m mark --mark 0x4000/0x4000 -j RETURN",  # flannel honours the mark
                "-j MARK --set-xmark 0x2000/0x2000",  # the portmap plugin
                "-m mark --mark 0x10000/0x10000 -j ACCEPT",  # Calico
                "-m mark ! --mark 0xe00/0xf00 -j MASQUERADE",  # Cilium
                "-m mark --mark 0x80/0x80 -j DROP",  # the CNI plugin of AWS
            ),
        )
    )
    return chain_changed("nat", "POSTROUTING", lambda old: (*old, *more))(evidence)


@passes("CT-06")
def an_older_release_has_older_chains(evidence: Evidence) -> Evidence:
    rules = recorded_rules("1.20.2")
    for name in ("node-1", "node-2"):
        evidence = on_node(evidence, proxy(version="v1.23.1"), name)
        evidence = details(evidence, name, iptables=rules)
    return of_cluster(evidence, server_version="v1.23.1")


@passes("CT-07")
def the_node_accepts_virtual_addresses(evidence: Evidence) -> Evidence:
    accept = rule("-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")
    return chain_changed("filter", "INPUT", lambda old: (*old, accept), policy="DROP")(evidence)


@passes("CT-07")
def some_sources_are_dropped(evidence: Evidence) -> Evidence:
    drop = rule("-s 198.51.100.0/24 -j DROP")
    return chain_changed("filter", "INPUT", lambda old: (drop, *old))(evidence)


@passes("CT-01", "CT-06")
def others_have_rules_before(evidence: Evidence) -> Evidence:
    more = tuple(
        map(
            rule,
            (
                "-j CILIUM_PRE_nat",
                "-m comment --comment cali:6gwbT8clXdHdC1b1 -j cali-PREROUTING",
                "-s 198.51.100.0/24 -j ACCEPT",
                "-m socket -j ACCEPT",
                "-m addrtype --dst-type LOCAL -j DOCKER",
            ),
        )
    )
    # A chain from which some packets come back ends nothing.
    inner = tuple(map(rule, ("-p udp -j RETURN", "-j ACCEPT")))
    evidence = chain_changed("nat", "cali-PREROUTING", lambda old: inner)(evidence)
    for hook in ("PREROUTING", "OUTPUT", "POSTROUTING"):
        evidence = chain_changed("nat", hook, lambda old: (*more, *old))(evidence)
    return chain_changed("filter", "FORWARD", lambda old: (rule("-i lo -j ACCEPT"), *old))(evidence)


@passes("CT-01")
def no_service_has_a_node_port(evidence: Evidence) -> Evidence:
    one = {"name": "", "protocol": "TCP", "port": 80}
    evidence = of_cluster(
        evidence,
        services=lambda old: tuple(replace(s, ports=(ServicePort(**one),)) for s in old),
    )
    snapshots = tuple(map(programmed, evidence.snapshots))
    evidence = replace(evidence, snapshots=snapshots, baseline=None)
    return chain_changed("nat", "KUBE-NODE-PORT", lambda old: ())(evidence)


@passes("CT-07")
def something_else_is_dropped(evidence: Evidence) -> Evidence:
    for hook in ("INPUT", "FORWARD"):
        for text in (
            "-m conntrack --ctstate INVALID -j DROP",
            "-i eth0 -j DROP",
            "-i br-5f2a ! -o br-5f2a -j DROP",
            "-s 203.0.113.0/24 -p tcp -j REJECT",
            "-p icmp -j DROP",
            "-p udp -m multiport --dports 4789,8472 -j DROP",
            "-p tcp -m tcp --dport 10250 -j DROP",
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP",
            "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
            "-m addrtype --dst-type MULTICAST -j DROP",
            "-m mark --mark 0x8000/0x8000 -j DROP",
            "! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
            "-d 169.254.169.254/32 -j DROP",
            "-j KUBE-FIREWALL",
            "-j DOCKER-USER",
            "-j DOCKER-ISOLATION-STAGE-1",
            "-j cali-wl",
        ):
            evidence = drop(hook, text)(evidence)
    for chain, text in (
        ("KUBE-FIREWALL", "-p tcp -m limit --limit 1/sec -j DROP"),
        ("DOCKER-USER", "-j RETURN"),
        ("DOCKER-ISOLATION-STAGE-1", "-i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2"),
        ("DOCKER-ISOLATION-STAGE-2", "-o docker0 -j DROP"),
        ("cali-wl", "-i cali+ -m mark --mark 0x0/0x20000 -j DROP"),
    ):
        evidence = drop(chain, text)(evidence)
    return evidence


@passes("CT-07")
def pods_are_accepted_before(evidence: Evidence) -> Evidence:
    for text in ("-s 10.244.0.0/16 -j ACCEPT", "-s 10.0.0.0/8 -j DROP", "-i cni0 -j DROP"):
        evidence = drop("INPUT", text)(evidence)
    for text in ("-d 10.244.0.0/16 -j ACCEPT", "-j REJECT"):
        evidence = drop("FORWARD", text)(evidence)
    return evidence


@passes("CT-08")
def a_few_syns_are_open(evidence: Evidence) -> Evidence:
    return details(evidence, syn_sent={"10.244.1.2": 500, "203.0.113.9": 500})
