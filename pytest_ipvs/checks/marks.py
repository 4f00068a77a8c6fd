"""CT-05 and CT-08: marks and connections that clash with kube-proxy's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_ipvs.checks.detailed import moment, not_settled
from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.masquerade import RulesView, rules_views
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, silent_nodes, views, why_unread
from pytest_ipvs.ipvs.netfilter import Rule
from pytest_ipvs.ipvs.objects import EndpointSlice
from pytest_ipvs.ipvs.proxy_chains import (
    DEFAULT_MASQUERADE_BIT,
    mark_and_mask,
    masquerade_bit,
    sets_mark,
)


def foreign_marks(evidence: Evidence) -> Said:
    """No rule outside of KUBE- chains sets the bit that means masquerade, or takes it for its own.

    A rule that returns or accepts what kube-proxy has marked (flannel's does) only honours the
    mark. A mask without the bit (those of Calico, Cilium and the portmap plugin) leaves it alone.
    """
    check = "CT-05"
    yield from silent_nodes(check, evidence)
    for view in rules_views(check, evidence):
        if isinstance(view, NotMeasured):
            yield view
            continue
        bit = DEFAULT_MASQUERADE_BIT
        if view.moment.facts.proxy.config is not None:
            bit = masquerade_bit(view.moment.rules)
        else:
            reason = "kube-proxy's configuration was not read"
            why = why_unread(view.moment.facts, "proxy.config", reason)
            yield NotMeasured(check=check, node=view.node, fact="proxy.config", reason=why)
        for chain, rule in _users(view, bit):
            yield Finding(
                check=check,
                severity="warn",
                node=view.node,
                object=f"{view.prefix}{chain}",
                observed=str(rule),
                expected=f"no use of mark 0x{1 << bit:x}",
                reason="kube-proxy masquerades every packet that carries this bit, and another "
                "program gives it another meaning",
                remedy="give the other program another bit, or set iptables.masqueradeBit of "
                "kube-proxy",
            )


def _users(view: RulesView, bit: int) -> Iterator[tuple[str, Rule]]:
    for (table, name), chain in view.found.chains.items():
        if name.startswith("KUBE-"):
            continue
        for rule in chain.rules:
            try:
                clashes = sets_mark(rule, bit) or _takes_mark(rule, bit)
            except ValueError:
                continue
            if clashes:
                yield f"{table} {name}", rule


def _takes_mark(rule: Rule, bit: int) -> bool:
    text = rule.option("--mark")
    if text is None or rule.target in ("RETURN", "ACCEPT", ""):
        return False
    value, mask = mark_and_mask(text)
    return bool(value & mask & 1 << bit)


def sent_to_the_dead(evidence: Evidence) -> Said:
    """conntrack sends neither a pile of SYNs nor any datagram to endpoints that are gone."""
    yield from silent_nodes("CT-08", evidence)
    yield from _syns_to_the_dead("CT-08", evidence)
    yield from _datagrams_to_the_dead("CT-08", evidence)


def _syns_to_the_dead(check: str, evidence: Evidence) -> Said:
    """A pile of unanswered SYNs to real servers whose endpoints are gone.

    An address counts if it was an endpoint before, or is a real server still, and no
    EndpointSlice lists it: neither pods that are slow nor hosts outside of the cluster do.
    """
    once = {
        address
        for snapshot in (*([evidence.baseline] if evidence.baseline else ()), *evidence.snapshots)
        for address in _endpoints(snapshot.endpoint_slices)
    }
    for view in views(evidence):
        waiting = detail(check, evidence, view, "syn_sent")
        if isinstance(waiting, NotMeasured):
            yield waiting
            continue
        found = moment(check, evidence, view)
        if isinstance(found, NotMeasured):
            yield found
            continue
        if found.facts.table is None:
            why = why_unread(found.facts, "table", "the module ip_vs is not loaded")
            yield NotMeasured(check=check, node=view.name, fact="table", reason=why)
            continue
        served = {
            server.address
            for virtual in found.facts.table.virtual_servers
            for server in virtual.real_servers
        }
        dead = (served | once) - set(_endpoints(found.snapshot.endpoint_slices))
        counts = {address: waiting[address] for address in sorted(dead & waiting.keys())}
        limit = view.policy.threshold("syn_sent_to_gone_endpoints")
        if sum(counts.values()) > limit:
            yield _pile(check, view, counts, limit)


def _datagrams_to_the_dead(check: str, evidence: Evidence) -> Said:
    """UDP entries that lead from an address of a Service to what is no endpoint of it.

    UDP says no goodbye: a client that keeps its port, as resolvers do, renews its entry with each
    datagram. So kube-proxy deletes the entries of an endpoint that leaves, after its real server.
    """
    for view in views(evidence):
        sent = detail(check, evidence, view, "udp_sent")
        found = moment(check, evidence, view)
        if isinstance(sent, NotMeasured) or isinstance(found, NotMeasured):
            # The SYNs' half has told why the moment is not known.
            if isinstance(sent, NotMeasured) and not isinstance(found, NotMeasured):
                yield sent
            continue
        if not sent:
            continue
        asked_of = {
            address: service
            for service in found.snapshot.services
            if any(port.protocol == "UDP" for port in service.ports)
            for address in (
                *service.cluster_ips,
                *service.external_ips,
                *service.load_balancer_ips,
                *service.proxied_ips,
            )
        }
        listed: dict[str, set[str]] = {}
        for item in found.snapshot.endpoint_slices:
            listed.setdefault(f"{item.namespace}/{item.service}", set()).update(_endpoints([item]))
        gone: dict[str, int] = {}
        for (asked, answered), count in sorted(sent.items()):
            service = asked_of.get(asked)
            if service is None or answered in listed.get(service.ref, ()):
                continue
            if doubt := found.doubt(service.ref, asked):
                what = f"UDP entries of {service.ref} to {answered}"
                yield not_settled(check, view.name, what, doubt)
                continue
            gone[f"{answered} for {asked} ({service.ref})"] = count
        if gone:
            yield _datagrams(check, view, gone)


def _endpoints(slices: Iterable[EndpointSlice]) -> Iterator[str]:
    return (
        address for item in slices for endpoint in item.endpoints for address in endpoint.addresses
    )


def _datagrams(check: str, view: NodeView, gone: dict[str, int]) -> Finding:
    worst = sorted(gone.items(), key=lambda pair: -pair[1])[:3]
    return Finding(
        check=check,
        severity="fail",
        node=view.name,
        object="conntrack: UDP to endpoints that are gone",
        observed="datagrams are sent to addresses that are no endpoints",
        expected="no such entry",
        reason="clients that keep their port, as resolvers do, are sent to pods that do not exist "
        "any more, as long as they go on",
        remedy="conntrack -D -p udp --reply-src ADDRESS, and look into kube-proxy's log for why it "
        "did not: the program conntrack may be missing in its image",
        evidence=f"{sum(gone.values())}: "
        + ", ".join(f"{number} to {where}" for where, number in worst),
    )


def _pile(check: str, view: NodeView, counts: dict[str, int], limit: float) -> Finding:
    worst = sorted(counts.items(), key=lambda pair: -pair[1])[:3]
    return Finding(
        check=check,
        severity="fail",
        node=view.name,
        object="conntrack: SYN_SENT to endpoints that are gone",
        observed=f"more than {limit:g} unanswered SYNs",
        expected=f"at most {limit:g}",
        reason="IPVS still sends new connections to pods that do not exist any more",
        remedy="check net.ipv4.vs.conn_reuse_mode and expire_nodest_conn (SY-01, SY-02), and the "
        "real servers of these addresses (TB-03, TB-04)",
        evidence=f"{sum(counts.values())}: "
        + ", ".join(f"{number} to {address}" for address, number in worst),
    )
