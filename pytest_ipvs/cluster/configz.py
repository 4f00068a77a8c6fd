"""kube-proxy's ``/configz`` in the spelling of its configuration file, whatever its version.

1.36 prints the v1alpha1 object. Before, it printed the internal one, whose keys have the names of
the Go fields (``IPVS``, ``SyncPeriod``), and from 1.32 on also another grouping (``Linux``,
sync periods outside of the mode's section).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KEY = "kubeproxy.config.k8s.io"

# Names whose first letters are no plain run of capitals.
_SPECIAL = {"IPTables": "iptables", "NFTables": "nftables", "EnableDSR": "enableDSR"}
_SECTIONS = frozenset(
    ("ipvs", "iptables", "nftables", "conntrack", "clientConnection", "winkernel", "detectLocal")
)


def normalise(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of a decoded ``/configz`` answer, ``None`` where there is none."""
    found = document.get(KEY)
    if not isinstance(found, dict):
        return None
    if "mode" in found:
        return found
    config = _lower(found)
    for name in _SECTIONS & config.keys():
        if isinstance(config[name], dict):
            config[name] = _lower(config[name])
    _regroup(config)
    return config


def _lower(section: Mapping[str, Any]) -> dict[str, Any]:
    # The values stay: in featureGates the keys are names of gates, which begin with a capital.
    return {_lower_name(str(name)): value for name, value in section.items()}


def _lower_name(name: str) -> str:
    """ "TCPFinTimeout" to "tcpFinTimeout", "ClusterCIDR" to "clusterCIDR"."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    head = re.match(r"[A-Z]+(?![a-z])|[A-Z]", name)
    return head.group().lower() + name[head.end() :] if head else name


def _regroup(config: dict[str, Any]) -> None:
    linux = config.pop("linux", None)
    linux = _lower(linux) if isinstance(linux, dict) else {}
    if isinstance(linux.get("conntrack"), dict):
        config.setdefault("conntrack", _lower(linux["conntrack"]))
    mode = config.get("mode")
    section = config.get(mode) if isinstance(mode, str) else None
    for name in ("syncPeriod", "minSyncPeriod"):
        value = config.pop(name, None)
        if value is not None and isinstance(section, dict):
            section.setdefault(name, value)
    iptables = config.get("iptables")
    if isinstance(iptables, dict) and "masqueradeAll" in linux:
        iptables.setdefault("masqueradeAll", linux["masqueradeAll"])
    detect = config.get("detectLocal")
    if isinstance(detect, dict) and isinstance(detect.get("clusterCIDRs"), list):
        config.setdefault("clusterCIDR", ",".join(str(cidr) for cidr in detect["clusterCIDRs"]))
