"""Scripted disruptions under traffic: the recorder, the workload, the verdict and its cause.

Belongs here: changing a cluster on purpose, announced and cleaned up; the timeline of pods,
endpoint slices and tables; the verdict with its numbers and its cause.
Does not belong here: opening connections (``traffic``), reading a node (``cluster``), pytest.
"""

from pytest_ipvs.rollout.affinity import affinity_probe
from pytest_ipvs.rollout.cause import Cause, Diagnosis
from pytest_ipvs.rollout.errors import DisruptionNotAllowed, NotPossibleHere, RolloutError
from pytest_ipvs.rollout.probe import KernelProbe
from pytest_ipvs.rollout.result import NotObservedError, Result, StaleServer
from pytest_ipvs.rollout.run import Rollout
from pytest_ipvs.rollout.scenarios import at_once
from pytest_ipvs.rollout.timeline import Timeline
from pytest_ipvs.rollout.workload import Workload, remove_stale

__all__ = [
    "Cause",
    "Diagnosis",
    "DisruptionNotAllowed",
    "KernelProbe",
    "NotObservedError",
    "NotPossibleHere",
    "Result",
    "Rollout",
    "RolloutError",
    "StaleServer",
    "Timeline",
    "Workload",
    "affinity_probe",
    "at_once",
    "remove_stale",
]
