"""The same truth on older and newer kernels: each boots, and treats re-used ports alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from lab_truth import assert_rolling_replacement

from pytest_ipvs.lab.install import find_kernel

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.lab_long]


@pytest.mark.parametrize("series", ["5.10", "6.1", "7.2"])
def test_rolling_replacement_on(
    start_lab: Callable[..., AbstractContextManager[RunningLab]],
    eventually: Callable[..., Any],
    series: str,
) -> None:
    if find_kernel(series) is None:
        pytest.skip(f"run `python -m pytest_ipvs.lab install --kernel {series}` for this kernel")
    with start_lab("kernel", kernel=series) as lab:
        assert lab.handle.kernel.startswith(f"{series}.")
        assert_rolling_replacement(lab, eventually)
