"""Runs of pytest on a fake cluster."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from plugin_fakes import FakeCluster
from rollout_fakes import TRIED

from pytest_ipvs.cluster.requests import Requests

HERE = Path(__file__).parent
MODULES = (
    "kubernetes.client",
    "kubernetes.config",
    "pytest_ipvs.active",
    "pytest_ipvs.checks.applicable",
    "pytest_ipvs.policy_file",
    "pytest_ipvs.report.progress",
    "pytest_ipvs.report.rollouts",
)


@pytest.fixture(autouse=True, scope="session")
def _modules() -> None:
    # Inner runs forget what they import: what was there before is not imported anew by each.
    for name in MODULES:
        import_module(name)


@pytest.fixture(autouse=True)
def _only_our_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    # Inner runs load what they need: others' plugins would cost most of the time of each.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_ipvs.plugin")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requests, "pause", staticmethod(lambda seconds: None))


@pytest.fixture
def cluster_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """``cluster_run(test_source, *options, world="silent={…}")`` runs pytest on a fake cluster."""
    from pytest_ipvs import rollout
    from pytest_ipvs.cluster import cluster

    # What a plugin of the inner run puts there must not stay in this process.
    monkeypatch.setattr(cluster, "Cluster", cluster.Cluster)
    monkeypatch.setattr(rollout, "Rollout", rollout.Rollout)
    monkeypatch.setattr(rollout, "Workload", rollout.Workload)
    for module, name in TRIED:
        monkeypatch.setattr(module, name, getattr(module, name))
    for name in ("observe", "snapshot", "world"):
        monkeypatch.setattr(FakeCluster, name, getattr(FakeCluster, name))

    def run(
        source: str,
        *options: str,
        world: str = "",
        subprocess: bool = False,
        conftest: str = "",
        cluster: tuple[str, ...] = ("--ipvs-kubeconfig", "config"),
    ) -> pytest.RunResult:
        # A plugin and not a conftest.py: those are looked for where the tests are, and the
        # ready-made suite is elsewhere.
        pytester.makepyfile(
            the_world=f"import sys\nsys.path.insert(0, {str(HERE)!r})\n"
            f"from plugin_fakes import *\ninstall({world})\n{conftest}"
        )
        pytester.syspathinsert()
        if source:
            pytester.makepyfile(test_it=source)
        arguments: list[Any] = [*cluster, "-p", "no:cacheprovider"]
        arguments += ["-p", "the_world", *options]
        method = pytester.runpytest_subprocess if subprocess else pytester.runpytest_inprocess
        return method(*arguments)

    return run
