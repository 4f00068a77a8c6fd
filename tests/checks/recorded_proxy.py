"""What kube-proxies of recorded runs said of themselves, reading by reading."""

from __future__ import annotations

import json
import lzma
import re
from functools import cache
from typing import Any

from ipvs_recorded import DATA

from pytest_ipvs.cluster.configz import normalise
from pytest_ipvs.cluster.model import HttpAnswer, NodeDetails, ProxyFacts, ProxyObjects

NODES = ("node-1", "node-2", "node-3")
# The file that all of them were started with; each also got its own hostnameOverride.
FILE: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clientConnection": {"kubeconfig": "/rig/kube-proxy.kubeconfig"},
    "hostnameOverride": "node-1",
    "mode": "ipvs",
    "clusterCIDR": "10.244.0.0/16",
    "bindAddress": "0.0.0.0",
    "metricsBindAddress": "127.0.0.1:10249",
    "healthzBindAddress": "0.0.0.0:10256",
    "conntrack": {"maxPerCore": 0, "min": 0},
    "ipvs": {"scheduler": "rr"},
}
OBJECTS = ProxyObjects(config_maps={"kube-system/kube-proxy": FILE})
_SAMPLE = re.compile(r"^(kubeproxy_\S+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    with lzma.open(DATA / "recordings" / "kube-proxy.jsonl.xz", "rt") as file:
        return tuple(json.loads(line) for line in file)


@cache
def readings(run: str, node: str, what: str) -> tuple[tuple[float, str], ...]:
    """(Unix seconds, text) of one kind of reading, oldest first."""
    return tuple(
        (row["t"], row["out"])
        for row in _rows()
        if (row["run"], row["node"], row["what"]) == (run, node, what)
    )


def _newest(run: str, node: str, what: str, at: float) -> str:
    told = readings(run, node, what)
    return next((text for when, text in reversed(told) if when <= at), told[0][1])


@cache
def _samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in _SAMPLE.findall(text)}


def proxy_facts(run: str, node: str, at: float) -> ProxyFacts:
    """The newest answers at a moment."""
    metrics = _newest(run, node, "GET :10249/metrics", at)
    version = re.search(r'git_?[vV]ersion="([^"]+)"', metrics)
    assert version
    livez = _newest(run, node, "GET :10256/livez", at)
    return ProxyFacts(
        mode=_newest(run, node, "GET :10249/proxyMode", at),
        version=version[1],
        config=normalise(json.loads(_newest(run, node, "GET :10249/configz", at))),
        healthz=HttpAnswer(status=200, body=_newest(run, node, "GET :10256/healthz", at)),
        livez=HttpAnswer(status=404 if livez.startswith("404") else 200, body=livez),
        metrics=_samples(metrics),
    )


def proxy_details(run: str, node: str) -> NodeDetails:
    """What else was recorded: the log's errors."""
    return NodeDetails(proxy_log=tuple(readings(run, node, "log")[0][1].splitlines()))
