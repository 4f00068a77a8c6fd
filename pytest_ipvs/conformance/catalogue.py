"""The checks of the catalogue as parameters of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_ipvs.checks import CATALOGUE


def parameter(check: str, *more: object) -> Any:
    """One check as a parameter that --ipvs-checks, -m, -k and the final table know.

    ``more`` are the values of further parameters.
    """
    marks = (pytest.mark.ipvs_check(check), pytest.mark.ipvs_group(name=CATALOGUE[check].group))
    return pytest.param(check, *more, id=check, marks=marks)


def checks_of(group: str) -> Callable[[Callable[..., None]], Any]:
    """Run a test once for each check of a group that only reads, in the order of the catalogue.

    Without such a check there is no test: pytest would show an empty list as a skipped one.
    """
    found = [
        parameter(check.id)
        for check in CATALOGUE.values()
        if check.group == group and not check.data_path
    ]
    return pytest.mark.parametrize("check", found) if found else lambda _: None
