"""Sysctls that a policy names: one check demands each, whether it has a rule of its own or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_builder import (
    SYSCTLS,
    details,
    healthy,
    on_node,
    outcomes,
    proxy,
    sysctl,
    tripped,
    unmeasured,
)
from test_node_checks import interface

from pytest_ipvs.checks import CATALOGUE, Evidence, run_check
from pytest_ipvs.policy import SYSCTL_CHECKS, Policy, sysctl_check

VS = "net.ipv4.vs."
CT = "net.netfilter.nf_conntrack_"
KEYS = [
    *SYSCTLS,
    *(one.replace("*", "eth0") for one in SYSCTL_CHECKS if ".conf." in one and "*" in one),
    *(one for one in SYSCTL_CHECKS if "*" not in one and one not in SYSCTLS),
    *(f"{VS}{name}" for name in ("est_cpulist", "est_nice", "cache_bypass", "sync_threshold")),
    *(f"{CT}{name}" for name in ("udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait")),
]
# Only the policy can say what these should be.
WITHOUT_A_RULE = (
    f"{VS}nat_icmp_send",
    f"{VS}contrack",
    f"{VS}est_nice",
    f"{VS}conn_max",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_syn_retries",
    "net.ipv4.tcp_tw_reuse_delay",
    "net.ipv4.conf.eth9.rp_filter",
    "net.ipv4.conf.kube-ipvs0.arp_ignore",
    f"{CT}tcp_be_liberal",
    f"{CT}buckets",
    f"{CT}udp_timeout",
)


def demanding(key: str, value: str = "77") -> Evidence:
    """A healthy cluster under a policy that names a key."""
    return healthy(policy=Policy(sysctls={key: (value,)}))


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_a_value_that_the_policy_does_not_have_trips_one_check(key: str) -> None:
    evidence = demanding(key)
    runs = SYSCTLS.get(key, "1000000")
    for name in ("node-1", "node-2"):
        evidence = sysctl(evidence, {key: runs}, name)
    check = sysctl_check(key)
    assert (tripped(evidence), unmeasured(evidence)) == ({check: {"fail"}}, {})
    assert "sysctls" in CATALOGUE[str(check)].needs
    for finding in outcomes(evidence)[str(check)].findings:
        assert (finding.object, finding.expected) == (key, "77")
        assert finding.observed == " ".join(runs.split())


@pytest.mark.parametrize("key", WITHOUT_A_RULE)
def test_a_key_that_a_node_lacks_is_not_measured(key: str) -> None:
    evidence = sysctl(demanding(key, "65536"), {key: "65536"}, "node-1")
    evidence = sysctl(evidence, {key: None})
    assert (tripped(evidence), unmeasured(evidence)) == ({}, {sysctl_check(key): {key}})
    (lack,) = outcomes(evidence)[str(sysctl_check(key))].not_measured
    assert (lack.node, lack.reason.startswith("it does not exist on the node: ")) == (
        "node-2",
        True,
    )
    unread = on_node(evidence, lambda old: replace(old, unread={key: "permission denied"}))
    (lack,) = outcomes(replace(unread))[str(sysctl_check(key))].not_measured
    assert lack.reason == "permission denied"


@pytest.mark.parametrize("key", WITHOUT_A_RULE)
def test_a_policy_may_want_a_key_to_be_absent_or_not_judged(key: str) -> None:
    for accepted in (("65536", "absent"), None):
        evidence = healthy(policy=Policy(sysctls={key: accepted}))
        evidence = sysctl(evidence, {key: "65536"}, "node-1")
        evidence = sysctl(evidence, {key: None})
        # Nodes that differ are told by SY-06 only where the policy does not name the key.
        assert (tripped(evidence), unmeasured(evidence)) == ({}, {})


def test_a_bridge_s_setting_is_demanded_where_no_pod_hangs_on_a_bridge() -> None:
    key = "net.bridge.bridge-nf-call-iptables"
    found = run_check("SY-10", interface("cali1234", "169.254.1.1")(demanding(key, "1")))
    assert [(one.node, one.fact) for one in found.not_measured] == [("node-2", key)]


def test_a_keepalive_is_demanded_beside_a_longest_silence() -> None:
    key = "net.ipv4.tcp_keepalive_time"
    evidence = healthy(policy=Policy(sysctls={key: ("60",)}, thresholds={"idle_connection": 30}))
    assert tripped(evidence) == {"CP-05": {"fail"}}


def test_a_demand_does_not_wait_for_what_the_check_s_own_rule_lacks() -> None:
    evidence = on_node(demanding(f"{VS}conn_max"), lambda old: replace(old, table=None))
    evidence = sysctl(evidence, {f"{VS}conn_max": "5"})
    assert [one.node for one in outcomes(evidence)["CP-03"].findings] == ["node-2"]
    evidence = on_node(demanding(f"{CT}max"), proxy(config=None))
    evidence = replace(
        evidence, snapshots=tuple(replace(one, proxy_objects=None) for one in evidence.snapshots)
    )
    evidence = details(evidence, proxy_command=None)
    assert [one.node for one in outcomes(evidence)["KP-09"].findings] == ["node-1", "node-2"]
