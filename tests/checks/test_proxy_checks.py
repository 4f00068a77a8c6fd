"""KP checks beside their plain faults: what is right on purpose, and what can't be judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from evidence_builder import (
    CONNTRACK_SYSCTLS,
    NODE_CLOCK,
    PROXY_CONFIG,
    WEB,
    configured,
    details,
    healthy,
    on_node,
    proxy_objects,
    sysctl,
    tripped,
    unmeasured,
    virtual,
)
from faults_proxy import FAILURES, LAST, LOG, MAX, PENDING, QUEUED, SYNC
from proxy_builder import (
    mapped,
    measured,
    objects,
    proxied,
    restarted,
    unhealthy,
)

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects
from pytest_ipvs.cluster.settle import Settling
from pytest_ipvs.ipvs.tables import VirtualServer
from pytest_ipvs.policy import Policy

KUBEADM: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "bindAddress": "0.0.0.0",
    "bindAddressHardFail": False,
    "clientConnection": {"acceptContentTypes": "", "burst": 0, "qps": 0, "kubeconfig": "/k"},
    "configSyncPeriod": "0s",
    "conntrack": {"maxPerCore": None, "min": None, "tcpEstablishedTimeout": None},
    "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""},
    "detectLocalMode": "",
    "enableProfiling": False,
    "healthzBindAddress": "",
    "hostnameOverride": "",
    "iptables": {"masqueradeAll": False, "masqueradeBit": None, "syncPeriod": "30s"},
    "ipvs": {"excludeCIDRs": None, "scheduler": "", "strictARP": False, "syncPeriod": "0s"},
    "logging": {"verbosity": 0},
    "metricsBindAddress": "0.0.0.0",
    "nodePortAddresses": None,
    "oomScoreAdj": None,
    "portRange": "",
    "udpIdleTimeout": "0s",
    "featureGates": {"Some": True},
}
UDP: dict[str, Any] = {"ipvs": {"udpTimeout": "300s"}}
RUNNING: dict[str, Any] = {
    **KUBEADM,
    "clientConnection": {"acceptContentTypes": "", "burst": 10, "qps": 5, "kubeconfig": "/k"},
    "configSyncPeriod": "15m0s",
    "conntrack": {"maxPerCore": 32768, "min": 131072, "tcpEstablishedTimeout": "24h0m0s"},
    "detectLocalMode": "ClusterCIDR",
    "healthzBindAddress": "0.0.0.0:10256",
    "hostnameOverride": "node-2",
    "iptables": {"masqueradeAll": False, "masqueradeBit": 14, "syncPeriod": "0s"},
    "ipvs": {"excludeCIDRs": None, "scheduler": "rr", "strictARP": False, "syncPeriod": "30s"},
    "logging": {"verbosity": 2},
    "metricsBindAddress": "0.0.0.0:10249",
    "oomScoreAdj": -999,
    "udpIdleTimeout": "250ms",
}


def clean(evidence: Evidence) -> bool:
    return (tripped(evidence), unmeasured(evidence)) == ({}, {})


def test_what_kube_proxy_fills_in_is_no_change_of_the_config_map() -> None:
    assert clean(configured(mapped(healthy(), KUBEADM), RUNNING))


@pytest.mark.parametrize(
    ("wanted", "running", "path"),
    [
        ({"ipvs": {"syncPeriod": "1m"}}, {"ipvs": {"syncPeriod": "60s"}}, ""),
        ({"ipvs": {"syncPeriod": "1m"}}, {"ipvs": {"syncPeriod": "30s"}}, "ipvs.syncPeriod"),
        ({"ipvs": {"syncPeriod": "0s"}}, {"ipvs": {"syncPeriod": "1m0s"}}, "ipvs.syncPeriod"),
        ({"ipvs": {"scheduler": "lc"}}, {"ipvs": {"scheduler": "rr"}}, "ipvs.scheduler"),
        (
            {"ipvs": {"excludeCIDRs": None}},
            {"ipvs": {"excludeCIDRs": ["10.9.0.0/16"]}},
            "ipvs.excludeCIDRs",
        ),
        ({"conntrack": {"min": 0}}, {"conntrack": {"min": 131072}}, "conntrack.min"),
        ({"featureGates": {"A": True}}, {"featureGates": {"A": False}}, "featureGates"),
        ({"newInARelease": 1}, {}, ""),
    ],
)
def test_only_what_differs_in_effect_was_not_rolled_out(
    wanted: dict[str, Any], running: dict[str, Any], path: str
) -> None:
    evidence = configured(mapped(healthy(), wanted), running)
    found = run_check("KP-02", evidence)
    assert [finding.object for finding in found.findings] == ([path] if path else [])
    assert not found.not_measured


def test_a_kube_proxy_without_a_config_map_has_nothing_to_roll_out() -> None:
    assert not run_check("KP-02", objects(healthy(), ProxyObjects())).not_measured
    flags = details(
        configured(mapped(healthy(), {"oomScoreAdj": -1}), {"oomScoreAdj": -2}),
        proxy_command=("kube-proxy", "--proxy-mode=ipvs"),
    )
    assert not run_check("KP-02", flags).findings


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (
            lambda e: objects(e, None),
            {"KP-02": {"proxy_objects.config_maps"}, "KP-03": {"proxy_objects.pods"}},
        ),
        (
            lambda e: objects(
                e,
                ProxyObjects(
                    unread={
                        "proxy_objects.pods": "forbidden",
                        "proxy_objects.config_maps": "forbidden",
                    }
                ),
            ),
            {"KP-02": {"proxy_objects.config_maps"}, "KP-03": {"proxy_objects.pods"}},
        ),
        (
            lambda e: proxied(e, metrics={}),
            {"KP-04": {"proxy.metrics"}, "KP-05": {"proxy.metrics"}},
        ),
        (
            lambda e: proxied(e, healthz=None),
            {"KP-03": {"proxy.healthz"}, "KP-04": {"proxy.healthz"}},
        ),
        (lambda e: details(e, cpus=None), {"KP-09": {"details.cpus"}}),
        (lambda e: sysctl(e, {MAX: None}), {"KP-09": {MAX}}),
        (
            lambda e: details(configured(mapped(e, UDP), UDP), ipvs_timeouts=None),
            {check: {"details.ipvs_timeouts"} for check in ("KP-08", "CP-05")},
        ),
        (
            lambda e: replace(e, snapshots=e.snapshots[-1:], baseline=None),
            {check: {"a later reading"} for check in ("KP-05", "CP-01")},
        ),
        (
            lambda e: replace(
                e, snapshots=tuple(replace(one, server_version="?") for one in e.snapshots)
            ),
            {"KP-06": {"api"}},
        ),
        (
            # Neither /configz, nor a ConfigMap, nor a command line: every rule of it is open.
            lambda e: details(
                objects(proxied(e, config=None), replace(proxy_objects(), config_maps={})),
                proxy_command=None,
            ),
            {
                check: {"proxy.config"}
                for check in (
                    "KP-07",
                    "KP-08",
                    "KP-09",
                    "TB-01",
                    "TB-08",
                    "TB-10",
                    "KM-03",
                    "SY-08",
                    "CT-01",
                    "CT-02",
                    "CT-05",
                )
            },
        ),
    ],
)
def test_what_was_not_read_is_never_a_pass(
    change: Callable[[Evidence], Evidence], lacks: dict[str, set[str]]
) -> None:
    evidence = change(healthy())
    assert (tripped(evidence), unmeasured(evidence)) == ({}, lacks)


def test_a_configuration_of_the_config_map_is_judged_like_one_of_configz() -> None:
    def elsewhere(old: NodeFacts) -> NodeFacts:
        return replace(old, proxy=replace(old.proxy, config=None, mode=None, version=None))

    evidence = on_node(healthy(), elsewhere)
    # kube-proxy's health answers, so it is there; the ConfigMap says the rest but for KP-02.
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {"KP-02": {"proxy.config"}})


def test_tables_are_judged_by_the_scheduler_of_the_config_map() -> None:
    evidence = mapped(healthy(), {"ipvs": {"scheduler": "lc"}})
    evidence = proxied(virtual(evidence, WEB, scheduler="lc"), config=None)
    found = run_check("KM-03", evidence)
    assert {finding.observed for finding in found.findings if finding.node == "node-2"} == {"rr"}
    assert not found.not_measured
    assert not any("10.96.0.10" in f.object for f in found.findings if f.node == "node-2")


def test_waiting_for_tables_knows_the_config_map_of_the_first_reading() -> None:
    evidence = mapped(healthy(), {"ipvs": {"scheduler": "lc"}})
    for name in ("node-1", "node-2"):
        evidence = on_node(
            evidence, lambda old: replace(old, proxy=replace(old.proxy, config=None)), name
        )
        for key in {server.key for server in tables_of(evidence, name)}:
            evidence = virtual(evidence, key, name, scheduler="lc")
    first, second = evidence.snapshots
    settling = Settling(Policy())
    assert settling.add(first).equal
    light = {name: replace(one, details=None) for name, one in second.facts.items()}
    assert settling.add(replace(second, proxy_objects=None, facts=light)).equal


def tables_of(evidence: Evidence, name: str) -> tuple[VirtualServer, ...]:
    table = evidence.last.facts[name].table
    return table.virtual_servers if table is not None else ()


@pytest.mark.parametrize(
    ("told", "configz", "health", "words"),
    [
        (None, "iptables", False, "told by /configz"),
        (None, None, True, "told by ConfigMap kube-system/kube-proxy"),
        ("iptables", "ipvs", False, "told by /proxyMode"),
    ],
)
def test_the_best_source_tells_the_mode(
    told: str | None, configz: str | None, health: bool, words: str
) -> None:
    maps = {"kube-system/kube-proxy": {"mode": "iptables"}}
    evidence = objects(healthy(), replace(proxy_objects(), config_maps=maps))
    evidence = proxied(evidence, mode=told, config=configz and {"mode": configz})
    if not health:
        evidence = proxied(evidence, healthz=None)
    (finding,) = run_check("KP-01", evidence).findings
    assert (finding.node, finding.observed, finding.evidence) == ("node-2", "iptables", words)


def test_a_silent_kube_proxy_has_no_mode_whatever_its_config_map_says() -> None:
    evidence = proxied(healthy(), config=None, mode=None, healthz=None)
    assert unmeasured(evidence)["KP-01"] == {"proxy.mode"}


@pytest.mark.parametrize(
    "evidence",
    [
        unhealthy(healthy(), livez=200),
        unhealthy(
            healthy(),
            '{"currentTime": "2026-11-21 01:36:40.5 +0000 UTC m=+2.1","nodeEligible": false}',
            None,
        ),
    ],
    ids=["livez", "body"],
)
def test_a_node_that_is_being_deleted_is_no_fault_of_kube_proxy(evidence: Evidence) -> None:
    (finding,) = run_check("KP-03", evidence).findings
    assert (finding.severity, "being deleted" in finding.reason) == ("info", True)


def test_an_old_release_has_no_livez() -> None:
    evidence = proxied(unhealthy(healthy(), livez=404), version="v1.20.2")
    (finding,) = run_check("KP-03", evidence).findings
    assert (finding.severity, finding.observed) == ("fail", "/healthz answers 503")


def test_health_that_is_switched_off_is_not_asked() -> None:
    evidence = configured(proxied(healthy(), healthz=None), {"healthzBindAddress": ""})
    assert not run_check("KP-03", proxied(evidence, healthz=None)).not_measured


@pytest.mark.parametrize(
    "evidence",
    [
        restarted(healthy(), 4000.0, 9),
        restarted(healthy(policy=Policy(thresholds={"proxy_restarts": 2})), 60.0, 2),
        details(healthy(), proxy_log=(LOG.replace("proxier.go", "server_linux.go"),)),
        details(healthy(), proxy_log=(LOG.replace("E0101", "E1201"),)),
        details(healthy(), proxy_log=("E0101 00:00:00.8 1 proxier.go:9] Can't set sysctl x",)),
    ],
    ids=["long ago", "allowed", "deprecation", "old error", "kernel"],
)
def test_restarts_and_logs_that_are_no_trouble(evidence: Evidence) -> None:
    found = run_check("KP-03", evidence)
    assert (found.findings, found.not_measured) == ((), ())


@pytest.mark.parametrize(
    ("version", "samples", "clean"),
    [
        # A sync an hour ago is right there, and a change that came just now is about to be synced.
        ("v1.34.1", {LAST: -3000.0, QUEUED: -5.0}, True),
        ("v1.35.0", {LAST: -3000.0, QUEUED: -3100.0}, True),
        ("v1.34.1", {LAST: -3000.0, QUEUED: -61.0}, False),
        ("v1.34.4", {LAST: -3000.0, QUEUED: -3100.0}, False),
        ("v1.36.2", {LAST: -55.0, QUEUED: -1.0}, True),
        # No proxier of that family.
        ("v1.36.2", {LAST.replace("4", "6"): 0.0, QUEUED.replace("4", "6"): 0.0}, True),
    ],
)
def test_an_idle_kube_proxy_is_well(version: str, samples: dict[str, float], clean: bool) -> None:
    def at(now: float) -> dict[str, float]:
        return {key: now + value if value else 0.0 for key, value in samples.items()}

    evidence = proxied(measured(healthy(), at), version=version)
    found = run_check("KP-04", evidence)
    assert (not found.findings, found.not_measured) == (clean, ())


def test_without_the_nodes_clock_the_readings_tell_how_long() -> None:
    def stopped(_: float) -> dict[str, float]:
        return {LAST: NODE_CLOCK, QUEUED: NODE_CLOCK - 1.0}

    evidence = proxied(measured(healthy(0.0, 61.0), stopped), healthz=None)
    (finding,) = run_check("KP-04", evidence).findings
    assert finding.object == "kube-proxy age of the last sync (IPv4)"
    near = proxied(measured(healthy(0.0, 59.0), stopped), healthz=None)
    assert {lack.fact for lack in run_check("KP-04", near).not_measured} == {"proxy.healthz"}


def test_changes_that_stay_pending_without_a_sync_wait() -> None:
    def stopped(_: float) -> dict[str, float]:
        return {LAST: NODE_CLOCK, QUEUED: NODE_CLOCK - 9.0, PENDING: 3.0}

    evidence = proxied(measured(healthy(), stopped), version="v1.34.1")
    (finding,) = run_check("KP-04", evidence).findings
    assert (finding.observed, "3 pending" in finding.evidence) == (
        "pending for longer than 60 s",
        True,
    )
    # With a sync in between they are other changes.
    moving = measured(evidence, lambda now: {LAST: now - 20.0})
    assert not run_check("KP-04", proxied(moving, version="v1.34.1")).findings


def test_one_slow_sync_after_a_start_is_no_slow_kube_proxy() -> None:
    def started(_: float) -> dict[str, float]:
        name = f'{SYNC}duration_seconds_bucket{{ip_family="IPv4",le='
        return {f'{name}"0.512"}}': 1.0, f'{name}"16.384"}}': 1.0, f'{name}"+Inf"}}': 2.0}

    assert clean(measured(healthy(), started))


@pytest.mark.parametrize(
    ("before", "after", "count", "failed"),
    [
        (4.0, 4.0, 100.0, ""),
        (4.0, 5.0, 100.0, "1 failures"),
        # A restart began again at 0.
        (4.0, 0.0, 7.0, ""),
        (4.0, 1.0, 100.0, "1 failures"),
        (2.0, 2.0, 7.0, "2 failures"),
    ],
)
def test_failures_of_restores_since_the_run_began(
    before: float, after: float, count: float, failed: str
) -> None:
    evidence = measured(healthy(), lambda _: {FAILURES: before}, first=True)
    evidence = measured(
        evidence,
        lambda _: {FAILURES: after, f'{SYNC}duration_seconds_count{{ip_family="IPv4"}}': count},
    )
    found = run_check("KP-05", evidence)
    assert [f.evidence.startswith(failed) for f in found.findings] == ([True] if failed else [])
    assert not found.not_measured


def test_a_pool_has_a_version_of_its_own() -> None:
    def in_pools(old: Evidence) -> Evidence:
        return replace(
            old,
            snapshots=tuple(
                replace(
                    one,
                    nodes=tuple(
                        replace(node, labels={"eks.amazonaws.com/nodegroup": node.name})
                        for node in one.nodes
                    ),
                )
                for one in old.snapshots
            ),
        )

    assert clean(in_pools(proxied(healthy(), version="v1.36.1")))


@pytest.mark.parametrize(
    ("version", "server", "words"),
    [
        ("v1.24.9", "v1.26.0", ""),
        ("v1.24.9", "v1.27.0", "at most 2 minor"),
        ("v1.25.0", "v1.28.0", ""),
        ("v1.36.9-eks-1", "v1.36.2", ""),
        ("v1.36.2", "v1.35.9", "not newer than the API server, v1.35.9"),
        ("v1.36.2", "v1.40.0", "at most 3 minor"),
    ],
)
def test_the_supported_skew(version: str, server: str, words: str) -> None:
    evidence = healthy()
    for name in ("node-1", "node-2"):
        evidence = on_node(
            evidence, lambda old: replace(old, proxy=replace(old.proxy, version=version)), name
        )
    evidence = replace(
        evidence, snapshots=tuple(replace(one, server_version=server) for one in evidence.snapshots)
    )
    found = run_check("KP-06", evidence).findings
    assert [words in finding.expected for finding in found] == ([True, True] if words else [])


@pytest.mark.parametrize(
    "config",
    [
        {"clusterCIDR": "", "detectLocalMode": "NodeCIDR"},
        {"clusterCIDR": "", "iptables": {"masqueradeAll": True}},
        {
            "clusterCIDR": "",
            "detectLocalMode": "BridgeInterface",
            "detectLocal": {"bridgeInterface": "cni0"},
        },
    ],
)
def test_other_ways_to_tell_local_traffic(config: dict[str, Any]) -> None:
    assert not run_check("KP-07", configured(healthy(), config)).findings


@pytest.mark.parametrize(("policy", "found"), [(2, False), (0, False), (1, True)])
def test_masquerading_by_policy(policy: float, found: bool) -> None:
    evidence = healthy(policy=Policy(thresholds={"masquerade_all": policy}))
    assert bool(run_check("KP-07", evidence).findings) == found


def test_k3s_agents_learn_their_cluster_cidr_from_the_server() -> None:
    evidence = details(
        proxied(healthy(), config=None), proxy_command=("/usr/local/bin/k3s", "agent")
    )
    (lack,) = run_check("KP-07", evidence).not_measured
    assert "clusterCIDR is set to a value that the command line" in lack.reason
    # k3s leaves conntrack alone.
    assert not run_check("KP-09", sysctl(evidence, {MAX: "65536"})).findings


@pytest.mark.parametrize(
    ("config", "values", "trips"),
    [
        ({"conntrack": {"maxPerCore": 0}}, {MAX: "1024"}, set()),
        ({"conntrack": {"maxPerCore": None}}, {MAX: "1024"}, set()),
        ({}, {MAX: "300000"}, set()),
        ({}, {"net.netfilter.nf_conntrack_tcp_timeout_established": "432000"}, {"established"}),
        (
            {"conntrack": {"tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}},
            {"net.netfilter.nf_conntrack_tcp_timeout_established": "432000"},
            set(),
        ),
        (
            {"conntrack": {"tcpBeLiberal": True}},
            {"net.netfilter.nf_conntrack_tcp_be_liberal": "0"},
            {"liberal"},
        ),
    ],
)
def test_only_managed_conntrack_settings_are_judged(
    config: dict[str, Any], values: dict[str, str | None], trips: set[str]
) -> None:
    found = run_check("KP-09", sysctl(configured(healthy(), config), values))
    assert {finding.object.rpartition("_")[2] for finding in found.findings} == trips
    assert not found.not_measured


def test_the_policy_accepts_another_conntrack_value() -> None:
    for accepted in (("131072", "262144"), None):
        policy = Policy(sysctls={MAX: accepted})
        assert clean(sysctl(healthy(policy=policy), {MAX: "131072"}))


def test_the_builder_says_what_kube_proxy_writes() -> None:
    assert set(CONNTRACK_SYSCTLS) >= {MAX}
    assert PROXY_CONFIG["mode"] == "ipvs"
