"""The lab as a user meets it: kubectl, ssh, traffic and rollouts on a real kernel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ipvs.lab.client import DEPLOYMENTS, NODES, PODS

if TYPE_CHECKING:
    from conftest import RunningLab

pytestmark = pytest.mark.lab
NODE_NAMES = ("node-1", "node-2", "node-3")


def test_every_node_has_its_own_table_and_sysctls(lab: RunningLab) -> None:
    for index, node in enumerate(NODE_NAMES, 1):
        table = lab.table(node)
        assert lab.ssh(node, "hostname").strip() == node
        assert table["10.96.10.1:80"]["servers"] == dict.fromkeys(lab.addresses(), 1)
        assert table["10.96.10.2:80"]["persistent"]
        assert table["10.96.10.6:80"]["servers"] == {}
        assert f"10.0.2.{100 + index}:30080" in table
        assert len(table["10.96.10.10:80"]["servers"]) == 1
        assert lab.sysctl(node, "net.ipv4.vs.expire_nodest_conn") == "1"
        assert lab.sysctl(node, "net.ipv4.vs.conntrack") == "1"
        assert "KUBE-MARK-MASQ" in lab.ssh(node, "iptables-save", "-t", "nat")
    assert lab.ssh("client", "hostname").strip() == "client"


def test_tables_longer_than_a_page_are_read_whole(
    lab: RunningLab, eventually: Callable[..., Any]
) -> None:
    """The nodes share a kernel, which then gives each a part only to who just reads the file."""
    lab.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 6}})
    eventually(lab.rolled_out, "six pods")
    for node in NODE_NAMES:
        # kube-proxy's stand-in must have seen the whole as well, to program it.
        eventually(lambda node=node: lab.addresses() == set(lab.web(node)), f"the table of {node}")
    with lab.cluster() as cluster:
        facts = cluster.snapshot().facts
    for node in NODE_NAMES:
        table = facts[node].table
        assert table is not None
        said = lab.ssh(node, "ipvsadm", "-Ln").splitlines()[3:]
        kept = [line for line in said if line.startswith("  ->")]
        assert len(table.virtual_servers) == len(said) - len(kept)
        assert sum(len(server.real_servers) for server in table.virtual_servers) == len(kept)
        assert len(lab.ssh(node, "cat", "/proc/net/ip_vs").splitlines()[3:]) < len(said)


def test_kube_proxy_answers_on_its_ports(lab: RunningLab) -> None:
    script = (
        "import urllib.request as u;"
        "[print(u.urlopen('http://127.0.0.1:' + p).read().decode()) for p in"
        " ('10249/proxyMode', '10249/metrics', '10249/configz', '10256/healthz', '10256/livez')]"
    )
    text = lab.ssh("node-2", "python3", "-c", f'"{script}"')
    assert text.startswith("ipvs\n")
    assert 'kubernetes_build_info{git_version="v1.36.2"' in text
    assert '"mode": "ipvs"' in text
    assert '"nodeEligible": true' in text


def test_services_spread_connections_over_all_pods(lab: RunningLab) -> None:
    names = {pod["metadata"]["name"] for pod in lab.pods()}
    for address in ("10.96.10.1:80", "10.0.2.102:30080", "192.168.50.200:80", "192.168.50.210:80"):
        result = lab.connect(9, 9, address=address)
        assert result["errors"] == {}, address
        assert set(result["pods"]) == names, address
    affine = lab.connect(9, 9, address="10.96.10.2:80")
    assert len(affine["pods"]) == 1


def test_a_restart_under_connections_loses_none_and_drains(
    lab: RunningLab, eventually: Callable[..., Any]
) -> None:
    old = lab.addresses()
    lab.connect(20, 20)
    lab.restart()
    during = lab.connect(150, 30, pause=0.05)
    assert during["errors"] == {}
    eventually(lab.rolled_out, "the rollout")
    assert not lab.addresses() & old
    weights = lab.web("node-1")
    assert all(weights[address] == 0 for address in old & set(weights))
    assert {address for address, weight in weights.items() if weight} == lab.addresses()
    assert set(lab.web("node-2")) == lab.addresses()


def test_a_deleted_pod_is_replaced(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    pod = lab.pods()[0]
    lab.api.delete(PODS, "demo", pod["metadata"]["name"])
    eventually(lambda: lab.api.get(PODS, "demo", pod["metadata"]["name"]) is None, "the end")
    eventually(lab.rolled_out, "a replacement")
    assert f"{pod['status']['podIP']}:8080" not in lab.addresses()


def test_scaling_reaches_the_tables(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    lab.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 5}})
    eventually(lambda: lab.rolled_out() and len(lab.pods()) == 5, "five pods")
    eventually(lambda: set(lab.web("node-3")) == lab.addresses(), "five real servers")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_works(lab: RunningLab, eventually: Callable[..., Any]) -> None:
    def kubectl(*words: str, text: str | None = None) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(lab.handle.kubeconfig), *words],
            capture_output=True,
            text=True,
            input=text,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "node-3   Ready" in kubectl("get", "nodes")
    kubectl("-n", "demo", "rollout", "restart", "deployment/web")
    done = kubectl("-n", "demo", "rollout", "status", "deployment/web", "--timeout=100s")
    assert 'deployment "web" successfully rolled out' in done
    pod = lab.pods()[0]["metadata"]["name"]
    assert kubectl("-n", "demo", "logs", pod) is not None
    manifest = """
apiVersion: v1
kind: Pod
metadata: {name: sleeper, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: any, command: [sleep, "1000"]}]
"""
    assert "created" in kubectl("apply", "-f", "-", text=manifest)
    kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
    assert "deleted" in kubectl("delete", "pod", "sleeper")
    assert lab.api.get(PODS, "default", "sleeper") is None
    assert len(lab.api.list_all(NODES)[0]) == 3
