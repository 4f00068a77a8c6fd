"""Uneven load: pods that a scale-up adds must get their share of short connections."""

import pytest

from pytest_ipvs.assertions import assert_balanced, assert_no_connection_failures


@pytest.mark.ipvs_disruptive
def test_new_pods_get_their_share(ipvs_workload, ipvs_rollout):
    with ipvs_rollout(ipvs_workload(replicas=2)) as run:
        run.scale(4)
    assert_no_connection_failures(run)
    assert_balanced(run)
