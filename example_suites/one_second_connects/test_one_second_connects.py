"""One-second connects: no SYN between a client and a Service may have to be sent twice."""

import pytest

from pytest_ipvs.assertions import assert_no_connection_failures, assert_no_slow_connects


@pytest.mark.ipvs_disruptive
def test_no_connect_waits_for_a_second_syn(ipvs_workload, ipvs_traffic):
    workload = ipvs_workload(replicas=2)
    # 100 ports at 20 per second come back after 5 seconds. An entry that ended with RST lives
    # for 10, so a larger window would step over the delay.
    results = ipvs_traffic(workload.address, workload.port, seconds=15, rate=20, ports=100)
    assert results.reused >= 100, "too few to prove anything"
    assert_no_connection_failures(results)
    assert_no_slow_connects(results)
