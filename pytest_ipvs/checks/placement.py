"""TB: whether virtual servers are where they should be and real servers chosen as they should."""

from __future__ import annotations

from dataclasses import replace

from pytest_ipvs.checks.findings import NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import RESTART_PROXY, views, why_unread
from pytest_ipvs.checks.tables import (
    NAME_OR_DELETE,
    configured_findings,
    judged_findings,
    judgement,
)

_LOOK = f"look into kube-proxy's log for this address, then {RESTART_PROXY}"


def datagrams_at_zero(evidence: Evidence) -> Said:
    """No real server of UDP or SCTP is at weight 0, wanted or not.

    kube-proxy drains TCP only: it deletes real servers of other protocols at once.
    """
    yield from judged_findings(
        "TB-06",
        evidence,
        {
            "datagram-at-zero": (
                "nothing sweeps it, and clients that keep their port keep being sent there",
                f"on the node: ipvsadm -d {{virtual}} -r {{real}}; then {RESTART_PROXY}",
            )
        },
    )


def local_sets(evidence: Evidence) -> Said:
    """A virtual server whose traffic policy is Local has the endpoints that the policy chooses.

    Those of the node. Where it has none: those of the whole cluster or none at all, as this
    version of kube-proxy does. A real server that is no endpoint at all is TB-03's.
    """
    yield from configured_findings(
        "TB-08",
        evidence,
        {
            "missing-local": (
                "an endpoint that the traffic policy Local chooses gets no traffic from the node",
                _LOOK,
            ),
            "stale-local": (
                "the traffic policy is Local, but traffic goes to where it does not choose",
                f"compare kube-proxy's hostnameOverride with the Node's name, then {RESTART_PROXY}",
            ),
        },
    )


def node_ports(evidence: Evidence) -> Said:
    """Every node port has a virtual server on each address of the node that is selected.

    ``nodePortAddresses`` selects: all addresses without it, never loopback from 1.23 on.
    """
    check = "TB-10"
    for view in views(evidence):
        told = judgement(evidence, view.name)
        if isinstance(told, NotMeasured) or view.facts.proxy.config is None:
            continue
        if told.expected.node_ports and not told.expected.addresses_known:
            reason = why_unread(view.facts, "addresses", "the node's addresses were not read")
            yield NotMeasured(check=check, node=view.name, fact="addresses", reason=reason)
    yield from configured_findings(
        check,
        evidence,
        {
            "missing-node-port": (
                "clients of the node port are refused at this address of the node",
                _LOOK,
            ),
            "unexplained-node-port": (
                "a node port is answered where the node has no address or may not answer it",
                NAME_OR_DELETE,
            ),
        },
    )


def empty_virtual_servers(evidence: Evidence) -> Said:
    """No virtual server is empty while endpoints should get its traffic."""
    yield from judged_findings(
        "TB-12",
        evidence,
        {
            "no-real-server": (
                "the kernel refuses every connection to this address although endpoints are ready",
                _LOOK,
            )
        },
    )


_CHECK = Check(
    id="TB-06",
    title="no real server of UDP or SCTP is at weight 0",
    group="TB",
    severity="fail",
    permission="node",
    needs=frozenset({"table", "proxy.version"}),
    source="kube-proxy pkg/proxy/ipvs/graceful_termination.go; kubernetes/kubernetes PR 77802",
    run=datagrams_at_zero,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="TB-08",
        title="traffic policies Local choose the right endpoints on each node",
        needs=frozenset({"table", "proxy.config", "proxy.version"}),
        source="kube-proxy pkg/proxy/topology.go; kubernetes/kubernetes PR 97081; KEP-1669",
        run=local_sets,
    ),
    replace(
        _CHECK,
        id="TB-10",
        title="every node port has a virtual server on each selected address of the node",
        needs=frozenset({"table", "addresses", "proxy.config", "proxy.version"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go, nodePortAddresses; KEP-3866",
        run=node_ports,
    ),
    replace(
        _CHECK,
        id="TB-12",
        title="no virtual server is empty while endpoints should get its traffic",
        source="kube-proxy pkg/proxy/ipvs/proxier.go",
        run=empty_virtual_servers,
    ),
)
