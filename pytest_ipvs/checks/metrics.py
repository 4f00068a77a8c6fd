"""What samples of kube-proxy's /metrics say: by address family, as counters and histograms."""

from __future__ import annotations

import re
from collections.abc import Mapping

SYNC = "kubeproxy_sync_proxy_rules_"
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(metrics: Mapping[str, float], name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of every sample of one name."""
    found = []
    for sample, value in metrics.items():
        # The cheap test first: there are hundreds of samples per node.
        if sample.startswith(name) and (match := _SAMPLE.fullmatch(sample)) and match[1] == name:
            found.append((dict(_LABEL.findall(match[2] or "")), value))
    return found


def by_family(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Address family to the sum of its samples; "" stands for both, as before 1.33."""
    sums: dict[str, float] = {}
    for labels, value in samples(metrics, name):
        family = labels.get("ip_family", "")
        sums[family] = sums.get(family, 0.0) + value
    return sums


def total(metrics: Mapping[str, float], name: str) -> float:
    """The sum of all samples of a name; 0 where there is none."""
    return sum(value for _, value in samples(metrics, name))


def at_least(metrics: Mapping[str, float], name: str, quantile: float) -> dict[str, float]:
    """Address family to a number of seconds that a histogram's quantile is certain to exceed.

    That is the lower bound of its bucket: inside of a bucket nothing is known. One observation,
    the longest, is left out: the first sync after a start programs everything.
    """
    buckets: dict[str, list[tuple[float, float]]] = {}
    for labels, value in samples(metrics, f"{name}_bucket"):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue
        buckets.setdefault(labels.get("ip_family", ""), []).append((bound, value))
    found: dict[str, float] = {}
    for family, counted in buckets.items():
        counted.sort()
        rank = quantile * (counted[-1][1] - 1)
        if rank <= 0:
            continue
        lower = 0.0
        for bound, count in counted:
            if count >= rank:
                break
            lower = bound
        found[family] = lower
    return found
