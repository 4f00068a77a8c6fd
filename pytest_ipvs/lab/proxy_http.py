"""What the kube-proxy stand-in answers on its metrics and health ports."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

METRICS_PORT = 10249
HEALTH_PORT = 10256

Route = dict[str, object]


def configuration(node: str, *, cluster_cidr: str, scheduler: str) -> dict[str, object]:
    """The running KubeProxyConfiguration, with the fields and defaults that 1.36 prints."""
    return {
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "clientConnection": {
            "kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf",
            "acceptContentTypes": "",
            "contentType": "application/vnd.kubernetes.protobuf",
            "qps": 5,
            "burst": 10,
        },
        "hostnameOverride": node,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": f"0.0.0.0:{HEALTH_PORT}",
        "metricsBindAddress": f"127.0.0.1:{METRICS_PORT}",
        "bindAddressHardFail": False,
        "enableProfiling": False,
        "showHiddenMetricsForVersion": "",
        "mode": "ipvs",
        "iptables": {
            "masqueradeBit": 14,
            "masqueradeAll": False,
            "localhostNodePorts": True,
            "syncPeriod": "0s",
            "minSyncPeriod": "0s",
        },
        "ipvs": {
            "syncPeriod": "30s",
            "minSyncPeriod": "0s",
            "scheduler": scheduler,
            "excludeCIDRs": None,
            "strictARP": False,
            "tcpTimeout": "0s",
            "tcpFinTimeout": "0s",
            "udpTimeout": "0s",
        },
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": cluster_cidr,
        "nodePortAddresses": None,
        "oomScoreAdj": -999,
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "24h0m0s",
            "tcpCloseWaitTimeout": "1h0m0s",
            "tcpBeLiberal": False,
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
        "configSyncPeriod": "15m0s",
        "portRange": "",
    }


# Bounds in seconds of kubeproxy_network_programming_duration_seconds, as 1.36 has them.
_WAIT_BOUNDS = (0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


@dataclass(slots=True)
class SyncStatistics:
    """What the metrics say of the syncs so far; times in Unix seconds, durations in seconds."""

    count: int = 0
    seconds: float = 0.0
    last: float = 0.0
    last_queued: float = 0.0
    endpoint_changes: int = 0
    service_changes: int = 0
    buckets: dict[float, int] = field(
        default_factory=lambda: {0.001 * 2**power: 0 for power in range(15)}
    )
    # From the first change that waits until it is in the table.
    waits: dict[float, int] = field(default_factory=lambda: dict.fromkeys(_WAIT_BOUNDS, 0))
    waits_count: int = 0
    waits_seconds: float = 0.0
    _waits_since: float | None = None

    def change(self, *, endpoints: bool) -> None:
        """Count one change of a Service, or of its endpoints."""
        if endpoints:
            self.endpoint_changes += 1
            self._waits_since = self._waits_since or time.time()
        else:
            self.service_changes += 1

    def record(self, seconds: float) -> None:
        """Count one sync whose table is programmed."""
        self.count += 1
        self.seconds += seconds
        for bound in self.buckets:
            if seconds <= bound:
                self.buckets[bound] += 1
        if self._waits_since is not None:
            waited = time.time() - self._waits_since
            self._waits_since = None
            self.waits_count += 1
            self.waits_seconds += waited
            for bound in self.waits:
                if waited <= bound:
                    self.waits[bound] += 1

    def finish(self) -> None:
        """Say that sets and rules are programmed as well: only now has it synced."""
        self.last = time.time()


def _stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(moment))


def metrics(statistics: SyncStatistics, version: str) -> str:
    """The text of ``/metrics``: those that the catalogue of checks reads."""
    family = 'ip_family="IPv4"'
    number = version.removeprefix("v")
    major, minor = number.split(".")[:2]
    build = f'git_version="{version}",major="{major}",minor="{minor}",platform="linux/amd64"'
    name = "kubeproxy_sync_proxy_rules"
    lines = [
        "# HELP kubernetes_build_info [BETA] A metric with a constant '1' value.",
        "# TYPE kubernetes_build_info gauge",
        f"kubernetes_build_info{{{build}}} 1",
        f"# TYPE {name}_duration_seconds histogram",
    ]
    lines += _histogram(
        f"{name}_duration_seconds",
        family,
        statistics.buckets,
        statistics.count,
        statistics.seconds,
    )
    programming = "kubeproxy_network_programming_duration_seconds"
    lines.append(f"# TYPE {programming} histogram")
    lines += _histogram(
        programming,
        family,
        statistics.waits,
        statistics.waits_count,
        statistics.waits_seconds,
    )
    lines += [
        f"# TYPE {name}_last_timestamp_seconds gauge",
        f"{name}_last_timestamp_seconds{{{family}}} {statistics.last:.6f}",
        f"# TYPE {name}_last_queued_timestamp_seconds gauge",
        f"{name}_last_queued_timestamp_seconds{{{family}}} {statistics.last_queued:.6f}",
        f"# TYPE {name}_no_local_endpoints_total gauge",
        f'{name}_no_local_endpoints_total{{{family},traffic_policy="external"}} 0',
        f'{name}_no_local_endpoints_total{{{family},traffic_policy="internal"}} 0',
        # These have no family. Failures of iptables-restore are not told before the first one.
        f"# TYPE {name}_endpoint_changes_pending gauge",
        f"{name}_endpoint_changes_pending 0",
        f"# TYPE {name}_endpoint_changes_total counter",
        f"{name}_endpoint_changes_total {statistics.endpoint_changes}",
        f"# TYPE {name}_service_changes_pending gauge",
        f"{name}_service_changes_pending 0",
        f"# TYPE {name}_service_changes_total counter",
        f"{name}_service_changes_total {statistics.service_changes}",
        "",
    ]
    return "\n".join(lines)


def _histogram(
    name: str, labels: str, buckets: dict[float, int], count: int, seconds: float
) -> list[str]:
    return [
        *(f'{name}_bucket{{{labels},le="{bound:g}"}} {n}' for bound, n in buckets.items()),
        f'{name}_bucket{{{labels},le="+Inf"}} {count}',
        f"{name}_sum{{{labels}}} {seconds:.6f}",
        f"{name}_count{{{labels}}} {count}",
    ]


def metrics_routes(
    statistics: SyncStatistics, config: dict[str, object], version: str
) -> dict[str, Route]:
    """Routes of the metrics port."""
    text = "text/plain; charset=utf-8"
    return {
        "/proxyMode": {"status": 200, "body": "ipvs", "type": text},
        "/healthz": {"status": 200, "body": "ok", "type": text},
        "/configz": {
            "status": 200,
            "body": json.dumps({"kubeproxy.config.k8s.io": config}),
            "type": "application/json",
        },
        "/metrics": {
            "status": 200,
            "body": metrics(statistics, version),
            "type": "text/plain; version=0.0.4; charset=utf-8",
        },
    }


def health_routes(last: float, *, healthy: bool) -> dict[str, Route]:
    """Routes of the health port; ``last`` is the Unix time of the last sync."""
    now = _stamp(time.time())
    common: dict[str, object] = {
        "lastUpdated": now,
        "currentTime": now,
        "healthy": healthy,
        "status": {"IPv4": {"lastUpdated": _stamp(last), "healthy": healthy}},
    }
    status = 200 if healthy else 503
    kind = "application/json"
    return {
        "/healthz": {
            "status": status,
            "body": json.dumps({"nodeEligible": True, **common}),
            "type": kind,
        },
        "/livez": {"status": status, "body": json.dumps(common), "type": kind},
    }


def check_routes(service: str, ready: int) -> dict[str, Route]:
    """Routes of a Service's healthCheckNodePort."""
    namespace, name = service.split("/")
    body = {
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": ready,
        "serviceProxyHealthy": True,
    }
    status = 200 if ready else 503
    return {"*": {"status": status, "body": json.dumps(body), "type": "application/json"}}
