"""Lack of room, and the checks that it trips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evidence_builder import WEB, details, on_node, sysctl, virtual
from fault_registry import trips

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import NodeFacts, PortUse
from pytest_ipvs.ipvs.tables import RealServer
from pytest_ipvs.policy import Policy

CT = "net.netfilter.nf_conntrack_"
VS = "net.ipv4.vs."
KEEPALIVE = "net.ipv4.tcp_keepalive_time"


def counted(**counters: int) -> Callable[[NodeFacts], NodeFacts]:
    """Other counters of conntrack."""
    return lambda old: replace(old, conntrack={**old.conntrack, **counters})


def busy(connections: int) -> Callable[[Evidence], Evidence]:
    """So many connections in the first real server of a node."""

    def change(old: tuple[RealServer, ...]) -> tuple[RealServer, ...]:
        return (old[0]._replace(inactive=connections), *old[1:])

    return lambda evidence: virtual(evidence, WEB, real_servers=change)


def use(entries: int, client: str = "10.244.1.9") -> tuple[PortUse, ...]:
    return (PortUse(protocol="TCP", client=client, address=WEB.address, port=80, entries=entries),)


def bound(count: int) -> Callable[[NodeFacts], NodeFacts]:
    """So many addresses on kube-ipvs0."""
    more = tuple(("kube-ipvs0", f"10.97.{n // 250}.{n % 250}") for n in range(count))
    return lambda old: replace(old, addresses=(*old.addresses, *more))


@trips("CP-01 warn", words=(f"{CT}count", "at least 80 %", "less than 80 %", "209716 of 262144"))
def conntrack_fills(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{CT}count": "209716"})


@trips("CP-01 fail", words=("at least 95 %", "every new connection is dropped"))
def conntrack_is_full(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{CT}count": "262144"})


@trips("CP-01 warn", words=("conntrack counter insert_failed", "7 more in 360 s"))
def conntrack_loses_packets(evidence: Evidence) -> Evidence:
    return on_node(evidence, counted(insert_failed=10))


@trips("CP-01 warn", words=("kernel log", "table full", "12 lines"))
def conntrack_was_full(evidence: Evidence) -> Evidence:
    return details(evidence, table_full=12)


@trips("CP-02 warn", words=("32768 for a limit of 262144", "at least 65536", "hashsize"))
def few_buckets(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{CT}buckets": "32768"})


@trips(
    "CP-03 warn",
    words=("more than 8 for each of 4096 buckets", "32769 connections", "conn_tab_bits"),
)
def many_connections_in_few_buckets(evidence: Evidence) -> Evidence:
    return busy(32769)(evidence)


@trips(
    "CP-04 warn",
    words=("10.244.1.9 to 10.96.0.10:80/TCP", "at least 70 %", "20000 of 28232", "assumed"),
)
def a_client_is_short_of_ports(evidence: Evidence) -> Evidence:
    return details(evidence, port_use=use(20000))


@trips("CP-05 info", words=("900 s", "at least 7200 s", "tcpTimeout"))
def silent_connections_are_forgotten(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {KEEPALIVE: "7200"})


def no_ipvsadm(evidence: Evidence) -> Evidence:
    reason = {"details.ipvs_timeouts": "ipvsadm is not installed"}
    evidence = on_node(evidence, lambda old: replace(old, unread=reason))
    return details(evidence, ipvs_timeouts=None)


@trips("CP-05 info", words=("900 s", "assumed", "ipvsadm is not installed"))
def silent_connections_are_forgotten_where_ipvsadm_is_missing(evidence: Evidence) -> Evidence:
    return no_ipvsadm(sysctl(evidence, {KEEPALIVE: "7200"}))


@trips("CP-05 warn", words=("900 s", "at least 1000 s (idle_connection of the policy)"))
def connections_are_silent_for_longer_than_ipvs_remembers(evidence: Evidence) -> Evidence:
    return replace(evidence, policy=Policy(thresholds={"idle_connection": 1000.0}))


@trips("CP-06 info", words=("virtual servers", "more than 2", "KP-04"))
def more_virtual_servers_than_were_tried(evidence: Evidence) -> Evidence:
    return replace(evidence, policy=Policy(thresholds={"virtual_servers": 2.0}))


@trips("CP-07 info", words=(f"{VS}run_estimation", "stand still"))
def rates_stand_still(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}run_estimation": "0"})
