"""Faults of the IPVS table."""

from __future__ import annotations

from evidence_builder import (
    DNS,
    LOCAL,
    STICKY,
    WEB,
    add_real,
    table,
    templates,
    virtual,
    weight,
    with_service,
)
from fault_registry import trips

from pytest_ipvs.checks import Evidence
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, VirtualServer

NODE_PORT = ServiceKey("TCP", "192.0.2.2", 30080)
GONE = RealServer.at("10.244.9.9", 8080, "Masq", 1, 3, 4)
ELSEWHERE = RealServer.at("10.244.1.2", 8080, "Masq", 1, 0, 0)
ORPHAN = VirtualServer("TCP", "10.96.9.9", 80, None, "rr", (), None, None, ())


def with_dns(evidence: Evidence) -> Evidence:
    return with_service(evidence, DNS)


def with_local(evidence: Evidence) -> Evidence:
    return with_service(evidence, LOCAL)


@trips("TB-01", words=("10.96.0.10:80/TCP", "absent", "present", "Service demo/web"))
def missing_virtual_server(evidence: Evidence) -> Evidence:
    return table(evidence, lambda old: tuple(v for v in old if v.key != WEB))


@trips("TB-10", words=("node port 30080/TCP of demo/web", "192.0.2.2:30080/TCP", "absent"))
def missing_virtual_server_of_a_node_port(evidence: Evidence) -> Evidence:
    return table(
        evidence, lambda old: tuple(v for v in old if (v.address, v.port) != ("192.0.2.2", 30080))
    )


@trips(
    "TB-01",
    words=("10.96.9.9:80/TCP", "no Service", '"10.96.9.9:80/TCP"', "ipvsadm -D -t 10.96.9.9:80"),
)
def orphan_virtual_server(evidence: Evidence) -> Evidence:
    return table(evidence, lambda old: (*old, ORPHAN))


@trips(
    "TB-02",
    words=("10.96.0.10:80/TCP -> 10.244.1.2:8080", "absent", "weight 1", "Service demo/web"),
)
def missing_real_server(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=lambda old: old[1:])


@trips("TB-02", words=("weight 5", "ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 1"))
def another_weight(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=weight(5))


@trips("TB-02", words=("Route", "Masq"))
def another_way_of_forwarding(evidence: Evidence) -> Evidence:
    return virtual(
        evidence, WEB, real_servers=lambda old: (old[0]._replace(forward="Route"), *old[1:])
    )


@trips(
    "TB-03",
    words=(
        "10.96.0.10:80/TCP -> 10.244.9.9:8080",
        "weight 1",
        "no endpoint",
        "ipvsadm -d -t 10.96.0.10:80 -r 10.244.9.9:8080",
        "3 active and 4 inactive",
    ),
)
def stale_real_server(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=add_real(GONE))


@trips(
    "TB-03",
    words=(
        "node port 30080/TCP of demo/web -> 10.244.9.9:8080",
        "virtual server 192.0.2.2:30080/TCP",
        "ipvsadm -d -t ADDRESS:30080 -r 10.244.9.9:8080",
    ),
)
def stale_real_server_of_a_node_port(evidence: Evidence) -> Evidence:
    return virtual(evidence, NODE_PORT, real_servers=add_real(GONE))


@trips(
    "TB-10",
    words=("node port 30080/TCP of demo/web", '"*:30080/TCP"', "ipvsadm -D -t ADDRESS:30080"),
)
def a_node_port_at_an_address_that_the_node_lost(evidence: Evidence) -> Evidence:
    return table(evidence, lambda old: (*old, ORPHAN._replace(address="192.0.2.77", port=30080)))


@trips("TB-01", words=("FWM 7", '"fwmark:7"', "ipvsadm -D -f 7"))
def orphan_virtual_server_of_a_mark(evidence: Evidence) -> Evidence:
    mark = ORPHAN._replace(protocol="FWM", address="", port=7, fwmark=7)
    return table(evidence, lambda old: (*old, mark))


@trips("TB-04 fail", words=("10.244.9.9:8080", "weight 0", "at least 300 s", "SY-01"))
def real_server_that_never_drains(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=add_real(GONE._replace(weight=0)))


@trips("TB-05", words=("10.244.1.2:8080", "weight 0", "weight 1", "-w 1"))
def wanted_real_server_at_weight_0(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=weight(0))


@trips("PS-01", words=("10.96.0.20:80/TCP", "none", "10800 s"))
def no_persistence(evidence: Evidence) -> Evidence:
    return virtual(evidence, STICKY, persistence_jiffies=None, netmask=None)


@trips("PS-01", words=("10.96.0.10:80/TCP", "10800 s", "none"))
def persistence_that_no_service_asks_for(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, persistence_jiffies=2700000, netmask="255.255.255.255")


@trips("PS-01", words=("300 s", "10800 s"))
def another_timeout_on_one_of_two_nodes(evidence: Evidence) -> Evidence:
    return virtual(evidence, STICKY, persistence_jiffies=300 * 250)


@trips(
    "TB-06",
    given=with_dns,
    words=("10.96.0.53:53/UDP -> 10.244.9.9:53", "weight 0", "absent", "ipvsadm -d -u"),
)
def a_real_server_of_udp_at_weight_0(evidence: Evidence) -> Evidence:
    gone = RealServer.at("10.244.9.9", 53, "Masq", 0, 0, 1)
    return virtual(evidence, DNS, real_servers=add_real(gone))


@trips(
    "TB-06",
    given=with_dns,
    words=("10.96.0.53:53/UDP -> 10.244.1.2:53", "weight 0", "weight 1"),
)
def a_wanted_real_server_of_udp_at_weight_0(evidence: Evidence) -> Evidence:
    return virtual(evidence, DNS, real_servers=weight(0))


@trips("TB-07", words=("10.96.0.10:80/TCP", "flags ops", "no flags, netmask 255.255.255.255"))
def flags_that_other_nodes_do_not_have(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, flags=("ops",))


@trips(
    "TB-07",
    words=("10.96.0.20:80/TCP", "netmask 255.255.255.0", "netmask 255.255.255.255"),
)
def a_netmask_that_other_nodes_do_not_have(evidence: Evidence) -> Evidence:
    return virtual(evidence, STICKY, netmask="255.255.255.0")


@trips(
    "TB-08",
    given=with_local,
    words=("10.96.0.30:80/TCP -> 10.244.1.2:8080", "the traffic policy is Local"),
)
def an_endpoint_of_another_node_behind_a_policy_local(evidence: Evidence) -> Evidence:
    return virtual(evidence, LOCAL, real_servers=add_real(ELSEWHERE))


@trips(
    "TB-08",
    given=with_local,
    words=("10.96.0.30:80/TCP -> 10.244.1.2:8080", "the traffic policy is Local"),
)
def another_nodes_endpoint_instead_of_the_local_one(evidence: Evidence) -> Evidence:
    return virtual(evidence, LOCAL, real_servers=(ELSEWHERE,))


@trips(
    "TB-08",
    given=with_local,
    words=("10.96.0.30:80/TCP -> 10.244.2.2:8080", "absent", "weight 1"),
)
def no_endpoint_behind_a_policy_local(evidence: Evidence) -> Evidence:
    return virtual(evidence, LOCAL, real_servers=())


@trips("TB-12", words=("10.96.0.10:80/TCP", "no real server", "at least one", "2 endpoints"))
def an_empty_virtual_server(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, real_servers=())


@trips(
    "PS-04",
    words=("10.96.0.20:80/TCP -> 10.244.9.9:8080", "10800 s", "expire_quiescent_template=1"),
)
def a_template_that_is_set_again_after_its_pod_is_gone(evidence: Evidence) -> Evidence:
    return templates(evidence, 10750)
