"""What was read from a cluster at one moment: records only, no reading, no judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_ipvs.ipvs.connections import Connection
from pytest_ipvs.ipvs.netfilter import IpSet, RuleSet
from pytest_ipvs.ipvs.objects import EndpointSlice, Node, Service
from pytest_ipvs.ipvs.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What one of kube-proxy's HTTP endpoints answered: status code and body."""

    status: int
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyFacts:
    """What kube-proxy on one node says of itself; ``None`` where it was not read.

    ``mode``: text of ``/proxyMode`` ("ipvs"); ``version``: "v1.36.2" from the build-info metric;
    ``config``: the ``kubeproxy.config.k8s.io`` object of ``/configz``.
    ``metrics`` maps samples of ``kubeproxy_*`` as ``/metrics`` spells them, labels included
    (``kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"}``), to their
    values; empty where none was read (``unread["proxy.metrics"]`` says why).
    """

    mode: str | None = None
    version: str | None = None
    config: Mapping[str, object] | None = None
    healthz: HttpAnswer | None = None
    livez: HttpAnswer | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlLine:
    """One setting of a sysctl.d file: ``path`` and ``line`` say where, ``key`` is dotted.

    ``optional``: the line begins with ``-``, so that a failure to set it is ignored.
    """

    path: str
    line: int
    key: str
    value: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortUse:
    """How many IPVS entries one client holds toward one virtual address and port."""

    protocol: str
    client: str
    address: str
    port: int
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetails:
    """What is dear to read and changes seldom: read once per run, not with each table.

    Every field is ``None`` where it was not read; ``NodeFacts.unread["details.<field>"]`` says
    why. ``modules``: names (underscores) of loaded modules, and of built-in ones. ``cpus``:
    processors as kube-proxy counts them. ``sysctl_files``: in the order in which they are applied,
    the last line for a key wins. ``uplinks``: interfaces with a default route. ``iptables`` and
    ``ip6tables``: what ``iptables-save`` prints of nat and filter. ``ipsets``: by name.
    ``ipvs_timeouts``: tcp, tcpfin, udp in seconds, of ``ipvsadm -L --timeout``. ``syn_sent``:
    conntrack entries in SYN_SENT [UNREPLIED] by the address they were sent to (after DNAT).
    ``udp_sent``: those of UDP by the address that was asked for and the one they were sent to,
    where these differ.
    ``port_use``: the clients with most IPVS entries per virtual server, most first.
    ``templates``: persistence templates. ``table_full``: kernel log lines "nf_conntrack: table
    full". ``proxy_command``: kube-proxy's argument list on this node. ``proxy_log``: its newest
    log lines of level error, oldest first. ``tools``: "iptables" and "ipset" to their versions.
    """

    modules: frozenset[str] | None = None
    cpus: int | None = None
    sysctl_files: tuple[SysctlLine, ...] | None = None
    uplinks: tuple[str, ...] | None = None
    iptables: RuleSet | None = None
    ip6tables: RuleSet | None = None
    ipsets: Mapping[str, IpSet] | None = None
    ipvs_timeouts: tuple[int, int, int] | None = None
    syn_sent: Mapping[str, int] | None = None
    udp_sent: Mapping[tuple[str, str], int] | None = None
    port_use: tuple[PortUse, ...] | None = None
    templates: tuple[Connection, ...] | None = None
    table_full: int | None = None
    proxy_command: tuple[str, ...] | None = None
    proxy_log: tuple[str, ...] | None = None
    tools: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Everything one script read from one node.

    ``taken_at`` is Unix seconds on the pytest host. ``sysctls`` maps full dotted keys
    ("net.ipv4.vs.conntrack") to their text; an absent key does not exist on that node.
    ``table`` is ``None`` where ``/proc/net/ip_vs`` does not exist (the module is not loaded).
    ``conntrack`` sums ``/proc/net/stat/nf_conntrack`` over processors ("insert_failed", "drop",
    "early_drop", …). ``details`` is ``None`` where only the light part was read.
    ``unread`` maps a fact's name ("table", "sysctls", "proxy.mode" …) to why it was not read.
    """

    node: str
    taken_at: float
    kernel_release: str
    kernel_version: str
    sysctls: Mapping[str, str]
    module_parameters: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    addresses: tuple[tuple[str, str], ...] = ()
    proxy: ProxyFacts = ProxyFacts()
    conntrack: Mapping[str, int] = field(default_factory=dict)
    details: NodeDetails | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPod:
    """One kube-proxy pod. ``restarted_at`` is Unix seconds of its container's last restart."""

    name: str
    node: str
    image: str
    ready: bool
    restarts: int
    restarted_at: float | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyObjects:
    """What the API holds about kube-proxy, read once per run.

    ``config_maps`` maps "namespace/name" to the decoded configuration in it (kubeadm:
    kube-system/kube-proxy, EKS: kube-system/kube-proxy-config); empty where there is none.
    ``pods`` is empty where kube-proxy runs as no pod (k3s). ``unread`` maps "proxy_objects.pods"
    and "proxy_objects.config_maps" to why they were not read.
    """

    config_maps: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    pods: tuple[ProxyPod, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """API, then node tables, then API again, at one moment.

    ``moving`` holds the "namespace/name" of Services that differ between the two API reads, so
    their tables are not judged. ``unreachable`` maps node names to one sentence why.
    ``facts`` holds the nodes that answered. ``proxy_objects`` is ``None`` where only the light
    part was read.
    """

    taken_at: float
    server_version: str
    nodes: tuple[Node, ...]
    services: tuple[Service, ...]
    endpoint_slices: tuple[EndpointSlice, ...]
    facts: Mapping[str, NodeFacts]
    unreachable: Mapping[str, str] = field(default_factory=dict)
    moving: frozenset[str] = frozenset()
    proxy_objects: ProxyObjects | None = None
