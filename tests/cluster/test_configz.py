"""kube-proxy's configuration in one spelling, whatever its version prints."""

import json

from pytest_ipvs.cluster.configz import KEY, normalise


def test_recorded_configurations(any_version):
    document = json.loads(any_version["proxy"][":10249/configz"]["body"])
    config = normalise(document)
    assert config["mode"] == "ipvs"
    assert config["hostnameOverride"] == "node-1"
    assert config["ipvs"]["scheduler"] == "rr"
    assert config["ipvs"]["syncPeriod"] == "30s"
    assert config["ipvs"]["tcpFinTimeout"] == "0s"
    assert config["ipvs"]["excludeCIDRs"] is None
    assert config["iptables"]["masqueradeBit"] == 14
    assert config["conntrack"]["tcpCloseWaitTimeout"] == "1h0m0s"
    assert config["nodePortAddresses"] is None
    assert config["oomScoreAdj"] == -999
    assert config["clientConnection"]["qps"] == 5


def test_the_grouping_before_1_36():
    internal = {
        "Mode": "ipvs",
        "FeatureGates": {"KubeProxyIPVS": True},
        "SyncPeriod": "45s",
        "MinSyncPeriod": "2s",
        "Linux": {"Conntrack": {"MaxPerCore": 0}, "MasqueradeAll": True, "OOMScoreAdj": -999},
        "IPTables": {"MasqueradeBit": 14},
        "IPVS": {"Scheduler": "mh", "StrictARP": True},
        "DetectLocal": {"ClusterCIDRs": ["10.0.0.0/8", "fd00::/48"]},
    }
    assert normalise({KEY: internal}) == {
        "mode": "ipvs",
        "featureGates": {"KubeProxyIPVS": True},
        "conntrack": {"maxPerCore": 0},
        "iptables": {"masqueradeBit": 14, "masqueradeAll": True},
        "ipvs": {
            "scheduler": "mh",
            "strictARP": True,
            "syncPeriod": "45s",
            "minSyncPeriod": "2s",
        },
        "detectLocal": {"clusterCIDRs": ["10.0.0.0/8", "fd00::/48"]},
        "clusterCIDR": "10.0.0.0/8,fd00::/48",
    }


def test_something_else_is_no_configuration():
    assert normalise({}) is None
    assert normalise({KEY: "x"}) is None
    assert normalise({KEY: {"IPVS": "x", "Linux": [], "Mode": 3, "SyncPeriod": {}}}) is not None
