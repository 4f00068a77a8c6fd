"""KUBE-IPVS-IPS as a whole: when it must be there, and which check says that it is not."""

from __future__ import annotations

from dataclasses import replace

from evidence_builder import healthy, on_node, proxy, tripped
from faults_netfilter import the_set_of_addresses_is_gone

from pytest_ipvs.checks import run_check
from pytest_ipvs.cluster.model import NodeFacts

SYNCED = 'kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}'


def test_the_set_of_addresses_is_asked_for_from_1_27_on() -> None:
    for version, found in (("v1.26.9", 0), ("v1.27.0", 1)):
        evidence = on_node(the_set_of_addresses_is_gone(healthy()), proxy(version=version))
        outcome = run_check("TB-09", evidence)
        assert (len(outcome.findings), outcome.not_measured) == (found, ())
        assert run_check("TB-11", evidence).findings == ()


def test_the_set_of_addresses_may_be_on_its_way() -> None:
    evidence = on_node(the_set_of_addresses_is_gone(healthy()), proxy(metrics={SYNCED: 0.0}))
    outcome = run_check("TB-09", evidence)
    assert outcome.findings == ()
    (lack,) = outcome.not_measured
    assert lack.reason.startswith("ipset KUBE-IPVS-IPS: no such set, expected hash:ip")


def test_the_set_of_addresses_of_another_kind_is_told_once() -> None:
    def other(old: NodeFacts) -> NodeFacts:
        assert old.details is not None
        sets = dict(old.details.ipsets or {})
        sets["KUBE-IPVS-IPS"] = replace(sets["KUBE-IPVS-IPS"], kind="hash:net", members=frozenset())
        return replace(old, details=replace(old.details, ipsets=sets))

    evidence = on_node(healthy(), other)
    (finding,) = run_check("TB-09", evidence).findings
    assert (finding.observed, finding.expected) == ("hash:net", "hash:ip")
    assert tripped(evidence) == {"TB-09": {"fail"}}
