"""CT: conntrack, netfilter's rules and masquerading. What judges them is in the modules named."""

from __future__ import annotations

from dataclasses import replace

from pytest_ipvs.checks import firewall, marks, masquerade, ports
from pytest_ipvs.checks.model import Check

_RULES = frozenset({"details.iptables", "details.ip6tables", "api"})
_CT_01 = Check(
    id="CT-01",
    title="the chains that masquerade are there, in order, with the right mark bit",
    group="CT",
    severity="fail",
    permission="node",
    needs=_RULES | {"proxy.config", "proxy.version"},
    source="kube-proxy pkg/proxy/ipvs/proxier.go",
    run=masquerade.chains,
)

CHECKS = (
    _CT_01,
    replace(
        _CT_01,
        id="CT-02",
        title="traffic to ClusterIPs is masqueraded as kube-proxy's configuration asks",
        run=masquerade.cluster_ip_rule,
    ),
    replace(
        _CT_01,
        id="CT-03",
        title="MASQUERADE has --random-fully where iptables supports it",
        severity="warn",
        needs=_RULES | {"details.tools", "proxy.version"},
        run=masquerade.random_fully,
    ),
    replace(
        _CT_01,
        id="CT-04",
        title="the node's own ports and node ports are disjoint",
        severity="warn",
        needs=frozenset({"sysctls", "api"}),
        source="Linux Documentation/networking/ip-sysctl.rst; kubernetes/kubernetes issue 139276",
        run=ports.port_ranges,
    ),
    replace(
        _CT_01,
        id="CT-05",
        title="no other program uses the bit that marks for masquerading",
        severity="warn",
        run=marks.foreign_marks,
    ),
    replace(
        _CT_01,
        id="CT-06",
        title="kube-proxy's filter chains are those of its release",
        severity="warn",
        needs=_RULES | {"proxy.version"},
        source="kube-proxy pkg/proxy/ipvs/proxier.go; kubernetes/kubernetes pulls 108460, 119791",
        run=masquerade.version_chains,
    ),
    replace(
        _CT_01,
        id="CT-07",
        title="INPUT and FORWARD let traffic to virtual addresses and pods pass",
        needs=_RULES | {"proxy.version"},
        source="Linux net/netfilter/ipvs/ip_vs_core.c; kubernetes/kubernetes issue 72236",
        run=firewall.input_policy,
    ),
    replace(
        _CT_01,
        id="CT-08",
        title="no pile of unanswered SYNs and no datagrams to endpoints that are gone",
        needs=frozenset({"details.syn_sent", "details.udp_sent", "table", "api", "proxy.version"}),
        source="kubernetes/kubernetes issues 81775, 76664 and 71514",
        run=marks.sent_to_the_dead,
    ),
)
