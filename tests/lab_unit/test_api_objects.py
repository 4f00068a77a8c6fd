"""The rules about objects that the control plane builds on: one test per rule."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from pytest_ipvs.lab.api import Server
from pytest_ipvs.lab.api.messages import Request

Json = dict[str, Any]
MERGE = "application/merge-patch+json"


class Api:
    """Requests to a server's routes without sockets; answers status and body."""

    def __init__(self, version: str = "1.36.2") -> None:
        self.server = Server(version=version, token="secret")

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        token: str = "secret",
    ) -> tuple[int, Json]:
        headers = {"authorization": f"Bearer {token}", "content-type": media}
        data = b"" if body is None else json.dumps(body).encode()
        answer = self.server._routes.handle(Request.parse(method, path, headers, data))
        return answer.status, json.loads(answer.body)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Json:
        status, answer = self.send(method, path, body, **more)
        assert status < 300, answer
        return answer

    def patch(self, path: str, body: Any, media: str = MERGE) -> Json:
        return self.ok("PATCH", path, body, media=media)

    def events(self, resource: str) -> list[tuple[str, str]]:
        found = self.server.store.events_after(resource, 0)
        return [(event.type, event.object["metadata"]["name"]) for event in found]


@pytest.fixture
def api() -> Api:
    return Api()


PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
SERVICES = "/api/v1/namespaces/default/services"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def pod(name: str = "p", **spec: Any) -> Json:
    containers = [{"name": "c", "image": "example/web:1"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def deployment(name: str = "d") -> Json:
    return {
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod()["spec"]},
        },
    }


def service(name: str = "s", **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


# Pods


def test_a_running_pod_waits_for_its_kubelet(api: Api) -> None:
    made = api.ok("POST", PODS, pod(nodeName="node-1", terminationGracePeriodSeconds=7))
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    leaving = api.ok("DELETE", f"{PODS}/p")
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 7
    assert api.events("pods") == [("ADDED", "p"), ("MODIFIED", "p")]
    # Asking again changes nothing; a shorter grace does; a longer one does not.
    api.ok("DELETE", f"{PODS}/p")
    assert api.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=99") == leaving
    shorter = api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 3})
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 3
    # The kubelet's status still gets through, and its last word removes the pod.
    api.patch(f"{PODS}/p/status", {"status": {"phase": "Failed"}})
    uid = made["metadata"]["uid"]
    api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
    assert api.events("pods")[-1] == ("DELETED", "p")
    assert api.send("GET", f"{PODS}/p")[0] == 404


@pytest.mark.parametrize("kind", ["unscheduled", "finished", "forced"])
def test_a_pod_that_nobody_has_to_stop_goes_at_once(api: Api, kind: str) -> None:
    api.ok("POST", PODS, pod(nodeName="" if kind == "unscheduled" else "node-1"))
    if kind == "finished":
        api.patch(f"{PODS}/p/status", {"status": {"phase": "Succeeded"}})
    body = {"gracePeriodSeconds": 0} if kind == "forced" else None
    last = api.ok("DELETE", f"{PODS}/p", body)
    assert "deletionTimestamp" not in last["metadata"]
    assert api.send("GET", f"{PODS}/p")[0] == 404


def test_binding_gives_a_pod_its_node_once(api: Api) -> None:
    labels = {"topology.kubernetes.io/zone": "z", "other": "o"}
    node = {"metadata": {"name": "node-1", "labels": labels}}
    api.ok("POST", "/api/v1/nodes", node)
    api.ok("POST", PODS, pod())
    target = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node-1"}}
    api.ok("POST", f"{PODS}/p/binding", target)
    bound = api.ok("GET", f"{PODS}/p")
    assert bound["spec"]["nodeName"] == "node-1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    assert bound["metadata"]["labels"] == {"topology.kubernetes.io/zone": "z"}
    assert api.send("POST", f"{PODS}/p/binding", target)[0] == 409


def test_a_pods_spec_is_fixed(api: Api) -> None:
    api.ok("POST", PODS, pod())
    status, answer = api.send("PATCH", f"{PODS}/p", {"spec": {"nodeName": "x"}}, media=MERGE)
    assert (status, answer["reason"]) == (422, "Invalid")
    image = {"spec": {"containers": [{"name": "c", "image": "example/web:2"}]}}
    strategic = "application/strategic-merge-patch+json"
    changed = api.patch(f"{PODS}/p", image, strategic)
    assert changed["spec"]["containers"][0]["image"] == "example/web:2"
    assert changed["metadata"]["generation"] == 2


def test_pods_are_found_by_fields(api: Api) -> None:
    api.ok("POST", PODS, pod("a", nodeName="node-1"))
    api.ok("POST", PODS, pod("b", nodeName="node-2"))
    api.patch(f"{PODS}/b/status", {"status": {"phase": "Running"}})

    def names(selector: str) -> list[str]:
        answer = api.ok("GET", f"/api/v1/pods?fieldSelector={quote(selector)}")
        return [item["metadata"]["name"] for item in answer["items"]]

    assert names("spec.nodeName=node-1") == ["a"]
    assert names("spec.nodeName!=node-1,status.phase=Running") == ["b"]
    assert names("metadata.name=a,metadata.namespace=default") == ["a"]
    assert names("status.phase=Pending") == ["a"]
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"},
        "reason": "Killing",
    }
    api.ok("POST", "/api/v1/namespaces/default/events", event)
    found = api.ok("GET", "/api/v1/events?fieldSelector=involvedObject.name%3Da")
    assert [item["reason"] for item in found["items"]] == ["Killing"]


# Names, versions, finalizers


def test_names_are_made_or_asked_for(api: Api) -> None:
    first = api.ok("POST", MAPS, {"metadata": {"generateName": "c-"}})
    second = api.ok("POST", MAPS, {"metadata": {"generateName": "c-"}})
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["metadata"]["name"].startswith("c-")
    status, answer = api.send("POST", MAPS, {"metadata": {}})
    assert status == 422
    assert "name or generateName is required" in answer["message"]


def test_revisions_grow_over_all_kinds_and_an_empty_change_is_none(api: Api) -> None:
    first = api.ok("POST", MAPS, {"metadata": {"name": "c"}, "data": {"k": "v"}})
    second = api.ok("POST", PODS, pod())
    numbers = [int(item["metadata"]["resourceVersion"]) for item in (first, second)]
    assert numbers[0] < numbers[1]
    assert api.patch(f"{MAPS}/c", {"data": {"k": "v"}}) == first
    assert api.ok("PUT", f"{MAPS}/c", first) == first
    assert [event[0] for event in api.events("configmaps")].count("MODIFIED") == 0


def test_generation_counts_changes_of_the_spec_only(api: Api) -> None:
    api.ok("POST", DEPLOYMENTS, deployment())
    labelled = api.patch(f"{DEPLOYMENTS}/d", {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    status = {"status": {"replicas": 1}, "spec": {"replicas": 9}}
    seen = api.patch(f"{DEPLOYMENTS}/d/status", status)
    assert (seen["metadata"]["generation"], seen["spec"]["replicas"]) == (1, 1)
    ignored = api.patch(f"{DEPLOYMENTS}/d", {"status": {"replicas": 7}, "spec": {"replicas": 2}})
    assert (ignored["metadata"]["generation"], ignored["status"]["replicas"]) == (2, 1)


def test_finalizers_hold_an_object_until_they_are_gone(api: Api) -> None:
    api.ok("POST", MAPS, {"metadata": {"name": "c", "finalizers": ["example/hold"]}})
    leaving = api.ok("DELETE", f"{MAPS}/c")
    assert leaving["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["example/hold", "example/new"]}}
    assert api.patch(f"{MAPS}/c", more)["metadata"]["finalizers"] == ["example/hold"]
    api.patch(f"{MAPS}/c", {"metadata": {"finalizers": None}})
    assert api.send("GET", f"{MAPS}/c")[0] == 404
    assert api.events("configmaps")[-1] == ("DELETED", "c")


@pytest.mark.parametrize(
    ("policy", "finalizer"), [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")]
)
def test_propagation_is_left_to_the_garbage_collector(
    api: Api, policy: str, finalizer: str
) -> None:
    api.ok("POST", DEPLOYMENTS, deployment())
    leaving = api.ok("DELETE", f"{DEPLOYMENTS}/d", {"propagationPolicy": policy})
    assert leaving["metadata"]["finalizers"] == [finalizer]
    api.patch(f"{DEPLOYMENTS}/d", {"metadata": {"finalizers": []}})
    assert api.send("GET", f"{DEPLOYMENTS}/d")[0] == 404


def test_system_fields_cannot_be_written(api: Api) -> None:
    made = api.ok("POST", MAPS, {"metadata": {"name": "c"}})
    patch = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7}}
    assert api.patch(f"{MAPS}/c", patch) == made
    status, _ = api.send("PATCH", f"{MAPS}/c", {"metadata": {"uid": "x"}}, media=MERGE)
    assert status == 409


def test_a_dry_run_changes_nothing(api: Api) -> None:
    before = api.server.store.revision
    made = api.ok("POST", f"{SERVICES}?dryRun=All", service())
    assert made["spec"]["clusterIP"]
    assert "resourceVersion" not in made["metadata"]
    assert api.server.store.revision == before
    api.ok("POST", SERVICES, service())
    before = api.server.store.revision
    api.ok("DELETE", f"{SERVICES}/s?dryRun=All")
    api.ok("PATCH", f"{SERVICES}/s?dryRun=All", {"spec": {"type": "NodePort"}}, media=MERGE)
    api.ok("POST", "/api/v1/namespaces?dryRun=All", {"metadata": {"name": "n"}})
    assert api.server.store.revision == before


def test_a_lease_must_say_its_version_and_may_be_made_by_put(api: Api) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l"
    assert api.send("PUT", path, {"metadata": {"name": "l"}})[0] == 201
    status, answer = api.send("PUT", path, {"metadata": {"name": "l"}, "spec": {}})
    assert status == 422
    assert "must be specified for an update" in answer["message"]


# Namespaces


def test_a_namespace_is_born_complete_and_ends_when_finalized(api: Api) -> None:
    api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})
    accounts = api.ok("GET", "/api/v1/namespaces/n/serviceaccounts")["items"]
    assert [item["metadata"]["name"] for item in accounts] == ["default"]
    leaving = api.ok("DELETE", "/api/v1/namespaces/n")
    assert leaving["status"]["phase"] == "Terminating"
    assert (
        api.send("POST", "/api/v1/namespaces/n/configmaps", {"metadata": {"name": "c"}})[0] == 403
    )
    leaving["spec"]["finalizers"] = []
    api.ok("PUT", "/api/v1/namespaces/n/finalize", leaving)
    assert api.send("GET", "/api/v1/namespaces/n")[0] == 404
    status, answer = api.send(
        "POST", "/api/v1/namespaces/n/configmaps", {"metadata": {"name": "c"}}
    )
    assert (status, answer["message"]) == (404, 'namespaces "n" not found')
    assert api.send("DELETE", "/api/v1/namespaces/kube-system")[0] == 403


def test_a_namespace_made_by_server_side_apply_is_complete_too(api: Api) -> None:
    apply = "application/apply-patch+yaml"
    path = "/api/v1/namespaces/n"
    assert api.send("PATCH", path, {"metadata": {"name": "n"}}, media=apply)[0] == 422
    api.ok("PATCH", f"{path}?fieldManager=m", {"metadata": {"name": "n"}}, media=apply)
    assert api.ok("GET", f"{path}/serviceaccounts/default")["metadata"]["namespace"] == "n"


def test_only_the_newest_events_are_kept(api: Api) -> None:
    path = "/api/v1/namespaces/default/events"
    for index in range(2001):
        api.server.store.put("events", {"metadata": {"name": f"e{index}", "namespace": "default"}})
    api.ok("POST", path, {"metadata": {"name": "last"}, "involvedObject": {"kind": "Pod"}})
    names = {item["metadata"]["name"] for item in api.ok("GET", path)["items"]}
    assert len(names) == 1802
    assert {"last", "e2000"} < names
    assert "e0" not in names


# Services


def test_cluster_addresses_and_node_ports_are_unique_and_come_back(api: Api) -> None:
    first = api.ok("POST", SERVICES, service("a", type="NodePort"))
    address, port = first["spec"]["clusterIP"], first["spec"]["ports"][0]["nodePort"]
    assert api.send("POST", SERVICES, service("b", clusterIP=address))[0] == 422
    taken = {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}
    assert api.send("POST", SERVICES, {"metadata": {"name": "b"}, "spec": taken})[0] == 422
    assert api.send("POST", SERVICES, service("b", clusterIP="10.97.0.1"))[0] == 422
    api.ok("DELETE", f"{SERVICES}/a")
    assert api.ok("POST", SERVICES, service("b", clusterIP=address))["spec"]["clusterIP"] == address


def test_an_update_keeps_what_was_allocated(api: Api) -> None:
    first = api.ok("POST", SERVICES, service(type="NodePort"))
    second = api.ok("PUT", f"{SERVICES}/s", service(type="NodePort", selector={"a": "b"}))
    assert second["spec"]["clusterIP"] == first["spec"]["clusterIP"]
    assert second["spec"]["ports"] == first["spec"]["ports"]
    status, answer = api.send(
        "PATCH", f"{SERVICES}/s", {"spec": {"clusterIP": "10.96.0.9"}}, media=MERGE
    )
    assert status == 422
    assert "may not change once set" in answer["message"]
    plain = api.patch(f"{SERVICES}/s", {"spec": {"type": "ClusterIP"}})
    assert "nodePort" not in plain["spec"]["ports"][0]
    assert "externalTrafficPolicy" not in plain["spec"]


def test_headless_external_and_local_services(api: Api) -> None:
    headless = api.ok("POST", SERVICES, service("h", clusterIP="None"))
    assert headless["spec"]["clusterIPs"] == ["None"]
    named = {"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "x.org"}}
    assert "clusterIP" not in api.ok("POST", SERVICES, named)["spec"]
    local = service("l", type="LoadBalancer", externalTrafficPolicy="Local")
    made = api.ok("POST", SERVICES, local)
    assert made["spec"]["healthCheckNodePort"] >= 30000
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    seen = api.patch(f"{SERVICES}/l/status", ingress)
    assert seen["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "VIP"}]


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", PODS, {"metadata": {"name": "p"}, "spec": []}, 400),
        ("POST", PODS, {"metadata": {"name": "p"}}, 422),
        ("POST", PODS, {"metadata": "p"}, 422),
        ("POST", PODS, [], 400),
        ("POST", SERVICES, {"metadata": {"name": "s"}, "spec": {"ports": "80"}}, 400),
        ("POST", SERVICES, {"metadata": {"name": "s"}, "spec": {"ports": []}}, 422),
        ("POST", DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {"replicas": "x"}}, 422),
        ("POST", MAPS, {"metadata": {"name": "Not_A_Name"}}, 422),
        ("POST", MAPS, {"metadata": {"name": "c", "namespace": "other"}}, 400),
        ("POST", MAPS, {"apiVersion": "v2", "metadata": {"name": "c"}}, 400),
        ("POST", MAPS, {"metadata": {"name": "c", "labels": {"a b": "c"}}}, 422),
        ("PUT", f"{MAPS}/kube-root-ca.crt", {"metadata": {"name": "other"}}, 400),
        ("PUT", f"{MAPS}/none", {"metadata": {"name": "none"}}, 404),
        ("GET", f"{PODS}?labelSelector=a%20in%20(b", None, 400),
        ("GET", f"{PODS}?limit=many", None, 400),
        ("GET", "/api/v1/configmaps?fieldSelector=data.k%3Dv", None, 400),
        ("POST", "/api/v1/configmaps", {"metadata": {"name": "c"}}, 405),
        ("DELETE", "/api/v1/namespaces", None, 405),
        ("GET", f"{PODS}/none/log", None, 404),
        ("GET", f"{MAPS}/kube-root-ca.crt/scale", None, 404),
    ],
)
def test_what_is_wrong_is_refused_with_a_status(
    api: Api, method: str, path: str, body: Any, status: int
) -> None:
    before = api.server.store.revision
    got, answer = api.send(method, path, body)
    assert got == status, answer
    assert answer["kind"] == "Status"
    assert answer["message"]
    assert api.server.store.revision == before


def test_an_unknown_field_is_dropped_with_a_warning_or_refused(api: Api) -> None:
    headers = {"authorization": "Bearer secret", "content-type": "application/json"}
    body = json.dumps({"metadata": {"name": "c"}, "dataa": {}}).encode()
    answer = api.server._routes.handle(Request.parse("POST", MAPS, headers, body))
    assert answer.headers["Warning"] == '299 - "unknown field \\"dataa\\""'
    assert "dataa" not in json.loads(answer.body)
    status, _ = api.send("POST", f"{MAPS}?fieldValidation=Strict", {"dataa": {}})
    assert status == 400


def test_delete_collection_takes_only_what_is_selected(api: Api) -> None:
    for name in ("a", "b"):
        api.ok("POST", MAPS, {"metadata": {"name": name, "labels": {"n": name}}})
    api.ok("DELETE", f"{MAPS}?labelSelector=n%3Da")
    names = [item["metadata"]["name"] for item in api.ok("GET", MAPS)["items"]]
    assert names == ["b", "kube-root-ca.crt"]


# Rights


def test_a_service_account_may_what_its_roles_say(api: Api) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    api.ok("POST", accounts, {"metadata": {"name": "bot"}})
    answer = api.ok("POST", f"{accounts}/bot/token", {"spec": {"expirationSeconds": 600}})
    token = answer["status"]["token"]
    assert api.send("GET", PODS, token=token)[0] == 403
    assert api.send("GET", "/api", token=token)[0] == 200
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}
    api.ok("POST", f"/apis/{group}/v1/clusterroles", {"metadata": {"name": "r"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "b"},
        "roleRef": {"kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}],
    }
    api.ok("POST", f"/apis/{group}/v1/namespaces/default/rolebindings", binding)
    assert api.send("GET", PODS, token=token)[0] == 200
    assert api.send("GET", "/api/v1/pods", token=token)[0] == 403
    assert api.send("POST", PODS, pod(), token=token)[0] == 403
    assert api.send("GET", f"{PODS}?watch=1", token=token)[0] == 403
    api.ok("DELETE", f"{accounts}/bot")
    assert api.send("GET", PODS, token=token)[0] == 401
    assert api.send("GET", PODS, token=token[:-2] + "xx")[0] == 401


def test_an_old_server_has_the_old_slices(api: Api) -> None:
    old = Api("1.20")
    assert old.send("GET", "/apis/discovery.k8s.io/v1")[0] == 404
    path = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices"
    body = {
        "metadata": {"name": "e"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.2.3"], "topology": {"kubernetes.io/hostname": "n"}}],
    }
    made = old.ok("POST", path, body)
    assert made["endpoints"][0]["topology"] == {"kubernetes.io/hostname": "n"}
    assert api.send("GET", path)[0] == 404
    assert old.ok("GET", "/version")["gitVersion"] == "v1.20.0"
