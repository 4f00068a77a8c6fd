"""SY-12 and CT-04: the ports that the node's own connections take."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, silent_nodes, views
from pytest_ipvs.checks.values import Rule, each_node, judge, lack, value_of

PORT_RANGE = "net.ipv4.ip_local_port_range"
RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"
TW_REUSE = "net.ipv4.tcp_tw_reuse"
# The API server's default for --service-node-port-range.
NODE_PORTS = range(30000, 32768)


def client_ports(evidence: Evidence) -> Said:
    """The ports of the node's own connections are as the policy says, and not reused in a hurry.

    Pods have settings of their own, in network namespaces of their own, which are not read: what
    holds on the node says nothing of them. Whether the range meets node ports is CT-04's. Other
    settings of the node's own connections are judged where the policy names them.
    """
    yield from each_node("SY-12", evidence, _client_ports)


def _client_ports(check: str, evidence: Evidence, view: NodeView) -> Said:
    rule = Rule(
        key=TW_REUSE,
        accepted=("2", "0"),
        severity="info",
        reason="a port is reused sooner, so IPVS meets more connections from ports it remembers",
        remedy=f"sysctl -w {TW_REUSE}=2, unless the node itself opens very many connections",
    )
    yield from judge(check, view, rule)


def port_ranges(evidence: Evidence) -> Said:
    """Ports that the node picks for its own connections are no node ports.

    A warning where a node port of a Service lies in the node's range of local ports and is not
    reserved; information where only the API server's default range (30000-32767) does. The range
    is that of the node's network namespace: pods have their own. A range that the policy names is
    judged by SY-12 only.
    """
    check = "CT-04"
    yield from silent_nodes(check, evidence)
    used = {
        port
        for service in evidence.last.services
        for port in (*(p.node_port for p in service.ports), service.health_check_node_port)
        if port
    }
    for view in views(evidence):
        if PORT_RANGE not in view.policy.sysctls:
            yield from _overlap(check, view, used)


def _overlap(check: str, view: NodeView, used: set[int]) -> Iterator[Finding | NotMeasured]:
    text = value_of(check, view, PORT_RANGE)
    if not isinstance(text, str):
        yield text or lack(check, view, PORT_RANGE)
        return
    ports = parse_port_range(text)
    if ports is None:
        reason = f"it is {text!r}, expected two numbers"
        yield NotMeasured(check=check, node=view.name, fact=PORT_RANGE, reason=reason)
        return
    reserved = value_of(check, view, RESERVED_PORTS)
    kept = _parse_ports(reserved if isinstance(reserved, str) else "")
    met = sorted(port for port in used if port in ports and port not in kept)
    possible = [port for port in NODE_PORTS if port in ports and port not in kept]
    clash = met or possible
    if not clash:
        return
    yield Finding(
        check=check,
        severity="warn" if met else "info",
        node=view.name,
        object=PORT_RANGE,
        observed=f"{ports.start}-{ports.stop - 1}, with {len(clash)} "
        f"{'node ports of Services' if met else 'possible node ports'} in it that are not reserved",
        expected="no node port in it, or all of them in ip_local_reserved_ports",
        reason="a connection that the node opens or masquerades may take a port that is a node "
        "port, and its replies then go to the Service's pods",
        remedy=f"sysctl -w {RESERVED_PORTS}=30000-32767 (beside what is reserved already), or "
        f"begin {PORT_RANGE} at 32768",
        evidence=f"node ports in it: {', '.join(map(str, met[:5]))}" if met else "",
    )


def parse_port_range(text: str) -> range | None:
    """ "32768 60999" as a range; ``None`` where the text is none."""
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None
    return range(int(words[0]), int(words[1]) + 1)


def _parse_ports(text: str) -> set[int]:
    """ "8080,30000-32767" as ports; parts that are none count for nothing."""
    ports: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            ports.update(range(int(first), min(int(last or first), 65535) + 1))
    return ports


CHECKS = (
    Check(
        id="SY-12",
        title="the node's own ports are as the policy says and not reused in a hurry",
        group="SY",
        severity="info",
        permission="node",
        needs=frozenset({"sysctls"}),
        source="Linux ip-sysctl.rst, ip_local_port_range, tcp_tw_reuse",
        run=client_ports,
    ),
)
