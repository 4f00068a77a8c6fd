"""Scenarios on what a cluster shares: drain, kube-proxy's restart, and the Lease they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_ipvs.rollout import NotPossibleHere, RolloutError, at_once
from pytest_ipvs.rollout import lease as lease_module
from pytest_ipvs.rollout.drain import (
    CORDONED_BY,
    blockers,
    choose_node,
    cordon,
    evict,
    is_ours,
    uncordon,
    uncordon_stale,
)
from pytest_ipvs.rollout.lease import DisruptionLease
from pytest_ipvs.rollout.proxies import find_proxy_pod, restart_proxy
from pytest_ipvs.rollout.ways import parse
from pytest_ipvs.traffic.namespace import micro_time

LEASE = f"{lease_module.PATH}/{lease_module.NAME}"
NAMESPACE = f"/api/v1/namespaces/{lease_module.NAMESPACE}"


class StatusError(Exception):
    """An answer of the API that is no success."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or str(status))
        self.status = status


class FakeApi:
    """Objects by path; refusals as the test says."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, list[StatusError]] = {}
        self.calls: list[tuple[str, str]] = []
        self.pauses: list[float] = []
        self.said: list[str] = []

    def _call(self, verb: str, path: str) -> None:
        self.calls.append((verb, path))
        if waiting := self.refusals.get(f"{verb} {path}"):
            raise waiting.pop(0)

    def get(self, path: str, **_: Any) -> dict[str, Any]:
        self._call("GET", path)
        if path not in self.objects:
            raise StatusError(404)
        return copy.deepcopy(self.objects[path])

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        for place, item in list(self.objects.items()):
            under = place.rpartition("/")[0]
            everywhere = path == "/api/v1/pods" and "/pods/" in place
            node = (item.get("spec") or {}).get("nodeName")
            if not everywhere and under != path:
                continue
            if query.get("fieldSelector") not in (None, f"spec.nodeName={node}"):
                continue
            labels = item["metadata"].get("labels") or {}
            if "labelSelector" in query:
                key, _, value = query["labelSelector"].partition("=")
                if labels.get(key) != value:
                    continue
            yield item

    def create(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        if path.endswith("/eviction"):
            self._call("POST", path)
            self.objects.pop(path.removesuffix("/eviction"), None)
            return {}
        place = f"{path}/{body['metadata']['name']}"
        self._call("POST", place)
        if place in self.objects:
            raise StatusError(409)
        self.objects[place] = copy.deepcopy(body)
        return dict(body)

    def replace(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self._call("PUT", path)
        self.objects[path] = copy.deepcopy(body)
        return dict(body)

    def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self._call("PATCH", path)
        item = self.objects[path]
        for part, values in body.items():
            for key, value in values.items():
                if isinstance(value, dict):
                    known = item[part].setdefault(key, {})
                    known.update(value)
                    item[part][key] = {k: v for k, v in known.items() if v is not None}
                elif value is None:
                    item[part].pop(key, None)
                else:
                    item[part][key] = value
        return item

    def delete(self, path: str, **_: Any) -> dict[str, Any]:
        self._call("DELETE", path)
        if self.objects.pop(path, None) is None:
            raise StatusError(404)
        return {}

    def put_node(self, name: str, **spec: Any) -> None:
        """A node."""
        self.objects[f"/api/v1/nodes/{name}"] = {"metadata": {"name": name}, "spec": spec}

    def put_pod(self, name: str, node: str, owner: str = "ReplicaSet", **change: Any) -> None:
        """A pod of namespace "shop", or of the one given."""
        namespace = change.pop("namespace", "shop")
        owners = [{"kind": owner, "name": "o", "controller": True}] if owner else []
        metadata = {"name": name, "namespace": namespace, "uid": change.pop("uid", name)}
        metadata |= {"ownerReferences": owners, **change.pop("metadata", {})}
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.objects[f"/api/v1/namespaces/{namespace}/pods/{name}"] = {
            "metadata": metadata,
            "spec": {"nodeName": node, **change},
            "status": ready,
        }

    def lease(self) -> DisruptionLease:
        """A run that wants to drain."""
        return DisruptionLease(self, "drain node-2", self.said.append, pause=self.pauses.append)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def test_the_lease_is_held_and_leaves_nothing(api: FakeApi) -> None:
    with api.lease() as lease:
        assert api.objects[LEASE]["spec"]["holderIdentity"] == lease.holder
        assert NAMESPACE in api.objects
    assert api.objects == {}


def test_another_live_holder_is_one_sentence(api: FakeApi) -> None:
    with (
        api.lease() as first,
        pytest.raises(RolloutError, match="expected one run at a time") as told,
        api.lease(),
    ):
        pass
    assert first.holder in str(told.value)
    assert str(told.value).startswith("drain node-2 is refused: ")


def test_a_dead_holder_is_followed(api: FakeApi) -> None:
    with api.lease():
        pass
    old = {
        "holderIdentity": "gone/1/x",
        "leaseDurationSeconds": 60,
        "renewTime": "2026-01-01T00:00:00Z",
    }
    api.objects[LEASE] = {"metadata": {"name": "disruption", "resourceVersion": "7"}, "spec": old}
    with api.lease() as lease:
        assert api.objects[LEASE]["spec"]["holderIdentity"] == lease.holder
        assert api.objects[LEASE]["metadata"]["resourceVersion"] == "7"
    assert api.said == ["taking over the Lease of gone/1/x, which has died"]


def test_whoever_is_faster_has_it(api: FakeApi) -> None:
    spec = {"leaseDurationSeconds": 0, "renewTime": "2026-01-01T00:00:00Z"}
    api.objects[LEASE] = {"metadata": {"name": "disruption"}, "spec": spec}
    api.refusals[f"PUT {LEASE}"] = [StatusError(409)]
    with pytest.raises(RolloutError, match="another run is disrupting"), api.lease():
        pass


def test_a_namespace_that_is_going_away_is_waited_for(api: FakeApi) -> None:
    ending = {"metadata": {"name": "pytest-ipvs", "deletionTimestamp": micro_time()}}
    api.objects[NAMESPACE] = ending
    api.refusals[f"POST {LEASE}"] = [StatusError(403)]
    with api.lease():
        pass
    assert api.pauses == [1.0]


def test_cordon_says_whose_it_is_and_uncordon_takes_it_back(api: FakeApi) -> None:
    api.put_node("node-2")
    cordon(api, "node-2", "me")
    node = api.objects["/api/v1/nodes/node-2"]
    assert node["spec"] == {"unschedulable": True}
    assert node["metadata"]["annotations"] == {CORDONED_BY: "me"}
    assert is_ours("node-2")
    api.refusals["PATCH /api/v1/nodes/node-2"] = [StatusError(503), StatusError(503)]
    uncordon(api, "node-2", api.said.append, api.pauses.append)
    assert node["spec"] == {}
    assert not is_ours("node-2")
    assert api.pauses == [1.0, 2.0]


def test_an_uncordon_that_fails_for_good_is_told_loudly(api: FakeApi) -> None:
    api.put_node("node-2", unschedulable=True)
    api.refusals["PATCH /api/v1/nodes/node-2"] = [StatusError(503) for _ in range(5)]
    uncordon(api, "node-2", api.said.append, api.pauses.append)
    assert api.said == ["node node-2 is STILL CORDONED (503): kubectl uncordon node-2"]


def test_somebody_elses_cordon_is_respected(api: FakeApi) -> None:
    api.put_node("node-2", unschedulable=True)
    with pytest.raises(RolloutError, match="node node-2 is cordoned already"):
        cordon(api, "node-2", "me")
    assert not is_ours("node-2")
    assert uncordon_stale(api, api.said.append, api.pauses.append) == []


def test_what_a_dead_run_cordoned_is_uncordoned_by_the_next(api: FakeApi) -> None:
    api.put_node("node-1")
    api.put_node("node-2", unschedulable=True)
    api.objects["/api/v1/nodes/node-2"]["metadata"]["annotations"] = {CORDONED_BY: "gone/1/x"}
    left = uncordon_stale(api, api.said.append, api.pauses.append)
    assert left == ["node-2"]
    assert api.objects["/api/v1/nodes/node-2"]["spec"] == {}
    assert "left behind by a run that died" in api.said[0]


def test_a_disruption_budget_is_asked_again_until_it_allows(api: FakeApi) -> None:
    api.put_pod("web-1", "node-2")
    api.put_pod("proxy", "node-2", owner="DaemonSet")
    api.put_pod("static", "node-2", metadata={"annotations": {"kubernetes.io/config.mirror": "x"}})
    path = "/api/v1/namespaces/shop/pods/web-1/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "would violate the budget"), StatusError(429)]
    evict(api, "node-2", timeout=60, say=api.said.append, pause=api.pauses.append)
    assert [call for call in api.calls if call[0] == "POST"] == [("POST", path)] * 3
    assert api.said[0] == (
        "draining node-2: shop/web-1 may not be evicted now: would violate the budget"
    )
    assert "/api/v1/namespaces/shop/pods/proxy" in api.objects


def test_a_drain_that_takes_too_long_names_what_is_left(api: FakeApi) -> None:
    api.put_pod("web-1", "node-2")
    path = "/api/v1/namespaces/shop/pods/web-1/eviction"
    api.refusals[f"POST {path}"] = [StatusError(429, "no budget") for _ in range(9)]
    with pytest.raises(RolloutError, match=r"not drained within -1 s, left are web-1: shop/web-1"):
        evict(api, "node-2", timeout=-1, say=api.said.append, pause=api.pauses.append)


def test_pods_that_would_be_lost_block_a_drain(api: FakeApi) -> None:
    api.put_pod("bare", "node-2", owner="")
    api.put_pod("scratch", "node-2", volumes=[{"name": "x", "emptyDir": {}}])
    api.put_pod("fine", "node-2", volumes=[{"name": "x", "configMap": {}}])
    pods = list(api.items("/api/v1/pods"))
    assert blockers(pods) == ["shop/bare has no controller", "shop/scratch has an emptyDir volume"]


def test_the_node_with_the_fewest_pods_is_drained(api: FakeApi) -> None:
    for number, node in enumerate(["node-1", "node-2", "node-2", "node-3", "node-4"]):
        api.put_pod(f"web-{number}", node)
    names = ["node-1", "node-2", "node-3"]
    hosts = ["node-1", "node-2", "node-3", "node-4"]
    assert choose_node(api, names, hosts, "node-1") == "node-3"
    api.put_pod("bare", "node-3", owner="")
    assert choose_node(api, names, hosts, "node-1") == "node-2"
    api.put_pod("bare-2", "node-2", owner="")
    with pytest.raises(NotPossibleHere, match="node-2: shop/bare-2 has no controller"):
        choose_node(api, names, hosts, "node-1")
    with pytest.raises(NotPossibleHere, match="no selected node but the client's own"):
        choose_node(api, names, ["node-1"], "node-1")


def put_proxy(api: FakeApi, name: str, owner: str = "DaemonSet") -> None:
    labels = {"labels": {"k8s-app": "kube-proxy"}}
    api.put_pod(name, "node-1", owner, namespace="kube-system", metadata=labels)


def test_kube_proxy_is_restarted_and_waited_for(api: FakeApi) -> None:
    put_proxy(api, "kube-proxy-a")
    pod = find_proxy_pod(api, "node-1")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        put_proxy(api, "kube-proxy-b")

    restart_proxy(api, "node-1", pod, timeout=60, say=api.said.append, pause=pause)
    assert ("DELETE", "/api/v1/namespaces/kube-system/pods/kube-proxy-a") in api.calls
    assert len(pauses) == 1


def test_kube_proxy_that_stays_away_is_told(api: FakeApi) -> None:
    put_proxy(api, "kube-proxy-a")
    pod = find_proxy_pod(api, "node-1")
    with pytest.raises(RolloutError, match="kube-proxy on node-1 has no ready pod"):
        restart_proxy(api, "node-1", pod, timeout=-1, say=api.said.append, pause=api.pauses.append)


def test_kube_proxy_that_is_no_pod_can_not_be_restarted(api: FakeApi) -> None:
    with pytest.raises(NotPossibleHere, match="is no pod of namespace kube-system"):
        find_proxy_pod(api, "node-1")
    put_proxy(api, "kube-proxy-a", owner="Node")
    with pytest.raises(NotPossibleHere, match="without a DaemonSet"):
        find_proxy_pod(api, "node-1")


def test_ways_are_a_via_and_perhaps_a_client() -> None:
    assert parse("node-port") == ("node-port", None)
    assert parse("192.0.2.7:80@node:node-2") == ("192.0.2.7:80", "node:node-2")
    for wrong in ("@local", "node-port@"):
        with pytest.raises(ValueError, match="expected a 'via'"):
            parse(wrong)


def test_changes_at_once_all_happen_and_the_first_error_is_raised() -> None:
    done: list[int] = []

    def fail() -> None:
        raise RolloutError("no")

    with pytest.raises(RolloutError, match="no"):
        at_once(lambda: done.append(1), fail, lambda: done.append(2))
    assert sorted(done) == [1, 2]
