"""What kube-proxy does that differs by its version and configuration, releases 1.20 to 1.37."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pytest_ipvs.ipvs.kernel import (
    FIRST_LEFT_ALONE_BY_PROXY,
    FIRST_WITH_REUSE_MODE,
    KernelRelease,
)
from pytest_ipvs.ipvs.objects import Node, Service

DEFAULT_SYNC_PERIOD = 30.0
# kube-proxy probes a scheduler with this virtual server and deletes it at once.
PROBE_ADDRESS, PROBE_PORT = "198.51.100.0", 20000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRules:
    """The rules one node's kube-proxy follows.

    ``version`` is "v1.36.2"; ``config`` the ``kubeproxy.config.k8s.io`` object of ``/configz``,
    empty where it was not read: defaults apply then. Properties that no release note or source
    decides are ``None``: both behaviours are right then. Raises ``ValueError`` for a version that
    is none.
    """

    version: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        parse_version(self.version)

    @property
    def number(self) -> tuple[int, int, int]:
        """(1, 36, 2)."""
        return parse_version(self.version)

    @property
    def _minor(self) -> int:
        major, minor, _ = self.number
        return minor if major == 1 else 1000

    def gate(self, name: str, default: bool) -> bool:
        """A feature gate of the configuration, ``default`` where it is not set."""
        gates = self.config.get("featureGates")
        value = gates.get(name) if isinstance(gates, Mapping) else None
        return value if isinstance(value, bool) else default

    def _ipvs(self, key: str) -> Any:
        section = self.config.get("ipvs")
        return section.get(key) if isinstance(section, Mapping) else None

    @property
    def scheduler(self) -> str:
        """The scheduler of every virtual server."""
        return str(self._ipvs("scheduler") or "rr")

    @property
    def sync_period(self) -> float:
        """Seconds between full syncs as configured."""
        return parse_duration(self._ipvs("syncPeriod")) or DEFAULT_SYNC_PERIOD

    @property
    def min_sync_period(self) -> float:
        """Least seconds between two syncs."""
        return parse_duration(self._ipvs("minSyncPeriod")) or 0.0

    @property
    def hourly_resync(self) -> bool:
        """Whether a forced resync comes only once an hour (1.34.0 to 1.34.3, 1.35.0)."""
        return (1, 34, 0) <= self.number <= (1, 34, 3) or self.number == (1, 35, 0)

    @property
    def sync_lag(self) -> float:
        """Seconds after which a table must equal the API: what differs longer stays so."""
        if self.hourly_resync:
            return 3600.0 + self.min_sync_period
        return max(2 * self.sync_period, 60.0) + self.min_sync_period

    @property
    def exclude_cidrs(self) -> tuple[str, ...]:
        """Networks whose virtual servers kube-proxy leaves alone."""
        return tuple(str(cidr) for cidr in self._ipvs("excludeCIDRs") or ())

    @property
    def node_port_addresses(self) -> tuple[str, ...]:
        """CIDRs, or "primary"; empty = every local address."""
        return tuple(str(cidr) for cidr in self.config.get("nodePortAddresses") or ())

    @property
    def loopback_node_ports(self) -> bool | None:
        """Whether 127.0.0.1:nodePort is a virtual server: until 1.21, never from 1.23 on."""
        return True if self._minor <= 21 else None if self._minor == 22 else False

    @property
    def terminating_endpoints(self) -> bool:
        """Whether serving endpoints that terminate stand in where none is ready."""
        if self._minor >= 28:
            return True
        return self._minor >= 22 and self.gate("ProxyTerminatingEndpoints", self._minor >= 26)

    @property
    def terminating_cluster_wide(self) -> bool:
        """Whether that holds for the cluster set too: until 1.23 for local sets only."""
        return self.terminating_endpoints and self._minor >= 24

    @property
    def local_fallback(self) -> bool | None:
        """Whether an empty local set falls back to the cluster set: not in 1.23, yes in 1.27."""
        return True if self._minor >= 27 else None if self._minor >= 24 else False

    @property
    def internal_traffic_policy(self) -> bool:
        """Whether ``internalTrafficPolicy`` is honoured."""
        return self._minor >= 21 and self.gate("ServiceInternalTrafficPolicy", self._minor >= 22)

    @property
    def zone_hints(self) -> bool:
        """Whether zone hints may narrow the endpoints: by gate from 1.21, as a rule from 1.24."""
        if self._minor < 21:
            return False
        return self.gate("TopologyAwareHints", self._minor >= 24) or self._minor >= 33

    @property
    def asks_for_annotation(self) -> bool:
        """Whether zone hints count only for Services with an annotation: by default until 1.30."""
        if self._minor < 30:
            return True
        return self._minor < 33 and not self.gate("ServiceTrafficDistribution", self._minor >= 31)

    def heeds_zone_hints(self, service: Service) -> bool | None:
        """Whether zone hints narrow the endpoints of this Service.

        Where the annotation counts, it has to be "auto" or "Auto" until 1.26, and anything but
        "disabled" from 1.27 on. "Auto" came with a patch release of 1.21; which one is not
        certain.
        """
        if not self.zone_hints or not self.asks_for_annotation:
            return self.zone_hints
        value = service.topology_hints
        if self._minor < 27:
            return None if value == "Auto" and self._minor == 21 else value in ("auto", "Auto")
        if value is None:
            value = service.topology_mode
        return value not in (None, "", "disabled", "Disabled")

    @property
    def node_hints(self) -> bool:
        """Whether node hints narrow the endpoints: by default from 1.34 on."""
        if self._minor < 33:
            return False
        return self.gate("PreferSameTrafficDistribution", self._minor >= 34) or self._minor >= 35

    @property
    def topology_keys(self) -> bool:
        """Whether ``topologyKeys`` of a Service may narrow the endpoints: by gate until 1.21."""
        return self._minor <= 21

    @property
    def ip_mode(self) -> bool | None:
        """Whether ``ipMode: Proxy`` keeps an address out of the table: surely from 1.32 on."""
        return True if self._minor >= 32 else None

    @property
    def prefers_living_twin(self) -> bool | None:
        """Whether of two entries for one endpoint the one that does not terminate counts.

        From 1.36 on. Before, the order in which kube-proxy met the slices decided.
        """
        return True if self._minor >= 36 else None

    @property
    def external_ips(self) -> bool:
        """Whether externalIPs are programmed."""
        return self.gate("AllowServiceExternalIPs", True)

    def families(self, node: Node) -> frozenset[str]:
        """The address families that the node's kube-proxy programs: one proxier per family."""
        if self._minor >= 21 or self.gate("IPv6DualStack", False):
            return frozenset({"IPv4", "IPv6"})
        first = (node.internal_ips or ("0.0.0.0",))[0]
        return frozenset({"IPv6" if ":" in first else "IPv4"})

    def node_name(self, node: Node) -> str:
        """The name that kube-proxy compares with an endpoint's node to tell local ones."""
        override = str(self.config.get("hostnameOverride") or "").strip().lower()
        return override or node.name

    @property
    def forces_reuse_mode_zero(self) -> bool | None:
        """Whether it sets conn_reuse_mode=0 on kernels from 5.9 on too: until 1.21.

        The repair was picked for 1.20 and 1.21 in January 2022; which patch release first has
        it is not certain.
        """
        if self._minor >= 22:
            return False
        picked = {20: 15, 21: 9}.get(self._minor)
        return None if picked is not None and self.number[2] >= picked else True


@lru_cache(maxsize=256)
def parse_version(text: str) -> tuple[int, int, int]:
    """ "v1.36.2-vendor" to (1, 36, 2). Raises ``ValueError``."""
    found = re.match(r"v?(\d{1,4})\.(\d{1,5})(?:\.(\d{1,6}))?", text.strip())
    if not found:
        raise ValueError(f"kube-proxy version {text!r}: expected a version such as v1.36.2")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def parse_duration(value: object) -> float | None:
    """Go's "1m30s" (or a number of seconds) to seconds; ``None`` where it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|h|m|s))+|0")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def in_networks(address: str, networks: tuple[str, ...]) -> bool:
    """Whether the address lies in one of the CIDRs; text that is no CIDR matches nothing."""
    for network in networks:
        try:
            if ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False):
                return True
        except (ValueError, TypeError):
            continue
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The values of a sysctl that are right here, and what is wrong with any other.

    An empty ``accepted`` means that no value can be right, or that the key need not exist.
    """

    accepted: frozenset[int]
    severity: Literal["fail", "warn", "info"]
    reason: str
    remedy: str


_ANY = frozenset({0, 1, 2, 3})
# Bit 1 alone has an effect with NAT, and modes 2 and 3 reschedule as mode 1 does.
_RESCHEDULES = frozenset({1, 2, 3})
_WRITE_1 = "sysctl -w net.ipv4.vs.conn_reuse_mode=1"


def expected_conn_reuse_mode(
    kernel: KernelRelease,
    rules: ProxyRules,
    fixes: Mapping[Any, bool | None],
    *,
    expire_nodest_conn: bool = True,
) -> Verdict:
    """The values of ``net.ipv4.vs.conn_reuse_mode`` that are right for a kernel and kube-proxy.

    ``fixes`` is what :func:`pytest_ipvs.ipvs.kernel.fixes` says of the kernel. Session affinity
    does not change the answer: entries of persistent services are never rescheduled by this
    setting, they need expire_quiescent_template and expire_nodest_conn. Without
    ``expire_nodest_conn`` mode 0 loses connections on every kernel.
    """
    if kernel.release_number < FIRST_WITH_REUSE_MODE:
        return Verdict(
            accepted=frozenset(),
            severity="warn",
            reason=f"kernel {kernel} has no conn_reuse_mode, so a reused client port may go to a "
            "removed real server",
            remedy="run a kernel of at least 5.9",
        )
    if kernel.release_number < FIRST_LEFT_ALONE_BY_PROXY:
        return _old_kernel(kernel, fixes)
    if rules.forces_reuse_mode_zero is None:
        return Verdict(accepted=_ANY, severity="info", reason="both are possible", remedy=_WRITE_1)
    if rules.forces_reuse_mode_zero:
        return Verdict(
            accepted=_RESCHEDULES,
            severity="warn",
            reason=f"kube-proxy {rules.version} sets it to 0 at each start although kernel "
            f"{kernel} reschedules a reused port without delay, so new pods get few or no reused "
            "connections",
            remedy=f"upgrade kube-proxy to 1.22 or later, then {_WRITE_1} or reboot the node",
        )
    lacks_d = fixes.get("d") is False
    loses = lacks_d or not expire_nodest_conn
    why = (
        "a reused client port keeps going to a real server at weight 0, also after its pod is gone"
        if loses
        else "a reused client port keeps going to the real server it had, so new pods get few"
    )
    return Verdict(
        accepted=_RESCHEDULES,
        severity="fail" if loses else "warn",
        reason=f"kube-proxy {rules.version} leaves it alone on kernel {kernel}, so the kernel's "
        f"default 1 was overwritten (an older kube-proxy, sysctl.d or the image); {why}",
        remedy=f"{_WRITE_1}, and remove what sets it to 0",
    )


def _old_kernel(kernel: KernelRelease, fixes: Mapping[Any, bool | None]) -> Verdict:
    has_b, has_d = fixes.get("b"), fixes.get("d")
    if has_b is False and has_d is False:
        return Verdict(
            accepted=frozenset({0}),
            severity="warn",
            reason=f"kernel {kernel} drops the first SYN of each reused port unless it is 0, which "
            "costs a second per connection",
            remedy="run a kernel of at least 5.9; until then "
            "sysctl -w net.ipv4.vs.conn_reuse_mode=0",
        )
    if has_b and has_d is False:
        return Verdict(
            accepted=_RESCHEDULES,
            severity="warn",
            reason=f"kernel {kernel} sends reused ports to real servers at weight 0 while it is "
            "0, and kube-proxy sets it to 0 at each start",
            remedy=f"{_WRITE_1} after each start of kube-proxy (a DaemonSet), or run a kernel of "
            "at least 5.9",
        )
    return Verdict(
        accepted=_ANY,
        severity="info",
        reason="0 is what kube-proxy sets on this kernel; 1 spreads reused ports over new pods",
        remedy="nothing to do",
    )
