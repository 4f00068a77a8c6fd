"""DP and PS under traffic: what disruptions do to short connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ipvs.checker import Checker
from pytest_ipvs.cluster.cluster import Cluster
from pytest_ipvs.conformance.catalogue import parameter
from pytest_ipvs.conformance.conftest import OUTSIDE
from pytest_ipvs.rollout import NotPossibleHere, Result, Rollout, RolloutError, Workload, paths
from pytest_ipvs.rollout.held import held

Paths = tuple[paths.Path, ...]

pytestmark = pytest.mark.ipvs_disruptive


@pytest.mark.parametrize("check", [parameter("DP-01"), parameter("DP-04")])
def test_rolling_restart(ipvs_check: Checker, restarted: Result, check: str) -> None:
    ipvs_check(check, restarted)


@pytest.mark.parametrize("check", [parameter("DP-02")])
def test_node_ports(
    ipvs_check: Checker, restart: Rollout, node_port_ways: tuple[str, ...], check: str
) -> None:
    measured: list[Result] = []
    # Without the nodes' addresses nobody knows how to come from outside.
    untried = f"{OUTSIDE} was not tried: --ipvs-connect has no {{internal_ip}}"
    lacking = {} if OUTSIDE in node_port_ways else {OUTSIDE: untried}
    for way in node_port_ways:
        try:
            measured.append(restart.through(way))
        except RolloutError as error:
            lacking[way] = f"{way} was not measured: {error}"
    beside = "; ".join(lacking.values())
    # What was measured may have a finding, which says more.
    for result in measured:
        ipvs_check(check, result, beside=beside)
    # pytest's machine may rightly reach no node. The client inside always can.
    if not measured or lacking.keys() - {OUTSIDE}:
        ipvs_check.not_run(check, beside)


@pytest.mark.parametrize("check", [parameter("DP-03")])
def test_load_balancer(
    ipvs_check: Checker, request: pytest.FixtureRequest, load_balancer: str | None, check: str
) -> None:
    if not load_balancer:
        ipvs_check.not_applicable(check, "no load balancer was named with --ipvs-load-balancer")
    run: Rollout = request.getfixturevalue("restart")
    if not run.target.balancer:
        ipvs_check.not_run(check, "no load balancer gave the Service an address")
    try:
        result = run.through("load-balancer")
    except RolloutError as error:
        ipvs_check.not_run(check, str(error))
    ipvs_check(check, result)


@pytest.mark.parametrize("check", [parameter("DP-05")])
def test_endpoint_leaves(ipvs_check: Checker, endpoint_left: Result, check: str) -> None:
    ipvs_check(check, endpoint_left)


@pytest.mark.parametrize("check", [parameter("DP-06")])
def test_scale_up(ipvs_check: Checker, scaled_up: Result, check: str) -> None:
    ipvs_check(check, scaled_up)


@pytest.mark.parametrize("check", [parameter("DP-07")])
def test_scale_in(ipvs_check: Checker, scaled_in: Result, check: str) -> None:
    ipvs_check(check, scaled_in)


# These two reach beyond the throw-away namespace: pods of others are evicted, and kube-proxy is
# everybody's. So nobody gets them by asking for disruptions alone.
@pytest.mark.parametrize(
    ("check", "disruption"),
    [parameter("DP-12", "drained"), parameter("DP-13", "proxy_restarted")],
)
def test_shared(
    ipvs_check: Checker, request: pytest.FixtureRequest, check: str, disruption: str
) -> None:
    ipvs_check.needs_its_name(check)
    judge_shared(ipvs_check, check, request.getfixturevalue(disruption))


def judge_shared(ipvs_check: Checker, check: str, outcome: Result | Exception) -> None:
    """Judge what a shared disruption did, or skip: no place for it, or no permission."""
    if isinstance(outcome, NotPossibleHere):
        ipvs_check.not_applicable(check, str(outcome))
    if isinstance(outcome, Exception):
        ipvs_check.not_run(check, str(outcome))
    ipvs_check(check, outcome)


@pytest.mark.parametrize("check", [parameter("PS-02"), parameter("PS-03")])
def test_affine_client(ipvs_check: Checker, affine_pod_deleted: Result, check: str) -> None:
    ipvs_check(check, affine_pod_deleted)


@pytest.mark.parametrize(
    ("check", "try_paths"),
    [
        parameter("DP-08", paths.same_port),
        parameter("DP-09", paths.cross_node),
        parameter("DP-10", paths.own_addresses),
    ],
)
def test_paths(
    ipvs_check: Checker,
    ipvs_cluster: Cluster,
    callers: Workload,
    check: str,
    try_paths: Callable[[Cluster, Workload], Paths],
) -> None:
    judge_paths(ipvs_check, check, lambda: try_paths(ipvs_cluster, callers))


@pytest.mark.parametrize("check", [parameter("DP-11")])
def test_host_port(
    ipvs_check: Checker,
    ipvs_cluster: Cluster,
    ipvs_workload: Callable[..., Workload],
    callers: Workload,
    check: str,
) -> None:
    exposed = ipvs_workload(replicas=1, host_port=True)
    judge_paths(ipvs_check, check, lambda: paths.host_port(ipvs_cluster, callers, exposed))
    exposed.remove()


@pytest.mark.parametrize("check", [parameter("DP-14")])
def test_held_connections(
    ipvs_check: Checker,
    ipvs_cluster: Cluster,
    ipvs_workload: Callable[..., Workload],
    check: str,
) -> None:
    # The pods serve until they are killed: what ends earlier was not their doing.
    workload = ipvs_workload(replicas=3, pre_stop=2, grace=12, env={"DRAIN_SECONDS": "-1"})
    judge_paths(ipvs_check, check, lambda: held(ipvs_cluster, workload))
    workload.remove()


def judge_paths(ipvs_check: Checker, check: str, try_paths: Callable[[], Paths]) -> None:
    """Try paths and judge them, or skip where this cluster has no place for them."""
    try:
        tried = try_paths()
    except NotPossibleHere as error:
        ipvs_check.not_applicable(check, str(error))
    ipvs_check(check, tried)
