"""What is not said in kube-proxy's configuration: keys taken out of it, and one that is unread."""

from __future__ import annotations

from typing import Any

import pytest
from evidence_builder import configured, details, healthy, proxy_objects, tripped, unmeasured
from faults_proxy import LAST, QUEUED
from proxy_builder import mapped, measured, objects, proxied
from test_node_checks import interface

from pytest_ipvs.checks import Evidence, run_check
from pytest_ipvs.cluster.model import ProxyObjects

TAKEN_OUT: dict[str, Any] = {
    "ipvs": {
        "scheduler": "lc",
        "strictARP": True,
        "excludeCIDRs": ["10.0.0.0/8"],
        "tcpTimeout": "15m0s",
        "syncPeriod": "1m0s",
    },
    "nodePortAddresses": ["10.0.0.0/8"],
    "iptables": {"masqueradeAll": True},
}
PATHS = [
    "ipvs.scheduler",
    "ipvs.excludeCIDRs",
    "ipvs.syncPeriod",
    "ipvs.tcpTimeout",
    "nodePortAddresses",
    "ipvs.strictARP",
    "iptables.masqueradeAll",
]


def running(evidence: Evidence) -> list[str]:
    found = run_check("KP-02", configured(evidence, TAKEN_OUT))
    assert not found.not_measured
    return [finding.object for finding in found.findings]


def test_keys_that_were_taken_out_of_the_config_map_still_run() -> None:
    assert running(healthy()) == PATHS
    # A section that is there, and one without a value, say no more than one that is not.
    assert running(mapped(healthy(), {"ipvs": {}, "iptables": None})) == PATHS
    nothing = {"ipvs": {"scheduler": "", "strictARP": None, "syncPeriod": "0s"}}
    assert sorted(running(mapped(healthy(), nothing))) == sorted(PATHS)


def test_defaults_that_run_are_no_change() -> None:
    evidence = configured(
        healthy(),
        {
            "ipvs": {"scheduler": "rr", "strictARP": False, "excludeCIDRs": [], "udpTimeout": "0s"},
            "iptables": {"masqueradeAll": False, "masqueradeBit": 14},
            "nodePortAddresses": None,
            "conntrack": {"maxPerCore": 32768, "min": 131072},
        },
    )
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {})


def test_what_a_flag_sets_or_may_set_was_not_taken_out_of_a_file() -> None:
    flags = ("kube-proxy", "--config=/c", "--ipvs-scheduler=lc", "--ipvs-sync-period=$(PERIOD)")
    assert running(details(healthy(), proxy_command=flags)) == [
        path for path in PATHS if path not in ("ipvs.scheduler", "ipvs.syncPeriod")
    ]
    no_file = ("kube-proxy", "--proxy-mode=ipvs")
    assert running(details(healthy(), proxy_command=no_file)) == []
    # Nobody knows whether it reads the file of the ConfigMap.
    assert running(details(healthy(), proxy_command=None)) == []


def without_configuration(evidence: Evidence) -> Evidence:
    evidence = details(proxied(evidence, config=None), proxy_command=None)
    return objects(evidence, ProxyObjects(pods=proxy_objects().pods))


@pytest.mark.parametrize(("age", "lacks"), [(55.0, False), (90.0, True), (9000.0, True)])
def test_how_old_a_sync_may_be_is_not_guessed(age: float, lacks: bool) -> None:
    evidence = measured(healthy(), lambda now: {LAST: now - age, QUEUED: now - age - 800.0})
    found = run_check("KP-04", without_configuration(evidence))
    assert found.findings == ()
    assert [one.fact for one in found.not_measured] == (["proxy.config"] if lacks else [])


def test_a_sync_period_that_a_variable_sets_is_not_guessed() -> None:
    evidence = measured(healthy(), lambda now: {LAST: now - 90.0, QUEUED: now - 900.0})
    flags = ("kube-proxy", "--ipvs-sync-period=$(PERIOD)")
    evidence = details(without_configuration(evidence), proxy_command=flags)
    (lack,) = run_check("KP-04", evidence).not_measured
    assert lack.reason == ("ipvs.syncPeriod is set to a value that the command line does not show")


def test_a_change_that_waits_needs_no_configuration_to_be_told() -> None:
    evidence = measured(healthy(), lambda now: {LAST: now - 200.0, QUEUED: now - 90.0})
    assert run_check("KP-04", without_configuration(evidence)).findings


def test_a_bridge_that_only_the_configuration_names_is_not_guessed() -> None:
    evidence = interface("br-pods", "10.244.2.1")(healthy())
    found = run_check("SY-10", evidence)
    assert (found.findings, found.not_measured) == ((), ())
    (lack,) = run_check("SY-10", without_configuration(evidence)).not_measured
    assert (lack.node, lack.fact) == ("node-2", "proxy.config")
    # Another way to tell local traffic needs no bridge.
    named = {"detectLocalMode": "ClusterCIDR", "detectLocal": {"bridgeInterface": "br-pods"}}
    assert not run_check("SY-10", configured(evidence, named)).findings
