"""Faults of what traffic met: a rollout's result, or single paths."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fault_registry import spoils
from rollout_result import SYSCTLS, Paths, Result

from pytest_ipvs.rollout import KernelProbe


@dataclass(frozen=True, kw_only=True)
class Server:
    """A real server in some node's table."""

    node: str = "node-2"

    def __str__(self) -> str:
        return "10.96.0.10:80/TCP -> 10.244.1.5:8080"


# All of them judge failed connections, each of a rollout of its own.
@spoils(
    "DP-01",
    "DP-02",
    "DP-03",
    "DP-05",
    "DP-07",
    "DP-12",
    "DP-13",
    "PS-02",
    words=("686 of 3600 failed: 512 connect timeout, 174 no route", "0 failed", "node-2 …"),
)
def failed_connections(result: Result) -> Result:
    lost = {"no_route": 174, "connect_timeout": 512, "ok": 0}
    return replace(result, failures=lost, cause="node-2 …")


@spoils("DP-04", words=("280 of 3600 needed a resent SYN (77.8 in a thousand)", "RST"))
def many_resent_syns(result: Result) -> Result:
    return replace(result, resent=280)


@spoils("DP-04 warn", words=("2 of 3600",))
def few_resent_syns(result: Result) -> Result:
    return replace(result, resent=2)


@spoils("DP-06", words=("11 % of connections", "at least 16 % (fair: 33 %)", "conn_reuse_mode=1"))
def new_pods_that_starve(result: Result) -> Result:
    return replace(result, share_of_new_pods=0.11)


@spoils("DP-05", words=("133 answers by the pod that had left", "fix d is missing", "5.10.83"))
def the_pod_that_left_answers(result: Result) -> Result:
    probe = KernelProbe(pod="web-1", exposed=400, old_answers=133, sysctls=SYSCTLS, fix_d=False)
    return replace(result, probe=probe)


@spoils("DP-05", words=("390 needed a resent SYN", "fix b is missing"))
def each_reused_tuple_needs_a_second_syn(result: Result) -> Result:
    probe = KernelProbe(pod="web-1", exposed=4, resent=390, sysctls={}, fix_b=False)
    return replace(result, probe=probe)


@spoils("DP-13", words=("weight 0 after the restart", "weight 1", "TB-05"))
def wanted_real_servers_stay_at_weight_0(result: Result) -> Result:
    return replace(result, wanted_at_zero=(Server(), Server()))


@spoils("PS-03 warn", words=("2 pods answered (100, 99 answers)", "1 pod", "PS-01"))
def an_affine_client_changes_its_pod(result: Result) -> Result:
    return replace(result, pods_before={"web-1": 100, "web-2": 99, "web-3": 0})


# All of them judge paths, each those that it tries itself.
@spoils(
    *("DP-08", "DP-09", "DP-10", "DP-11", "DP-14"),
    words=("20 of 30 failed: 15 timed out, 5 refused", "0 failed", "a pod to itself"),
)
def a_path_is_dead(paths: Paths) -> Paths:
    return (replace(paths[0], failed={"refused": 5, "timed out": 15}), *paths[1:])


@spoils(*("DP-08 info", "DP-09 warn", "DP-10 warn", "DP-11 warn", "DP-14 warn"))
def one_connection_of_a_path_fails(paths: Paths) -> Paths:
    return (replace(paths[0], failed={"with a resent SYN": 1}), *paths[1:])
