"""CP: tables of the kernel have room left."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("CP")
def test_capacity(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
