"""502s in a rolling update: a client that re-uses its source ports must not notice a release."""

import pytest

from pytest_ipvs.assertions import assert_no_connection_failures, assert_no_stale_real_servers


@pytest.mark.ipvs_disruptive
def test_a_release_loses_no_connection(ipvs_workload, ipvs_rollout, ipvs_cluster):
    with ipvs_rollout(ipvs_workload(replicas=3)) as run:
        run.restart()
    assert_no_connection_failures(run)
    assert_no_stale_real_servers(ipvs_cluster)
