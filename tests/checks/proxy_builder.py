"""Evidence of kube-proxies that say something else of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from evidence_builder import NODE_CLOCK, PROXY_CONFIG, on_node, proxy_objects

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import HttpAnswer, NodeFacts, ProxyObjects


def proxied(evidence: Evidence, **more: object) -> Evidence:
    """The evidence with other facts of one node's kube-proxy."""
    return on_node(evidence, lambda old: replace(old, proxy=replace(old.proxy, **more)))  # type: ignore[arg-type]


def measured(
    evidence: Evidence, change: Callable[[float], Mapping[str, float]], *, first: bool = False
) -> Evidence:
    """The evidence with samples that depend on the node's clock; ``first``: in the baseline."""

    def one(old: NodeFacts) -> NodeFacts:
        clock = old.taken_at + NODE_CLOCK
        told = {**old.proxy.metrics, **change(clock)}
        return replace(old, proxy=replace(old.proxy, metrics=told))

    if not first:
        return on_node(evidence, one)
    assert evidence.baseline is not None
    known = evidence.baseline.facts
    changed = {**known, "node-2": one(known["node-2"])}
    return replace(evidence, baseline=replace(evidence.baseline, facts=changed))


def objects(evidence: Evidence, told: ProxyObjects | None) -> Evidence:
    """The evidence with other objects of kube-proxy."""
    return replace(
        evidence, snapshots=tuple(replace(one, proxy_objects=told) for one in evidence.snapshots)
    )


def restarted(evidence: Evidence, ago: float, restarts: int = 1) -> Evidence:
    """The evidence with a restart of node-2's kube-proxy so many seconds ago."""
    told = proxy_objects()
    at = evidence.last.taken_at - ago
    first, second = told.pods
    return objects(
        evidence,
        replace(told, pods=(first, replace(second, restarts=restarts, restarted_at=at))),
    )


def mapped(evidence: Evidence, more: Mapping[str, Any]) -> Evidence:
    """The evidence with more keys in the ConfigMap, which node-1 already uses."""
    config = {**PROXY_CONFIG, **more}
    evidence = objects(
        evidence, replace(proxy_objects(), config_maps={"kube-system/kube-proxy": config})
    )
    return on_node(
        evidence, lambda old: replace(old, proxy=replace(old.proxy, config=config)), "node-1"
    )


def unhealthy(evidence: Evidence, body: str = "", livez: int | None = 503) -> Evidence:
    """The evidence with a /healthz of 503; the body keeps the node's clock."""

    def change(old: NodeFacts) -> NodeFacts:
        assert old.proxy.healthz is not None
        healthz = HttpAnswer(status=503, body=body or old.proxy.healthz.body)
        alive = None if livez is None else HttpAnswer(status=livez, body="")
        return replace(old, proxy=replace(old.proxy, healthz=healthz, livez=alive))

    return on_node(evidence, change)
