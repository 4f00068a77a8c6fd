"""A team's own assertions: ordinary tests with the plugin's fixtures and markers."""

import pytest


@pytest.mark.ipvs_nodes(kernel=">=5.9")
@pytest.mark.ipvs_sysctl({"net.ipv4.vs.conntrack": 1, "net.ipv4.ip_forward": 1})
def test_our_services_use_round_robin(ipvs_node):
    other = [server for server in ipvs_node.table.virtual_servers if server.scheduler != "rr"]
    assert not other


@pytest.mark.ipvs_requires(mode="ipvs", nodes=">=2")
def test_our_nodes_run_the_same_kernel(ipvs_nodes):
    kernels = {node.name: node.facts.kernel_release for node in ipvs_nodes}
    assert len(set(kernels.values())) == 1, kernels


def test_our_nodes_have_no_local_sysctl_file_for_ipvs(ipvs_node):
    # Anything that testinfra can look at on a host can be asserted here.
    assert not ipvs_node.host.file("/etc/sysctl.d/99-ipvs.conf").exists


def test_our_nodes_have_room_for_connections(ipvs_node, assert_room_for_connections):
    assert_room_for_connections(ipvs_node, limit=500_000)


def test_our_policy_is_not_laxer_than_agreed(ipvs_policy):
    assert ipvs_policy.drain_budget <= 300
    assert ipvs_policy.min_reused_tuples >= 50
