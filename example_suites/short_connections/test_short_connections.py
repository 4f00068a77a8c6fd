"""Short connections: what the kernel does with a re-used port decides about every rollout."""

import pytest

from pytest_ipvs.assertions import (
    assert_no_connection_failures,
    assert_no_stale_real_servers,
    assert_sysctl,
)


def test_kernels_have_the_fixes_that_rollouts_need(ipvs_check):
    ipvs_check("KM-02")


def test_conn_reuse_mode_suits_kernel_and_kube_proxy(ipvs_check):
    ipvs_check("SY-01")


def test_entries_of_removed_pods_expire(ipvs_node):
    assert_sysctl(ipvs_node, "net.ipv4.vs.expire_nodest_conn", 1)
    assert_sysctl(ipvs_node, "net.ipv4.vs.conntrack", 1)


def test_no_node_knows_a_pod_that_the_api_does_not(ipvs_cluster):
    assert_no_stale_real_servers(ipvs_cluster)


@pytest.mark.ipvs_disruptive
def test_a_busy_client_does_not_notice_a_deleted_pod(ipvs_workload, ipvs_rollout):
    with ipvs_rollout(ipvs_workload(replicas=2)) as run:
        run.delete_pods(1)
    assert_no_connection_failures(run)
