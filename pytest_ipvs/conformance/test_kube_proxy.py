"""KP: kube-proxy runs in IPVS mode and is well."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("KP")
def test_kube_proxy(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
