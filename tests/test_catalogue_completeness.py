"""Every check of the catalogue is proven: something trips it, alone, and a healthy state passes.

The proofs are the faults of ``tests/checks/fault_registry.py``. ``tests/checks/test_faults.py``
runs them; this module counts them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "checks"))

import fault_registry

from pytest_ipvs.checks import CATALOGUE

fault_registry.load()


@pytest.mark.parametrize("check", [c.id for c in CATALOGUE.values() if not c.data_path])
def test_a_check_of_evidence_has_a_fault_that_trips_it_alone(check: str) -> None:
    alone = [f.name for f in fault_registry.FAULTS.values() if list(f.trips) == [check]]
    assert alone, (
        f"no fault trips {check} alone: add one with @trips({check!r}) to a module faults_*.py "
        "in tests/checks, as fault_registry.py says"
    )


@pytest.mark.parametrize("check", [c.id for c in CATALOGUE.values() if not c.data_path])
def test_a_check_of_evidence_can_say_what_its_severity_promises(check: str) -> None:
    told = {fault.trips.get(check) for fault in fault_registry.FAULTS.values()}
    assert CATALOGUE[check].severity in told, f"no fault trips {check} with its own severity"


@pytest.mark.parametrize("check", [c.id for c in CATALOGUE.values() if c.data_path])
def test_a_check_of_rollouts_has_a_fault_that_trips_it(check: str) -> None:
    named = [f.name for f in fault_registry.ROLLOUT_FAULTS.values() if check in f.trips]
    assert named, f"no rollout's fault trips {check}: add one with @spoils({check!r})"


def test_every_fault_is_one_of_its_registered_kind() -> None:
    for faults, data_path in (
        (fault_registry.FAULTS, False),
        (fault_registry.ROLLOUT_FAULTS, True),
    ):
        for fault in faults.values():
            assert {CATALOGUE[check].data_path for check in fault.trips} == {data_path}, fault.name
