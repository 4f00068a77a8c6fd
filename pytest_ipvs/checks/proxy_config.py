"""KP: kube-proxy's configuration, and whether what it sets is in force."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import (
    NodeView,
    detail,
    rules_of,
    silent_nodes,
    views,
    why_unread,
)
from pytest_ipvs.checks.values import each_node
from pytest_ipvs.cluster.proxy_config import ProxyConfig, command_of, config_map, value_at
from pytest_ipvs.ipvs.conntrack_settings import conntrack_wanted, per_core
from pytest_ipvs.ipvs.proxy import parse_duration

_ROLL_OUT = "kubectl -n kube-system rollout restart daemonset kube-proxy"
# What differs on purpose: per node, by flags beside --config, or only read on Windows.
_NOT_COMPARED = frozenset(
    ("apiVersion", "kind", "logging", "winkernel", "windowsRunAsService", "hostnameOverride")
)
# Keys that no release reads any more, or that have become part of another.
_DEPRECATED = frozenset(
    ("portRange", "udpIdleTimeout", "resourceContainer", "conntrack.max", "healthzPort")
)
# /configz shows zeros for the modes that do not run, whatever the file says.
_OTHER_MODES = ("iptables.syncPeriod", "iptables.minSyncPeriod", "nftables.")
# 0 means "leave it alone" for these, and not "take the default".
_ZERO_COUNTS = ("conntrack.", "iptables.masqueradeBit", "nftables.masqueradeBit", "oomScoreAdj")
# What an empty value comes to, where it is certain for all releases.
_EMPTY_IS: Mapping[str, Any] = {
    "ipvs.scheduler": "rr",
    "ipvs.excludeCIDRs": None,
    "ipvs.syncPeriod": "30s",
    "ipvs.minSyncPeriod": None,
    "ipvs.tcpTimeout": None,
    "ipvs.tcpFinTimeout": None,
    "ipvs.udpTimeout": None,
    "nodePortAddresses": None,
    "clusterCIDR": None,
    "ipvs.strictARP": False,
    "iptables.masqueradeAll": False,
}
# How kube-proxy tells local traffic where its configuration does not say.
_DETECTION = "ClusterCIDR"
_PORTS = {"healthzBindAddress": 10256, "metricsBindAddress": 10249}


def effective(check: str, view: NodeView) -> ProxyConfig | NotMeasured:
    """The effective configuration of a node's kube-proxy."""
    if view.config is not None:
        return view.config
    reason = why_unread(view.facts, "proxy.config", "kube-proxy's configuration was not read")
    return NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)


def rolled_out(evidence: Evidence) -> Said:
    """What the running kube-proxy uses is what its ConfigMap says.

    Keys that the ConfigMap sets are compared, and of those that it does not set the ones whose
    default is certain, where the command line is known to name a file. Defaults, other spellings
    of the same duration or address, deprecated keys and the node's own hostnameOverride are no
    differences. A kube-proxy without a ConfigMap, or whose command line names no file, is not
    judged.
    """
    check = "KP-02"
    yield from silent_nodes(check, evidence)
    objects = evidence.proxy_objects
    for view in views(evidence):
        if objects is None or (
            not objects.config_maps and "proxy_objects.config_maps" in objects.unread
        ):
            reason = (
                objects.unread["proxy_objects.config_maps"]
                if objects is not None
                else "kube-proxy's objects were not read from the API"
            )
            fact = "proxy_objects.config_maps"
            yield NotMeasured(check=check, node=view.name, fact=fact, reason=reason)
            continue
        found = config_map(objects)
        command = command_of(view.name, objects, evidence.detailed(view.name))
        if found is None or (command is not None and not command.config_file):
            continue
        if view.config is None or not view.config.running:
            reason = why_unread(view.facts, "proxy.config", "/configz was not read")
            yield NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)
            continue
        name, wanted = found
        leaves = [*_leaves(wanted)]
        if command is not None:
            # What a flag sets beside --config is not the file's to take back.
            flags = command.config
            leaves += [
                (path, _ABSENT)
                for path in _EMPTY_IS
                if value_at(wanted, path, _ABSENT) is value_at(flags, path, _ABSENT) is _ABSENT
                and path not in command.unknown
            ]
        for path, value in leaves:
            running = view.config.get(path, _ABSENT)
            wants = None if value is _ABSENT else value
            if running is _ABSENT or _same(path, wants, running):
                # What a release does not print it does not know.
                continue
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object=path,
                observed=_shown(running),
                expected=f"{_shown(value)}, of ConfigMap {name}"
                if value is not _ABSENT
                else f"{_shown(_EMPTY_IS[path])}, the default: ConfigMap {name} does not set it",
                reason="kube-proxy reads its configuration at its start only: the change takes "
                "effect at the next restart, node by node and unplanned",
                remedy=f"{_ROLL_OUT}, or undo the change in the ConfigMap",
            )


_ABSENT = object()


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in _NOT_COMPARED or path in _DEPRECATED or path.startswith(_OTHER_MODES):
            continue
        if isinstance(value, Mapping) and key != "featureGates":
            yield from _leaves(value, f"{path}.")
        elif not _empty(path, value) or path in _EMPTY_IS:
            yield path, value


def _empty(path: str, value: Any) -> bool:
    """Whether kube-proxy takes a value for one that is not set."""
    if isinstance(value, bool):
        return False
    if path.startswith(_ZERO_COUNTS):
        return value is None
    return not value or parse_duration(value) == 0


def _same(path: str, wanted: Any, running: Any) -> bool:
    return bool(_plain(path, wanted) == _plain(path, running))


def _plain(path: str, value: Any) -> Any:
    """One spelling for what means the same."""
    if _empty(path, value):
        value = _EMPTY_IS.get(path)
    if path in _PORTS and isinstance(value, str):
        return _with_port(value, _PORTS[path])
    if isinstance(value, list | tuple):
        return sorted((_plain("", item) for item in value), key=str)
    if isinstance(value, str):
        if path == "clusterCIDR":
            return sorted(part.strip() for part in value.split(","))
        seconds = parse_duration(value)
        return value if seconds is None else seconds
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value


def _with_port(text: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return text
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(one)}" for key, one in sorted(value.items())) or "none"
    return "not set" if value in (None, "") else str(value)


def local_traffic(evidence: Evidence) -> Said:
    """kube-proxy can tell pods of its node from others, and masquerades as the policy says.

    With masqueradeAll it need not. Without it and without a way to tell, a ClusterIP works only
    for clients whose answers come back through the same node. Where nobody chose the way, as on
    stock EKS, that is told and no more.
    """
    check = "KP-07"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        config = effective(check, view)
        if isinstance(config, NotMeasured):
            yield config
            continue
        everything = config.get("iptables.masqueradeAll") is True
        mode, key = _detection(config)
        if key in config.unknown:
            reason = f"{key} is set to a value that the {config.source} does not show"
            yield NotMeasured(check=check, node=view.name, fact="proxy.config", reason=reason)
        elif key and not everything and not config.get(key):
            yield Finding(
                check=check,
                severity="warn" if _detection_chosen(evidence, view, mode) else "info",
                node=view.name,
                object=key,
                observed="not set",
                expected=f"set, as detectLocalMode is {mode}",
                reason="kube-proxy can't tell which clients are pods, so it does not masquerade "
                "clients from elsewhere that use a ClusterIP, and their answers may get lost",
                remedy=f"set {key}, or another detectLocalMode, in kube-proxy's configuration, "
                f"then {_ROLL_OUT}",
            )
        wanted = view.policy.threshold("masquerade_all")
        if wanted in (0, 1) and everything != bool(wanted):
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object="iptables.masqueradeAll",
                observed=_shown(everything),
                expected=f"{_shown(bool(wanted))}, by the policy",
                reason="it decides whether pods see the client's address or the node's",
                remedy=f"set iptables.masqueradeAll in kube-proxy's configuration, then {_ROLL_OUT}"
                ", or change masquerade_all in the policy file",
            )


def _detection(config: ProxyConfig) -> tuple[str, str]:
    """How local traffic is told, and the key that this needs ("" = none)."""
    mode = str(config.get("detectLocalMode") or _DETECTION)
    key = {
        _DETECTION: "clusterCIDR",
        "BridgeInterface": "detectLocal.bridgeInterface",
        "InterfaceNamePrefix": "detectLocal.interfaceNamePrefix",
    }.get(mode, "")
    return mode, key


def _detection_chosen(evidence: Evidence, view: NodeView, mode: str) -> bool:
    """Whether somebody set detectLocalMode; /configz has a default where nobody did."""
    objects = evidence.proxy_objects
    command = command_of(view.name, objects, evidence.detailed(view.name))
    found = config_map(objects)
    sources = (command.config if command else {}, found[1] if found else {})
    return mode != _DETECTION or any(source.get("detectLocalMode") for source in sources)


_TIMEOUTS = (("tcp", "tcpTimeout"), ("tcpfin", "tcpFinTimeout"), ("udp", "udpTimeout"))


def ipvs_timeouts(evidence: Evidence) -> Said:
    """The IPVS timeouts are those of kube-proxy's configuration, where it sets any.

    A timeout of 0 leaves the kernel's value alone, whatever that is.
    """
    check = "KP-08"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        config = effective(check, view)
        if isinstance(config, NotMeasured):
            yield config
            continue
        wanted = {name: parse_duration(config.get(f"ipvs.{key}")) or 0.0 for name, key in _TIMEOUTS}
        if not any(wanted.values()):
            continue
        found = detail(check, evidence, view, "ipvs_timeouts")
        if isinstance(found, NotMeasured):
            yield found
            continue
        for (name, key), seconds in zip(_TIMEOUTS, found, strict=True):
            # The kernel counts whole seconds.
            if not wanted[name] or int(wanted[name]) == seconds:
                continue
            times = " ".join(f"{int(wanted[one])}" for one, _ in _TIMEOUTS)
            yield Finding(
                check=check,
                severity="warn",
                node=view.name,
                object=f"IPVS timeout {name}",
                observed=f"{seconds} s",
                expected=f"{wanted[name]:g} s, of ipvs.{key}",
                reason="idle connections end earlier or later than configured; kube-proxy writes "
                "the timeouts at its start only",
                remedy=f"on the node: ipvsadm --set {times} (0 keeps the present value)",
            )


def conntrack_settings(evidence: Evidence) -> Said:
    """The conntrack settings that kube-proxy manages are in force.

    Besides those, only what the policy names is judged: a maxPerCore or timeout of 0 leaves the
    node's value alone. A larger nf_conntrack_max than kube-proxy wrote is somebody's good reason
    and no finding, unless the policy says what it must be.
    """
    yield from each_node("KP-09", evidence, _conntrack_settings)


def _conntrack_settings(check: str, evidence: Evidence, view: NodeView) -> Said:
    config = effective(check, view)
    if isinstance(config, NotMeasured):
        yield config
        return
    rules = rules_of(check, view.facts, view.node, evidence.last.server_version)
    if isinstance(rules, NotMeasured):
        yield rules
        return
    cpus: int | None = None
    if per_core(rules):
        told = detail(check, evidence, view, "cpus")
        if isinstance(told, NotMeasured):
            yield told
        else:
            cpus = told
    for key, value in conntrack_wanted(rules, cpus).items():
        # Where the policy names a key it alone says what is right.
        if key not in view.policy.sysctls:
            yield from _judge_sysctl(check, view, key, value)


def _judge_sysctl(check: str, view: NodeView, key: str, value: int) -> Said:
    text = view.facts.sysctls.get(key, "").strip()
    if not text.isdecimal():
        otherwise = f"it is {text!r}, expected a number" if text else "it does not exist"
        reason = view.facts.unread.get(key) or why_unread(view.facts, "sysctls", otherwise)
        yield NotMeasured(check=check, node=view.name, fact=key, reason=reason)
        return
    larger_is_fine = key == "net.netfilter.nf_conntrack_max"
    if int(text) == value or (larger_is_fine and int(text) > value):
        return
    yield Finding(
        check=check,
        severity="warn",
        node=view.name,
        object=key,
        observed=text,
        expected=f"at least {value}" if larger_is_fine else str(value),
        reason="kube-proxy is told to manage it and writes it at its start only, so something has "
        "overwritten it since, or it may not write there (a node that is a container)",
        remedy=f"sysctl -w {key}={value}, and remove what sets it to {text}; where kube-proxy "
        "should leave it alone, set the key of conntrack in its configuration to 0",
    )


def _check(**more: Any) -> Check:
    return Check(group="KP", severity="warn", **more)


CHECKS = (
    _check(
        id="KP-02",
        title="the running configuration is that of the ConfigMap",
        permission="api",
        needs=frozenset({"proxy.config", "proxy_objects"}),
        source="kube-proxy /configz; pkg/proxy/apis/config/v1alpha1/defaults.go",
        run=rolled_out,
    ),
    _check(
        id="KP-07",
        title="kube-proxy can tell local traffic and masquerades by the policy",
        permission="proxy",
        needs=frozenset({"proxy.config", "proxy_objects"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go, writeIptablesRules",
        run=local_traffic,
    ),
    _check(
        id="KP-08",
        title="the IPVS timeouts are the configured ones",
        permission="node",
        needs=frozenset({"proxy.config", "details.ipvs_timeouts"}),
        source="kube-proxy pkg/proxy/ipvs/proxier.go, NewProxier",
        run=ipvs_timeouts,
    ),
    _check(
        id="KP-09",
        title="the conntrack settings that kube-proxy manages are in force",
        permission="node",
        needs=frozenset({"proxy.config", "proxy.version", "sysctls", "details.cpus"}),
        source="kube-proxy pkg/proxy/conntrack/sysctls.go",
        run=conntrack_settings,
    ),
)
