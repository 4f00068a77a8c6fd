"""The stand-ins together: embedded API, controllers, kubelets and proxies over a fake machine."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_fakes import FakeMachine, wait_for

from pytest_ipvs.lab import demo, faults
from pytest_ipvs.lab.api import Server
from pytest_ipvs.lab.assembly import Lab
from pytest_ipvs.lab.client import (
    DEPLOYMENTS,
    ENDPOINTS,
    JOBS,
    MERGE,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    SLICES,
    ApiClient,
    ApiError,
    Object,
    Resource,
)
from pytest_ipvs.lab.machine import LabError
from pytest_ipvs.lab.machine_ssh import HostKey
from pytest_ipvs.lab.options import LabOptions
from pytest_ipvs.lab.state import StateDirectory

pytestmark = pytest.mark.lab
WEB = "10.96.10.1:80"


class World:
    """A lab on a fake machine, and short words for looking at it."""

    def __init__(self, lab: Lab, machine: FakeMachine, api: ApiClient) -> None:
        self.lab = lab
        self.machine = machine
        self.api = api

    def pods(self, namespace: str = "demo", **labels: str) -> list[Object]:
        found = self.api.list_all(PODS, namespace)[0]
        return [
            pod
            for pod in found
            if all((pod["metadata"].get("labels") or {}).get(k) == v for k, v in labels.items())
        ]

    def get(self, resource: Resource, name: str, namespace: str = "demo") -> Object:
        item = self.api.get(resource, namespace if resource.namespaced else None, name)
        assert item is not None
        return item

    def servers(self, node: str = "node-1", service: str = WEB) -> dict[str, int]:
        return self.machine.table(node).servers(service) or {}

    def addresses(self) -> set[str]:
        return {
            f"{pod['status']['podIP']}:8080"
            for pod in self.pods(app="web")
            if "deletionTimestamp" not in pod["metadata"]
        }

    def rolled_out(self, name: str = "web") -> bool:
        item = self.get(DEPLOYMENTS, name)
        status = item["status"]
        wanted = item["spec"]["replicas"]
        return (
            status.get("observedGeneration") == item["metadata"]["generation"]
            and status.get("updatedReplicas", 0) == wanted
            and status.get("replicas", 0) == wanted
            and status.get("availableReplicas", 0) == wanted
        )

    def restart(self, stamp: str) -> None:
        notes = {"kubectl.kubernetes.io/restartedAt": stamp}
        body = {"spec": {"template": {"metadata": {"annotations": notes}}}}
        self.api.patch(DEPLOYMENTS, "demo", "web", body, content_type=MERGE)


@contextlib.contextmanager
def running_world(path: Path) -> Iterator[World]:
    """A lab whose pods end quickly, on a machine of its own."""
    machine = FakeMachine()
    key = HostKey(private="x", public="ssh-ed25519 x")
    quick = demo.deployment()
    container = quick["spec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"] |= {"periodSeconds": 1, "failureThreshold": 1}
    container["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", "0.3"]
    directory = StateDirectory(path / "lab")
    directory.make()
    lab = Lab(LabOptions(sweep_period=0.2), directory, lambda _text: None, lambda *a, **k: machine)
    lab.machine = machine
    for op in ("node_create", "client_create"):
        setattr(machine, f"_{op}", lambda **_arguments: {"pid": 1})
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # The tools that make keys need not be installed for these tests.
        patch.setattr("pytest_ipvs.lab.machine_ssh.generate_identity", lambda path: "ssh x")
        patch.setattr("pytest_ipvs.lab.machine_ssh.generate_host_key", lambda path: key)
        patch.setattr("pytest_ipvs.lab.api.Server._server_certificate", lambda self: None)
        patch.setattr(demo, "deployment", lambda: copy.deepcopy(quick))
        patch.setattr(faults, "EARLY_DELAY", 0.7)
        patch.setattr("pytest_ipvs.lab.kubelet_worker.MIN_GRACE", 0.3)
        stack.callback(lab.stop)
        lab.start()
        server = lab._server
        assert isinstance(server, Server)
        api = ApiClient(server.url, server.token)
        stack.callback(api.close)
        yield World(lab, machine, api)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A lab for a test that changes it for good."""
    with running_world(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture
def shared(module_world: World) -> Iterator[World]:
    """One lab for all tests that leave its pods and Services as they were."""
    yield module_world
    module_world.lab.clear()


def test_a_new_lab_serves_demo_on_every_node(world: World) -> None:
    pods = world.pods(app="web")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-1", "node-2", "node-3"}
    assert all(pod["status"]["phase"] == "Running" for pod in pods)
    for node in world.lab.nodes:
        assert world.servers(node) == dict.fromkeys(world.addresses(), 1)
        assert world.machine.sysctls[(node, "net.ipv4.vs.conntrack")] == "1"
        assert (node, "net.ipv4.vs.conn_reuse_mode") not in world.machine.sysctls
        assert world.machine.http[(node, 10249)]["/proxyMode"]["body"] == "ipvs"
        assert world.machine.http[(node, 10256)]["/healthz"]["status"] == 200
    persistent = world.machine.table("node-1").virtuals[("TCP", "10.96.10.2:80")]
    assert persistent["persistence"] == "10800"
    assert world.machine.device["node-1"] >= {"10.96.10.1/32", "192.168.50.210/32"}
    assert world.servers(service="10.0.2.101:30080") == dict.fromkeys(world.addresses(), 1)
    slices = [
        item
        for item in world.api.list_all(SLICES, "demo")[0]
        if item["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
    ]
    assert len(slices) == 1
    assert {entry["zone"] for entry in slices[0]["endpoints"]} == {"zone-1", "zone-2"}
    assert {node["metadata"]["name"] for node in world.api.list_all(NODES)[0]} == set(
        world.lab.nodes
    )


def test_a_restart_replaces_pods_one_by_one_and_drains_the_old_ones(world: World) -> None:
    old = world.addresses()
    for server in world.machine.table("node-1").virtuals[("TCP", WEB)]["servers"].values():
        server["connections"] = 3
    world.restart("now")
    wait_for(world.rolled_out, "the rollout")
    wait_for(lambda: set(world.servers()) >= world.addresses(), "the new pods in the table")
    new = world.addresses()
    assert not new & old
    weights = wait_for(
        lambda: (now := world.servers()) and all(now[one] == 0 for one in old & set(now)) and now,
        "old real servers at weight 0",
    )
    assert weights == dict.fromkeys(old, 0) | dict.fromkeys(new, 1)
    # node-2 had no connections, so its old servers go at once.
    wait_for(lambda: set(world.servers("node-2")) == new, "no old server on node-2")
    for server in world.machine.table("node-1").virtuals[("TCP", WEB)]["servers"].values():
        server["connections"] = 0
    wait_for(lambda: set(world.servers()) == new, "the sweep on node-1")
    revisions = {
        item["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        for item in world.api.list_all(REPLICA_SETS, "demo")[0]
    }
    assert revisions == {"1", "2"}
    wait_for(lambda: len(world.pods(app="web")) == 3, "old pods gone")


def test_an_ending_pod_serves_until_its_hook_is_over_and_is_told_in_order(world: World) -> None:
    pod = world.pods(app="web")[0]
    uid = pod["metadata"]["uid"]
    world.api.delete(PODS, "demo", pod["metadata"]["name"])
    ending = world.get(PODS, pod["metadata"]["name"])
    assert ending["metadata"]["deletionGracePeriodSeconds"] == 15
    assert world.machine.pods[uid]["signals"] == []

    def entry() -> Any:
        for item in world.api.list_all(SLICES, "demo")[0]:
            if item["metadata"]["labels"]["kubernetes.io/service-name"] == "web":
                for one in item["endpoints"]:
                    if one["targetRef"]["uid"] == uid and one["conditions"]["terminating"]:
                        return one
        return None

    conditions = wait_for(entry, "a terminating endpoint")["conditions"]
    assert conditions == {"ready": False, "serving": True, "terminating": True}
    signals = world.machine.pods[uid]["signals"]
    wait_for(lambda: world.api.get(PODS, "demo", pod["metadata"]["name"]) is None, "deletion")
    assert signals == ["TERM"]
    assert uid not in world.machine.pods
    wait_for(world.rolled_out, "a new pod in its place")


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(world: World) -> None:
    world.machine.ignores_term = True
    pod = world.pods(app="web")[0]
    signals = world.machine.pods[pod["metadata"]["uid"]]["signals"]
    world.api.delete(PODS, "demo", pod["metadata"]["name"], grace=1)
    wait_for(lambda: world.api.get(PODS, "demo", pod["metadata"]["name"]) is None, "deletion")
    assert signals == ["TERM", "KILL"]


def test_a_container_that_ends_is_started_again(world: World) -> None:
    pod = world.pods(app="web")[0]
    world.machine.end(pod["metadata"]["uid"], 3)

    def restarted() -> bool:
        status = world.get(PODS, pod["metadata"]["name"])["status"]["containerStatuses"][0]
        return bool(status["restartCount"] == 1 and status["ready"])

    wait_for(restarted, "the restart")
    status = world.get(PODS, pod["metadata"]["name"])["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 3


def test_readiness_decides_who_gets_traffic(world: World) -> None:
    world.machine.ready = False
    wait_for(lambda: world.servers() == {}, "no real server while nobody is ready")
    subset = world.get(ENDPOINTS, "web")["subsets"][0]
    assert "addresses" not in subset
    assert len(subset["notReadyAddresses"]) == 3
    world.machine.ready = True
    wait_for(lambda: len(world.servers()) == 3, "all real servers again")


def test_scaling_follows_at_once_and_addresses_do_not_come_back(world: World) -> None:
    seen = world.addresses()
    for replicas in (5, 2, 4):
        body = {"spec": {"replicas": replicas}}
        world.api.patch(DEPLOYMENTS, "demo", "web", body)
        wait_for(world.rolled_out, f"{replicas} replicas")
        wait_for(lambda: len(world.addresses()) == replicas, f"{replicas} pods")  # noqa: B023
        fresh = world.addresses() - seen
        assert not fresh & seen
        seen |= fresh
    wait_for(lambda: set(world.servers()) == world.addresses(), "the table")
    assert len(world.api.list_all(REPLICA_SETS, "demo")[0]) == 1


def test_scaling_down_begins_with_the_least_deletion_cost(world: World) -> None:
    names = sorted(pod["metadata"]["name"] for pod in world.pods(app="web"))
    for name, cost in zip(names, ("1", "-1", "nonsense"), strict=True):
        notes = {"controller.kubernetes.io/pod-deletion-cost": cost}
        world.api.patch(PODS, "demo", name, {"metadata": {"annotations": notes}})
    for left in ([names[0], names[2]], [names[0]]):
        world.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": len(left)}})
        wait_for(lambda: len(world.pods(app="web")) == len(left), "fewer pods")  # noqa: B023
        assert sorted(pod["metadata"]["name"] for pod in world.pods(app="web")) == left


def test_recreate_waits_for_the_end_of_the_old_pods(world: World) -> None:
    old = set(world.machine.pods)
    strategy: Object = {"type": "Recreate", "rollingUpdate": None}
    world.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"strategy": strategy}})
    world.restart("recreate")
    wait_for(lambda: world.rolled_out() and not old & set(world.machine.pods), "the rollout")
    life = [
        (op, arguments["uid"])
        for op, arguments in world.machine.calls
        if op in ("pod_create", "pod_delete")
    ]
    created = [place for place, (op, uid) in enumerate(life) if uid not in old]
    deleted = [place for place, (op, uid) in enumerate(life) if op == "pod_delete" and uid in old]
    assert max(deleted) < min(created)


def test_deleting_a_deployment_takes_its_pods_along(world: World) -> None:
    world.api.delete(DEPLOYMENTS, "demo", "web")
    wait_for(lambda: not world.api.list_all(REPLICA_SETS, "demo")[0], "ReplicaSets gone")
    wait_for(lambda: not world.pods(), "pods gone", 30)
    wait_for(lambda: world.servers() == {}, "an empty virtual server")
    world.api.delete(SERVICES, "demo", "web")
    wait_for(lambda: world.machine.table("node-3").servers(WEB) is None, "the virtual server gone")


def test_a_namespace_goes_with_everything_in_it(shared: World) -> None:
    shared.api.create(NAMESPACES, {"metadata": {"name": "team"}})
    pod: Object = {
        "metadata": {"name": "p", "namespace": "team"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "x", "command": ["sleep", "100"]}],
        },
    }
    shared.api.create(PODS, pod)
    wait_for(
        lambda: shared.get(PODS, "p", "team")["status"].get("phase") == "Running", "a running pod"
    )
    shared.api.delete(NAMESPACES, None, "team")
    wait_for(lambda: shared.api.get(NAMESPACES, None, "team") is None, "the namespace gone", 30)


def test_an_indexed_job_runs_each_index_once(shared: World) -> None:
    container = {"name": "c", "image": "x", "command": ["true"]}
    shared.api.create(
        JOBS,
        {
            "metadata": {"name": "j", "namespace": "demo"},
            "spec": {
                "completions": 3,
                "parallelism": 2,
                "completionMode": "Indexed",
                "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            },
        },
    )
    ended: set[str] = set()

    def running() -> list[Object]:
        return [
            pod
            for pod in shared.pods(**{"batch.kubernetes.io/job-name": "j"}) or shared.pods()
            if pod["metadata"].get("generateName", "").startswith("j-")
            and pod["status"].get("phase") == "Running"
            and pod["metadata"]["uid"] not in ended
        ]

    indexes = set()
    for _ in range(3):
        pod = wait_for(running, "a pod of the job")[0]
        ended.add(pod["metadata"]["uid"])
        indexes.add(shared.machine.pods[pod["metadata"]["uid"]]["env"]["JOB_COMPLETION_INDEX"])
        shared.machine.end(pod["metadata"]["uid"], 0)
    wait_for(
        lambda: (shared.get(JOBS, "j").get("status") or {}).get("succeeded") == 3, "completion"
    )
    status = shared.get(JOBS, "j")["status"]
    assert status["completedIndexes"] == "0-2"
    assert [entry["type"] for entry in status["conditions"] if entry["status"] == "True"][-1] == (
        "Complete"
    )
    assert indexes == {"0", "1", "2"}


def test_a_pod_that_the_lab_cannot_run_says_why(shared: World) -> None:
    containers = [{"name": name, "image": "x"} for name in ("a", "b")]
    body = {"metadata": {"name": "two", "namespace": "demo"}, "spec": {"containers": containers}}
    shared.api.create(PODS, body)

    def message() -> str:
        states = shared.get(PODS, "two")["status"].get("containerStatuses") or [{"state": {}}]
        return str(states[0]["state"].get("waiting", {}).get("message", ""))

    wait_for(message, "a waiting message")
    assert message() == "the lab runs one container per pod, this one has a, b"


def test_a_cordoned_node_gets_no_pods(world: World) -> None:
    world.api.patch(NODES, None, "node-1", {"spec": {"unschedulable": True}})
    world.restart("cordoned")
    wait_for(world.rolled_out, "the rollout")
    nodes = {
        pod["spec"]["nodeName"]
        for pod in world.pods(app="web")
        if "deletionTimestamp" not in pod["metadata"]
    }
    assert nodes == {"node-2", "node-3"}


def test_environment_and_files_come_from_the_pod_s_object(shared: World) -> None:
    from pytest_ipvs.lab.client import CONFIG_MAPS

    shared.api.create(
        CONFIG_MAPS, {"metadata": {"name": "m", "namespace": "demo"}, "data": {"a.py": "print()"}}
    )
    container: Object = {
        "name": "c",
        "image": "x",
        "command": ["python3", "/app/a.py", "$(WHO)"],
        "env": [
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "volumeMounts": [
            {"name": "app", "mountPath": "/app"},
            {"name": "tmp", "mountPath": "/scratch"},
        ],
    }
    volumes = [{"name": "app", "configMap": {"name": "m"}}, {"name": "tmp", "emptyDir": {}}]
    pod = shared.api.create(
        PODS,
        {
            "metadata": {"name": "p", "namespace": "demo"},
            "spec": {"containers": [container], "volumes": volumes},
        },
    )
    made = wait_for(lambda: shared.machine.pods.get(pod["metadata"]["uid"]), "the pod")
    assert made["command"] == ["python3", "/app/a.py", "p"]
    assert made["env"]["IP"] == made["address"]
    assert made["files"]["/app/a.py"] == "print()"
    assert "/scratch/.keep" in made["files"]


# Faults


@pytest.mark.parametrize("name", sorted(faults.FAULTS))
def test_every_fault_can_be_put_in_twice_and_taken_out(shared: World, name: str) -> None:
    tables = {node: shared.machine.table(node).text() for node in shared.lab.nodes}
    sysctls = {
        (node, key): shared.machine.sysctls.setdefault((node, key), "1")
        for node in shared.lab.nodes
        for key in (
            "net.ipv4.vs.conn_reuse_mode",
            "net.ipv4.vs.expire_nodest_conn",
            "net.ipv4.vs.expire_quiescent_template",
            "net.ipv4.vs.conntrack",
        )
    }
    active = shared.lab.fault(name)
    assert shared.lab.fault(name) == active
    assert shared.lab.active == [active]
    assert active.nodes == (
        tuple(shared.lab.nodes) if faults.FAULTS[name].everywhere else ("node-2",)
    )
    assert shared.lab.clear() == [active]
    assert shared.lab.active == []
    for node, text in tables.items():
        now = shared.machine.table(node).text()
        assert sorted(now.splitlines()) == sorted(text.splitlines())
    assert {key: shared.machine.sysctls[key] for key in sysctls} == sysctls


def test_table_faults_are_in_the_kernel_and_stay(shared: World) -> None:
    first = min(shared.servers())
    shared.lab.fault("stale_real_server")
    shared.lab.fault("never_drains")
    shared.lab.fault("wanted_at_weight_zero")
    shared.lab.fault("wrong_scheduler")
    shared.lab.fault("orphan_virtual_server")
    shared.lab.proxies["node-2"].sync_now()
    shared.lab.proxies["node-2"]._sweep()
    table = shared.machine.table("node-2")
    servers = shared.servers("node-2")
    assert servers["10.244.2.199:8080"] == 1
    assert servers["10.244.2.198:8080"] == 0
    assert servers[first] == 0
    assert table.virtuals[("TCP", WEB)]["scheduler"] == "lc"
    assert table.servers("10.96.255.254:80") == {}
    assert shared.servers("node-1") == dict.fromkeys(shared.addresses(), 1)
    shared.lab.clear()
    shared.lab.fault("missing_real_server", "node-3")
    assert len(shared.servers("node-3")) == 2
    assert len(shared.servers("node-2")) == 3


def test_a_table_fault_waits_for_its_service(shared: World) -> None:
    shared.lab.fault("missing_real_server", "node-1", "demo/later")
    body = demo._service("later", {"clusterIP": "10.96.20.1"})
    shared.api.create(SERVICES, body)
    wait_for(lambda: len(shared.servers(service="10.96.20.1:80")) == 2, "two of three servers")
    assert len(shared.servers("node-2", "10.96.20.1:80")) in (0, 3)


def test_sysctl_faults_go_back_to_what_was_there(shared: World) -> None:
    key = ("node-2", "net.ipv4.vs.conn_reuse_mode")
    shared.machine.sysctls[key] = "2"
    shared.lab.fault("reuse_leftover")
    assert shared.machine.sysctls[key] == "0"
    assert shared.machine.sysctls[("node-2", "net.ipv4.vs.expire_nodest_conn")] == "0"
    shared.lab.clear("reuse_leftover")
    assert shared.machine.sysctls[key] == "2"
    assert shared.machine.sysctls[("node-2", "net.ipv4.vs.expire_nodest_conn")] == "1"


def test_servers_that_run_and_servers_to_come_end_with_reset(world: World) -> None:
    world.lab.fault("server_resets")
    assert all(pod["signals"] == ["USR1"] for pod in world.machine.pods.values())
    world.restart("under the fault")
    wait_for(world.rolled_out, "the rollout")
    young = [pod for pod in world.machine.pods.values() if "USR1" not in pod["signals"]]
    assert len(young) == 3
    for pod in young:
        assert pod["files"][pod["env"]["ENDING_FILE"]] == "rst"
    world.lab.clear()
    assert all(pod["signals"][-1:] == ["HUP"] for pod in young)


def test_pods_that_die_early_skip_their_hook(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # However late a busy machine lets us look, the table is not told before the fault is cleared.
    monkeypatch.setattr(faults, "EARLY_DELAY", 3600.0)
    world.lab.fault("pod_dies_early")
    pod = world.pods(app="web")[0]
    uid = pod["metadata"]["uid"]
    signals = world.machine.pods[uid]["signals"]
    world.api.delete(PODS, "demo", pod["metadata"]["name"])
    wait_for(lambda: uid not in world.machine.pods, "the pod's end")
    assert signals == ["KILL"]
    # Not even a proxy that looks again on its own knows of it.
    world.lab.proxies["node-1"].sync_now()
    address = f"{pod['status']['podIP']}:8080"
    assert world.servers()[address] == 1
    world.lab.clear()
    wait_for(lambda: address not in world.servers(), "the table follows")


def test_a_table_that_lags_follows_in_the_end(world: World) -> None:
    world.lab.fault("pod_dies_early")
    pods = world.pods(app="web")[:2]
    addresses = [f"{pod['status']['podIP']}:8080" for pod in pods]
    for pod in pods:
        world.api.delete(PODS, "demo", pod["metadata"]["name"])
    wait_for(lambda: not set(addresses) & set(world.servers()), "the table follows")


def test_bad_faults_are_refused_in_one_sentence(shared: World) -> None:
    with pytest.raises(LabError, match="fault 'nothing' is not one of conntrack_off, "):
        shared.lab.fault("nothing")
    with pytest.raises(LabError, match="node 'node-9' is not one of node-1, node-2, node-3"):
        shared.lab.fault("conntrack_off", "node-9")


def test_the_api_of_1_20_gets_old_slices(tmp_path: Any) -> None:
    with Server("1.20.2") as server:
        api = ApiClient(server.url, server.token)
        with contextlib.closing(api), pytest.raises(ApiError):
            api.list_all(SLICES)
