"""CT: NAT rules and conntrack are what kube-proxy in IPVS mode relies on."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("CT")
def test_conntrack_nat(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
