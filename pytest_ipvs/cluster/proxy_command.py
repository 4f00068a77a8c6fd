"""kube-proxy's command line in the spelling of its configuration file.

Flags as kube-proxy's own ``--help`` of 1.20 to 1.37 names them. k3s runs kube-proxy inside its own
process: there the arguments are those of ``--kube-proxy-arg``, over what k3s sets itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCommand:
    """What a command line says: the keys it sets, and the file it names instead.

    ``config_file`` is the path of ``--config``: with it kube-proxy ignores all other flags but
    ``--hostname-override``. ``unknown`` names keys that somebody else sets, to a value that the
    command line does not show: a variable, or clusterCIDR, which k3s agents learn from a server.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    config_file: str = ""
    unknown: frozenset[str] = frozenset()


def parse_command(arguments: Sequence[str]) -> ProxyCommand | None:
    """Read an argument list, program first; ``None`` where it is none of kube-proxy or k3s."""
    words = tuple(_words(arguments))
    for index, word in enumerate(words):
        name = word.rsplit("/", 1)[-1]
        if name in ("kube-proxy", "hyperkube"):
            return _flags(words[index + 1 :])
        if name in ("k3s", "k3s-server", "k3s-agent"):
            return _k3s(name, words[index + 1 :])
    return None


def _words(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments; a shell's whole script (``sh -c "kube-proxy …"``) becomes its words."""
    for argument in arguments:
        if "kube-proxy " in argument and not argument.startswith("--"):
            try:
                yield from shlex.split(argument)
                continue
            except ValueError:
                pass
        yield argument


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag without dashes, value) in order; a flag alone is "true", as for Go's booleans."""
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            alone = _KINDS.get(name) is _flag or name not in _TAKES_VALUE
            if alone or index >= len(words):
                value = "true"
            else:
                value = words[index]
                index += 1
        yield name, value


def _flags(words: Sequence[str]) -> ProxyCommand:
    config: dict[str, Any] = {}
    config_file = ""
    unknown: set[str] = set()
    for name, value in _pairs(words):
        if name == "config":
            config_file = value
        elif name not in _PATHS:
            continue
        elif "$(" in value or value.startswith("$"):
            # A pod's arguments before the kubelet puts variables in: kubeadm's NODE_NAME.
            unknown.add(_PATHS[name])
        else:
            _put(config, _PATHS[name], _KINDS.get(name, _text)(value))
    return ProxyCommand(config=config, config_file=config_file, unknown=frozenset(unknown))


# k3s (pkg/daemons/agent) leaves conntrack's settings alone and listens for health on the loopback.
_K3S = (
    "--healthz-bind-address=127.0.0.1",
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
)
_K3S_CLUSTER_CIDR = "10.42.0.0/16"


def _k3s(name: str, words: Sequence[str]) -> ProxyCommand:
    own = [*_K3S]
    passed: list[str] = []
    server = name == "k3s-server" or words[:1] == ("server",)
    cluster_cidr = _K3S_CLUSTER_CIDR if server else ""
    for index, word in enumerate(words):
        flag, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = words[index + 1] if index + 1 < len(words) else ""
        if flag == "kube-proxy-arg" and word.startswith("--"):
            passed.append(f"--{value}")
        elif flag == "cluster-cidr" and word.startswith("--"):
            cluster_cidr = value
    if cluster_cidr:
        own.append(f"--cluster-cidr={cluster_cidr}")
    told = _flags((*own, *passed))
    unknown = told.unknown | ({"clusterCIDR"} - told.config.keys())
    return ProxyCommand(config=told.config, config_file=told.config_file, unknown=unknown)


def _put(config: dict[str, Any], path: str, value: Any) -> None:
    section, _, key = path.rpartition(".")
    (config.setdefault(section, {}) if section else config)[key] = value


def _text(value: str) -> Any:
    return value


def _flag(value: str) -> Any:
    return value.lower() in ("1", "t", "true")


def _whole(value: str) -> Any:
    return int(value) if re.fullmatch(r"-?[0-9]{1,12}", value) else value


def _list(value: str) -> Any:
    return [part.strip() for part in value.strip("[]").split(",") if part.strip()]


def _gates(value: str) -> Any:
    pairs = (part.partition("=") for part in value.split(",") if "=" in part)
    return {name.strip(): _flag(switch.strip()) for name, _, switch in pairs}


_PATHS = {
    "proxy-mode": "mode",
    "cluster-cidr": "clusterCIDR",
    "detect-local-mode": "detectLocalMode",
    "pod-bridge-interface": "detectLocal.bridgeInterface",
    "pod-interface-name-prefix": "detectLocal.interfaceNamePrefix",
    "hostname-override": "hostnameOverride",
    "nodeport-addresses": "nodePortAddresses",
    "feature-gates": "featureGates",
    "metrics-bind-address": "metricsBindAddress",
    "healthz-bind-address": "healthzBindAddress",
    "masquerade-all": "iptables.masqueradeAll",
    "iptables-masquerade-bit": "iptables.masqueradeBit",
    "ipvs-scheduler": "ipvs.scheduler",
    "ipvs-strict-arp": "ipvs.strictARP",
    "ipvs-exclude-cidrs": "ipvs.excludeCIDRs",
    "ipvs-sync-period": "ipvs.syncPeriod",
    "ipvs-min-sync-period": "ipvs.minSyncPeriod",
    "ipvs-tcp-timeout": "ipvs.tcpTimeout",
    "ipvs-tcpfin-timeout": "ipvs.tcpFinTimeout",
    "ipvs-udp-timeout": "ipvs.udpTimeout",
    "conntrack-max-per-core": "conntrack.maxPerCore",
    "conntrack-min": "conntrack.min",
    "conntrack-tcp-timeout-established": "conntrack.tcpEstablishedTimeout",
    "conntrack-tcp-timeout-close-wait": "conntrack.tcpCloseWaitTimeout",
    "conntrack-tcp-be-liberal": "conntrack.tcpBeLiberal",
    "conntrack-udp-timeout": "conntrack.udpTimeout",
    "conntrack-udp-timeout-stream": "conntrack.udpStreamTimeout",
}
_TAKES_VALUE = frozenset((*_PATHS, "config"))
_KINDS: Mapping[str, Callable[[str], Any]] = {
    "nodeport-addresses": _list,
    "ipvs-exclude-cidrs": _list,
    "feature-gates": _gates,
    "masquerade-all": _flag,
    "ipvs-strict-arp": _flag,
    "conntrack-tcp-be-liberal": _flag,
    "iptables-masquerade-bit": _whole,
    "conntrack-max-per-core": _whole,
    "conntrack-min": _whole,
}
