"""SY: sysctls are what this kernel and this kube-proxy need."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("SY")
def test_sysctls(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
