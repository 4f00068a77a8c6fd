"""504s after a release: clients with session affinity must leave a pod that is going away."""

import pytest

from pytest_ipvs.assertions import (
    assert_affinity_follows_endpoints,
    assert_no_connection_failures,
    assert_sysctl,
)


def test_nodes_forget_the_template_of_a_drained_pod(ipvs_node):
    assert_sysctl(ipvs_node, "net.ipv4.vs.expire_quiescent_template", 1)
    assert_sysctl(ipvs_node, "net.ipv4.vs.expire_nodest_conn", 1)


def test_affinity_is_programmed_as_the_service_asks(ipvs_check):
    ipvs_check("PS-01")


@pytest.mark.ipvs_disruptive
def test_an_affine_client_survives_a_release(ipvs_workload, ipvs_rollout):
    workload = ipvs_workload(replicas=1, affinity=True)
    with ipvs_rollout(workload) as run:
        run.restart()
    assert_no_connection_failures(run)
    assert_affinity_follows_endpoints(run)
