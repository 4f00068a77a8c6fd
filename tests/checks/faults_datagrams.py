"""CT-08: what conntrack sends to UDP endpoints that are gone."""

from __future__ import annotations

from evidence_builder import DNS, WEB, details
from fault_registry import passes, trips
from faults_tables import with_dns

from pytest_ipvs.checks.model import Evidence


@trips(
    "CT-08",
    given=with_dns,
    words=("UDP", "7: 7 to 10.244.9.9 for 10.96.0.53 (demo/dns)", "conntrack -D -p udp"),
)
def datagrams_go_to_a_dead_pod(evidence: Evidence) -> Evidence:
    return details(evidence, udp_sent={(DNS.address, "10.244.9.9"): 7})


@passes("CT-08")
def datagrams_go_to_endpoints_and_elsewhere(evidence: Evidence) -> Evidence:
    evidence = with_dns(evidence)
    sent = {
        (DNS.address, "10.244.1.2"): 900,
        # A Service of TCP, a host outside of the cluster, a node.
        (WEB.address, "10.244.9.9"): 3,
        ("203.0.113.9", "198.51.100.7"): 3,
        ("192.168.1.2", "10.244.9.9"): 3,
    }
    return details(evidence, udp_sent=sent)
