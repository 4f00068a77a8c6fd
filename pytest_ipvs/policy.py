"""ipvs.yaml: what a team expects of its cluster, where that differs from the general rules.

What belongs here: what a policy is, and which one is in force on a node. What doesn't: reading the
file (`policy_file`), judging anything by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ipvs.selectors import LabelSelector, check_matches, wildcard

if TYPE_CHECKING:
    from pytest_ipvs.ipvs.objects import Node
    from pytest_ipvs.settings import Settings


class PolicyError(Exception):
    """The policy file can't be used; one sentence that names file, key, value and expectation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A number that a check compares with: its default, its unit and what it means.

    ``choices``: the only numbers that mean something, empty where any does.
    """

    default: float
    unit: str
    meaning: str
    choices: tuple[float, ...] = ()


THRESHOLDS: Mapping[str, Threshold] = {
    "conntrack_warn": Threshold(
        default=80, unit="%", meaning="share of nf_conntrack_max in use from which CP-01 warns"
    ),
    "conntrack_fail": Threshold(
        default=95, unit="%", meaning="share of nf_conntrack_max in use from which CP-01 fails"
    ),
    "conntrack_losses": Threshold(
        default=0, unit="packets", meaning="packets that conntrack may lose during a run (CP-01)"
    ),
    "conntrack_per_bucket": Threshold(
        default=4, unit="entries", meaning="nf_conntrack_max per bucket of its table (CP-02)"
    ),
    "ipvs_per_bucket": Threshold(
        default=8, unit="entries", meaning="IPVS entries per bucket, on kernels to 7.0 (CP-03)"
    ),
    "ipvs_conn_max": Threshold(
        default=80, unit="%", meaning="share of vs.conn_max in use, on kernels from 7.2 (CP-03)"
    ),
    "client_ports_used": Threshold(
        default=70, unit="%", meaning="share of a client's ports toward one virtual server (CP-04)"
    ),
    "client_ports": Threshold(
        default=28232, unit="ports", meaning="ports of a client that is not a node itself (CP-04)"
    ),
    "idle_connection": Threshold(
        default=0, unit="s", meaning="longest silence of your connections, 0 = not told (CP-05)"
    ),
    "virtual_addresses": Threshold(
        default=5000, unit="addresses", meaning="addresses on kube-ipvs0 (CP-06)"
    ),
    "virtual_servers": Threshold(
        default=20000, unit="virtual servers", meaning="virtual servers of a node (CP-06)"
    ),
    "real_servers": Threshold(
        default=100000, unit="real servers", meaning="real servers of a node's table (CP-06)"
    ),
    "estimated_servers": Threshold(
        default=20000, unit="servers", meaning="servers that one timer may estimate (CP-07)"
    ),
    "proxy_restarts": Threshold(
        default=0, unit="restarts", meaning="restarts of a kube-proxy pod, if the last is young"
    ),
    "proxy_trouble_age": Threshold(
        default=3600, unit="seconds", meaning="age up to which restarts and errors in a log count"
    ),
    "sync_duration_p99": Threshold(
        default=16,
        unit="seconds",
        meaning="99th percentile of the time that kube-proxy's sync takes",
    ),
    "sync_queue_age": Threshold(
        default=60,
        unit="seconds",
        meaning="time that changes may wait for kube-proxy to program them",
    ),
    "masquerade_all": Threshold(
        default=2,
        unit="0, 1 or 2",
        meaning="masqueradeAll must be off (0), on (1), or is not judged (2)",
        choices=(0, 1, 2),
    ),
    "syn_sent_to_gone_endpoints": Threshold(
        default=10, unit="entries", meaning="unanswered SYNs of a node to endpoints that are gone"
    ),
    "client_own_limit_share": Threshold(
        default=0.01, unit="share", meaning="due connections that the client itself may lose"
    ),
    "min_affine_answers": Threshold(
        default=20, unit="answers", meaning="before the disruption, below which PS-03 says nothing"
    ),
    "exposed_share": Threshold(
        default=0.1,
        unit="share",
        meaning="of min_reused_tuples, those that must meet a pod that left",
    ),
    "load_balancer_failures": Threshold(
        default=0, unit="%", meaning="connections through a load balancer that may fail (DP-03)"
    ),
    "min_path_connections": Threshold(
        default=5,
        unit="connections",
        meaning="on a path, below which DP-08 to DP-11 and DP-14 say nothing",
    ),
    "path_failures": Threshold(
        default=0.1,
        unit="share",
        meaning="connections on a path that may fail as no more than a warning (DP-09, DP-10)",
    ),
    "resent_syn_share": Threshold(
        default=0.001, unit="share", meaning="connects with a resent SYN from which DP-04 fails"
    ),
}
"""By name, in the order of the documentation."""

SYSCTL_CHECKS: Mapping[str, str] = {
    "net.ipv4.vs.conn_reuse_mode": "SY-01",
    "net.ipv4.vs.expire_nodest_conn": "SY-02",
    "net.ipv4.vs.expire_quiescent_template": "SY-03",
    "net.ipv4.vs.conntrack": "SY-04",
    "net.ipv4.vs.conn_max": "CP-03",
    "net.ipv4.vs.run_estimation": "CP-07",
    "net.ipv4.vs.est_*": "CP-07",
    "net.ipv4.vs.*": "SY-11",
    "net.ipv4.ip_forward": "SY-07",
    "net.ipv6.conf.all.forwarding": "SY-07",
    "net.ipv4.conf.*.arp_ignore": "SY-08",
    "net.ipv4.conf.*.arp_announce": "SY-08",
    "net.ipv4.conf.*.rp_filter": "SY-09",
    "net.ipv4.conf.all.route_localnet": "SY-09",
    "net.bridge.bridge-nf-call-iptables": "SY-10",
    "net.bridge.bridge-nf-call-ip6tables": "SY-10",
    "net.ipv4.ip_local_port_range": "SY-12",
    "net.ipv4.ip_local_reserved_ports": "SY-12",
    "net.ipv4.tcp_tw_reuse": "SY-12",
    "net.ipv4.tcp_tw_reuse_delay": "SY-12",
    "net.ipv4.tcp_syn_retries": "SY-12",
    "net.ipv4.tcp_syn_linear_timeouts": "SY-12",
    "net.ipv4.tcp_mem": "SY-12",
    "net.ipv4.tcp_keepalive_time": "CP-05",
    "net.netfilter.nf_conntrack_max": "KP-09",
    "net.netfilter.nf_conntrack_count": "KP-09",
    "net.netfilter.nf_conntrack_buckets": "KP-09",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "KP-09",
    "net.netfilter.nf_conntrack_tcp_timeout_*": "KP-09",
    "net.netfilter.nf_conntrack_udp_timeout*": "KP-09",
}
"""Sysctls that a policy may name, to the check that demands its values: what nodes are asked for.

``*`` stands for any text without a dot. The first pattern that fits a key counts.
"""


def sysctl_pattern(*patterns: str) -> str:
    """A regular expression for the whole of the keys that fit one of the patterns."""
    # Editors read it too, and not all of them take every escape that Python's does.
    keys = (pattern.replace(".", r"\.").replace("*", "[^.]*") for pattern in patterns)
    return f"^(?:{'|'.join(keys)})$"


@cache
def sysctl_check(key: str) -> str | None:
    """The check that demands a policy's value of a sysctl; ``None`` where none reads it."""
    return next(
        (check for one, check in SYSCTL_CHECKS.items() if re.match(sysctl_pattern(one), key)), None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """Findings that a team knows of and accepts until a day.

    ``check`` is an id, a group or a pattern; ``node`` and ``object`` are patterns with * and ?,
    ``None`` where any matches. ``expires`` is the last day on which it counts, in local time.
    ``where`` is its place, such as "ipvs.yaml:12".
    """

    check: str
    reason: str
    expires: date
    node: str | None = None
    object: str | None = None
    where: str = ""

    def covers(self, check: str, node: str | None, what: str) -> bool:
        """Whether a finding matches, whatever day it is. One of the cluster has no node."""
        return (
            check_matches(self.check, check)
            and (self.node is None or (node is not None and wildcard(self.node, node)))
            and (self.object is None or wildcard(self.object, what))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRule:
    """What holds on some nodes only: fields of `Policy` by name, and which nodes they are.

    A node matches where it matches the selector and is one of the names, as far as both are given.
    """

    values: Mapping[str, Any]
    selector: LabelSelector | None = None
    names: tuple[str, ...] = ()

    def holds(self, node: Node) -> bool:
        """Whether the rule is about a node."""
        return (self.selector is None or self.selector.holds(node.labels)) and (
            not self.names or any(wildcard(name, node.name) for name in self.names)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Expectations and thresholds in force; every field has the general rule as its default."""

    path: str | None = None
    """File it came from; ``None`` = defaults only."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """The ``settings:`` section, unconverted: the lowest source of `settings.resolve`."""

    kernel_fix_overrides: tuple[tuple[str, Mapping[str, bool]], ...] = ()
    """(regular expression searched in ``uname -r``, {"b"|"c"|"d": present}) in file order; for
    vendor kernels whose number says nothing about back-ported fixes."""

    sysctls: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    """Sysctl key to the values demanded instead of the general rule; ``None`` = don't judge."""

    foreign_virtual_servers: tuple[str, ...] = ()
    """Virtual servers that others program: "10.0.0.0/24" (any port), "10.0.0.5:443/TCP" with
    * and ? as wildcards, or "fwmark:7"."""

    drain_budget: float = 210.0
    """Seconds that a real server may stay at weight 0: longest IPVS timer that traffic refreshes
    without re-use (120) + sweep (60) + margin (30)."""

    converge_budget: float = 60.0
    """Seconds that a table may lag the API: two of kube-proxy's default sync periods (30)."""

    min_reused_tuples: int = 50
    """Re-used client tuples below which a rolling update proves nothing."""

    min_new_pod_share: float = 0.5
    """Least share of connections a new pod must get, as a fraction of its fair share."""

    slow_connect_ms: float = 900.0
    """Milliseconds from which a connect counts as slow: a first SYN is resent after 1,000."""

    severities: Mapping[str, str] = field(default_factory=dict)
    """Check id to "fail", "warn" or "info", instead of the check's own severity."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Name of `THRESHOLDS` to the number that counts instead of its default."""

    nodes: tuple[NodeRule, ...] = ()
    """Rules for some nodes, in file order."""

    waivers: tuple[Waiver, ...] = ()
    """Findings that are accepted for a time, in file order."""

    def threshold(self, name: str) -> float:
        """The number in force. Raises ``KeyError`` for a name that `THRESHOLDS` lacks."""
        return self.thresholds.get(name, THRESHOLDS[name].default)

    def for_node(self, node: Node) -> Policy:
        """The policy in force on one node: rules of the file in its order, later ones win.

        Mappings are merged key by key. Patterns of a rule come before the general ones, which
        still hold.
        """
        rules = [rule for rule in self.nodes if rule.holds(node)]
        if not rules:
            return self
        values: dict[str, Any] = {"nodes": ()}
        for rule in rules:
            for name, value in rule.values.items():
                old = values.get(name, getattr(self, name))
                if isinstance(value, Mapping):
                    value = {**old, **value}
                elif isinstance(value, tuple):
                    value = (*value, *old)
                values[name] = value
        return replace(self, **values)

    def with_settings(self, settings: Settings) -> Policy:
        """A copy whose budgets are the resolved ones (option > environment > ini > this file).

        A budget from outside the file also wins over those that the file has for some nodes.
        """
        given = {
            field_name
            for field_name, option in BUDGET_OPTIONS.items()
            if not settings.origin(option).startswith("the default")
            and ": settings." not in settings.origin(option)
        }
        return replace(
            self,
            drain_budget=settings.drain_budget,
            converge_budget=settings.converge_timeout,
            nodes=tuple(
                replace(rule, values={k: v for k, v in rule.values.items() if k not in given})
                for rule in self.nodes
            ),
        )


BUDGET_OPTIONS = {"drain_budget": "drain_budget", "converge_budget": "converge_timeout"}
"""Budgets that are options too, by the names that the settings give them."""


def load_policy(path: str | Path, checks: Iterable[str] | None = None) -> Policy:
    """Read one policy file. Raises `PolicyError`.

    With the ids of all checks, names of checks that don't exist are refused too.
    """
    from pytest_ipvs.policy_file import read

    return read(path, checks)
