"""CP: how much room is left in IPVS, and in the ports of its clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, kernel_of, silent_nodes, views, why_unread
from pytest_ipvs.checks.ports import PORT_RANGE, parse_port_range
from pytest_ipvs.checks.proxy_config import effective
from pytest_ipvs.checks.values import (
    VS,
    by_policy,
    each_node,
    lack,
    number_of,
    value_of,
    waived,
)
from pytest_ipvs.ipvs.kernel import FIRST_WITH_RESIZABLE_TABLES
from pytest_ipvs.ipvs.proxy import parse_duration
from pytest_ipvs.ipvs.tables import ServiceKey, Table

CONN_MAX = f"{VS}conn_max"
TAB_BITS = "ip_vs.conn_tab_bits"
KEEPALIVE = "net.ipv4.tcp_keepalive_time"
RUN_ESTIMATION = f"{VS}run_estimation"
EST_CPULIST = f"{VS}est_cpulist"
# Ports 1024 to 65535: what a client has at most, whatever its range is.
_ALL_CLIENT_PORTS = 64512


def _entries(table: Table) -> int:
    """Connections of a table; templates of persistence are not counted by the kernel here."""
    return sum(
        real.active + real.inactive
        for virtual in table.virtual_servers
        for real in virtual.real_servers
    )


def ipvs_room(evidence: Evidence) -> Said:
    """IPVS has room for its connections.

    Kernels to 7.0 have a fixed number of buckets, 2 to the power of conn_tab_bits. From 7.1 the
    table grows by itself, and from 7.2 conn_max bounds it. A kernel with conn_max is judged by
    it, whatever its number.
    """
    yield from each_node("CP-03", evidence, _ipvs_room)


def _ipvs_room(check: str, evidence: Evidence, view: NodeView) -> Said:
    table = _table(check, view)
    if isinstance(table, NotMeasured):
        yield table
        return
    limit = number_of(check, view, CONN_MAX)
    kernel = kernel_of(check, view.facts)
    if isinstance(limit, NotMeasured):
        yield limit
    elif limit is not None:
        yield from _by_limit(check, view, _entries(table), limit)
    elif isinstance(kernel, NotMeasured):
        yield kernel
    elif kernel.release_number < FIRST_WITH_RESIZABLE_TABLES:
        yield from _by_buckets(check, view, _entries(table))


def _table(check: str, view: NodeView) -> Table | NotMeasured:
    if view.facts.table is not None:
        return view.facts.table
    reason = why_unread(view.facts, "table", "the module ip_vs is not loaded")
    return NotMeasured(check=check, node=view.name, fact="table", reason=reason)


def _by_limit(check: str, view: NodeView, entries: int, limit: int) -> Said:
    if waived(view, CONN_MAX):
        return
    yield from by_policy(check, view, CONN_MAX, str(limit)) or ()
    bound = view.policy.threshold("ipvs_conn_max")
    if limit > 0 and 100 * entries / limit >= bound:
        yield Finding(
            check=check,
            severity="warn",
            node=view.name,
            object="IPVS connections",
            observed=f"at least {bound:g} % of {CONN_MAX}",
            expected=f"less than {bound:g} %",
            reason="IPVS takes no new connection beyond its limit",
            remedy=f"raise {CONN_MAX}",
            evidence=f"{entries} of {limit}",
        )


def _by_buckets(check: str, view: NodeView, entries: int) -> Said:
    text = view.facts.module_parameters.get(TAB_BITS, "").strip()
    if not text.isdecimal():
        otherwise = f"it is {text!r}, expected a number" if text else "it was not read"
        reason = why_unread(view.facts, "modules", otherwise)
        yield NotMeasured(check=check, node=view.name, fact=TAB_BITS, reason=reason)
        return
    buckets = 1 << min(int(text), 64)
    bound = view.policy.threshold("ipvs_per_bucket")
    if entries > bound * buckets:
        yield Finding(
            check=check,
            severity="warn",
            node=view.name,
            object="IPVS connections",
            observed=f"more than {bound:g} for each of {buckets} buckets",
            expected=f"at most {bound:g} for each",
            reason="each packet of a connection searches a long chain, which costs processor time",
            remedy="put 'options ip_vs conn_tab_bits=20' in a file of /etc/modprobe.d, and reboot "
            "the node",
            evidence=f"{entries} connections",
        )


def client_ports(evidence: Evidence) -> Said:
    """No client is near the end of its ports toward one virtual server.

    A port stays in use for two minutes after its connection. A client that is the node itself
    has the node's port range. Pods and others have ranges of their own, in network namespaces
    that are not read, not even of a sample of pods: ``client_ports`` of the policy (the kernel's
    default, 28,232) stands for them, and all 64,512 ports for a client that is seen to have more.
    So a pod whose range is smaller runs short unseen, unless the policy says so.
    """
    check = "CP-04"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        uses = detail(check, evidence, view, "port_use")
        if isinstance(uses, NotMeasured):
            yield uses
            continue
        own = {address for _, address in view.facts.addresses}
        bound = view.policy.threshold("client_ports_used")
        for use in uses:
            ports, whose = _ports_of(view, use.client in own)
            if use.entries > ports:
                ports, whose = _ALL_CLIENT_PORTS, "all that a client can have"
            if 100 * use.entries / ports < bound:
                continue
            server = ServiceKey(use.protocol, use.address, use.port)
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object=f"{use.client} to {server}",
                observed=f"at least {bound:g} % of its ports in use",
                expected=f"less than {bound:g} %",
                reason="a client without a free port can't connect, and one with few reuses ports "
                "that IPVS still remembers",
                remedy="let the client keep its connections open, widen net.ipv4."
                "ip_local_port_range in its pod, or spread it over more pods",
                evidence=f"{use.entries} of {ports} ports ({whose})",
            )


def _ports_of(view: NodeView, is_node: bool) -> tuple[int, str]:
    if is_node:
        ports = parse_port_range(view.facts.sysctls.get(PORT_RANGE, ""))
        if ports:
            return len(ports), "the node's range"
    assumed = max(1, int(view.policy.threshold("client_ports")))
    return assumed, "assumed: a pod's own range can't be read from the node"


# Linux net/netfilter/ipvs/ip_vs_proto_tcp.c: tcp_timeouts, IP_VS_TCP_S_ESTABLISHED.
_TCP_TIMEOUT = 900


def keepalive(evidence: Evidence) -> Said:
    """IPVS remembers a silent TCP connection for as long as its ends do.

    IPVS forgets a silent connection after its TCP time-out (900 s by default), and the next
    packet gets a reset. The kernel's keepalive comes after 7200 s only. So this is true of every
    node with default settings, and harms only connections that are silent for long, which the
    node does not tell: it is information. A policy that tells ``idle_connection`` (seconds) turns
    it into a warning where IPVS forgets sooner than that.
    """
    yield from each_node("CP-05", evidence, _keepalive)


def _keepalive(check: str, evidence: Evidence, view: NodeView) -> Said:
    wanted = view.policy.threshold("idle_connection")
    told = wanted > 0
    timeouts = detail(check, evidence, view, "ipvs_timeouts")
    assumed = ""
    if not isinstance(timeouts, NotMeasured):
        remembered = timeouts[0]
    else:
        config = effective(check, view)
        # What is only information needs no program that nodes may lack.
        if told or not timeouts.reason.endswith("not installed") or isinstance(config, NotMeasured):
            yield timeouts
            return
        remembered = int(parse_duration(config.get("ipvs.tcpTimeout")) or _TCP_TIMEOUT)
        assumed = f"assumed from kube-proxy's configuration, {timeouts.reason}"
    if not told:
        if waived(view, KEEPALIVE):
            return
        value = value_of(check, view, KEEPALIVE)
        if not isinstance(value, str):
            yield value or lack(check, view, KEEPALIVE)
            return
        answer = by_policy(check, view, KEEPALIVE, value)
        if answer is not None:
            yield from answer
            return
        number = number_of(check, view, KEEPALIVE)
        if not isinstance(number, int):
            yield number or lack(check, view, KEEPALIVE)
            return
        wanted = float(number)
    if remembered >= wanted:
        return
    what = "idle_connection of the policy" if told else KEEPALIVE
    yield Finding(
        check=check,
        severity="warn" if told else "info",
        node=view.name,
        object="IPVS TCP time-out",
        observed=f"{remembered} s",
        expected=f"at least {wanted:g} s ({what})",
        reason="a connection that is silent for longer is forgotten, and its next packet gets "
        "a reset",
        remedy="set ipvs.tcpTimeout in kube-proxy's configuration, or let clients send "
        f"keepalives more often than every {remembered} s",
        evidence=assumed,
    )


def sizes(evidence: Evidence) -> Said:
    """The tables are of a size that was tried: addresses, virtual servers, real servers."""
    check = "CP-06"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        table = _table(check, view)
        counts: list[tuple[str, str, int]] = []
        if isinstance(table, NotMeasured):
            yield table
        else:
            reals = sum(len(virtual.real_servers) for virtual in table.virtual_servers)
            counts.append(("virtual_servers", "virtual servers", len(table.virtual_servers)))
            counts.append(("real_servers", "real servers", reals))
        if view.facts.addresses:
            bound = sum(1 for interface, _ in view.facts.addresses if interface == "kube-ipvs0")
            counts.append(("virtual_addresses", "addresses on kube-ipvs0", bound))
        else:
            reason = why_unread(view.facts, "addresses", "the node's addresses were not read")
            yield NotMeasured(check=check, node=view.name, fact="addresses", reason=reason)
        for name, what, count in counts:
            limit = view.policy.threshold(name)
            if count > limit:
                yield Finding(
                    check=check,
                    severity="info",
                    node=view.name,
                    object=what,
                    observed=f"more than {limit:g}",
                    expected=f"at most {limit:g}",
                    reason="kube-proxy's syncs and whatever reads the node's addresses get slow",
                    remedy="watch the duration of syncs (KP-04); raise the threshold "
                    f"{name} in the policy file if this size is tried",
                    evidence=f"{count} {what}",
                )


def estimation(evidence: Evidence) -> Said:
    """IPVS's rates are estimated, and not by one timer for very many servers.

    run_estimation=0 stops the rates: ``ipvsadm --rate`` and ``--stats`` show old numbers then.
    Kernels without est_cpulist estimate all servers in one timer, which delays packets
    periodically where there are very many.
    """
    yield from each_node("CP-07", evidence, _estimation)


def _estimation(check: str, evidence: Evidence, view: NodeView) -> Said:
    table = _table(check, view)
    if isinstance(table, NotMeasured):
        yield table
        return
    processors = value_of(check, view, EST_CPULIST)
    if waived(view, RUN_ESTIMATION):
        return
    value = value_of(check, view, RUN_ESTIMATION)
    if isinstance(value, NotMeasured):
        yield value
        return
    answer = by_policy(check, view, RUN_ESTIMATION, value) if value is not None else None
    if answer is not None:
        yield from answer
    elif value not in (None, "1"):
        yield Finding(
            check=check,
            severity="info",
            node=view.name,
            object=RUN_ESTIMATION,
            observed=value or "",
            expected="1",
            reason="rates and statistics of IPVS stand still, so they tell nothing",
            remedy=f"sysctl -w {RUN_ESTIMATION}=1, or name it in the policy file under sysctls",
        )
    elif processors is None:
        yield from _one_timer(check, view, table, value is not None)


def _one_timer(check: str, view: NodeView, table: Table, can_stop: bool) -> Iterator[Finding]:
    servers = sum(1 + len(virtual.real_servers) for virtual in table.virtual_servers)
    limit = view.policy.threshold("estimated_servers")
    if servers > limit:
        yield Finding(
            check=check,
            severity="info",
            node=view.name,
            object="IPVS estimation",
            observed=f"one timer for more than {limit:g} servers",
            expected=f"at most {limit:g}",
            reason="packets are delayed every two seconds while the rates are estimated",
            remedy=(f"sysctl -w {RUN_ESTIMATION}=0, or " if can_stop else "")
            + "run a kernel that has est_cpulist (6.2 or later)",
            evidence=f"{servers} virtual and real servers",
        )


_CHECK = Check(
    id="CP-03",
    title="IPVS has room for its connections",
    group="CP",
    severity="warn",
    permission="node",
    needs=frozenset({"table", "sysctls", "kernel"}),
    source="Linux ipvs-sysctl.rst, conn_max; module parameter conn_tab_bits",
    run=ipvs_room,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="CP-04",
        title="clients have ports left toward each virtual server",
        needs=frozenset({"details.port_use", "sysctls", "addresses"}),
        source="Linux ip-sysctl.rst, ip_local_port_range; ip_vs_proto_tcp.c, TIME_WAIT of 120 s",
        run=client_ports,
    ),
    replace(
        _CHECK,
        id="CP-05",
        title="IPVS remembers silent connections long enough",
        needs=frozenset({"details.ipvs_timeouts", "sysctls"}),
        source="kubernetes/kubernetes #80298",
        run=keepalive,
    ),
    replace(
        _CHECK,
        id="CP-06",
        title="the tables are of a size that was tried",
        severity="info",
        needs=frozenset({"table", "addresses"}),
        source="kubernetes/kubernetes #76022 and #65820",
        run=sizes,
    ),
    replace(
        _CHECK,
        id="CP-07",
        title="IPVS's rates are estimated without delaying packets",
        severity="info",
        needs=frozenset({"table", "sysctls"}),
        source="Linux ipvs-sysctl.rst, run_estimation; commit 2232642ec3fb",
        run=estimation,
    ),
)
