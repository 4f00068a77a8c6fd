"""SIGTERM, which a cancelled job gets, ends a run as Ctrl-C does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

Run = Callable[..., pytest.RunResult]

SOURCE = """
import os, pathlib, signal

import pytest


@pytest.fixture
def made():
    yield
    pathlib.Path("cleaned").touch()


def test_it(made):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_sigterm_cleans_up(cluster_run: Run, pytester: pytest.Pytester) -> None:
    result = cluster_run(SOURCE, subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert Path(pytester.path, "cleaned").exists()


def test_a_handler_of_somebody_else_stays(cluster_run: Run) -> None:
    source = """
    import signal

    def test_it():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    """
    conftest = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    cluster_run(source, subprocess=True, conftest=conftest).assert_outcomes(passed=1)
