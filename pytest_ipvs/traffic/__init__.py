"""The short-connection client, the server it talks to, its plan and its results.

Belongs here: ``client.py`` and ``server.py`` (standard library only, one file each, shipped to
where they run), the plan that drives a client, results that merge.
Does not belong here: what happens to the cluster meanwhile (that is ``rollout``), pytest.
"""

from pytest_ipvs.traffic.placement import run_traffic
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import FAILURES, OWN_LIMITS, Move, Results, Sample, Second
from pytest_ipvs.traffic.run import TrafficError, TrafficRun

__all__ = [
    "FAILURES",
    "OWN_LIMITS",
    "Move",
    "Plan",
    "Results",
    "Sample",
    "Second",
    "TrafficError",
    "TrafficRun",
    "run_traffic",
]
