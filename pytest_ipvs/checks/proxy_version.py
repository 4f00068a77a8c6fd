"""KP: kube-proxy's version beside that of the API server and of the other nodes."""

from __future__ import annotations

from collections import Counter

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, silent_nodes, views, why_unread
from pytest_ipvs.checks.pools import pool_of
from pytest_ipvs.ipvs.proxy import parse_version

# Releases before 1.25 may be two minors behind only.
_FIRST_WITH_THREE = (1, 25)


def _version(check: str, view: NodeView) -> str | NotMeasured:
    """The version of a node's kube-proxy: its own word, else its image's tag.

    What the Node object says is not asked: the kubelet writes its own version there.
    """
    told = view.facts.proxy.version
    try:
        parse_version(told or "")
    except ValueError as error:
        reason = str(error) if told else "kube-proxy's version was not read"
        reason = why_unread(view.facts, "proxy.version", reason)
        return NotMeasured(check=check, node=view.name, fact="proxy.version", reason=reason)
    return told or ""


def versions(evidence: Evidence) -> Said:
    """kube-proxy is not newer than the API server, not too old for it, and equal in a pool.

    Three minors behind are supported, two for releases before 1.25. Patch releases count only
    within a pool; there, the version that most nodes have is the right one.
    """
    check = "KP-06"
    yield from silent_nodes(check, evidence)
    try:
        server = parse_version(evidence.last.server_version)
    except ValueError:
        reason = f"the API server's version is {evidence.last.server_version!r}"
        yield NotMeasured(check=check, node=None, fact="api", reason=reason)
        return
    pools: dict[str, list[tuple[NodeView, str]]] = {}
    for view in views(evidence):
        version = _version(check, view)
        if isinstance(version, NotMeasured):
            yield version
            continue
        pools.setdefault(pool_of(view.node), []).append((view, version))
        yield from _skew(check, evidence, view, version, server)
    for pool, members in sorted(pools.items()):
        counted = Counter(version for _, version in members)
        usual = max(counted, key=lambda one: (counted[one], parse_version(one), one))
        for view, version in members:
            if version != usual:
                yield _finding(
                    check,
                    view,
                    version,
                    f"{usual}, as in most of pool {pool}",
                    "its nodes follow other rules for endpoints, so the same Service behaves "
                    "differently from node to node",
                    "finish the rollout: kubectl -n kube-system rollout status daemonset "
                    "kube-proxy",
                )


def _skew(
    check: str, evidence: Evidence, view: NodeView, version: str, server: tuple[int, int, int]
) -> Said:
    number = parse_version(version)
    allowed = 3 if number[:2] >= _FIRST_WITH_THREE else 2
    if number[:2] > server[:2]:
        yield _finding(
            check,
            view,
            version,
            f"not newer than the API server, {evidence.last.server_version}",
            "a newer kube-proxy may rely on fields that the API server does not serve yet",
            "upgrade the API servers first, or set kube-proxy's image back",
        )
    elif number[0] < server[0] or server[1] - number[1] > allowed:
        yield _finding(
            check,
            view,
            version,
            f"at most {allowed} minor releases older than the API server, "
            f"{evidence.last.server_version}",
            "this skew is not supported: fields that newer API servers write are ignored",
            "upgrade kube-proxy with the control plane",
        )


def _finding(
    check: str, view: NodeView, version: str, expected: str, reason: str, remedy: str
) -> Finding:
    return Finding(
        check=check,
        severity="warn",
        node=view.name,
        object="kube-proxy version",
        observed=version,
        expected=expected,
        reason=reason,
        remedy=remedy,
    )


CHECKS = (
    Check(
        id="KP-06",
        title="kube-proxy's version fits the API server's and is the same in a pool",
        group="KP",
        severity="warn",
        permission="api",
        needs=frozenset({"proxy.version", "proxy_objects", "api"}),
        source="kubernetes/website, releases/version-skew-policy",
        run=versions,
    ),
)
