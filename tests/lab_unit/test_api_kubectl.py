"""kubectl against the embedded API: what people type."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.lab.api import Server

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH"),
]

Kubectl = Callable[..., str]

_MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example/web:1
        ports: [{containerPort: 8080}]
        env: [{name: A, value: "1"}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def kubectl(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """Runs kubectl in a namespace of the test's own; answers what it printed."""
    config = tmp_path / "kubeconfig"
    config.write_text(server.kubeconfig())
    namespace = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[:60]

    def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [
                "kubectl",
                f"--kubeconfig={config}",
                f"--cache-dir={tmp_path / 'cache'}",
                f"--namespace={namespace}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path)},
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    run("create", "namespace", namespace)
    yield run
    run("delete", "namespace", namespace, "--wait=false")


def manifest(tmp_path: Path, replicas: int) -> str:
    path = tmp_path / "web.yaml"
    path.write_text(_MANIFEST.replace("REPLICAS", str(replicas)))
    return str(path)


def test_version_and_discovery(kubectl: Kubectl) -> None:
    assert json.loads(kubectl("version", "-o=json"))["serverVersion"]["gitVersion"] == "v1.36.2"
    assert "endpointslices" in kubectl("api-resources")


def test_apply_is_created_then_unchanged_then_configured(kubectl: Kubectl, tmp_path: Path) -> None:
    assert "deployment.apps/web created" in kubectl("apply", "-f", manifest(tmp_path, 1))
    again = kubectl("apply", "-f", manifest(tmp_path, 1))
    assert "deployment.apps/web unchanged" in again
    assert "service/web unchanged" in again
    assert "deployment.apps/web configured" in kubectl("apply", "-f", manifest(tmp_path, 2))
    found = json.loads(kubectl("get", "deployment", "web", "-o=json"))
    assert found["spec"]["replicas"] == 2
    assert found["metadata"]["generation"] == 2


def test_apply_removes_what_left_the_manifest(kubectl: Kubectl, tmp_path: Path) -> None:
    path = Path(manifest(tmp_path, 1))
    kubectl("apply", "-f", str(path))
    path.write_text(path.read_text().replace('        env: [{name: A, value: "1"}]\n', ""))
    kubectl("apply", "-f", str(path))
    found = json.loads(kubectl("get", "deployment", "web", "-o=json"))
    assert "env" not in found["spec"]["template"]["spec"]["containers"][0]


def test_server_side_apply_and_its_conflict(kubectl: Kubectl, tmp_path: Path) -> None:
    first = kubectl("apply", "--server-side", "-f", manifest(tmp_path, 1))
    assert "deployment.apps/web serverside-applied" in first
    other = ("apply", "--server-side", "--field-manager=other", "-f", manifest(tmp_path, 5))
    refused = kubectl(*other, code=1)
    assert 'conflict with "kubectl": .spec.replicas' in refused
    kubectl(*other, "--force-conflicts")
    assert kubectl("get", "deployment", "web", "-o=jsonpath={.spec.replicas}") == "5"


def test_server_side_apply_takes_over_from_client_side(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    kubectl("apply", "--server-side", "-f", manifest(tmp_path, 3))
    assert kubectl("get", "deployment", "web", "-o=jsonpath={.spec.replicas}") == "3"


def test_an_unknown_field_is_refused(kubectl: Kubectl, tmp_path: Path) -> None:
    path = Path(manifest(tmp_path, 1))
    path.write_text(path.read_text().replace("        image:", "        imagee:"))
    refused = kubectl("apply", "-f", str(path), code=1)
    assert 'unknown field "spec.template.spec.containers[0].imagee"' in refused


def test_get_prints_tables(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    head, row = kubectl("get", "service", "web").splitlines()
    assert head.split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert row.split()[:2] == ["web", "ClusterIP"]
    wide = kubectl("get", "deployments", "-o=wide").splitlines()
    assert wide[0].split()[-3:] == ["CONTAINERS", "IMAGES", "SELECTOR"]
    assert wide[1].split()[-3:] == ["web", "example/web:1", "app=web"]
    everything = kubectl("get", "all")
    assert "deployment.apps/web" in everything
    assert "service/web" in everything
    assert "kind: Deployment" in kubectl("get", "deployment", "web", "-o=yaml")
    assert "No resources found" not in kubectl("get", "services", "--selector=!app")


def test_describe(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    assert "TargetPort:" in kubectl("describe", "service", "web")


def test_scale_and_restart_change_the_deployment(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    assert "scaled" in kubectl("scale", "deployment/web", "--replicas=4")
    assert kubectl("get", "deployment", "web", "-o=jsonpath={.spec.replicas}") == "4"
    assert "restarted" in kubectl("rollout", "restart", "deployment/web")
    found = json.loads(kubectl("get", "deployment", "web", "-o=json"))
    annotations = found["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations
    assert found["metadata"]["generation"] == 3


def test_rollout_status_waits_for_the_controller(
    kubectl: Kubectl, server: Server, tmp_path: Path
) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 2))
    namespace = kubectl("get", "deployment", "web", "-o=jsonpath={.metadata.namespace}")

    def finish() -> None:
        def done(deployment: dict[str, Any]) -> None:
            counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            deployment["status"] = {"observedGeneration": 1} | dict.fromkeys(counts, 2)

        server.store.update("deployments.apps", namespace, "web", done)

    timer = threading.Timer(0.3, finish)
    timer.start()
    try:
        printed = kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    finally:
        timer.join()
    assert "successfully rolled out" in printed


def test_get_watch_follows_changes(kubectl: Kubectl, server: Server, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    config = tmp_path / "kubeconfig"
    namespace = kubectl("get", "deployment", "web", "-o=jsonpath={.metadata.namespace}")
    watching = subprocess.Popen(
        [
            "kubectl",
            f"--kubeconfig={config}",
            f"--namespace={namespace}",
            "get",
            "deployments",
            "--watch",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path)},
    )
    guard = threading.Timer(30, watching.kill)
    guard.start()
    try:
        assert watching.stdout is not None
        head, first = watching.stdout.readline(), watching.stdout.readline()
        assert head.split()[:2] == ["NAME", "READY"]
        assert first.split()[:2] == ["web", "0/1"]
        kubectl("scale", "deployment/web", "--replicas=3")
        assert watching.stdout.readline().split()[:2] == ["web", "0/3"]
    finally:
        watching.kill()
        watching.wait()
        guard.cancel()
        if watching.stdout is not None:
            watching.stdout.close()


def test_delete_waits_until_it_is_gone(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", manifest(tmp_path, 1))
    assert "deleted" in kubectl("delete", "-f", manifest(tmp_path, 1), "--timeout=20s")
    assert "NotFound" in kubectl("get", "deployment", "web", code=1)


def test_create_of_typed_objects(kubectl: Kubectl) -> None:
    # From 1.32 on kubectl sends these as protobuf.
    kubectl("create", "configmap", "c", "--from-literal=key=value")
    assert kubectl("get", "configmap", "c", "-o=jsonpath={.data.key}") == "value"
    kubectl("create", "secret", "generic", "s", "--from-literal=key=value")
    assert kubectl("get", "secret", "s", "-o=jsonpath={.data.key}") == "dmFsdWU="
    kubectl("create", "deployment", "d", "--image=example/d:1", "--replicas=0", "--port=80")
    found = json.loads(kubectl("get", "deployment", "d", "-o=json"))
    assert found["spec"]["replicas"] == 0
    assert found["spec"]["template"]["spec"]["containers"][0]["ports"] == [
        {"containerPort": 80, "protocol": "TCP"}
    ]
    kubectl("create", "service", "nodeport", "n", "--tcp=80:http")
    port = json.loads(kubectl("get", "service", "n", "-o=json"))["spec"]["ports"][0]
    assert port["targetPort"] == "http"
    assert 30000 <= port["nodePort"] <= 32767
    kubectl("create", "job", "j", "--image=example/j:1", "--", "true")
    assert kubectl("get", "job", "j", "-o=jsonpath={.spec.completions}") == "1"


def test_rights_and_tokens(kubectl: Kubectl, server: Server, tmp_path: Path) -> None:
    assert kubectl("auth", "can-i", "delete", "nodes").strip() == "yes"
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    namespace = kubectl("get", "role", "reader", "-o=jsonpath={.metadata.namespace}")
    kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader"
    )
    name = f"system:serviceaccount:{namespace}:reader"
    assert kubectl("auth", "can-i", "list", "configmaps", f"--as={name}").strip() == "yes"
    kubectl("auth", "can-i", "delete", "pods", f"--as={name}", "--quiet", code=1)
    token = kubectl("create", "token", "reader").strip()
    (tmp_path / "kubeconfig").write_text(server.kubeconfig(token))
    assert "kube-root-ca.crt" in kubectl("get", "configmaps")
    assert "Forbidden" in kubectl("get", "pods", code=1)
    (tmp_path / "kubeconfig").write_text(server.kubeconfig("wrong"))
    assert "Unauthorized" in kubectl("get", "pods", code=1)
    (tmp_path / "kubeconfig").write_text(server.kubeconfig())
