"""What kube-proxy writes into conntrack's settings."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_ipvs.ipvs.conntrack_settings import MAX, conntrack_wanted
from pytest_ipvs.ipvs.proxy import ProxyRules

PREFIX = "net.netfilter.nf_conntrack_"
DEFAULT = {f"{PREFIX}tcp_timeout_established": 86400, f"{PREFIX}tcp_timeout_close_wait": 3600}


@pytest.mark.parametrize(
    ("version", "conntrack", "cpus", "most"),
    [
        ("v1.36.2", {}, 8, 262144),
        ("v1.36.2", {}, 1, 131072),
        # The cap of 1.36 is also above what conntrack.min asks for.
        ("v1.36.0", {}, 128, 1048576),
        ("v1.36.0", {"min": 2000000}, 1, 1048576),
        ("v1.35.2", {}, 128, 4194304),
        ("v1.35.2", {"min": 2000000}, 1, 2000000),
        ("v1.20.2", {"maxPerCore": 1000, "min": 0}, 4, 4000),
        ("v1.36.2", {"maxPerCore": 0}, 8, None),
        ("v1.36.2", {"maxPerCore": None}, 8, None),
        ("v1.36.2", {}, None, None),
    ],
)
def test_the_most_connections(
    version: str, conntrack: dict[str, Any], cpus: int | None, most: int | None
) -> None:
    rules = ProxyRules(version=version, config={"conntrack": conntrack})
    wanted = dict(conntrack_wanted(rules, cpus))
    assert wanted.pop(MAX, None) == most
    assert wanted == DEFAULT


def test_other_settings_where_they_are_set() -> None:
    conntrack = {
        "maxPerCore": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "2h",
        "tcpBeLiberal": True,
        "udpTimeout": "10s",
        "udpStreamTimeout": "1m",
    }
    rules = ProxyRules(version="v1.36.2", config={"conntrack": conntrack})
    assert conntrack_wanted(rules, 2) == {
        f"{PREFIX}tcp_timeout_close_wait": 7200,
        f"{PREFIX}tcp_be_liberal": 1,
        f"{PREFIX}udp_timeout": 10,
        f"{PREFIX}udp_timeout_stream": 60,
    }


def test_no_section_means_the_defaults() -> None:
    assert conntrack_wanted(ProxyRules(version="v1.36.2", config={}), 8) == {MAX: 262144, **DEFAULT}
