"""The effective configuration of a node's kube-proxy, and its command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from any_text import any_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs.cluster.expectation import rules_of
from pytest_ipvs.cluster.model import NodeDetails, NodeFacts, ProxyFacts, ProxyObjects, ProxyPod
from pytest_ipvs.cluster.proxy_command import parse_command
from pytest_ipvs.cluster.proxy_config import (
    config_map,
    effective_config,
    effective_mode,
    image_version,
)
from pytest_ipvs.ipvs.objects import Node

FACTS = NodeFacts(
    node="node-1", taken_at=0.0, kernel_release="6.1.0", kernel_version="#1", sysctls={}
)
FILE = {"mode": "ipvs", "ipvs": {"scheduler": "lc", "syncPeriod": None}, "clusterCIDR": None}
KUBEADM = ("/usr/local/bin/kube-proxy", "--config=/c", "--hostname-override=Other")


WORDS = (
    "kube-proxy",
    "k3s",
    "sh -c 'kube-proxy x",
    "--kube-proxy-arg",
    "--conntrack-min=--5",
    "--conntrack-min",
    "\u00b2",
    "--feature-gates=A,B=",
    "--nodeport-addresses=[,]",
    "-",
)


def pod(*command: str, image: str = "", node: str = "node-1") -> ProxyPod:
    return ProxyPod(name="p", node=node, image=image, ready=True, restarts=0, command=command)


def running(*command: str) -> NodeFacts:
    return replace(FACTS, details=NodeDetails(proxy_command=command))


@pytest.mark.parametrize(
    ("arguments", "config", "file"),
    [
        (
            "kube-proxy --proxy-mode=ipvs --ipvs-scheduler wlc --ipvs-strict-arp --v=2",
            {"mode": "ipvs", "ipvs": {"scheduler": "wlc", "strictARP": True}},
            "",
        ),
        (
            (
                "/usr/bin/kube-proxy --ipvs-exclude-cidrs=10.0.0.0/8,10.9.0.0/16 "
                "--nodeport-addresses primary --feature-gates=A=true,B=false --masquerade-all=false"
            ),
            {
                "ipvs": {"excludeCIDRs": ["10.0.0.0/8", "10.9.0.0/16"]},
                "nodePortAddresses": ["primary"],
                "featureGates": {"A": True, "B": False},
                "iptables": {"masqueradeAll": False},
            },
            "",
        ),
        (
            (
                "hyperkube kube-proxy --conntrack-max-per-core=0 --ipvs-sync-period=1m "
                "--ipvs-tcpfin-timeout=30s --cluster-cidr=10.2.0.0/16 --cleanup --unknown x"
            ),
            {
                "conntrack": {"maxPerCore": 0},
                "ipvs": {"syncPeriod": "1m", "tcpFinTimeout": "30s"},
                "clusterCIDR": "10.2.0.0/16",
            },
            "",
        ),
        ("kube-proxy --v 2 --config /c --hostname-override", {"hostnameOverride": "true"}, "/c"),
    ],
)
def test_flags_in_the_spelling_of_the_file(
    arguments: str, config: Mapping[str, Any], file: str
) -> None:
    told = parse_command(arguments.split())
    assert told is not None
    assert (told.config, told.config_file) == (config, file)


def test_a_shell_runs_kube_proxy() -> None:
    told = parse_command(("sh", "-c", "exec kube-proxy --proxy-mode='ipvs' 2>&1"))
    assert told is not None
    assert told.config == {"mode": "ipvs"}


def test_variables_that_a_pod_fills_in_are_not_values() -> None:
    told = parse_command(("kube-proxy", "--config=/c", "--hostname-override=$(NODE_NAME)"))
    assert told is not None
    assert (told.config, told.unknown) == ({}, {"hostnameOverride"})


def test_k3s_runs_kube_proxy_inside_itself() -> None:
    words = "/usr/local/bin/k3s server --kube-proxy-arg=proxy-mode=ipvs --kube-proxy-arg"
    told = parse_command((*words.split(), "ipvs-scheduler=sh"))
    assert told is not None
    assert told.config["mode"] == "ipvs"
    assert told.config["ipvs"] == {"scheduler": "sh"}
    assert told.config["conntrack"]["maxPerCore"] == 0
    assert (told.config["clusterCIDR"], told.unknown) == ("10.42.0.0/16", frozenset())
    agent = parse_command(("k3s-agent",))
    assert agent is not None
    assert agent.unknown == {"clusterCIDR"}


@given(words=st.lists(st.sampled_from(WORDS) | any_text(12), max_size=6))
@settings(max_examples=60)
def test_any_words_are_read_without_a_crash(words: list[str]) -> None:
    told = parse_command(words)
    assert told is None or isinstance(told.config, dict)


@pytest.mark.parametrize("words", [(), ("bash",), ("kubelet", "--config=/c"), ("a 'kube-proxy x",)])
def test_other_programs_say_nothing(words: tuple[str, ...]) -> None:
    assert parse_command(words) is None


def test_the_best_source_tells() -> None:
    objects = ProxyObjects(config_maps={"kube-system/kube-proxy": FILE}, pods=(pod(*KUBEADM),))
    asked = replace(FACTS, proxy=ProxyFacts(config={"mode": "iptables"}))
    cases = (
        (asked, objects, running("kube-proxy"), "/configz", "iptables"),
        (FACTS, objects, None, "ConfigMap kube-system/kube-proxy", "ipvs"),
        (FACTS, replace(objects, pods=()), None, "ConfigMap kube-system/kube-proxy", "ipvs"),
        (
            FACTS,
            objects,
            running("kube-proxy", "--proxy-mode=nftables"),
            "command line",
            "nftables",
        ),
        (FACTS, ProxyObjects(pods=(pod("--proxy-mode=ipvs"),)), None, "command line", "ipvs"),
    )
    for facts, known, detailed, source, mode in cases:
        config = effective_config(facts, known, detailed)
        assert config is not None
        assert (config.source, effective_mode(facts, config)) == (source, mode)
        assert effective_mode(replace(facts, proxy=ProxyFacts(mode="x")), config) == "x"


def test_no_source_is_no_default() -> None:
    assert effective_config(FACTS) is None
    # A file that nobody has read.
    assert effective_config(FACTS, ProxyObjects(), running(*KUBEADM)) is None
    # The pod of another node.
    other = ProxyObjects(pods=(pod("--proxy-mode=ipvs", node="node-2"),))
    assert effective_config(FACTS, other) is None
    assert effective_mode(FACTS, None) is None
    flags = effective_config(FACTS, None, running("kube-proxy"))
    assert effective_mode(FACTS, flags) is None


def test_a_config_map_without_nulls_and_with_the_nodes_own_name() -> None:
    objects = ProxyObjects(config_maps={"kube-system/kube-proxy": FILE}, pods=(pod(*KUBEADM),))
    config = effective_config(FACTS, objects)
    assert config is not None
    assert config.values == {
        "mode": "ipvs",
        "ipvs": {"scheduler": "lc"},
        "hostnameOverride": "Other",
    }
    assert (config.get("ipvs.scheduler"), config.get("ipvs.x", 1), config.running) == (
        "lc",
        1,
        False,
    )


def test_eks_has_a_config_map_of_another_name() -> None:
    maps = {"kube-system/kube-proxy": {"a": 1}, "kube-system/kube-proxy-config": {"mode": "ipvs"}}
    assert config_map(ProxyObjects(config_maps=maps)) == (
        "kube-system/kube-proxy-config",
        {"mode": "ipvs"},
    )
    assert config_map(ProxyObjects()) is None


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("registry.example:5000/kube-proxy:v1.36.2", "v1.36.2"),
        ("x/eks/kube-proxy:v1.29.0-minimal-eksbuild.1@sha256:ab", "v1.29.0-minimal-eksbuild.1"),
        ("kube-proxy:latest", None),
        ("kube-proxy@sha256:0", None),
    ],
)
def test_the_version_of_an_image(image: str, version: str | None) -> None:
    assert image_version("node-1", ProxyObjects(pods=(pod(image=image),))) == version


def test_rules_follow_the_effective_configuration() -> None:
    objects = ProxyObjects(
        config_maps={"kube-system/kube-proxy": FILE}, pods=(pod(image="kube-proxy:v1.30.1"),)
    )
    node = Node(name="node-1", kubelet_version="v1.36.2")
    rules = rules_of(FACTS, node, objects=objects)
    assert (rules.scheduler, rules.version) == ("lc", "v1.30.1")
    assert rules_of(running("kube-proxy", "--ipvs-scheduler=sh"), node).scheduler == "sh"
