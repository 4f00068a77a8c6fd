"""Faults of kube-proxy itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evidence_builder import configured, details, on_node, proxy, sysctl, table
from fault_registry import trips
from netfilter_changes import chain_changed, rule
from proxy_builder import mapped, measured, objects, restarted, unhealthy

from pytest_ipvs.checks import Evidence
from pytest_ipvs.cluster.model import ProxyObjects

SYNC = "kubeproxy_sync_proxy_rules_"
V4 = '{ip_family="IPv4"}'
LAST = f"{SYNC}last_timestamp_seconds{V4}"
QUEUED = f"{SYNC}last_queued_timestamp_seconds{V4}"
FAILURES = f"{SYNC}iptables_restore_failures_total"
PENDING = f"{SYNC}endpoint_changes_pending"
MAX = "net.netfilter.nf_conntrack_max"
LOG = 'E0101 00:00:00.885115      18 proxier.go:1702] "Failed to sync endpoint" err="busy"'

JSON_LOG = (
    'E0000 {"ts":1795225000000.1,"caller":"ipvs/proxier.go:1702",'
    '"msg":"Failed to execute iptables-restore","err":"exit status 4"}'
)


@trips(
    "KP-02",
    words=("ipvs.syncPeriod", "30s", "1m0s, of ConfigMap kube-system/kube-proxy", "rollout res"),
)
def a_change_of_the_config_map_is_not_rolled_out(evidence: Evidence) -> Evidence:
    return configured(
        mapped(evidence, {"ipvs": {"syncPeriod": "1m0s"}}), {"ipvs": {"syncPeriod": "30s"}}
    )


@trips(
    "KP-02",
    words=("ipvs.scheduler", "wlc", "rr, the default: ConfigMap kube-system/kube-proxy does not"),
)
def a_key_was_taken_out_of_the_config_map(evidence: Evidence) -> Evidence:
    # The table still has what runs.
    evidence = configured(evidence, {"ipvs": {"scheduler": "wlc"}})
    return table(evidence, lambda old: tuple(one._replace(scheduler="wlc") for one in old))


@trips("KP-03 fail", words=("/healthz answers 503, /livez 503", "falls behind"))
def kube_proxy_is_not_healthy(evidence: Evidence) -> Evidence:
    return unhealthy(
        evidence, '{"currentTime":"2026-11-21T01:36:40Z","nodeEligible":true,"healthy":false}'
    )


@trips(
    "KP-03 warn",
    words=("kube-proxy pod", "within the last 3600 s", "kube-proxy-2: 1 restarts, the last 600 s"),
)
def the_container_was_restarted(evidence: Evidence) -> Evidence:
    return restarted(evidence, 600.0)


@trips("KP-03 fail", words=("kube-proxy log", "Failed to sync endpoint", "/healthz stays 200"))
def a_sync_failed_lately(evidence: Evidence) -> Evidence:
    return details(evidence, proxy_log=(LOG,))


@trips("KP-03 fail", words=("kube-proxy log", "1 lines, the last: {", "iptables-restore"))
def a_sync_failed_lately_by_a_log_in_json(evidence: Evidence) -> Evidence:
    return details(evidence, proxy_log=(JSON_LOG,))


@trips(
    "KP-04",
    words=("sync duration, 99th percentile (IPv4)", "more than 16 s", "above 16.384 s"),
)
def syncs_are_slow(evidence: Evidence) -> Evidence:
    return measured(
        evidence,
        lambda _: {f'{SYNC}duration_seconds_bucket{{ip_family="IPv4",le="+Inf"}}': 120.0},
    )


@trips(
    "KP-04", words=("changes that wait for a sync (IPv4)", "longer than 60 s", "queued 90 s ago")
)
def a_change_waits(evidence: Evidence) -> Evidence:
    return measured(evidence, lambda now: {LAST: now - 200.0, QUEUED: now - 90.0})


@trips("KP-04", words=("age of the last sync (IPv4)", "more than 60 s", "90 s"))
def the_last_sync_is_old(evidence: Evidence) -> Evidence:
    return measured(evidence, lambda now: {LAST: now - 90.0, QUEUED: now - 900.0})


@trips("KP-05", words=("iptables-restore", "2 failures in 360 s"))
def restores_fail(evidence: Evidence) -> Evidence:
    return measured(evidence, lambda _: {FAILURES: 2.0})


@trips("KP-06", words=("v1.36.1", "v1.36.2, as in most of pool workers", "rollout status"))
def a_node_was_left_out_of_the_upgrade(evidence: Evidence) -> Evidence:
    return on_node(evidence, proxy(version="v1.36.1"))


@trips("KP-07 warn", words=("clusterCIDR", "not set", "detectLocalMode is ClusterCIDR"))
def no_cluster_cidr_although_it_was_chosen_to_tell(evidence: Evidence) -> Evidence:
    return _without_cluster_cidr(evidence, {"detectLocalMode": "ClusterCIDR"})


@trips("KP-07 info", words=("clusterCIDR", "not set", "detectLocalMode is ClusterCIDR"))
def no_cluster_cidr_as_on_stock_eks(evidence: Evidence) -> Evidence:
    return _without_cluster_cidr(evidence, {"detectLocalMode": ""})


def _without_cluster_cidr(evidence: Evidence, more: Mapping[str, str]) -> Evidence:
    # Its ConfigMap has none either, so that nothing waits for a restart; node-1 has a flag for it.
    maps = {"kube-system/kube-proxy": {"mode": "ipvs", **more}}
    plain = rule("-m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ")
    unmarked = chain_changed(
        "nat",
        "KUBE-SERVICES",
        lambda old: tuple(plain if "10.244.0.0/16" in str(one) else one for one in old),
    )
    flags = ("kube-proxy", "--config=/c", "--cluster-cidr=10.244.0.0/16")
    evidence = details(evidence, "node-1", proxy_command=flags)
    return configured(
        objects(unmarked(evidence), ProxyObjects(config_maps=maps)),
        {"clusterCIDR": "", "detectLocalMode": "ClusterCIDR"},
    )


@trips("KP-08", words=("IPVS timeout tcp", "900 s", "1800 s, of ipvs.tcpTimeout", "--set 1800 0 0"))
def other_ipvs_timeouts(evidence: Evidence) -> Evidence:
    timeouts = {"ipvs": {"tcpTimeout": "30m0s", "udpTimeout": "0s"}}
    return configured(mapped(evidence, timeouts), timeouts)


@trips("KP-09 fail", words=(MAX, "262144", "1048576", "the policy file says so"))
def another_conntrack_table_than_the_policy_says(evidence: Evidence) -> Evidence:
    evidence = sysctl(evidence, {MAX: "1048576"}, "node-1")
    # Four entries per bucket, as CP-02 wants it.
    evidence = sysctl(evidence, {"net.netfilter.nf_conntrack_buckets": "262144"}, "node-1")
    return replace(evidence, policy=replace(evidence.policy, sysctls={MAX: ("1048576",)}))


@trips("KP-09", words=(MAX, "131072", "at least 262144", f"sysctl -w {MAX}=262144"))
def a_smaller_conntrack_table(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {MAX: "131072"})
