"""The ipsets and iptables rules of kube-proxy's IPVS mode, in the shape that 1.36 gives them."""

from __future__ import annotations

SETS: dict[str, str] = {
    "KUBE-LOOP-BACK": "hash:ip,port,ip",
    "KUBE-CLUSTER-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER": "hash:ip,port",
    "KUBE-LOAD-BALANCER-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER-FW": "hash:ip,port",
    "KUBE-LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "KUBE-NODE-PORT-TCP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-TCP": "bitmap:port",
    "KUBE-NODE-PORT-UDP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-UDP": "bitmap:port",
    "KUBE-NODE-PORT-SCTP-HASH": "hash:ip,port",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    "KUBE-HEALTH-CHECK-NODE-PORT": "bitmap:port",
    "KUBE-IPVS-IPS": "hash:ip",
}
"""Name and type of each set; all exist always, with or without members."""


def set_creation() -> list[str]:
    """Lines for ``ipset -exist restore`` that create all sets."""
    lines = []
    for name, kind in SETS.items():
        if kind == "bitmap:port":
            lines.append(f"create {name} bitmap:port range 0-65535")
        else:
            lines.append(f"create {name} {kind} family inet hashsize 1024 maxelem 65536")
    return lines


def set_changes(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """Lines for ``ipset -exist restore`` that turn one content of the sets into the other."""
    lines = []
    for name in SETS:
        old, new = before.get(name, set()), after.get(name, set())
        lines += [f"add {name} {member}" for member in sorted(new - old)]
        lines += [f"del {name} {member}" for member in sorted(old - new)]
    return lines


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


def _in(name: str, directions: str) -> str:
    return f"-m set --match-set {name} {directions}"


def rules(sets: dict[str, set[str]], cluster_cidr: str) -> str:
    """Input for ``iptables-restore --noflush``: kube-proxy's chains, with jumps left out.

    Which rules exist depends on which sets have members, as in the original.
    """
    filled = {name for name, members in sets.items() if members}
    nat = [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-POSTROUTING - [0:0]",
        ":KUBE-NODE-PORT - [0:0]",
        ":KUBE-LOAD-BALANCER - [0:0]",
        ":KUBE-MARK-MASQ - [0:0]",
        *_services(filled, cluster_cidr),
        *_node_ports(filled),
        *_postrouting(filled),
        "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "COMMIT",
    ]
    return "\n".join([*nat, *_filter(filled), ""])


def _services(filled: set[str], cluster_cidr: str) -> list[str]:
    start = "-A KUBE-SERVICES"
    lines = [f"{start} -s 127.0.0.0/8 -j RETURN"]
    if "KUBE-LOAD-BALANCER" in filled:
        lines.append(
            f"{start} {_comment('Kubernetes service lb portal')}"
            f" {_in('KUBE-LOAD-BALANCER', 'dst,dst')} -j KUBE-LOAD-BALANCER"
        )
    if "KUBE-CLUSTER-IP" in filled:
        lines.append(
            f"{start} {_comment('Kubernetes service cluster ip + port for masquerade purpose')}"
            f" {_in('KUBE-CLUSTER-IP', 'dst,dst')} ! -s {cluster_cidr} -j KUBE-MARK-MASQ"
        )
    external = _comment("Kubernetes service external ip + port for masquerade and filter purpose")
    if "KUBE-EXTERNAL-IP" in filled:
        match = f"{start} {external} {_in('KUBE-EXTERNAL-IP', 'dst,dst')}"
        lines += [
            f"{match} -j KUBE-MARK-MASQ",
            f"{match} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
            f"{match} -m addrtype --dst-type LOCAL -j ACCEPT",
        ]
    if "KUBE-EXTERNAL-IP-LOCAL" in filled:
        match = f"{start} {external} {_in('KUBE-EXTERNAL-IP-LOCAL', 'dst,dst')}"
        lines += [
            f"{match} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
            f"{match} -m addrtype --dst-type LOCAL -j ACCEPT",
        ]
    lines.append(f"{start} -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT")
    lines += [
        f"{start} {_in(name, 'dst,dst')} -j ACCEPT"
        for name in ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER")
        if name in filled
    ]
    if "KUBE-LOAD-BALANCER-LOCAL" in filled:
        lines.append(
            f"-A KUBE-LOAD-BALANCER {_in('KUBE-LOAD-BALANCER-LOCAL', 'dst,dst')} -j RETURN"
        )
    return lines


def _node_ports(filled: set[str]) -> list[str]:
    lines = []
    for protocol in ("tcp", "udp"):
        start = f"-A KUBE-NODE-PORT -p {protocol}"
        name = f"KUBE-NODE-PORT-LOCAL-{protocol.upper()}"
        word = f"Kubernetes nodeport {protocol.upper()} port"
        if name in filled:
            text = _comment(f"{word} with externalTrafficPolicy=local")
            lines.append(f"{start} {text} {_in(name, 'dst')} -j RETURN")
        name = f"KUBE-NODE-PORT-{protocol.upper()}"
        if name in filled:
            text = _comment(f"{word} for masquerade purpose")
            lines.append(f"{start} {text} {_in(name, 'dst')} -j KUBE-MARK-MASQ")
    return lines


def _postrouting(filled: set[str]) -> list[str]:
    start = "-A KUBE-POSTROUTING"
    lines = []
    if "KUBE-LOOP-BACK" in filled:
        text = _comment("Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose")
        lines.append(f"{start} {text} {_in('KUBE-LOOP-BACK', 'dst,dst,src')} -j MASQUERADE")
    text = _comment("kubernetes service traffic requiring SNAT")
    return [
        *lines,
        f"{start} -m mark ! --mark 0x4000/0x4000 -j RETURN",
        f"{start} -j MARK --xor-mark 0x4000",
        f"{start} {text} -j MASQUERADE --random-fully",
    ]


def _filter(filled: set[str]) -> list[str]:
    start = "-A KUBE-IPVS-FILTER"
    marked = _comment("kubernetes forwarding rules")
    tracked = _comment("kubernetes forwarding conntrack rule")
    health = _comment("Kubernetes health check node port")
    lines = [
        "*filter",
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-NODE-PORT - [0:0]",
        ":KUBE-PROXY-FIREWALL - [0:0]",
        ":KUBE-SOURCE-RANGES-FIREWALL - [0:0]",
        ":KUBE-IPVS-FILTER - [0:0]",
        ":KUBE-IPVS-OUT-FILTER - [0:0]",
    ]
    if "KUBE-LOAD-BALANCER-FW" in filled:
        text = _comment("Kubernetes service load balancer ip + port with loadBalancerSourceRanges")
        lines.append(
            f"-A KUBE-PROXY-FIREWALL {text} {_in('KUBE-LOAD-BALANCER-FW', 'dst,dst')}"
            " -j KUBE-SOURCE-RANGES-FIREWALL"
        )
        text = _comment(
            "Kubernetes service load balancer ip + port + source cidr for packet filter"
        )
        lines.append(
            f"-A KUBE-SOURCE-RANGES-FIREWALL {text}"
            f" {_in('KUBE-LOAD-BALANCER-SOURCE-CIDR', 'dst,dst,src')} -j RETURN"
        )
    return [
        *lines,
        f"-A KUBE-FORWARD {marked} -m mark --mark 0x4000/0x4000 -j ACCEPT",
        f"-A KUBE-FORWARD {tracked} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        *(
            f"{start} {_in(name, 'dst,dst')} -j RETURN"
            for name in (
                "KUBE-LOAD-BALANCER",
                "KUBE-CLUSTER-IP",
                "KUBE-EXTERNAL-IP",
                "KUBE-EXTERNAL-IP-LOCAL",
            )
        ),
        f"{start} {_in('KUBE-HEALTH-CHECK-NODE-PORT', 'dst')} -j RETURN",
        f"{start} -m conntrack --ctstate NEW {_in('KUBE-IPVS-IPS', 'dst')} -j REJECT",
        f"-A KUBE-NODE-PORT {health} {_in('KUBE-HEALTH-CHECK-NODE-PORT', 'dst')} -j ACCEPT",
        "-A KUBE-SOURCE-RANGES-FIREWALL -j DROP",
        "COMMIT",
    ]


def jumps() -> str:
    """Input for ``iptables-restore --noflush``: the jumps from the built-in chains; once only."""
    nat = [
        ("PREROUTING", "kubernetes service portals", "KUBE-SERVICES"),
        ("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"),
        ("POSTROUTING", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ]
    filters = [
        ("INPUT", "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
        ("INPUT", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("INPUT", "kubernetes health check rules", "KUBE-NODE-PORT"),
        ("FORWARD", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("OUTPUT", "kubernetes ipvs access filter", "KUBE-IPVS-OUT-FILTER"),
    ]
    lines = []
    for table, entries in (("nat", nat), ("filter", filters)):
        lines.append(f"*{table}")
        lines += [f"-A {chain} {_comment(text)} -j {target}" for chain, text, target in entries]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])
