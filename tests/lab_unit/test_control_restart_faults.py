"""Faults that strike pods of a rolling restart: late listening, crashes, nobody ready."""

from __future__ import annotations

from typing import Any

import pytest
from control_fakes import wait_for
from test_control_cluster import World, world  # noqa: F401 - a fixture

from pytest_ipvs.lab import faults
from pytest_ipvs.lab.client import DEPLOYMENTS, ENDPOINTS, MERGE, PODS
from pytest_ipvs.lab.controllers_replicaset import is_ready

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "LATE", 0.5)
    monkeypatch.setattr("pytest_ipvs.lab.kubelet_worker.CRASH_AFTER", 0.1)


def restarted(there: World) -> list[Any]:
    """Pods of the web Deployment that a restart has made."""
    key = "kubectl.kubernetes.io/restartedAt"
    found = there.pods(app="web")
    return [pod for pod in found if key in (pod["metadata"].get("annotations") or {})]


def ready_addresses(there: World) -> list[Any]:
    """Ready addresses of the Service."""
    subsets = there.get(ENDPOINTS, "web").get("subsets") or []
    return [address for subset in subsets for address in subset.get("addresses") or []]


def test_restarted_pods_are_ready_before_they_listen(world: World) -> None:  # noqa: F811
    faults.put(world.lab, "ready_before_listening")
    world.machine.ready = False
    world.restart("late")
    # No probe can succeed, so nobody asks one.
    wait_for(lambda: any(is_ready(pod) for pod in restarted(world)), "a ready pod")
    made = [call for call in world.machine.of("pod_create") if "LISTEN_DELAY" in call["env"]]
    assert {call["env"]["LISTEN_DELAY"] for call in made} == {"0.5"}


def test_restarted_pods_crash_and_are_called_ready_for_a_while(world: World) -> None:  # noqa: F811
    faults.put(world.lab, "readiness_lag")
    world.restart("crash")

    def crashed() -> bool:
        for pod in restarted(world):
            running = world.machine.pods.get(pod["metadata"]["uid"], {}).get("running", True)
            found = world.api.get(PODS, "demo", pod["metadata"]["name"])
            if not running and found is not None and is_ready(found):
                return True
        return False

    wait_for(crashed, "a dead pod that is called ready")

    def restarts() -> list[int]:
        found = [pod["status"].get("containerStatuses") or [{}] for pod in restarted(world)]
        return [statuses[0].get("restartCount", 0) for statuses in found]

    wait_for(lambda: 1 in restarts(), "a restarted container")


def test_a_restart_finds_nobody_ready_once(
    world: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough that a busy machine can't look away for all of it.
    monkeypatch.setattr(faults, "LATE", 3.0)
    faults.put(world.lab, "no_endpoints")
    world.restart("dark")
    wait_for(lambda: not ready_addresses(world), "darkness")
    wait_for(world.rolled_out, "the rollout")
    # The slices follow the pods, a little later.
    wait_for(lambda: ready_addresses(world), "light")
    faults.clear(world.lab)
    assert all(k.behaviour.blackout is None for k in world.lab.kubelets.values())


def test_pods_that_are_made_in_darkness_are_hidden_too(
    world: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "LATE", 3600.0)
    faults.put(world.lab, "no_endpoints")
    world.restart("dark")
    wait_for(lambda: not ready_addresses(world), "darkness")
    before = {pod["metadata"]["uid"] for pod in world.pods(app="web")}
    world.api.patch(DEPLOYMENTS, "demo", "web", {"spec": {"replicas": 5}}, content_type=MERGE)

    def young() -> Any:
        workers = [w for kubelet in world.lab.kubelets.values() for w in kubelet.workers()]
        return next((w for w in workers if w.uid not in before and w._ready), None)

    # The probe has answered; what the API is told of it now is that the pod is not ready.
    worker = wait_for(young, "a new pod that answers its probe")
    worker.report_readiness()
    assert not is_ready(world.get(PODS, worker.name))
    assert not ready_addresses(world)
    faults.clear(world.lab)
    wait_for(lambda: is_ready(world.get(PODS, worker.name)), "light")
