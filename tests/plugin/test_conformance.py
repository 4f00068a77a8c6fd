"""The ready-made suite: one test per check, its verdicts, its table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.conformance.catalogue import checks_of

Run = Callable[..., pytest.RunResult]
SUITE = ("--pyargs", "pytest_ipvs.conformance")
READING = [check.id for check in CATALOGUE.values() if not check.data_path]
DATA_PATH = [check.id for check in CATALOGUE.values() if check.data_path]


def test_every_check_has_a_test(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "--collect-only", "-q")
    lines = [line for line in result.outlines if "::" in line]
    found = [line.rpartition("[")[2].removesuffix("]") for line in lines if "[" in line]
    assert sorted(found) == sorted(CATALOGUE)
    assert "test_every_node_answers" in lines[0]
    assert all("test_data_path" in line for line in lines[-len(DATA_PATH) :])


def test_healthy_cluster(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE)
    result.assert_outcomes(passed=len(READING) + 1, skipped=len(DATA_PATH))
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*= ipvs summary =*",
            "check  verdict *nodes *note",
            "KP-01  passed *3 of 3",
            "SY-02  passed *3 of 3",
            "DP-01  not measured *needs --ipvs-allow-disruption",
            f"{len(CATALOGUE)} checks: {len(DATA_PATH)} not measured, {len(READING)} passed",
        ]
    )


def test_same_fault_on_many_nodes_is_one_finding(cluster_run: Run) -> None:
    names = tuple(f"node-{n:03}" for n in range(1, 31))
    faults = {name: {"net.ipv4.vs.expire_nodest_conn": "0"} for name in names[:-1]}
    result = cluster_run("", *SUITE, world=f"names={names}, sysctls={faults}")
    result.assert_outcomes(passed=len(READING), failed=1, skipped=len(DATA_PATH))
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "SY-02: *expire_nodest_conn*",
            "  29 nodes (node-001, node-002, node-003, …): net.ipv4.vs.expire_nodest_conn*",
            "    observed  0",
            "    expected  1",
            "    why       *",
            "    remedy    *sysctl -w net.ipv4.vs.expire_nodest_conn=1*",
            "SY-02  failed *30 of 30*29 nodes (*): net.ipv4.vs.expire_nodest_conn*",
        ]
    )


def test_warning_fails_only_strictly(cluster_run: Run) -> None:
    world = "sysctls={'node-1': {'net.ipv4.vs.expire_quiescent_template': '0'}}"
    result = cluster_run("", *SUITE, "-k", "SY-03", world=world)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "SY-03  warned *3 of 3*node-1: net.ipv4.vs.expire_quiescent_template: 0",
            "warning: SY-03:*",
        ]
    )
    strict = cluster_run("", *SUITE, "-k", "SY-03", "--ipvs-strict", world=world)
    strict.assert_outcomes(failed=1)


def test_silent_node_is_one_error_among_all_checks(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "-rs", world="silent={'node-2': 'no route to host'}")
    result.assert_outcomes(errors=1, skipped=len(READING) + len(DATA_PATH))
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_every_node_answers*",
            "node-2 did not answer: no route to host",
            "TB-01  not measured *2 of 3*not run because node-2 did not answer",
            "*not run because node-2 did not answer; nothing found on the others",
        ]
    )


def test_silent_node_is_told_whatever_is_chosen(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "-k", "TB", world="silent={'node-2': 'no route to host'}")
    assert result.ret == 1
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    assert "passed" not in outcomes
    result.stdout.fnmatch_lines(["TB-01  error *2 of 3*node-2 did not answer"])


def test_finding_beside_a_silent_node_still_fails(cluster_run: Run) -> None:
    result = cluster_run(
        "",
        *SUITE,
        world="silent={'node-2': 'no route to host'}, "
        "sysctls={'node-1': {'net.ipv4.vs.conntrack': '0'}}",
    )
    result.assert_outcomes(errors=1, failed=1, skipped=len(READING) - 1 + len(DATA_PATH))
    result.stdout.fnmatch_lines(["SY-04  failed *2 of 3*node-1: net.ipv4.vs.conntrack: 0"])


def test_other_mode_everywhere_is_not_applicable(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "-rs", world="modes=dict.fromkeys(World.names, 'nftables')")
    result.assert_outcomes(failed=1, passed=1, skipped=len(CATALOGUE) - 1)
    result.stdout.fnmatch_lines(
        [
            "KP-01  failed *3 nodes (node-1, node-2, node-3): kube-proxy mode: nftables",
            "TB-01  not applicable *kube-proxy runs in mode nftables on 3 nodes (*), not in mode*",
        ]
    )


def test_no_kube_proxy_is_not_applicable(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "-k", "KP-01 or TB-01", world="without_proxy=True")
    result.assert_outcomes(skipped=2)
    reason = "no kube-proxy runs here: Cilium instead on 3 nodes (*)"
    result.stdout.fnmatch_lines(
        [f"{name}  not applicable *{reason}" for name in ("KP-01", "TB-01")]
    )


NOTHING_KNOWN = """
with_cilium = FakeCluster.snapshot
def snapshot(self, nodes=None, *, details=False):
    told = with_cilium(self, nodes, details=details)
    facts = {n: replace(one, addresses=(("lo", "127.0.0.1"),)) for n, one in told.facts.items()}
    return replace(told, facts=facts)
FakeCluster.snapshot = snapshot
"""


def test_nothing_that_proxies_at_all_is_no_pass(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, world="without_proxy=True", conftest=NOTHING_KNOWN)
    result.assert_outcomes(failed=1, passed=1, skipped=len(CATALOGUE) - 1)
    result.stdout.fnmatch_lines(
        [
            "KP-01  not measured *proxy.mode on 3 nodes (node-1, node-2, node-3)",
            "TB-01  not applicable *no IPVS table, and nothing known instead* on 3 nodes (*",
        ]
    )


def test_fact_that_was_not_read_never_passes(cluster_run: Run) -> None:
    result = cluster_run(
        "",
        *SUITE,
        "-v",
        "-k",
        "KP-01",
        world="modes={'node-3': None}, unread={'node-3': "
        "{'proxy.mode': 'connection refused on 127.0.0.1:10249'}}",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_kube_proxy[[]KP-01[]] NOT MEASURED *",
            "  not measured on node-3: proxy.mode: connection refused on 127.0.0.1:10249",
            "KP-01  not measured  3 of 3  proxy.mode on node-3",
        ]
    )


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("SY-01", ["SY-01"]),
        ("SY", [name for name in CATALOGUE if name.startswith("SY")]),
        ("TB-0[12],KP-01*", ["KP-01", "TB-01", "TB-02"]),
        ("-TB,-DP,-PS,-SY,-CP", [n for n in CATALOGUE if n[:2] in ("KM", "KP", "CT")]),
        ("TB,-TB-03", [n for n in CATALOGUE if n.startswith("TB") and n != "TB-03"]),
    ],
)
def test_chosen_checks(cluster_run: Run, checks: str, expected: list[str]) -> None:
    result = cluster_run("", *SUITE, "--collect-only", "-q", f"--ipvs-checks={checks}")
    found = [n for n in CATALOGUE if any(f"[{n}]" in line for line in result.outlines)]
    assert sorted(found) == sorted(expected)


def test_unknown_check_is_a_usage_error(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "--ipvs-checks", "SY,XX-9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --ipvs-checks has 'XX-9', which matches no check, *"])


def test_unknown_check_in_a_test(cluster_run: Run) -> None:
    result = cluster_run("def test_it(ipvs_check): ipvs_check('XX-1')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["there is no check 'XX-1', expected one of SY-01, *"])


def test_order_does_not_depend_on_the_files(cluster_run: Run) -> None:
    result = cluster_run("", *SUITE, "--collect-only", "-q", "-k", "KP or SY or TB")
    lines = [line for line in result.outlines if "::" in line]
    groups = list(dict.fromkeys(line.rpartition("[")[2][:2] for line in lines))
    assert groups == ["KP", "SY", "TB"]


COUNTED = """
read = FakeCluster.observe

def observe(self, **options):
    print("observed")
    return read(self, **options)

FakeCluster.observe = observe
"""


@pytest.mark.parametrize(("checks", "times"), [("SY,KP", 0), ("SY,TB,PS-01", 1)])
def test_tables_are_read_over_time_once_and_only_if_asked(
    cluster_run: Run, checks: str, times: int
) -> None:
    options = (f"--ipvs-checks={checks}", "-k", "not data_path", "-s")
    result = cluster_run("", *SUITE, *options, conftest=COUNTED)
    assert result.ret == 0
    assert result.stdout.str().count("observed") == times


def test_check_that_runs_twice_has_one_row(cluster_run: Run) -> None:
    result = cluster_run("def test_it(ipvs_check):\n    for _ in range(3): ipvs_check('SY-02')")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 check: 1 passed"])


@pytest.mark.parametrize(
    "options",
    [
        ("-m", "ipvs_group(name='TB')"),
        ("-k", "TB"),
        ("--ipvs-checks", "TB"),
        ("--ipvs-checks", "TB,SY-01,-SY"),
    ],
)
def test_a_group_is_selected_by_marker_keyword_or_option(
    cluster_run: Run, options: tuple[str, ...]
) -> None:
    result = cluster_run("", *SUITE, "--collect-only", "-q", *options)
    found = [line.rpartition("[")[2][:-1] for line in result.outlines if line.endswith("]")]
    assert found == [check.id for check in CATALOGUE.values() if check.group == "TB"]


def test_a_group_without_checks_is_no_test() -> None:
    decorated = checks_of("XX")(lambda: None)
    assert decorated is None
