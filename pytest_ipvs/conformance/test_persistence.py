"""PS: session affinity is programmed as the Services ask."""

from __future__ import annotations

from pytest_ipvs.checker import Checker
from pytest_ipvs.conformance.catalogue import checks_of


@checks_of("PS")
def test_persistence(ipvs_check: Checker, check: str) -> None:
    ipvs_check(check)
