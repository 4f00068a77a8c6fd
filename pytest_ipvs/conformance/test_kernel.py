"""KM: kernels have what IPVS mode relies on."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("KM")
def test_kernel(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
