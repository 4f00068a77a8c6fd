"""The lines at the top of a run: which cluster, which versions, which nodes. Never a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_ipvs.report.findings import named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ipvs.cluster.model import Snapshot
    from pytest_ipvs.labrun import RunningLab
    from pytest_ipvs.session import IpvsSession


def header(session: IpvsSession, lab: RunningLab | None, *, read_nodes: bool) -> list[str]:
    """The header's lines; without ``read_nodes`` only what the API says."""
    cluster = session.connect()
    where = cluster.api.context or "in-cluster"
    lines = [f"ipvs: cluster {where} ({server_name(cluster.api.server)}), {cluster.api.version}"]
    if lab is not None:
        how = "started for this run" if lab.owned else "was up already"
        lines.append(f"ipvs: lab {session.settings.lab_name} ({lab.handle.kind}), {how}")
        if session.settings.lab_fault:
            lines.append(f"ipvs: lab faults: {', '.join(session.settings.lab_fault)}")
    names = [node.name for node in cluster.nodes]
    lines.append(f"ipvs: {len(names)} nodes: {', '.join(names[:8])}{', …' * (len(names) > 8)}")
    if read_nodes:
        snapshot = session.first()
        lines += _node_lines(snapshot)
    return lines


def server_name(url: str) -> str:
    """A server's address without what a URL may carry besides: user, password, query."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host or ''}{port}{parts.path}".rstrip("/")


def _node_lines(snapshot: Snapshot) -> list[str]:
    proxies, kernels = [], []
    for name, facts in snapshot.facts.items():
        mode = f"mode {facts.proxy.mode}" if facts.proxy.mode else "mode not read"
        proxies.append((f"{facts.proxy.version or 'version not read'}, {mode}", name))
        kernels.append((facts.kernel_release, name))
    lines = [f"ipvs: kube-proxy {_by_value(proxies)}", f"ipvs: kernel {_by_value(kernels)}"]
    lines = lines if snapshot.facts else []
    return lines + [f"ipvs: {node}: {reason}" for node, reason in snapshot.unreachable.items()]


def _by_value(pairs: Iterable[tuple[str, str]]) -> str:
    """ "6.1.0-56-amd64", or "6.1.0 on node-1; 5.10.0 on 2 nodes (node-2, node-3)"."""
    nodes: dict[str, list[str]] = {}
    for value, node in pairs:
        nodes.setdefault(value, []).append(node)
    if len(nodes) == 1:
        return next(iter(nodes))
    return "; ".join(f"{value} on {named(sorted(names))}" for value, names in sorted(nodes.items()))
