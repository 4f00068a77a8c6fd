"""KM: modules, kernels of the pool, and the tools that kube-proxy calls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, silent_nodes, views
from pytest_ipvs.ipvs.kernel import KernelRelease, fixes

_WHY = {
    "ip_vs": "no virtual server can exist without it",
    "nf_conntrack": "masquerading and the ends of connections need it",
    "ip_set": "kube-proxy's rules match against sets that it makes",
}
# Oldest releases that do what kube-proxy asks: sets of the kinds it makes, and MASQUERADE's
# --random-fully.
_TOOLS = {
    "ipset": ((6, 0), "kube-proxy can't make its sets"),
    "iptables": (
        (1, 6, 2),
        "MASQUERADE has no --random-fully, so two connections may race for one source port",
    ),
}


def modules(evidence: Evidence) -> Said:
    """ip_vs, the schedulers in use, nf_conntrack and ip_set are loaded or built in.

    Schedulers in use are those of the table and that of kube-proxy's configuration. What the node
    shows in another way (a table, a setting of nf_conntrack) needs no list of modules.
    """
    check = "KM-01"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        known = detail(check, evidence, view, "modules")
        if isinstance(known, NotMeasured):
            yield known
            continue
        shown = _shown(evidence, view)
        for module, reason in _needed(view).items():
            if module in known or module in shown:
                continue
            yield Finding(
                check=check,
                severity="fail",
                node=view.name,
                object=f"module {module}",
                observed="absent",
                expected="loaded or built in",
                reason=reason,
                remedy=f"modprobe {module}, and name it in a file of /etc/modules-load.d",
            )


def _needed(view: NodeView) -> dict[str, str]:
    config = view.facts.proxy.config
    section = config.get("ipvs") if config is not None else None
    scheduler = section.get("scheduler") if isinstance(section, Mapping) else None
    needed = dict(_WHY)
    if config is not None:
        needed[f"ip_vs_{scheduler or 'rr'}"] = (
            "kube-proxy can't make a virtual server with the scheduler it was told to use"
        )
    return needed


def _shown(evidence: Evidence, view: NodeView) -> frozenset[str]:
    """Modules whose work the node shows."""
    facts = view.facts
    shown = set()
    if facts.table is not None:
        shown.add("ip_vs")
        shown |= {f"ip_vs_{server.scheduler}" for server in facts.table.virtual_servers}
    if "net.netfilter.nf_conntrack_max" in facts.sysctls:
        shown.add("nf_conntrack")
    detailed = evidence.detailed(view.name)
    if detailed is not None and detailed.details is not None and detailed.details.ipsets:
        shown.add("ip_set")
    return frozenset(shown)


def uniform(evidence: Evidence) -> Said:
    """Which kernels and systems the nodes run, where they differ; information only.

    A vendor's kernel whose number leaves open which fixes it has is named too (see KM-02).
    """
    check = "KM-04"
    yield from silent_nodes(check, evidence)
    seen: dict[str, Counter[str]] = {"kernel": Counter(), "system": Counter()}
    for view in views(evidence):
        release, system = view.node.kernel_release, view.node.os_image
        if not release:
            reason = "the Node object does not tell it"
            yield NotMeasured(
                check=check, node=view.name, fact="status.nodeInfo.kernelVersion", reason=reason
            )
            continue
        seen["kernel"][release] += 1
        seen["system"][system or "not told"] += 1
        yield from _vendor(check, view, release)
    for what, counts in seen.items():
        if len(counts) > 1:
            yield Finding(
                check=check,
                severity="info",
                node=None,
                object=f"{what} of the nodes",
                observed=", ".join(f"{name} on {n}" for name, n in sorted(counts.items())),
                expected="one for all nodes",
                reason="nodes may treat reused ports and removed real servers differently",
                remedy="judge results by node, and update the others",
            )


def _vendor(check: str, view: NodeView, release: str) -> Iterator[Finding]:
    try:
        kernel = KernelRelease.parse(release, view.facts.kernel_version)
    except ValueError:
        return
    known = fixes(kernel, view.policy.kernel_fix_overrides)
    if kernel.vendor and None in known.values():
        yield Finding(
            check=check,
            severity="info",
            node=view.name,
            object="kernel",
            observed=f"{release}, a kernel of {kernel.vendor}",
            expected="known fixes",
            reason="its vendor ports fixes back, so its number does not tell all that it has",
            remedy="say in the policy file under kernel_fixes what is known of it",
        )


def tools(evidence: Evidence) -> Said:
    """ipset is at least 6.0, and iptables knows --random-fully (1.6.2).

    kube-proxy in a pod brings its own tools; then those of the node are information only. A tool
    that the node does not have is none of kube-proxy's.
    """
    check = "KM-05"
    yield from silent_nodes(check, evidence)
    objects = evidence.proxy_objects
    in_pods = {pod.node for pod in objects.pods} if objects is not None else set()
    for view in views(evidence):
        known = detail(check, evidence, view, "tools")
        if isinstance(known, NotMeasured):
            yield known
            continue
        for tool, (least, reason) in _TOOLS.items():
            if tool not in known:
                continue
            found = re.search(r"\d+(?:\.\d+)+", known[tool])
            if found is None:
                why = f"{tool} says {known[tool][:60]!r}, expected a version"
                yield NotMeasured(
                    check=check, node=view.name, fact=f"details.tools {tool}", reason=why
                )
            elif tuple(map(int, found[0].split("."))) < least:
                yield Finding(
                    check=check,
                    severity="info" if view.name in in_pods else "warn",
                    node=view.name,
                    object=tool,
                    observed=found[0],
                    expected=f"at least {'.'.join(map(str, least))}",
                    reason=reason,
                    remedy=f"update {tool} where kube-proxy finds it",
                )


_CHECK = Check(
    id="KM-01",
    title="the modules that IPVS mode needs are there",
    group="KM",
    severity="fail",
    permission="node",
    needs=frozenset({"details.modules"}),
    source="kube-proxy pkg/proxy/ipvs; kubernetes/kubernetes #121042",
    run=modules,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="KM-04",
        title="the nodes run one kernel and one system",
        severity="info",
        permission="api",
        needs=frozenset({"api"}),
        source="kubernetes/kubernetes #97052, Node status.nodeInfo",
        run=uniform,
    ),
    replace(
        _CHECK,
        id="KM-05",
        title="ipset and iptables are new enough",
        severity="warn",
        needs=frozenset({"details.tools"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go, MinIPSetCheckVersion and HasRandomFully",
        run=tools,
    ),
)
