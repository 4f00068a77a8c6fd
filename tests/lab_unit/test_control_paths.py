"""What single paths need of the lab: load balancers' addresses, host ports; and their fault."""

from __future__ import annotations

import pytest
from control_fakes import wait_for
from test_control_cluster import WEB, World, module_world, shared, world  # noqa: F401 - fixtures

from pytest_ipvs.lab.client import DEPLOYMENTS, PODS, SERVICES, Object
from pytest_ipvs.lab.proxy_model import balancer_addresses

pytestmark = pytest.mark.lab


def test_a_service_gets_the_address_it_asks_for_or_any(shared: World) -> None:  # noqa: F811
    def made(name: str, **spec: str) -> Object:
        ports = [{"port": 80, "targetPort": 8080}]
        body = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports, **spec}
        meta = {"name": name, "namespace": "demo"}
        shared.api.create(SERVICES, {"metadata": meta, "spec": body})
        return wait_for(lambda: balancer_addresses(shared.get(SERVICES, name)), "an address")

    assert made("lb-asks", loadBalancerIP="192.168.50.7") == ["192.168.50.7"]
    (one,), (other,) = made("lb-one"), made("lb-other")
    assert one != other
    wait_for(lambda: shared.servers(service=f"{one}:80"), "its virtual server")
    assert balancer_addresses(shared.get(SERVICES, "web-lb")) == ["192.168.50.210"]


def test_a_host_port_has_its_rule_as_long_as_its_pod(shared: World) -> None:  # noqa: F811
    port = {"containerPort": 8080, "hostPort": 28080}
    spec = {"nodeName": "node-2", "containers": [{"name": "c", "image": "i", "ports": [port]}]}
    shared.api.create(PODS, {"metadata": {"name": "exposed", "namespace": "demo"}, "spec": spec})

    def rules() -> list[str]:
        calls = [call for call in shared.machine.of("exec") if "host-port" in call["argv"]]
        assert {call["node"] for call in calls} <= {"node-2"}
        return [" ".join(call["argv"][4:]) for call in calls]

    wait_for(rules, "a rule")
    # The kubelet reports what it has done after it has done it.
    address = wait_for(lambda: shared.get(PODS, "exposed")["status"].get("podIP"), "its address")
    rule = f"-p tcp --dport 28080 -j DNAT --to-destination {address}:8080"
    assert rules() == [f"-A {rule}"]
    shared.api.delete(PODS, "demo", "exposed")
    wait_for(lambda: rules() == [f"-A {rule}", f"-D {rule}"], "its end")


def test_real_servers_with_connections_are_deleted_at_once(world: World) -> None:  # noqa: F811
    world.lab.fault("deleted_at_once")
    table = world.machine.table("node-1").virtuals[("TCP", WEB)]["servers"]
    for server in table.values():
        server["connections"] = 3
    world.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 2}})
    wait_for(lambda: len(world.servers()) == 2, "the end of a real server")
    assert set(world.servers().values()) == {1}
    world.lab.clear()
    assert not any(proxy.abrupt for proxy in world.lab.proxies.values())


def test_real_servers_on_their_way_out_are_deleted_too(world: World) -> None:  # noqa: F811
    table = world.machine.table("node-1").virtuals[("TCP", WEB)]["servers"]
    for server in table.values():
        server["connections"] = 3
    world.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 2}})
    wait_for(lambda: 0 in world.servers().values(), "a real server that drains")
    world.lab.fault("deleted_at_once")
    wait_for(lambda: len(world.servers()) == 2, "its end")
