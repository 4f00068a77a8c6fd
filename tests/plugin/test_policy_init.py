"""``--ipvs-policy-init``: a file that changes nothing until its reader takes the # away."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_ipvs.policy import Policy, load_policy

Run = Callable[..., pytest.RunResult]
WORLD = """
    names=("node-1", "node-2", "node-3"),
    kernels={"node-3": "4.18.0-513.el8.x86_64"},
    silent={"node-2": "no route to host\\n- evil: true"},
    tables={"node-1": parse_table(
        "IP Virtual Server version 1.2.1 (size=4096)\\n"
        "Prot LocalAddress:Port Scheduler Flags\\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\\n"
        "TCP  0A600909:0050 wlc \\n"
        "FWM  00000007 wlc \\n"
    )},
    services=(Service(namespace="demo", name="sticky", affinity_timeout=60),),
"""


def test_the_starter_of_a_cluster(cluster_run: Run, pytester: pytest.Pytester) -> None:
    path = pytester.path / "new.yaml"
    options = ("--ipvs-policy-init", "--ipvs-policy", str(path))
    result = cluster_run("", *options, world=WORLD)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"ipvs: wrote {path}"])
    text = path.read_text(encoding="utf-8")
    for words in (
        "yaml-language-server: $schema=",
        "4.18.0-513.el8.x86_64 (rhel) on node-3; fixes b, c and d: unknown: b, c, d",
        '"10.96.9.9:80/TCP"  # on node-1',
        '"fwmark:7"  # on node-1',
        "node-2 did not answer: no route to host - evil: true",
        "Scheduler wlc on node-1.",
        "1 of 1 Services use session affinity: demo/sticky.",
    ):
        assert words in text
    # As it is, it changes nothing.
    assert load_policy(path) == Policy(path=str(path))
    # Without the #, it is a policy.
    path.write_text(re.sub(r"^#(?=\w|  )", "", text, flags=re.MULTILINE), encoding="utf-8")
    policy = load_policy(path)
    assert policy.foreign_virtual_servers == ("10.96.9.9:80/TCP", "fwmark:7")
    ((pattern, fixes),) = policy.kernel_fix_overrides
    assert re.search(pattern, "4.18.0-513.el8.x86_64")
    assert set(fixes) == {"b", "c", "d"}
    assert len(policy.waivers) == len(policy.nodes) == 1

    again = cluster_run("", *options, world=WORLD)
    assert again.ret == pytest.ExitCode.USAGE_ERROR
    again.stderr.fnmatch_lines([f"*{path} is there already, and --ipvs-policy-init overwrites *"])


def test_without_a_cluster_nothing_is_written(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--ipvs-policy-init")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--ipvs-policy-init needs a cluster: give --ipvs-kubeconfig*"])
    assert not Path(pytester.path / "ipvs.yaml").exists()
