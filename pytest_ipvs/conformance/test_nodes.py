"""Every selected node can be reached; one that can't is told here, once, by its name."""

from __future__ import annotations

from pytest_ipvs.cluster.handle import NodeHandle


def test_every_node_answers(ipvs_nodes: tuple[NodeHandle, ...]) -> None:
    assert ipvs_nodes
