"""What every test of this repository shares."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

pytest_plugins = ["pytester"]
# A busy machine makes any example slow, which says nothing about what is tested.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
PACED = re.compile(r"(?:.*/)?lab/test_lab_(?!life|nested|cluster|faults|reading)")
# Where the lab's tests find what lives there, and what was built before.
KEPT = ("PYTEST_IPVS_LAB_DIR", "PYTEST_IPVS_CACHE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup``: what measures traffic goes to one worker, other files to any.

    The mark ``xdist_group`` would do, but xdist 3.8 loses it on pytest 9.2.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "paced" if PACED.match(nodeid) else nodeid.partition("::")[0]

    return Grouped(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the lab's machine is tried up to three times: see docs/decisions/0065."""
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture
def paced(request: pytest.FixtureRequest) -> bool:
    """Whether the test measures traffic, for which its lab must keep the pace."""
    return PACED.match(request.node.nodeid) is not None


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    # A developer's own PYTEST_IPVS_* or kubeconfig must not decide what the tests see.
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in os.environ:
            if name == "KUBECONFIG" or (name.startswith("PYTEST_IPVS_") and name not in KEPT):
                monkeypatch.delenv(name)
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what lives as long as the session anyway."""
    gc.freeze()
