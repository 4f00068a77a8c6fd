"""TB: every node's IPVS table is what the API asks for."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("TB")
def test_tables(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
