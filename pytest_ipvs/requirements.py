"""What the markers ipvs_requires and ipvs_sysctl ask of a cluster, answered from its snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_ipvs.assertions import sysctl_problem
from pytest_ipvs.markers import VersionRange, spelled
from pytest_ipvs.report.findings import named

if TYPE_CHECKING:
    import pytest

    from pytest_ipvs.cluster.model import NodeFacts, Snapshot
    from pytest_ipvs.session import IpvsSession


def missing(session: IpvsSession, item: pytest.Item) -> str:
    """Why a test does not apply to this cluster, or ""."""
    marks = list(item.iter_markers("ipvs_requires"))
    if not marks:
        return ""
    snapshot = session.first()
    names = nodes_of(session, item)
    for mark in marks:
        for name, wanted in mark.kwargs.items():
            if found := _lacks(name, wanted, snapshot, names):
                return f"{spelled(mark)}: {found}"
    return ""


def nodes_of(session: IpvsSession, item: pytest.Item) -> tuple[str, ...]:
    """The nodes that a test is about: its one ipvs_node, else all that its markers choose."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "ipvs_node" in callspec.params:
        # A test with both fixtures needs every node, whichever one it runs for.
        if "ipvs_nodes" in getattr(item, "fixturenames", ()):
            return session.selected(item)
        return (callspec.params["ipvs_node"],)
    return session.selected(item)


def _lacks(name: str, wanted: object, snapshot: Snapshot, names: tuple[str, ...]) -> str:
    if name == "nodes":
        count = len(names)
        return "" if VersionRange.parse(wanted).holds(str(count)) else f"there are {count} nodes"
    if name == "kubernetes":
        version = snapshot.server_version
        return "" if VersionRange.parse(wanted).holds(version) else f"the API server is {version}"
    if name == "affinity":
        used = any(service.affinity_timeout is not None for service in snapshot.services)
        return "" if used == wanted else f"{'a' if used else 'no'} Service has session affinity"
    return _node_lacks(name, wanted, snapshot, names)


def _node_lacks(name: str, wanted: object, snapshot: Snapshot, names: tuple[str, ...]) -> str:
    what = {"mode": "kube-proxy's mode", "kube_proxy": "kube-proxy", "kernel": "the kernel"}[name]
    differing: dict[str, list[str]] = {}
    for node, value in _values(name, snapshot, names):
        # A fact that was not read can't show that a test does not apply: the test then runs and
        # meets the gap itself, instead of being skipped by mistake.
        if value is None:
            continue
        fits = value == wanted if name == "mode" else VersionRange.parse(wanted).holds(value)
        if not fits:
            differing.setdefault(value, []).append(node)
    return ", ".join(
        f"{what} is {value} on {named(sorted(nodes))}" for value, nodes in differing.items()
    )


def _values(
    name: str, snapshot: Snapshot, names: tuple[str, ...]
) -> Iterator[tuple[str, str | None]]:
    listed = {node.name: node for node in snapshot.nodes}
    for node in names:
        facts = snapshot.facts.get(node)
        if name == "mode":
            yield node, facts.proxy.mode if facts else None
        elif name == "kernel":
            release = facts.kernel_release if facts else None
            yield node, release or (listed[node].kernel_release if node in listed else None)
        else:
            version = facts.proxy.version if facts else None
            yield node, version or (listed[node].kube_proxy_version if node in listed else None)


def wrong_sysctls(session: IpvsSession, item: pytest.Item) -> str:
    """Explanation of every sysctl that differs from the test's ipvs_sysctl markers, or ""."""
    names = nodes_of(session, item)
    session.require(names)
    wanted: dict[str, object] = {}
    # The closest marker wins: a class or module may give the rule, a test its exception.
    for mark in reversed(list(item.iter_markers("ipvs_sysctl"))):
        wanted.update(mark.args[0])
    facts = session.first().facts
    problems: dict[str, list[str]] = {}
    for node in names:
        for text in _differences(facts.get(node), wanted):
            problems.setdefault(text, []).append(node)
    return "\n".join(f"{named(sorted(nodes))}: {text}" for text, nodes in problems.items())


def _differences(facts: NodeFacts | None, wanted: Mapping[str, object]) -> Iterator[str]:
    for key, value in wanted.items():
        observed = facts.sysctls.get(key) if facts else None
        unread = facts.unread.get("sysctls", "") if facts else "the node was not read"
        if problem := sysctl_problem(key, observed, value, unread):
            yield problem
