"""What a run with a cluster does: header, nodes, markers, one error for a silent node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]


def test_header_names_the_cluster_and_hides_credentials(cluster_run: Run) -> None:
    result = cluster_run("def test_it(): pass", world="kernels={'node-2': '5.10.0-32'}")
    result.stdout.fnmatch_lines(
        [
            "ipvs: cluster staging (https://10.0.0.1:6443/path), v1.36.2",
            "ipvs: 3 nodes: node-1, node-2, node-3",
            "ipvs: kube-proxy v1.36.2, mode ipvs",
            "ipvs: kernel 5.10.0-32 on node-2; 6.1.0-56-amd64 on 2 nodes (node-1, node-3)",
        ]
    )
    assert "secret" not in result.stdout.str() + result.stderr.str()


def test_ipvs_node_runs_once_per_node_sorted(cluster_run: Run) -> None:
    result = cluster_run(
        "def test_it(ipvs_node): assert ipvs_node.name", "-v", world="names=('b', 'c', 'a')"
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_it[[]a]*", "*test_it[[]b]*", "*test_it[[]c]*"])


def test_markers_choose_nodes(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.ipvs_nodes(role="worker")
        def test_one(ipvs_node): assert ipvs_node.name == "node-2"

        @pytest.mark.ipvs_nodes(names=["node-3", "node-1"])
        def test_all(ipvs_nodes): assert [n.name for n in ipvs_nodes] == ["node-1", "node-3"]

        @pytest.mark.ipvs_nodes(role="edge")
        def test_none(ipvs_node): assert False

        @pytest.mark.ipvs_nodes(role="edge")
        def test_none_of_all(ipvs_nodes): assert False
        """,
        "-rs",
        world="labels={'node-2': {'node-role.kubernetes.io/worker': ''}}",
    )
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["*none of the 3 nodes matches ipvs_nodes(role='edge')"])


def test_other_fixtures(cluster_run: Run) -> None:
    cluster_run(
        """
        def test_it(ipvs_cluster, ipvs_api, ipvs_policy):
            assert ipvs_cluster.api.client is ipvs_api
            assert ipvs_policy.drain_budget == 77
        """,
        "--ipvs-drain-budget",
        "77",
    ).assert_outcomes(passed=1)


SILENT = "silent={'node-2': 'no answer within 20 s'}"


def test_silent_node_is_one_error(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.parametrize("number", range(5))
        def test_each(ipvs_node, number): pass

        def test_all(ipvs_nodes): pass

        @pytest.mark.ipvs_nodes(names="node-1")
        def test_other(ipvs_nodes): pass
        """,
        "-rs",
        world=SILENT,
    )
    result.assert_outcomes(passed=11, errors=1, skipped=5)
    result.stdout.fnmatch_lines(
        [
            "node-2 did not answer: no answer within 20 s",
            "*= ipvs summary =*",
            "node-2 did not answer: no answer within 20 s",
            "SKIPPED * test_it.py:*: not run because node-2 did not answer",
        ]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_silent_node_is_in_the_header(cluster_run: Run) -> None:
    result = cluster_run("def test_it(): pass", world=SILENT)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ipvs: node-2: no answer within 20 s"])


def test_requires(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.ipvs_requires(mode="ipvs", kubernetes=">=1.29", kube_proxy=">=1.22",
                                   kernel=">=5.9", affinity=False, nodes=">=3")
        def test_fits(): pass

        @pytest.mark.ipvs_requires(mode="nftables")
        def test_mode(): pass

        @pytest.mark.ipvs_requires(kubernetes="<1.29")
        def test_kubernetes(): pass

        @pytest.mark.ipvs_requires(affinity=True)
        def test_affinity(): pass

        @pytest.mark.ipvs_requires(nodes=">=4")
        def test_nodes(): pass

        @pytest.mark.ipvs_requires(kernel="<5")
        @pytest.mark.ipvs_nodes(names="node-1")
        def test_kernel(ipvs_node): pass
        """,
        "-rs",
    )
    result.assert_outcomes(passed=1, skipped=5)
    result.stdout.fnmatch_lines_random(
        [
            "*ipvs_requires(mode='nftables'): kube-proxy's mode is ipvs on 3 nodes (*",
            "*ipvs_requires(kubernetes='<1.29'): the API server is v1.36.2",
            "*ipvs_requires(affinity=True): no Service has session affinity",
            "*ipvs_requires(nodes='>=4'): there are 3 nodes",
            "*ipvs_requires(kernel='<5'): the kernel is 6.1.0-56-amd64 on node-1",
        ]
    )


def test_unread_mode_does_not_skip(cluster_run: Run) -> None:
    cluster_run(
        """
        import pytest

        @pytest.mark.ipvs_requires(mode="ipvs")
        def test_it(): pass
        """,
        world="modes={'node-1': None}",
    ).assert_outcomes(passed=1)


def test_sysctl_marker_fails_before_the_body(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        pytestmark = pytest.mark.ipvs_sysctl({"net.ipv4.vs.conntrack": 1})

        def test_all_nodes(): print("the body ran")

        def test_one_node(ipvs_node): pass

        @pytest.mark.ipvs_sysctl({"net.ipv4.vs.conntrack": 0, "net.ipv4.vs.absent": 1})
        @pytest.mark.ipvs_nodes(names="node-2")
        def test_closer_marker_wins(ipvs_node): pass
        """,
        world="sysctls={'node-2': {'net.ipv4.vs.conntrack': '0'}}",
    )
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "node-2: net.ipv4.vs.conntrack is 0, expected 1; *sysctl -w net.ipv4.vs.conntrack=1",
            "node-2: net.ipv4.vs.absent does not exist there, expected 1",
        ]
    )
    assert "the body ran" not in result.stdout.str()


def test_sysctl_marker_needs_its_nodes(cluster_run: Run) -> None:
    result = cluster_run(
        """
        import pytest

        @pytest.mark.ipvs_sysctl({"net.ipv4.vs.conntrack": 1})
        def test_it(): pass
        """,
        world=SILENT,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["node-2 did not answer: *"])


DISRUPTIVE = """
import pytest

@pytest.mark.ipvs_disruptive
def test_marked(): pass

def test_by_fixture(ipvs_rollout): pass
"""


def test_disruption_is_refused(cluster_run: Run) -> None:
    result = cluster_run(DISRUPTIVE, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["test_marked *not measured *needs --ipvs-allow-disruption", "2 checks: 2 not measured"]
    )


def test_disruption_is_allowed(cluster_run: Run) -> None:
    cluster_run(DISRUPTIVE, "--ipvs-allow-disruption").assert_outcomes(passed=2)


def test_settings_hook(cluster_run: Run) -> None:
    result = cluster_run(
        "def test_it(ipvs_cluster): assert ipvs_cluster.settings.jobs == 3",
        conftest="""
def pytest_ipvs_settings(config, settings):
    return settings.replaced("the stage", jobs=3)
""",
    )
    result.assert_outcomes(passed=1)
