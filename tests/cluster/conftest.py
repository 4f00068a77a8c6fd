"""Fixtures for reaching a cluster; what they are made of is in ``cluster_fakes``."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator

import pytest
from cluster_fakes import FakeServer, recording

from pytest_ipvs.settings import resolve

# Of a machine with two processors; the first number is the same for both.
COUNTERS = """\
entries  clashres found new invalid insert_failed drop early_drop
00000120  00000000 00000000 00000000 00000001 0000000a 00000000 00000000
00000120  00000000 00000000 00000000 00000003 0000000b 00000000 00000002
"""


@pytest.fixture(scope="session", params=["1.36.2", "1.20.2"])
def any_version(request):
    return recording(request.param)


@pytest.fixture(scope="session")
def current():
    return recording("1.36.2")


@pytest.fixture(scope="session")
def oldest():
    return recording("1.20.2")


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Start fake servers that end with the test."""
    servers = []

    def start(answer, address="127.0.0.1"):
        servers.append(FakeServer(answer, address))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def kubeconfig(tmp_path):
    """Write a kubeconfig for a URL; returns its path."""

    def write(url, token="s3cr3t-t0ken", context="lab"):
        path = tmp_path / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": context,
                    "clusters": [{"name": "c", "cluster": {"server": url}}],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": context, "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )
        return str(path)

    return write


@pytest.fixture
def settings_for(kubeconfig):
    """Settings for a fake server, with more of them by name."""

    def make(url, **values):
        cli = {"ipvs_kubeconfig": kubeconfig(url)} | {f"ipvs_{k}": v for k, v in values.items()}
        return resolve(cli, {}, {}, {})

    return make


@pytest.fixture
def node_root(tmp_path):
    """Write a node's /proc and /sys from a recording; returns the prefix."""

    def write(recorded, name="node-1", table=None, without=(), extra=None):
        root = tmp_path / "roots" / name
        files = {
            "proc/sys/kernel/osrelease": recorded["uname"].split()[2] + "\n",
            "proc/sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)\n",
            "proc/sys/net/ipv4/ip_forward": "1\n",
            "proc/sys/net/ipv4/tcp_mem": "9387\t12516\t18774\n",
            "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
            "proc/sys/net/ipv4/ip_local_reserved_ports": "\n",
            "sys/module/ip_vs/parameters/conn_tab_bits": "12\n",
            "proc/sys/net/ipv4/conf/all/rp_filter": "0\n",
            "proc/sys/net/ipv4/conf/eth0.100/rp_filter": "2\n",
            "proc/net/stat/nf_conntrack": COUNTERS,
            "proc/net/ip_vs": table if table is not None else recorded["tables"]["node-1"],
        }
        for line in recorded["sysctl"].splitlines():
            key, _, value = line.partition(" = ")
            files["proc/sys/" + key.replace(".", "/")] = value + "\n"
        for path, text in (files | (extra or {})).items():
            if path not in without:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        (root / "proc/net").mkdir(parents=True, exist_ok=True)
        return root

    return write


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of fake programs in front of the PATH: ``programs(name, text)``."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, text):
        path = folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write
