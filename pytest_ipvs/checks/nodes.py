"""The nodes of the evidence, as checks look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pytest_ipvs.checks.findings import NotMeasured
from pytest_ipvs.checks.model import Evidence
from pytest_ipvs.cluster import expectation
from pytest_ipvs.cluster.expectation import node_of
from pytest_ipvs.cluster.model import NodeFacts
from pytest_ipvs.cluster.proxy_config import (
    ProxyConfig,
    effective_config,
    effective_mode,
    image_version,
)
from pytest_ipvs.ipvs.kernel import KernelRelease
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.policy import Policy

RESTART_PROXY = (
    "restart kube-proxy on the node: kubectl -n kube-system delete pod -l k8s-app=kube-proxy "
    "--field-selector spec.nodeName=NODE"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node of the newest snapshot: the API's object and what the node itself said.

    ``facts.proxy`` has the effective configuration, mode and version: where kube-proxy itself was
    not asked with success, those of its ConfigMap, command line or image. ``config`` says whose
    configuration it is.
    """

    node: Node
    facts: NodeFacts
    policy: Policy
    config: ProxyConfig | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return self.facts.node


def silent_nodes(check: str, evidence: Evidence) -> Iterator[NotMeasured]:
    """One answer per node that did not answer, or one if there is no node at all."""
    last = evidence.last
    for name, why in sorted(last.unreachable.items()):
        yield NotMeasured(check=check, node=name, fact="node", reason=why)
    if not last.facts and not last.unreachable:
        yield NotMeasured(
            check=check, node=None, fact="nodes", reason="no node was selected, expected one"
        )


def views(evidence: Evidence) -> Iterator[NodeView]:
    """The nodes that answered, sorted, without those whose kube-proxy is in another mode.

    KP-01 tells those; what is expected of IPVS does not hold there.
    """
    for name in sorted(evidence.last.facts):
        view = view_of(evidence, name)
        if view.facts.proxy.mode in (None, "ipvs"):
            yield view


def view_of(evidence: Evidence, name: str) -> NodeView:
    """One node that answered, whatever its mode."""
    memo: dict[str, NodeView] = evidence.memo.setdefault("views", {})
    if name not in memo:
        memo[name] = _view(evidence, name)
    return memo[name]


def _view(evidence: Evidence, name: str) -> NodeView:
    last = evidence.last
    facts, node = last.facts[name], node_of(last, name)
    objects, proxy = evidence.proxy_objects, facts.proxy
    config = effective_config(facts, objects, evidence.detailed(name))
    if None in (proxy.config, proxy.mode, proxy.version):
        best = replace(
            proxy,
            config=config.values if config is not None else None,
            mode=effective_mode(facts, config),
            version=proxy.version or image_version(name, objects),
        )
        facts = replace(facts, proxy=best)
    return NodeView(node=node, facts=facts, policy=evidence.policy.for_node(node), config=config)


def detail(check: str, evidence: Evidence, view: NodeView, name: str) -> Any:
    """One field of a node's `NodeDetails`, or `NotMeasured` where it was not read."""
    fact = f"details.{name}"
    facts = evidence.detailed(view.name)
    if facts is None or facts.details is None:
        reason = "the node's details were not read"
        return NotMeasured(check=check, node=view.name, fact=fact, reason=reason)
    value = getattr(facts.details, name)
    if value is None:
        reason = why_unread(facts, fact, "the node did not say why")
        return NotMeasured(check=check, node=view.name, fact=fact, reason=reason)
    return value


def why_unread(facts: NodeFacts, fact: str, otherwise: str) -> str:
    """Why a fact was not read, or ``otherwise`` where the node does not say."""
    return facts.unread.get(fact) or facts.unread.get(fact.partition(".")[0]) or otherwise


def rules_of(
    check: str, facts: NodeFacts, node: Node, server_version: str = ""
) -> ProxyRules | NotMeasured:
    """The rules of a node's kube-proxy, as far as its version could be read."""
    try:
        return expectation.rules_of(facts, node, server_version)
    except ValueError as error:
        reason = why_unread(facts, "proxy.version", str(error))
        return NotMeasured(check=check, node=facts.node, fact="proxy.version", reason=reason)


def kernel_of(check: str, facts: NodeFacts) -> KernelRelease | NotMeasured:
    """The node's kernel."""
    try:
        return KernelRelease.parse(facts.kernel_release, facts.kernel_version)
    except ValueError as error:
        reason = why_unread(facts, "kernel", str(error))
        return NotMeasured(check=check, node=facts.node, fact="kernel", reason=reason)
