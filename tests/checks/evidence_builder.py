"""A healthy cluster's evidence, to put one fault into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from ipvs_render import as_table
from netfilter_builder import with_netfilter

from pytest_ipvs.checks import CATALOGUE, Evidence, Finding, Outcome, run_check
from pytest_ipvs.cluster.model import (
    HttpAnswer,
    NodeDetails,
    NodeFacts,
    PortUse,
    ProxyFacts,
    ProxyObjects,
    ProxyPod,
    Snapshot,
)
from pytest_ipvs.ipvs.connections import Connection
from pytest_ipvs.ipvs.expected import expected_table
from pytest_ipvs.ipvs.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    SlicePort,
)
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, Table, VirtualServer
from pytest_ipvs.policy import Policy

WEB = ServiceKey("TCP", "10.96.0.10", 80)
STICKY = ServiceKey("TCP", "10.96.0.20", 80)
DNS = ServiceKey("UDP", "10.96.0.53", 53)
LOCAL = ServiceKey("TCP", "10.96.0.30", 80)
HTTP = (SlicePort(name="", protocol="TCP", port=8080),)
CONNTRACK_SYSCTLS = {
    "net.netfilter.nf_conntrack_max": "262144",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
}
SYSCTLS = {
    "net.ipv4.vs.conn_reuse_mode": "1",
    "net.ipv4.vs.expire_nodest_conn": "1",
    "net.ipv4.vs.expire_quiescent_template": "1",
    "net.ipv4.vs.conntrack": "1",
    "net.ipv4.vs.drop_entry": "0",
    "net.ipv4.vs.drop_packet": "0",
    "net.ipv4.vs.sloppy_tcp": "0",
    "net.ipv4.vs.secure_tcp": "0",
    "net.ipv4.vs.run_estimation": "1",
    "net.ipv4.vs.nat_icmp_send": "0",
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv4.conf.all.arp_ignore": "0",
    "net.ipv4.conf.all.arp_announce": "0",
    "net.ipv4.conf.all.route_localnet": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.eth0.arp_ignore": "0",
    "net.ipv4.conf.eth0.arp_announce": "0",
    "net.ipv4.conf.eth0.rp_filter": "0",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.tcp_tw_reuse": "2",
    "net.ipv4.tcp_keepalive_time": "600",
    "net.netfilter.nf_conntrack_count": "1200",
    "net.netfilter.nf_conntrack_buckets": "65536",
    **CONNTRACK_SYSCTLS,
}
CLUSTER_CIDR = "10.244.0.0/16"
PROXY_CONFIG: Mapping[str, Any] = {"mode": "ipvs", "clusterCIDR": CLUSTER_CIDR}
NODE_CLOCK = 1_795_225_000.0
KERNEL = ("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)")


def nodes() -> tuple[Node, ...]:
    return tuple(
        Node(
            name=f"node-{n}",
            internal_ips=(f"192.0.2.{n}",),
            kubelet_version="v1.36.2",
            kernel_release=KERNEL[0],
            os_image="Debian GNU/Linux 12 (bookworm)",
        )
        for n in (1, 2)
    )


def services() -> tuple[Service, ...]:
    port = ServicePort(name="", protocol="TCP", port=80, node_port=30080)
    sticky = ServicePort(name="", protocol="TCP", port=80)
    return (
        Service(namespace="demo", name="web", cluster_ips=(WEB.address,), ports=(port,)),
        Service(
            namespace="demo",
            name="sticky",
            cluster_ips=(STICKY.address,),
            ports=(sticky,),
            affinity_timeout=10800,
        ),
    )


def slices() -> tuple[EndpointSlice, ...]:
    endpoints = tuple(Endpoint(addresses=(f"10.244.{n}.2",), node_name=f"node-{n}") for n in (1, 2))
    return tuple(
        EndpointSlice(
            namespace="demo",
            name=f"{name}-1",
            service=name,
            family="IPv4",
            ports=HTTP,
            endpoints=endpoints,
        )
        for name in ("web", "sticky")
    )


def right_table(snapshot: Snapshot, node: Node, facts: NodeFacts, hz: int = 250) -> Table:
    """The table that kube-proxy should have made on a node."""
    expected = expected_table(
        services=snapshot.services,
        slices=snapshot.endpoint_slices,
        node=node,
        addresses=facts.addresses,
        rules=ProxyRules(version="v1.36.2", config=PROXY_CONFIG),
    )
    return as_table(expected, hz)


def node_details() -> dict[str, Any]:
    """Every detail of a healthy node that does not depend on the cluster's objects."""
    use = PortUse(protocol="TCP", client="10.244.1.9", address=WEB.address, port=80, entries=90)
    return {
        "modules": frozenset({"ip_vs", "ip_vs_rr", "nf_conntrack", "ip_set", "br_netfilter"}),
        "sysctl_files": (),
        "uplinks": ("eth0",),
        "tools": {"iptables": "v1.8.9 (nf_tables)", "ipset": "v7.17, protocol version: 7"},
        "cpus": 8,
        "ipvs_timeouts": (900, 120, 300),
        "port_use": (use,),
        "table_full": 0,
        "templates": (),
        "proxy_command": ("kube-proxy", "--config=/var/lib/kube-proxy/config.conf"),
        "proxy_log": (),
        # Filled in for the cluster's objects by `with_netfilter`.
        "ipsets": {},
        "syn_sent": {},
        "udp_sent": {},
    }


def proxy_facts(taken_at: float, node: str) -> ProxyFacts:
    """A kube-proxy that synced ten seconds ago; the pytest host's clock is an hour off."""
    clock = taken_at + NODE_CLOCK
    told = datetime.fromtimestamp(clock, UTC).isoformat()
    sync = "kubeproxy_sync_proxy_rules_"
    family = 'ip_family="IPv4"'
    return ProxyFacts(
        mode="ipvs",
        version="v1.36.2",
        # The name goes with the facts where a test gives them to another node.
        config={**PROXY_CONFIG, "hostnameOverride": node},
        healthz=HttpAnswer(status=200, body=f'{{"currentTime":"{told}","nodeEligible":true}}'),
        livez=HttpAnswer(status=200, body="{}"),
        metrics={
            f'{sync}duration_seconds_bucket{{{family},le="0.512"}}': 99.0,
            f'{sync}duration_seconds_bucket{{{family},le="16.384"}}': 99.0,
            f'{sync}duration_seconds_bucket{{{family},le="+Inf"}}': 100.0,
            f"{sync}duration_seconds_count{{{family}}}": 100.0,
            f"{sync}last_timestamp_seconds{{{family}}}": clock - 10.0,
            f"{sync}last_queued_timestamp_seconds{{{family}}}": clock - 100.0,
            f"{sync}endpoint_changes_pending": 0.0,
            f"{sync}service_changes_pending": 0.0,
        },
    )


def proxy_objects() -> ProxyObjects:
    """kube-proxy as kubeadm installs it."""
    return ProxyObjects(
        config_maps={"kube-system/kube-proxy": PROXY_CONFIG},
        pods=tuple(
            ProxyPod(
                name=f"kube-proxy-{n}",
                node=f"node-{n}",
                image="registry.example/kube-proxy:v1.36.2",
                ready=True,
                restarts=0,
            )
            for n in (1, 2)
        ),
    )


def facts(number: int, taken_at: float) -> NodeFacts:
    """A healthy node of a cluster without Services."""
    return NodeFacts(
        node=f"node-{number}",
        taken_at=taken_at,
        kernel_release=KERNEL[0],
        kernel_version=KERNEL[1],
        sysctls=SYSCTLS,
        module_parameters={"ip_vs.conn_tab_bits": "12"},
        addresses=(
            ("lo", "127.0.0.1"),
            ("eth0", f"192.0.2.{number}"),
            ("cni0", f"10.244.{number}.1"),
        ),
        proxy=proxy_facts(taken_at, f"node-{number}"),
        conntrack={"insert_failed": 3, "drop": 0, "early_drop": 0},
        details=NodeDetails(**node_details()),
    )


@cache
def snapshot(taken_at: float) -> Snapshot:
    """One reading of a healthy cluster."""
    members = nodes()
    told = Snapshot(
        taken_at=taken_at,
        server_version="v1.36.2",
        nodes=members,
        services=services(),
        endpoint_slices=slices(),
        facts={f"node-{n}": facts(n, taken_at) for n in (1, 2)},
        proxy_objects=proxy_objects(),
    )
    return programmed(told)


def programmed(snapshot: Snapshot) -> Snapshot:
    """The reading with what kube-proxy should have made of its objects on each node."""
    return with_netfilter(
        replace(
            snapshot,
            facts={
                node.name: replace(
                    snapshot.facts[node.name],
                    table=right_table(snapshot, node, snapshot.facts[node.name]),
                )
                for node in snapshot.nodes
            },
        )
    )


def healthy(*times: float, policy: Policy | None = None) -> Evidence:
    """Evidence of a healthy cluster at these times (by default 0 and 300 s)."""
    moments = times or (0.0, 300.0)
    return Evidence(
        snapshots=tuple(map(snapshot, moments)),
        policy=policy or Policy(),
        baseline=snapshot(moments[0] - 60.0),
    )


def on_node(
    evidence: Evidence, change: Callable[[NodeFacts], NodeFacts], name: str = "node-2"
) -> Evidence:
    """The evidence with one node's facts changed in every snapshot."""
    return replace(
        evidence,
        snapshots=tuple(
            replace(one, facts={**one.facts, name: change(one.facts[name])})
            for one in evidence.snapshots
        ),
    )


def sysctl(evidence: Evidence, values: Mapping[str, str | None], name: str = "node-2") -> Evidence:
    """The evidence with other sysctls on one node; ``None`` takes one away."""

    def change(old: NodeFacts) -> NodeFacts:
        told = {**old.sysctls, **values}
        return replace(old, sysctls={k: v for k, v in told.items() if v is not None})

    return on_node(evidence, change, name)


def details(evidence: Evidence, name: str = "node-2", **more: Any) -> Evidence:
    """The evidence with other details on one node; ``None`` takes one away."""

    def change(old: NodeFacts) -> NodeFacts:
        assert old.details is not None
        return replace(old, details=replace(old.details, **more))

    return on_node(evidence, change, name)


def of_cluster(evidence: Evidence, **more: Any) -> Evidence:
    """The evidence with fields of every snapshot replaced; callables get the old value."""
    return replace(
        evidence,
        snapshots=tuple(
            replace(
                one,
                **{
                    field: value(getattr(one, field)) if callable(value) else value
                    for field, value in more.items()
                },
            )
            for one in evidence.snapshots
        ),
    )


def table(
    evidence: Evidence,
    change: Callable[[tuple[VirtualServer, ...]], tuple[VirtualServer, ...]],
    name: str = "node-2",
) -> Evidence:
    """The evidence with one node's table changed in every snapshot."""

    def changed(old: NodeFacts) -> NodeFacts:
        assert old.table is not None
        return replace(
            old, table=old.table._replace(virtual_servers=change(old.table.virtual_servers))
        )

    return on_node(evidence, changed, name)


def virtual(evidence: Evidence, key: ServiceKey, name: str = "node-2", **more: Any) -> Evidence:
    """The evidence with fields of one virtual server replaced; callables get the old value."""

    def one(server: VirtualServer) -> VirtualServer:
        values = {
            field: value(getattr(server, field)) if callable(value) else value
            for field, value in more.items()
        }
        return server._replace(**values) if server.key == key else server

    return table(evidence, lambda servers: tuple(map(one, servers)), name)


def with_service(evidence: Evidence, key: ServiceKey) -> Evidence:
    """A healthy cluster with one more Service: DNS, of UDP, or LOCAL, of a policy Local."""
    local = key == LOCAL
    name, port = ("local", 8080) if local else ("dns", 53)
    service = Service(
        namespace="demo",
        name=name,
        cluster_ips=(key.address,),
        ports=(ServicePort(name="", protocol=key.protocol, port=key.port),),
        internal_traffic_policy="Local" if local else "Cluster",
    )
    endpoints = replace(
        slices()[0],
        name=f"{name}-1",
        service=name,
        ports=(SlicePort(name="", protocol=key.protocol, port=port),),
    )

    def more(old: Snapshot) -> Snapshot:
        return programmed(
            replace(
                old,
                services=(*old.services, service),
                endpoint_slices=(*old.endpoint_slices, endpoints),
            )
        )

    return replace(
        evidence,
        snapshots=tuple(map(more, evidence.snapshots)),
        baseline=evidence.baseline and more(evidence.baseline),
    )


def templates(evidence: Evidence, expires: int, real: str = "10.244.9.9") -> Evidence:
    """The evidence with a client's persistence template on node-2."""
    one = Connection(
        "TCP", "10.244.1.7", 0, STICKY.address, STICKY.port, real, 8080, "NONE", expires
    )
    return details(evidence, templates=(one,))


def add_real(server: RealServer) -> Callable[[tuple[RealServer, ...]], tuple[RealServer, ...]]:
    return lambda old: (*old, server)


def weight(number: int) -> Callable[[tuple[RealServer, ...]], tuple[RealServer, ...]]:
    return lambda old: (old[0]._replace(weight=number), *old[1:])


def kernel(release: str, version: str = "") -> Callable[[NodeFacts], NodeFacts]:
    return lambda old: replace(old, kernel_release=release, kernel_version=version)


def proxy(**more: object) -> Callable[[NodeFacts], NodeFacts]:
    """Other facts of a kube-proxy."""
    return lambda old: replace(old, proxy=replace(old.proxy, **more))  # type: ignore[arg-type]


def configured(evidence: Evidence, more: Mapping[str, Any]) -> Evidence:
    """The evidence with other keys in one node's running configuration."""

    def change(old: NodeFacts) -> NodeFacts:
        return replace(old, proxy=replace(old.proxy, config={**(old.proxy.config or {}), **more}))

    return on_node(evidence, change)


def outcomes(evidence: Evidence) -> dict[str, Outcome]:
    """What every check that judges evidence says; asked once, as checks tell no two stories."""
    if "outcomes" not in evidence.memo:
        evidence.memo["outcomes"] = {
            check.id: run_check(check.id, evidence)
            for check in CATALOGUE.values()
            if not check.data_path
        }
    found: dict[str, Outcome] = evidence.memo["outcomes"]
    return found


def tripped(evidence: Evidence) -> dict[str, set[str]]:
    """Check id to the severities of its findings, of checks that have any."""
    return {
        name: {finding.severity for finding in outcome.findings}
        for name, outcome in outcomes(evidence).items()
        if outcome.findings
    }


def unmeasured(evidence: Evidence) -> dict[str, set[str]]:
    """Check id to the facts it lacks, of checks that lack any."""
    return {
        name: {lack.fact for lack in outcome.not_measured}
        for name, outcome in outcomes(evidence).items()
        if outcome.not_measured
    }


def text_of(finding: Finding) -> str:
    """All words of a finding."""
    parts = (
        finding.object,
        finding.observed,
        finding.expected,
        finding.reason,
        finding.remedy,
        finding.evidence,
    )
    return "\n".join(parts)
