"""Disruptions as tests use them, and what the final table says of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ipvs.checks import CATALOGUE

Run = Callable[..., pytest.RunResult]
ALLOWED = "--ipvs-allow-disruption"
READY_MADE = ("--pyargs", "pytest_ipvs.conformance", "-k", "data_path", ALLOWED)
DATA_PATH = (*READY_MADE, "--ipvs-checks", "DP,PS,DP-12,DP-13")
DATA_CHECKS = [check.id for check in CATALOGUE.values() if check.data_path]
PATHS = sum(check.judges_paths for check in CATALOGUE.values())
# Checks of what was read, and whether every node answers.
OTHERS = sum(not check.data_path for check in CATALOGUE.values()) + 1


def rolled(**client: object) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in client.items())
    return f"from rollout_fakes import *\ninstall_rollouts({arguments})\n"


def test_healthy_data_path(cluster_run: Run) -> None:
    result = cluster_run("", *DATA_PATH, conftest=rolled())
    # There is neither a load balancer nor a kube-proxy that is a pod.
    result.assert_outcomes(passed=len(DATA_CHECKS) - 2, skipped=2, deselected=OTHERS)
    result.stdout.fnmatch_lines(
        [
            "ipvs: pytest-ipvs-*/web: restart",
            "DP-01  passed*",
            "DP-04  passed*",
            "DP-02  passed *node-port@local was not tried: --ipvs-connect has no {internal_ip}",
            "DP-03  not applicable *no load balancer was named with --ipvs-load-balancer",
            "DP-12  passed*",
            "DP-13  not applicable *kube-proxy on node-1 is no pod of namespace kube-system",
            "PS-03  passed*",
            "rollout *verdict *connections *failed *re-used *slow *new pods *drained",
            "pytest-ipvs-*/web  passed *2,000 *0 *1,600 *0 *99%*",
            "  pytest-ipvs-*/web: failure rate below 0.17% (95 % bound); client's clock *",
        ]
    )


@pytest.mark.parametrize(
    ("closed", "verdict"),
    [(("node-port@local",), "passed"), (("node-port",), "not measured"), (("",), "passed")],
)
def test_a_node_port_is_measured_from_inside_at_least(
    cluster_run: Run, closed: tuple[str, ...], verdict: str
) -> None:
    words = ("--ipvs-checks", "DP-02", "--ipvs-connect", "ssh://root@{internal_ip}")
    conftest = rolled() + f"FakeRollout.closed = {closed!r}\n"
    result = cluster_run("", *READY_MADE, *words, conftest=conftest)
    result.assert_outcomes(
        passed=verdict == "passed", failed=verdict != "passed", deselected=len(CATALOGUE)
    )
    told = f" *{closed[0]} was not measured: no connection succeeded*" if closed[0] else ""
    result.stdout.fnmatch_lines([f"DP-02  {verdict}{told}"])


def test_one_restart_serves_two_checks_and_workloads_go(cluster_run: Run) -> None:
    result = cluster_run(
        "",
        *DATA_PATH,
        conftest=rolled()
        + """
def pytest_sessionfinish():
    print("made", len(FakeRollout.made), "alive", sorted(FakeWorkload.alive))
""",
    )
    result.stdout.fnmatch_lines(["*made 7 alive []*"])


def test_failed_connections_are_explained(cluster_run: Run) -> None:
    result = cluster_run(
        "", *DATA_PATH, conftest=rolled(failing={"no_route": 3, "connect_timeout": 9})
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "DP-01: no connection fails during a rolling update",
            "*observed  840 of 2000 failed: 630 connect timeout, 210 no route",
            "*expected  0 failed",
            "*why       840 connections failed (*re-used tuples to a pod *",
            "*example: 10.244.1.250:20007 -> 10.96.0.10:80: *web-old*",
            "DP-01  failed *",
            "pytest-ipvs-*/web  failed *2,000 *840 *",
        ]
    )


def test_resent_syns_are_explained(cluster_run: Run) -> None:
    result = cluster_run("", *DATA_PATH, conftest=rolled(resent=5))
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            "DP-04: no SYN has to be sent twice",
            "*why       350 connects needed a resent SYN*ended with RST*",
            "DP-01  passed*",
            "DP-04  failed*",
        ]
    )


def test_no_power_is_inconclusive_and_fails(cluster_run: Run) -> None:
    result = cluster_run("", *DATA_PATH, "-v", conftest=rolled(reused=0))
    weak = len(DATA_CHECKS) - PATHS - 2
    result.assert_outcomes(failed=weak, passed=PATHS, skipped=2, deselected=OTHERS)
    result.stdout.fnmatch_lines(
        [
            "*test_rolling_restart[[]DP-01] INCONCLUSIVE *",
            "  inconclusive: only 0 re-used tuples *",
            "  failure rate below 0.17% (95 % bound); client's clock *",
            "DP-01  inconclusive *only 0 re-used tuples*",
            f"{len(DATA_CHECKS)} checks: {weak} inconclusive, {PATHS} passed, 2 not applicable",
        ]
    )


def test_rollout_that_can_not_run_is_one_sentence(cluster_run: Run) -> None:
    result = cluster_run("", *DATA_PATH, conftest=rolled(refusal="shop/web has no ready pod"))
    outcomes = result.parseoutcomes()
    assert outcomes["errors"] + outcomes["failed"] == len(DATA_CHECKS) - PATHS - 1
    result.stdout.fnmatch_lines(["shop/web has no ready pod", "DP-01  error *has no ready pod"])
    assert "session.py" not in result.stdout.str()


def test_a_drain_that_is_forbidden_is_not_measured(cluster_run: Run) -> None:
    result = cluster_run(
        "", *READY_MADE, "--ipvs-checks=DP-12", conftest=rolled(forbidden="nodes is forbidden")
    )
    result.assert_outcomes(failed=1, deselected=len(CATALOGUE))
    result.stdout.fnmatch_lines(["DP-12  not measured *nodes is forbidden*"])


def test_what_belongs_to_others_is_disturbed_only_by_name(cluster_run: Run) -> None:
    result = cluster_run("", *READY_MADE, "--ipvs-checks", "DP-1?", conftest=rolled())
    result.assert_outcomes(passed=3, skipped=2, deselected=len(CATALOGUE) - 4)
    result.stdout.fnmatch_lines(["DP-12  not applicable *name DP-12 in --ipvs-checks to run it"])


def test_dead_paths_are_findings(cluster_run: Run) -> None:
    words = ("--ipvs-checks", "DP-08,DP-09,DP-10,DP-11,DP-14")
    result = cluster_run("", *READY_MADE, *words, conftest=rolled(dead=True))
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["passed"]) == (2, 3)
    result.stdout.fnmatch_lines(
        [
            "DP-10: a pod reaches itself through its own cluster IP, and its load balancer's*",
            "*observed  30 of 30 failed: 30 refused",
            "DP-08  passed *a path: 30 of 30 failed: 30 refused",
            "DP-10  failed *a path: 30 of 30 failed: 30 refused",
            "note: DP-08: one source port works *",
            "warning: DP-11: *",
        ]
    )


def test_a_host_port_that_nobody_makes_is_not_applicable(cluster_run: Run) -> None:
    conftest = """
def nobody(*_):
    raise NotPossibleHere("host ports are not implemented")

paths.host_port = nobody
"""
    words = ("--ipvs-checks", "DP-11")
    result = cluster_run("", *READY_MADE, *words, conftest=rolled() + conftest)
    result.assert_outcomes(skipped=1, deselected=len(CATALOGUE))
    result.stdout.fnmatch_lines(["DP-11  not applicable *host ports are not implemented"])


@pytest.mark.parametrize("balancer", ["192.0.2.7", ""])
def test_a_load_balancer_is_judged_where_one_was_asked_for(cluster_run: Run, balancer: str) -> None:
    words = ("--ipvs-checks", "DP-03", "--ipvs-load-balancer", "auto")
    conftest = rolled() + f"FakeWorkload.balancer = {balancer!r}\n"
    result = cluster_run("", *READY_MADE, *words, conftest=conftest)
    result.stdout.fnmatch_lines(
        ["DP-03  passed*" if balancer else "DP-03  not measured *no load balancer gave *"]
    )


def test_own_rollout_and_hook(cluster_run: Run) -> None:
    result = cluster_run(
        """
        from pytest_ipvs.assertions import assert_no_connection_failures

        def test_it(ipvs_rollout):
            with ipvs_rollout("shop/web") as run:
                run.restart()
            assert not run.failures
            assert_no_connection_failures(run)
        """,
        ALLOWED,
        "-s",
        conftest=rolled()
        + """
def pytest_ipvs_rollout_finished(config, target, result):
    print("finished", target, result.verdict)
""",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*finished shop/web passed", "shop/web  passed *"])


def test_error_in_the_block_is_the_tests(cluster_run: Run) -> None:
    result = cluster_run(
        """
        def test_it(ipvs_rollout):
            with ipvs_rollout("shop/web") as run:
                assert 1 == 2
        """,
        ALLOWED,
        conftest=rolled(),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2"])


def test_progress_is_quiet_on_demand(cluster_run: Run) -> None:
    result = cluster_run("", *DATA_PATH, "-q", conftest=rolled())
    result.stdout.no_fnmatch_line("ipvs: pytest-ipvs-*")


def test_own_inconclusive_rollout_has_its_word(cluster_run: Run) -> None:
    result = cluster_run(
        """
        from pytest_ipvs.assertions import assert_no_connection_failures

        def test_it(ipvs_rollout):
            with ipvs_rollout("shop/web") as run:
                run.restart()
            assert_no_connection_failures(run)
        """,
        ALLOWED,
        "-v",
        conftest=rolled(reused=0),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*::test_it INCONCLUSIVE*", "E *inconclusive: only 0 re-used*"])
