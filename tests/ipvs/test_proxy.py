"""kube-proxy's rules by version and configuration."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_ipvs.ipvs.kernel import KernelRelease, fixes
from pytest_ipvs.ipvs.objects import Node, Service
from pytest_ipvs.ipvs.proxy import (
    ProxyRules,
    expected_conn_reuse_mode,
    in_networks,
    parse_duration,
    parse_version,
)


def rules(version: str, **config: Any) -> ProxyRules:
    return ProxyRules(version=version, config=config)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("v1.36.2", (1, 36, 2)),
        ("1.20", (1, 20, 0)),
        ("v1.27.3-eks-1234", (1, 27, 3)),
        ("v1.30.1+k3s1", (1, 30, 1)),
    ],
)
def test_versions(text: str, number: tuple[int, int, int]) -> None:
    assert parse_version(text) == number


def test_no_version_is_an_error() -> None:
    with pytest.raises(ValueError, match="kube-proxy version 'latest': expected"):
        rules("latest")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1h0m0s", 3600.0),
        ("100ms", 0.1),
        ("0s", 0.0),
        ("0", 0.0),
        (15, 15.0),
        ("soon", None),
        (None, None),
        (True, None),
    ],
)
def test_durations(text: object, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("version", "config", "lag"),
    [
        ("v1.36.2", {}, 60.0),
        ("v1.36.2", {"ipvs": {"syncPeriod": "5m0s", "minSyncPeriod": "10s"}}, 610.0),
        ("v1.36.2", {"ipvs": {"syncPeriod": "5s"}}, 60.0),
        ("v1.34.0", {}, 3600.0),
        ("v1.34.3", {}, 3600.0),
        ("v1.34.4", {}, 60.0),
        ("v1.35.0", {}, 3600.0),
        ("v1.35.1", {}, 60.0),
    ],
)
def test_sync_lag(version: str, config: dict[str, Any], lag: float) -> None:
    assert rules(version, **config).sync_lag == lag


@pytest.mark.parametrize(
    ("version", "what", "value"),
    [
        ("v1.21.1", "loopback_node_ports", True),
        ("v1.22.0", "loopback_node_ports", None),
        ("v1.23.1", "loopback_node_ports", False),
        ("v1.21.0", "terminating_endpoints", False),
        ("v1.25.0", "terminating_endpoints", False),
        ("v1.26.0", "terminating_endpoints", True),
        ("v1.28.0", "terminating_endpoints", True),
        ("v1.23.1", "local_fallback", False),
        ("v1.25.0", "local_fallback", None),
        ("v1.27.1", "local_fallback", True),
        ("v1.20.2", "internal_traffic_policy", False),
        ("v1.22.0", "internal_traffic_policy", True),
        ("v1.20.2", "zone_hints", False),
        ("v1.24.0", "zone_hints", True),
        ("v1.33.0", "node_hints", False),
        ("v1.34.0", "node_hints", True),
        ("v1.21.0", "topology_keys", True),
        ("v1.22.0", "topology_keys", False),
        ("v1.20.2", "forces_reuse_mode_zero", True),
        ("v1.20.15", "forces_reuse_mode_zero", None),
        ("v1.21.8", "forces_reuse_mode_zero", True),
        ("v1.21.9", "forces_reuse_mode_zero", None),
        ("v1.22.0", "forces_reuse_mode_zero", False),
    ],
)
def test_rules_that_differ_by_version(version: str, what: str, value: bool | None) -> None:
    assert getattr(rules(version), what) is value


@pytest.mark.parametrize(
    ("version", "gates", "hints", "mode", "heeds"),
    [
        ("v1.20.2", {}, "auto", None, False),
        ("v1.21.0", {}, "auto", None, False),
        ("v1.21.0", {"TopologyAwareHints": True}, "auto", None, True),
        # A patch release of 1.21 began to take this word.
        ("v1.21.0", {"TopologyAwareHints": True}, "Auto", None, None),
        ("v1.22.0", {"TopologyAwareHints": True}, "Auto", None, True),
        ("v1.26.0", {}, None, None, False),
        ("v1.26.0", {}, "Auto", None, True),
        ("v1.26.0", {}, "other", None, False),
        ("v1.26.0", {}, None, "Auto", False),
        ("v1.27.0", {}, None, "Auto", True),
        ("v1.27.0", {}, "other", None, True),
        ("v1.27.0", {}, "", "Auto", False),
        ("v1.27.0", {}, "Disabled", "Auto", False),
        ("v1.30.0", {}, None, "disabled", False),
        ("v1.30.0", {"ServiceTrafficDistribution": True}, None, None, True),
        ("v1.31.0", {}, None, "disabled", True),
        ("v1.32.0", {"ServiceTrafficDistribution": False}, None, None, False),
        ("v1.32.0", {"ServiceTrafficDistribution": False}, None, "Auto", True),
        ("v1.32.0", {"TopologyAwareHints": False}, None, "Auto", False),
        ("v1.33.0", {"ServiceTrafficDistribution": False}, None, None, True),
    ],
)
def test_zone_hints_by_release_and_annotation(
    version: str, gates: dict[str, bool], hints: str | None, mode: str | None, heeds: bool | None
) -> None:
    service = Service(namespace="demo", name="web", topology_hints=hints, topology_mode=mode)
    assert rules(version, featureGates=gates).heeds_zone_hints(service) is heeds


def test_gates_change_rules() -> None:
    gates = {"ProxyTerminatingEndpoints": True, "AllowServiceExternalIPs": False}
    told = rules("v1.24.0", featureGates=gates)
    assert told.terminating_endpoints
    assert not told.external_ips


def test_families() -> None:
    node = Node(name="n", internal_ips=("fd00::1",))
    assert rules("v1.36.2").families(node) == {"IPv4", "IPv6"}
    assert rules("v1.20.2").families(node) == {"IPv6"}
    both = rules("v1.20.2", featureGates={"IPv6DualStack": True})
    assert both.families(node) == {"IPv4", "IPv6"}


def test_networks() -> None:
    assert in_networks("10.1.2.3", ("10.0.0.0/8",))
    assert not in_networks("10.1.2.3", ("fd00::/8", "nonsense", "192.168.0.0/16"))


def mode(kernel: str, version: str, proxy: str, *, expire: bool = True) -> tuple[Any, str]:
    release = KernelRelease.parse(kernel, version)
    verdict = expected_conn_reuse_mode(
        release, rules(proxy), fixes(release), expire_nodest_conn=expire
    )
    assert verdict.reason
    assert verdict.remedy
    return set(verdict.accepted), verdict.severity


ONE = {1, 2, 3}
ANY = {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("kernel", "proxy", "accepted", "severity"),
    [
        # The rows of the table, from the top.
        ("3.16.0", "v1.20.2", set(), "warn"),
        ("5.8.1", "v1.20.2", {0}, "warn"),
        ("4.19.132", "v1.30.0", {0}, "warn"),
        ("4.19.140", "v1.30.0", ONE, "warn"),
        ("4.19.218", "v1.30.0", ONE, "warn"),
        ("4.19.219", "v1.30.0", ANY, "info"),
        ("5.4.163", "v1.30.0", ANY, "info"),
        ("4.18.0-513.el8.x86_64", "v1.30.0", ANY, "info"),
        ("6.1.100", "v1.21.1", ONE, "warn"),
        ("6.1.100", "v1.21.9", ANY, "info"),
        ("6.1.100", "v1.22.0", ONE, "warn"),
        ("5.10.82", "v1.22.0", ONE, "fail"),
        ("5.10.83", "v1.22.0", ONE, "warn"),
        ("5.15.5", "v1.36.2", ONE, "fail"),
        ("5.15.6", "v1.36.2", ONE, "warn"),
    ],
)
def test_conn_reuse_mode(kernel: str, proxy: str, accepted: set[int], severity: str) -> None:
    assert mode(kernel, "", proxy) == (accepted, severity)


def test_mode_zero_without_expire_nodest_conn_loses_connections_on_every_kernel() -> None:
    assert mode("6.1.100", "", "v1.36.2", expire=False) == (ONE, "fail")
