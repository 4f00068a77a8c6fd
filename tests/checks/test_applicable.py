"""Clusters to which no check applies, and those whose kube-proxy is only silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from evidence_builder import details, healthy, on_node
from proxy_builder import objects, proxied

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.checks.applicable import NotApplicable, not_applicable
from pytest_ipvs.cluster.model import NodeFacts, ProxyFacts, ProxyObjects

NOBODY = {
    "proxy.mode": "nothing answers on port 10249 of the loopback or node address",
    "proxy.healthz": "nothing answers on port 10256 of the loopback or node address",
}


def everywhere(evidence: Evidence, change: Callable[[NodeFacts], NodeFacts]) -> Evidence:
    for name in ("node-1", "node-2"):
        evidence = on_node(evidence, change, name)
    return evidence


def without_proxy(old: NodeFacts) -> NodeFacts:
    assert old.details is not None
    return replace(
        old,
        proxy=ProxyFacts(),
        table=None,
        unread=NOBODY,
        details=replace(old.details, proxy_command=None),
    )


def bare() -> Evidence:
    """A cluster that has no kube-proxy and no IPVS table."""
    return objects(everywhere(healthy(), without_proxy), ProxyObjects())


def instead(interface: str) -> Callable[[NodeFacts], NodeFacts]:
    table = healthy().last.facts["node-1"].table
    address = (interface, "10.0.0.1")
    return lambda old: replace(old, table=table, addresses=(*old.addresses, address))


def command(*words: str) -> Callable[[Evidence], Evidence]:
    return lambda e: details(e, proxy_command=words)


BOTH = ("node-1", "node-2")


@pytest.mark.parametrize(
    ("evidence", "parts"),
    [
        # Leftovers of a kube-proxy that was replaced are no kube-proxy.
        (everywhere(bare(), instead("cilium_host")), (("Cilium instead", BOTH),)),
        (everywhere(bare(), instead("kube-dummy-if")), (("kube-router instead", BOTH),)),
        (everywhere(bare(), instead("ovn-k8s-mp0")), (("OVN-Kubernetes instead", BOTH),)),
        (
            command("k3s", "server", "--disable-kube-proxy")(bare()),
            (("k3s was told to disable it", BOTH),),
        ),
    ],
    ids=["cilium", "kube-router", "ovn", "k3s"],
)
def test_no_kube_proxy(evidence: Evidence, parts: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    assert not_applicable(evidence) == NotApplicable(kind="absent", parts=parts)


NOTHING = "no IPVS table, and nothing known instead"


@pytest.mark.parametrize(
    ("evidence", "parts"),
    [
        (bare(), ((NOTHING, BOTH),)),
        (
            on_node(bare(), instead("cilium_host"), "node-1"),
            (("Cilium instead", ("node-1",)), (NOTHING, ("node-2",))),
        ),
    ],
    ids=["everywhere", "on one node"],
)
def test_nothing_that_proxies_is_judged_by_kp_01(
    evidence: Evidence, parts: tuple[tuple[str, tuple[str, ...]], ...]
) -> None:
    assert not_applicable(evidence) == NotApplicable(kind="unknown", parts=parts)
    outcome = run_check("KP-01", evidence)
    assert outcome.findings == ()
    assert [(lack.node, lack.reason) for lack in outcome.not_measured] == [
        (name, NOBODY["proxy.mode"]) for name in BOTH
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda e: objects(e, None),
        lambda e: objects(e, ProxyObjects(unread={"proxy_objects.pods": "forbidden"})),
        lambda e: objects(e, healthy().proxy_objects),
        command("kube-proxy", "--config=/c"),
        lambda e: on_node(e, lambda old: replace(old, unread={"proxy.mode": "no curl"})),
        lambda e: on_node(e, lambda old: replace(old, table=healthy().last.facts["node-1"].table)),
        lambda e: on_node(e, lambda old: replace(old, unread={**NOBODY, "table": "denied"})),
        lambda e: proxied(e, healthz=healthy().last.facts["node-1"].proxy.healthz),
        lambda e: proxied(e, mode="ipvs"),
    ],
    ids=[
        "objects not read",
        "pods not read",
        "a pod",
        "a process",
        "not asked",
        "a table",
        "table not read",
        "healthz answers",
        "one node has it",
    ],
)
def test_a_silent_kube_proxy_is_no_excuse(change: Callable[[Evidence], Evidence]) -> None:
    assert not_applicable(change(bare())) is None


def test_other_modes() -> None:
    evidence = proxied(healthy(), mode="nftables")
    assert not_applicable(evidence) is None
    evidence = on_node(
        evidence, lambda old: replace(old, proxy=replace(old.proxy, mode="iptables")), "node-1"
    )
    assert not_applicable(evidence) == NotApplicable(
        kind="mode", parts=(("mode iptables", ("node-1",)), ("mode nftables", ("node-2",)))
    )
    assert not_applicable(replace(evidence, snapshots=(replace(evidence.last, facts={}),))) is None
