"""KP: kube-proxy itself."""

from __future__ import annotations

from pytest_ipvs.checks import proxy_config, proxy_health, proxy_version
from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, silent_nodes, view_of, why_unread


def in_ipvs_mode(evidence: Evidence) -> Said:
    """kube-proxy itself says on every node that it runs in IPVS mode.

    A loaded ip_vs module proves nothing. Where only /proxyMode and /configz can't be reached and
    /healthz shows that kube-proxy is there, its ConfigMap or command line tells.
    """
    check = "KP-01"
    yield from silent_nodes(check, evidence)
    for name, facts in sorted(evidence.last.facts.items()):
        found = _mode(view_of(evidence, name), facts.proxy.mode)
        if found is None:
            reason = why_unread(facts, "proxy.mode", "kube-proxy's /proxyMode was not read")
            yield NotMeasured(check=check, node=name, fact="proxy.mode", reason=reason)
            continue
        mode, source = found
        if mode != "ipvs":
            yield Finding(
                check=check,
                severity="fail",
                node=name,
                object="kube-proxy mode",
                observed=mode,
                expected="ipvs",
                reason="nothing that this suite says of IPVS holds for Services on the node",
                remedy="set mode: ipvs in kube-proxy's configuration and restart it, or leave the "
                "node out of the selection",
                evidence=f"told by {source}",
            )


def _mode(view: NodeView, told: str | None) -> tuple[str, str] | None:
    """(mode, source), ``None`` where nothing tells or where kube-proxy is silent altogether."""
    if told is not None:
        return told, "/proxyMode"
    config, mode = view.config, view.facts.proxy.mode
    if config is None or mode is None:
        return None
    if config.running or view.facts.proxy.healthz is not None:
        return mode, config.source
    return None


_MODE = Check(
    id="KP-01",
    title="kube-proxy runs in IPVS mode on every node",
    group="KP",
    severity="fail",
    permission="proxy",
    needs=frozenset({"proxy.mode"}),
    source="kube-proxy /proxyMode",
    run=in_ipvs_mode,
)

CHECKS = tuple(
    sorted(
        (_MODE, *proxy_config.CHECKS, *proxy_health.CHECKS, *proxy_version.CHECKS),
        key=lambda check: check.id,
    )
)
