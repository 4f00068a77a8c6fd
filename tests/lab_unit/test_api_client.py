"""The official Python client against the embedded API, over TLS and over plain HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

from pytest_ipvs.lab.api import Server

pytestmark = pytest.mark.system

NAMESPACE = "default"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(params=["https", "http"])
def api(
    server: Server, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[client.ApiClient]:
    text = yaml.safe_load(server.kubeconfig())
    if request.param == "http":
        text["clusters"][0]["cluster"] = {"server": server.url}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(text))
    made = config.new_client_from_config(str(path))
    yield made
    made.close()


def deployment(name: str = "web", replicas: int = 2) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "example/web:1"}]},
            },
        },
    }


def pod(name: str = "p", node: str = "node-1") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "example/web:1"}]},
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec},
    }


def test_deployments_live_their_life(api: client.ApiClient) -> None:
    apps = client.AppsV1Api(api)
    made = apps.create_namespaced_deployment(NAMESPACE, deployment())
    assert made.metadata.generation == 1
    assert made.spec.strategy.rolling_update.max_surge == "25%"
    patch = {"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}}
    patched = apps.patch_namespaced_deployment("web", NAMESPACE, patch)
    assert patched.metadata.generation == 2
    assert patched.spec.template.spec.containers[0].image == "example/web:1"
    scaled = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 5}})
    assert scaled.spec.replicas == 5
    status = {"status": {"replicas": 5, "readyReplicas": 5, "observedGeneration": 3}}
    seen = apps.patch_namespaced_deployment_status("web", NAMESPACE, status)
    assert seen.metadata.generation == 3
    assert seen.status.ready_replicas == 5
    names = [item.metadata.name for item in apps.list_deployment_for_all_namespaces().items]
    assert names == ["web"]
    apps.delete_namespaced_deployment("web", NAMESPACE)
    with pytest.raises(ApiException) as caught:
        apps.read_namespaced_deployment("web", NAMESPACE)
    assert caught.value.status == 404


def test_services_slices_endpoints_nodes_and_leases(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    made = core.create_namespaced_service(NAMESPACE, service(sessionAffinity="ClientIP"))
    assert made.spec.cluster_ip.startswith("10.96.")
    assert made.spec.session_affinity_config.client_ip.timeout_seconds == 10800
    node_port = core.create_namespaced_service(NAMESPACE, service("n", type="NodePort"))
    assert 30000 <= node_port.spec.ports[0].node_port <= 32767
    slices = client.DiscoveryV1Api(api)
    slices.create_namespaced_endpoint_slice(
        NAMESPACE,
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": "web-",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": True}}],
            "ports": [{"name": "http", "port": 8080}],
        },
    )
    found = slices.list_namespaced_endpoint_slice(
        NAMESPACE, label_selector="kubernetes.io/service-name=web"
    )
    assert found.items[0].endpoints[0].addresses == ["10.244.1.2"]
    assert found.items[0].ports[0].protocol == "TCP"
    core.create_node({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
    assert [node.metadata.name for node in core.list_node().items] == ["node-1"]
    leases = client.CoordinationV1Api(api)
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "l"},
        "spec": {"holderIdentity": "me"},
    }
    leases.create_namespaced_lease("kube-node-lease", body)
    assert leases.read_namespaced_lease("l", "kube-node-lease").spec.holder_identity == "me"


def test_a_pod_is_deleted_gracefully_and_evicted(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(NAMESPACE, pod())
    core.create_namespaced_pod_eviction(
        "p",
        NAMESPACE,
        {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}},
    )
    leaving = core.read_namespaced_pod("p", NAMESPACE)
    assert leaving.metadata.deletion_timestamp is not None
    assert leaving.metadata.deletion_grace_period_seconds == 30
    core.delete_namespaced_pod("p", NAMESPACE, grace_period_seconds=0)
    assert core.list_namespaced_pod(NAMESPACE).items == []


def test_a_watch_sees_what_happens_until_its_time_is_over(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(NAMESPACE, pod("a"))

    def change() -> None:
        core.create_namespaced_pod(NAMESPACE, pod("b", node=""))
        core.delete_namespaced_pod("b", NAMESPACE)

    timer = threading.Timer(0.2, change)
    timer.start()
    try:
        seen = []
        for event in watch.Watch().stream(core.list_namespaced_pod, NAMESPACE, timeout_seconds=10):
            seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                break
    finally:
        timer.join()
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "b")]


def test_an_old_watch_gets_410(server: Server, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(NAMESPACE, pod("a"))
    server.store.compact()
    watching = watch.Watch().stream(
        core.list_namespaced_pod, NAMESPACE, resource_version="1", timeout_seconds=5
    )
    with pytest.raises(ApiException) as caught:
        list(watching)
    assert caught.value.status == 410


def test_lists_come_in_pages_that_agree(server: Server, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    for index in range(7):
        core.create_namespaced_pod(NAMESPACE, pod(f"p{index}", node=""))
    page = core.list_namespaced_pod(NAMESPACE, limit=3)
    assert page.metadata.remaining_item_count == 4
    core.delete_namespaced_pod("p5", NAMESPACE)
    core.create_namespaced_pod(NAMESPACE, pod("p55"))
    names = [item.metadata.name for item in page.items]
    while page.metadata._continue:
        page = core.list_namespaced_pod(NAMESPACE, limit=3, _continue=page.metadata._continue)
        names += [item.metadata.name for item in page.items]
    assert names == [f"p{index}" for index in range(7)]


def test_conflicts_and_preconditions(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "c"}, "data": {"k": "1"}})
    first = api.sanitize_for_serialization(core.read_namespaced_config_map("c", NAMESPACE))
    core.patch_namespaced_config_map("c", NAMESPACE, {"data": {"k": "2"}})
    with pytest.raises(ApiException) as caught:
        core.replace_namespaced_config_map("c", NAMESPACE, first)
    assert caught.value.status == 409
    with pytest.raises(ApiException) as caught:
        core.delete_namespaced_config_map("c", NAMESPACE, body={"preconditions": {"uid": "other"}})
    assert caught.value.status == 409


def test_a_bad_token_is_401_and_an_unknown_object_404(
    server: Server, api: client.ApiClient
) -> None:
    core = client.CoreV1Api(api)
    with pytest.raises(ApiException) as caught:
        core.read_namespaced_pod("none", NAMESPACE)
    assert caught.value.status == 404
    settings = client.Configuration(host=server.url)
    settings.api_key = {"authorization": "Bearer wrong"}
    with client.ApiClient(settings) as stranger, pytest.raises(ApiException) as caught:
        client.CoreV1Api(stranger).list_namespaced_pod(NAMESPACE)
    assert caught.value.status == 401


def test_many_watchers_all_see_everything(server: Server) -> None:
    settings = client.Configuration(host=server.url)
    settings.api_key = {"authorization": f"Bearer {server.token}"}
    seen: list[list[str]] = [[] for _ in range(30)]
    ready = threading.Barrier(31)

    def follow(names: list[str]) -> None:
        with client.ApiClient(settings) as own:
            core = client.CoreV1Api(own)
            version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
            ready.wait(timeout=30)
            for event in watch.Watch().stream(
                core.list_namespaced_config_map,
                NAMESPACE,
                resource_version=version,
                timeout_seconds=30,
            ):
                names.append(event["object"].metadata.name)
                if names[-1] == "last":
                    return

    threads = [threading.Thread(target=follow, args=(names,)) for names in seen]
    for thread in threads:
        thread.start()
    ready.wait(timeout=30)
    with client.ApiClient(settings) as own:
        core = client.CoreV1Api(own)
        for index in range(20):
            core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"c{index}"}})
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "last"}})
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [[f"c{index}" for index in range(20)] + ["last"]] * 30
