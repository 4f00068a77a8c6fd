"""The roles that docs/cluster.md shows allow what is really asked of the API, and no less."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pytest_ipvs.cluster import Api, Cluster
from pytest_ipvs.cluster.errors import ApiError, NodeUnreachableError
from pytest_ipvs.lab.api import Server
from pytest_ipvs.lab.api.auth import User
from pytest_ipvs.settings import resolve
from pytest_ipvs.traffic.job import Follower, JobPlace, JobRun, manifests
from pytest_ipvs.traffic.plan import Plan

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
CONFIG = "kind: KubeProxyConfiguration\nmode: ipvs\n"
READ, DISRUPT, JOB = "pytest-ipvs-read", "pytest-ipvs-disrupt", "pytest-ipvs-job"


def documented() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = [one for block in blocks for one in yaml.safe_load_all(block)]
    return [one for one in found if str(one.get("kind")).endswith("Role")]


class Guarded:
    """An API server on which somebody has no more than some documented roles."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.apis: list[Api] = []
        self.admin = Api.connect(self.settings(server.token))
        self.apis.append(self.admin)

    def settings(self, token: str) -> Any:
        path = self.folder / f"kubeconfig-{token}"
        path.write_text(self.server.kubeconfig(token))
        given = {"ipvs_kubeconfig": str(path), "ipvs_connect": "ssh://root@{name}"}
        return resolve(given, {}, {}, {})

    def give(self, *names: str, kinds: tuple[str, ...] = ("Role", "ClusterRole")) -> None:
        for role in documented():
            kind, metadata = role["kind"], role["metadata"]
            if metadata["name"] not in names or kind not in kinds:
                continue
            where = f"{RBAC}/namespaces/{metadata['namespace']}" if kind == "Role" else RBAC
            self.admin.create(f"{where}/{kind.lower()}s", role)
            binding = {
                "apiVersion": role["apiVersion"],
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": kind,
                    "name": metadata["name"],
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "reader"}
                ],
            }
            self.admin.create(f"{where}/{kind.lower()}bindings", binding)

    def cluster(self) -> Cluster:
        cluster = Cluster(self.settings("reader"))
        self.apis.append(cluster.api)
        return cluster


@pytest.fixture(params=["1.36.2", "1.20.2"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guarded]:
    users = {"reader": User(name="reader", groups=("system:authenticated",))}

    def log(pod: Mapping[str, Any], query: Mapping[str, str]) -> str:
        return ""

    with Server(request.param, token="admin", users=users, log_reader=log) as server:
        made = Guarded(server, tmp_path)
        for kind, name, body in (
            ("nodes", "", {"kind": "Node", "metadata": {"name": "node-1"}}),
            (
                "configmaps",
                "kube-system",
                {
                    "kind": "ConfigMap",
                    "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
                    "data": {"config.conf": CONFIG},
                },
            ),
        ):
            where = f"/api/v1/namespaces/{name}" if name else "/api/v1"
            made.admin.create(f"{where}/{kind}", {"apiVersion": "v1", **body})
        yield made
        for api in made.apis:
            api.close()


@pytest.fixture(autouse=True)
def _no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Cluster, name: str, **_: Any) -> Any:
        raise NodeUnreachableError(name, "there is none")

    monkeypatch.setattr(Cluster, "_facts", silent)


def test_the_read_role_is_enough_to_read_everything(guarded: Guarded) -> None:
    guarded.give(READ)
    with guarded.cluster() as cluster:
        cluster.check_access()
        snapshot = cluster.snapshot(details=True)
        assert [node.name for node in cluster.nodes] == ["node-1"]
        assert snapshot.proxy_objects is not None
        assert snapshot.proxy_objects.unread == {}
        assert snapshot.proxy_objects.config_maps["kube-system/kube-proxy"]["mode"] == "ipvs"
        with pytest.raises(ApiError, match="may not get configmaps in namespace kube-system"):
            cluster.api.get("/api/v1/namespaces/kube-system/configmaps/another")


def test_the_part_of_kube_system_is_needed(guarded: Guarded) -> None:
    guarded.give(READ, kinds=("ClusterRole",))
    with guarded.cluster() as cluster:
        snapshot = cluster.snapshot(details=True)
    assert snapshot.proxy_objects is not None
    assert list(snapshot.proxy_objects.unread) == ["proxy_objects.config_maps"]


def job(cluster: Cluster) -> JobRun:
    settings = SimpleNamespace(image="python:3", allow_disruption=True)
    place = JobPlace(cluster=SimpleNamespace(api=cluster.api, settings=settings), count=1)
    return JobRun(place, Plan(host="10.96.0.1", port=80, rate=10))


def test_the_roles_are_enough_for_clients_in_a_job(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.give(READ, DISRUPT, JOB)
    with guarded.cluster() as cluster:
        run = job(cluster)
        run.namespace.create()
        try:
            for path, body in manifests(run.place, run.plan, run.namespace.name):
                run.api.create(path, body)
            assert run._pods() == []
            pods = f"/api/v1/namespaces/{run.namespace.name}/pods"
            container = {"name": "client", "image": "python:3"}
            pod = {"metadata": {"name": "client-0"}, "spec": {"containers": [container]}}
            made = guarded.admin.create(pods, {"apiVersion": "v1", "kind": "Pod", **pod})
            guarded.admin.patch(f"{pods}/client-0/status", {"status": {"phase": "Succeeded"}})
            follower = run._followers["client-0"] = Follower(run, made)
            assert follower._read() == ""
            assert follower._ended("")
            # As a pod that runs: the end deletes the Job, and need not wait for it.
            monkeypatch.setattr(follower.done, "wait", lambda timeout: True)
            run.stop()
            assert run._poll_error == ""
        finally:
            run.abort()


def test_the_part_for_jobs_is_needed(guarded: Guarded) -> None:
    guarded.give(READ, DISRUPT)
    with guarded.cluster() as cluster:
        run = job(cluster)
        with pytest.raises(Exception, match=r"may not create jobs .*apiGroups: ..batch"):
            run.start()
