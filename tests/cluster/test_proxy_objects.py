"""What the API holds about kube-proxy: ConfigMaps, pods, and why they were not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from pytest_ipvs.cluster.api import Api
from pytest_ipvs.cluster.errors import ApiError
from pytest_ipvs.cluster.model import NodeDetails, NodeFacts, ProxyObjects, ProxyPod, Snapshot
from pytest_ipvs.cluster.proxy_objects import read_proxy_objects
from pytest_ipvs.cluster.reading import with_details

MAPS = "/api/v1/namespaces/kube-system/configmaps"
PODS = "/api/v1/namespaces/kube-system/pods"
CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: ipvs\nipvs:\n  strictARP: true\n"

POD = {
    "metadata": {"name": "kube-proxy-x7", "namespace": "kube-system"},
    "spec": {
        "nodeName": "node-1",
        "containers": [
            {"name": "mesh", "image": "mesh:1"},
            {
                "name": "kube-proxy",
                "image": "registry.k8s.io/kube-proxy:v1.36.2",
                "command": ["/usr/local/bin/kube-proxy"],
                "args": ["--config=/var/lib/kube-proxy/config.conf"],
            },
        ],
    },
    "status": {
        "containerStatuses": [
            {"name": "mesh", "ready": False, "restartCount": 9},
            {
                "name": "kube-proxy",
                "ready": True,
                "restartCount": 2,
                "state": {"running": {"startedAt": "2026-11-21T01:37:04Z"}},
            },
        ]
    },
}


class FakeApi:
    """Has of `Api` what the reading uses: ConfigMaps by name, pods, statuses to refuse with."""

    def __init__(
        self,
        maps: Mapping[str, Mapping[str, str]] | None = None,
        pods: Any = (),
        refuse: Mapping[str, int] | None = None,
    ) -> None:
        self.maps, self.pods, self.refuse = maps or {}, pods, refuse or {}
        self.asked: list[str] = []

    def _answer(self, path: str) -> None:
        self.asked.append(path)
        if status := self.refuse.get(path):
            raise ApiError(status, "Forbidden", "no", path)

    def get(self, path: str) -> dict[str, Any]:
        self._answer(path)
        name = path.rpartition("/")[2]
        if name not in self.maps:
            raise ApiError(404, "NotFound", "not found", path)
        return {
            "metadata": {"name": name, "namespace": "kube-system"},
            "data": dict(self.maps[name]),
        }

    def items(self, path: str, *, limit: int, **query: str) -> Any:
        self._answer(path)
        assert (limit, query) == (0, {"labelSelector": "k8s-app=kube-proxy"})
        return iter(self.pods)


def read(**world: Any) -> ProxyObjects:
    return read_proxy_objects(cast(Api, FakeApi(**world)))


def test_a_kubeadm_cluster() -> None:
    api = FakeApi({"kube-proxy": {"config.conf": CONFIG, "kubeconfig.conf": "x"}}, [POD])
    found = read_proxy_objects(cast(Api, api))
    assert found.unread == {}
    assert list(found.config_maps) == ["kube-system/kube-proxy"]
    assert found.config_maps["kube-system/kube-proxy"]["ipvs"] == {"strictARP": True}
    assert found.pods == (
        ProxyPod(
            name="kube-proxy-x7",
            node="node-1",
            image="registry.k8s.io/kube-proxy:v1.36.2",
            ready=True,
            restarts=2,
            restarted_at=1795225024.0,
            command=("/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf"),
        ),
    )
    assert len(api.asked) == 3


def test_an_eks_cluster() -> None:
    maps = {"kube-proxy": {"kubeconfig": "x"}, "kube-proxy-config": {"config": CONFIG}}
    found = read(maps=maps)
    assert list(found.config_maps) == ["kube-system/kube-proxy-config"]
    assert found.unread == {}


def test_a_cluster_without_such_objects_has_none_and_no_reason() -> None:
    assert read() == ProxyObjects()


@pytest.mark.parametrize("status", [403, 500])
def test_what_the_server_refuses_is_a_reason(status: int) -> None:
    refuse = {f"{MAPS}/kube-proxy": status, PODS: status}
    found = read(maps={"kube-proxy-config": {"config": CONFIG}}, refuse=refuse)
    # What can be read is read.
    assert list(found.config_maps) == ["kube-system/kube-proxy-config"]
    assert sorted(found.unread) == ["proxy_objects.config_maps", "proxy_objects.pods"]
    assert str(status) in found.unread["proxy_objects.pods"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "config.conf is no YAML"),
        ("- a", "config.conf is list, expected a mapping"),
        ("", "config.conf is NoneType, expected a mapping"),
        ("a: 2026-99-99", "config.conf is no YAML"),
        ("[" * 3000, "config.conf is no YAML"),
        ("!!python/object/apply:os.system [x]", "config.conf is no YAML"),
        ("a: 1\n---\nb: 2", "config.conf is no YAML"),
    ],
)
def test_a_configuration_that_can_t_be_decoded_is_a_reason(text: str, words: str) -> None:
    found = read(maps={"kube-proxy": {"config.conf": text}})
    assert found.config_maps == {}
    reason = found.unread["proxy_objects.config_maps"]
    assert reason.startswith(f"ConfigMap kube-system/kube-proxy: {words}")
    assert "\n" not in reason


def test_a_pod_that_can_t_be_read_is_a_reason() -> None:
    broken = {"metadata": {"name": "x"}, "spec": {"containers": "none"}}
    assert "spec.containers is 'none'" in read(pods=[broken]).unread["proxy_objects.pods"]


def test_a_pod_that_has_just_been_made() -> None:
    fresh = {"metadata": {"name": "x"}, "spec": {"containers": []}}
    pod = read(pods=[fresh]).pods[0]
    assert pod == ProxyPod(name="x", node="", image="", ready=False, restarts=0)


def test_details_of_another_reading_are_brought_in() -> None:
    def snapshot(*names: str, details: bool = False) -> Snapshot:
        facts = {
            name: NodeFacts(
                node=name,
                taken_at=1.0,
                kernel_release="6.1",
                kernel_version="#1",
                sysctls={"a.b": "1" if details else "0"},
                details=NodeDetails(cpus=2) if details else None,
                unread={"details.ipsets": "x", "table": "y"} if details else {"proxy.mode": "z"},
            )
            for name in names
        }
        objects = ProxyObjects() if details else None
        return Snapshot(
            taken_at=1.0,
            server_version="v1.36.2",
            nodes=(),
            services=(),
            endpoint_slices=(),
            facts=facts,
            proxy_objects=objects,
        )

    made = with_details(snapshot("a", "b"), snapshot("b", "c", details=True))
    assert made.proxy_objects == ProxyObjects()
    assert list(made.facts) == ["a", "b"]
    assert made.facts["a"].details is None
    assert made.facts["b"].details == NodeDetails(cpus=2)
    # The rest stays what it was at its own moment.
    assert made.facts["b"].sysctls == {"a.b": "0"}
    assert made.facts["b"].unread == {"details.ipsets": "x", "proxy.mode": "z"}
