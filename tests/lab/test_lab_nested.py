"""The whole lab as namespaces of the kernel it runs on: inside a virtual machine's guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_ipvs.lab.vm import VirtualMachine

pytestmark = pytest.mark.lab

SCRIPT = """
import json, re, subprocess, sys, time
from pytest_ipvs.lab import start
from pytest_ipvs.lab.client import DEPLOYMENTS, ApiClient

handle = start(backend="auto")
try:
    def ssh(host, *words):
        argv = ["ssh", "-F", str(handle.ssh_config), host, *words]
        return subprocess.run(argv, capture_output=True, text=True).stdout

    token = re.search(r"token: (\\S+)", handle.kubeconfig.read_text())[1]
    api = ApiClient("http://{}:{}".format(*handle.status()["api"]), token)
    notes = {"kubectl.kubernetes.io/restartedAt": "now"}
    body = {"spec": {"template": {"metadata": {"annotations": notes}}}}
    api.patch(DEPLOYMENTS, "demo", "web", body)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        item = api.get(DEPLOYMENTS, "demo", "web")
        status = item["status"]
        if status.get("observedGeneration") == item["metadata"]["generation"] and (
            status.get("updatedReplicas") == status.get("availableReplicas") == 3
            and status["replicas"] == 3
        ):
            break
        time.sleep(0.2)
    else:
        raise SystemExit(f"the rollout did not end within 100 s: {status}")
    handle.fault("stale_real_server")
    print(json.dumps({
        "kind": handle.kind,
        "status": status,
        "table": ssh("node-2", "ipvsadm", "-Ln"),
        "other": ssh("node-1", "ipvsadm", "-Ln"),
        "answers": [ssh("client", "wget -q -O - http://10.96.10.1/").strip() for _ in range(3)],
    }))
finally:
    handle.down()
"""
WEB, STALE = "10.96.10.1:80", "10.244.2.199:8080"


def test_the_lab_runs_in_namespaces_inside_the_lab_s_own_guest(tmp_path: Path) -> None:
    machine = VirtualMachine(tmp_path, processors=1)
    machine.start()
    try:
        answer = machine.call(
            "exec",
            280,
            node="",
            argv=["python3", "-c", SCRIPT],
            env={"PYTHONPATH": "/usr/lib/pytest-ipvs"},
        )
        left = machine.call("exec", node="", argv=["sh", "-c", "ls /tmp; ip -br link"])["out"]
    finally:
        machine.stop()
    assert answer["rc"] == 0, answer
    result = json.loads(answer["out"])
    assert result["kind"] == "namespace"
    assert result["status"]["availableReplicas"] == 3
    assert WEB in result["table"]
    assert WEB in result["other"]
    assert STALE in result["table"]
    assert STALE not in result["other"]
    assert len(set(result["answers"])) == 3
    assert all(answer.startswith("web-") for answer in result["answers"])
    assert "pytest-ipvs-lab" not in left
