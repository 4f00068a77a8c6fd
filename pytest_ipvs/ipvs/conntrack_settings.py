"""The conntrack settings that kube-proxy writes, by its version and configuration.

Source: kube-proxy ``pkg/proxy/conntrack/sysctls.go`` and ``v1alpha1/defaults.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_ipvs.ipvs.proxy import ProxyRules, parse_duration

MAX = "net.netfilter.nf_conntrack_max"
_PREFIX = "net.netfilter.nf_conntrack_"
# Releases from 1.36 on never write more, whatever conntrack.min says.
_CAP, _FIRST_CAPPED = 1_048_576, (1, 36)
_TIMES = (
    ("tcpEstablishedTimeout", "tcp_timeout_established", "24h"),
    ("tcpCloseWaitTimeout", "tcp_timeout_close_wait", "1h"),
    ("udpTimeout", "udp_timeout", "0s"),
    ("udpStreamTimeout", "udp_timeout_stream", "0s"),
)


def per_core(rules: ProxyRules) -> int:
    """``conntrack.maxPerCore``: 32768 where it is not set, 0 where nothing is to be written."""
    return _whole(_get(rules, "maxPerCore", 32768))


def conntrack_wanted(rules: ProxyRules, cpus: int | None) -> Mapping[str, int]:
    """Sysctl key to what kube-proxy writes at its start; keys that it leaves alone are missing.

    ``cpus`` are the processors that it counts; ``None`` where they are not known, and then
    nf_conntrack_max is missing too.
    """
    wanted: dict[str, int] = {}
    each = per_core(rules)
    if each > 0 and cpus is not None:
        most = max(each * cpus, _whole(_get(rules, "min", 131072)))
        wanted[MAX] = min(most, _CAP) if rules.number[:2] >= _FIRST_CAPPED else most
    for key, name, default in _TIMES:
        # Whole seconds, as kube-proxy writes them.
        if seconds := int(parse_duration(_get(rules, key, default)) or 0):
            wanted[_PREFIX + name] = seconds
    if _get(rules, "tcpBeLiberal", False) is True:
        wanted[_PREFIX + "tcp_be_liberal"] = 1
    return wanted


def _get(rules: ProxyRules, key: str, default: Any) -> Any:
    section = rules.config.get("conntrack")
    # A null that the running kube-proxy shows is a pointer to nothing: it writes nothing then.
    return section.get(key, default) if isinstance(section, Mapping) else default


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
