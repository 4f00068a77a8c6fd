"""The hooks that teams may implement, in a conftest.py or in a plugin of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_ipvs.rollout import Result
    from pytest_ipvs.settings import Settings


@pytest.hookspec(firstresult=True)
def pytest_ipvs_settings(config: pytest.Config, settings: Settings) -> Settings | None:
    """Change the resolved settings before a cluster is reached.

    Called once in each process, with what options, environment, ini file and policy file say.
    Return other settings, made with ``settings.replaced``, or ``None`` to leave them alone; the
    first answer wins. Any initial conftest.py file may implement it.

    :param config: pytest's configuration object.
    :param settings: the resolved settings; frozen.

    A team whose CI system leaves one kubeconfig per stage in a directory writes::

        def pytest_ipvs_settings(config, settings):
            stage = os.environ.get("STAGE")
            if stage is None:
                return None
            return settings.replaced("STAGE", kubeconfig=f"/etc/stages/{stage}.kubeconfig")
    """


@pytest.hookspec()
def pytest_ipvs_rollout_finished(config: pytest.Config, target: str, result: Result) -> None:
    """Called after each scripted disruption, whatever its verdict.

    Runs in the process that ran the disruption, so on a worker under pytest-xdist. What it
    returns is ignored; what it raises is an error of the test. Any conftest.py may implement it.

    :param config: pytest's configuration object.
    :param target: the Deployment, as "namespace/name".
    :param result: numbers, timeline and verdict; frozen.

    A team that keeps a history of its releases writes::

        def pytest_ipvs_rollout_finished(config, target, result):
            with open("rollouts.csv", "a") as history:
                history.write(f"{target},{result.verdict}\\n")
    """
