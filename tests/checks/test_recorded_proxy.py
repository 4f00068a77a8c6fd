"""kube-proxies of real clusters, reading by reading: findings that are true, and no other."""

from __future__ import annotations

import pytest
import recorded_proxy
from evidence_builder import KERNEL
from recorded_proxy import NODES, OBJECTS

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.policy import Policy

CONNTRACK = {
    "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
}
CHECKS = [f"KP-0{n}" for n in range(1, 10)]


def facts(run: str, node: str, at: float) -> NodeFacts:
    return NodeFacts(
        node=node,
        taken_at=at,
        kernel_release=KERNEL[0],
        kernel_version=KERNEL[1],
        sysctls=CONNTRACK,
        proxy=recorded_proxy.proxy_facts(run, node, at),
        details=recorded_proxy.proxy_details(run, node),
    )


def snapshots(run: str) -> list[Snapshot]:
    """One per answer of node-1's /healthz."""
    return [
        Snapshot(
            taken_at=at,
            server_version=f"v{run.partition('-')[0]}",
            nodes=tuple(Node(name=name) for name in NODES),
            services=(),
            endpoint_slices=(),
            facts={name: facts(run, name, at) for name in NODES},
            proxy_objects=OBJECTS,
        )
        for at, _ in recorded_proxy.readings(run, "node-1", "GET :10256/healthz")
    ]


@pytest.mark.parametrize(
    ("run", "slow"),
    [
        ("1.36.2-A", set()),
        # A kube-proxy on an emulated processor takes up to 20 s for a sync, which is told.
        ("1.36.2-B", set(NODES)),
        ("1.36.2-A-slow", set(NODES)),
        ("1.20.2-A", set(NODES)),
        ("1.20.2-B", set(NODES)),
    ],
)
def test_a_recorded_kube_proxy_trips_what_is_true(run: str, slow: set[str]) -> None:
    taken = snapshots(run)
    told = set()
    for end in range(2, len(taken) + 1):
        evidence = Evidence(
            snapshots=tuple(taken[max(0, end - 3) : end]), policy=Policy(), baseline=taken[0]
        )
        for check in CHECKS:
            outcome = run_check(check, evidence)
            assert not outcome.not_measured, check
            for finding in outcome.findings:
                assert finding.object.startswith("kube-proxy sync duration"), finding
                told.add(finding.node)
    assert told == slow
