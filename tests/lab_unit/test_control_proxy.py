"""The kube-proxy stand-in against what a real kube-proxy 1.36.2 programmed."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.lab import proxy_rules
from pytest_ipvs.lab.proxy import OPTION, conn_reuse_mode, read_table
from pytest_ipvs.lab.proxy_model import Wanted, wanted

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with lzma.open(DATA / "lab" / "proxy-1.36.2.json.xz", "rt") as file:
        result: dict[str, Any] = json.load(file)
    return result


def lines_of(goal: Wanted) -> set[str]:
    """The wanted table in ipvsadm-save's words."""
    lines = set()
    for (protocol, address, port), virtual in goal.virtuals.items():
        service = f"{OPTION[protocol]} {address}:{port}"
        more = "" if virtual.persistence is None else f" -p {virtual.persistence}"
        lines.add(f"-A {service} -s {virtual.scheduler}{more}")
        for (host, number), weight in virtual.servers.items():
            lines.add(f"-a {service} -r {host}:{number} -m -w {weight}")
    return lines


def node_goal(recorded: dict[str, Any], node: str) -> Wanted:
    lines = recorded["ipvs"][node].splitlines()
    # The node's own addresses are those on which the recorded table serves NodePort 30080.
    own = [found[1] for line in lines if (found := re.match(r"-A -t (\S+):30080 ", line))]
    return wanted(
        recorded["services"],
        recorded["slices"],
        node=node,
        zone="zone-1",
        node_addresses=own,
        scheduler="rr",
    )


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_the_table_is_the_one_that_kube_proxy_made(recorded: dict[str, Any], node: str) -> None:
    goal = node_goal(recorded, node)
    lines = [line.strip() for line in recorded["ipvs"][node].splitlines()]
    assert lines_of(goal) == {line for line in lines if line.startswith("-A") or " -r " in line}


def test_the_ipsets_are_those_that_kube_proxy_made(recorded: dict[str, Any]) -> None:
    goal = node_goal(recorded, "node-1")
    saved: dict[str, set[str]] = {}
    types = {}
    for line in recorded["ipset"].splitlines():
        words = line.split()
        if words[0] == "create":
            types[words[1]] = words[2]
        else:
            saved.setdefault(words[1], set()).add(words[2])
    # Local pods had other addresses when the sets were saved.
    saved.pop("KUBE-LOOP-BACK")
    loop_back = goal.sets.pop("KUBE-LOOP-BACK")
    assert goal.sets == saved
    assert types == proxy_rules.SETS
    assert loop_back == {"10.244.1.5,tcp:8080,10.244.1.5", "10.244.1.5,udp:8080,10.244.1.5"}


def rule_set(text: str) -> set[str]:
    """Rules without what iptables-save writes in another order or words than they were given."""
    rules = set()
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        if not line.startswith("-A"):
            continue
        line = line.replace("--or-mark 0x4000", "--set-xmark 0x4000/0x4000")
        line = line.replace("--xor-mark 0x4000", "--set-xmark 0x4000/0x0")
        line = line.replace(" --reject-with icmp-port-unreachable", "")
        words = re.findall(r'"[^"]*"|\S+', line)
        rules.add(f"{table} {words[1]} {' '.join(sorted(words[2:]))}")
    return rules


def test_the_iptables_rules_are_those_that_kube_proxy_made(recorded: dict[str, Any]) -> None:
    goal = node_goal(recorded, "node-1")
    ours = proxy_rules.rules(goal.sets, "10.244.0.0/16") + proxy_rules.jumps()
    assert rule_set(ours) == rule_set(recorded["iptables"])


def test_every_captured_table_is_read_as_ipvsadm_shows_it() -> None:
    captures = sorted((DATA / "captures").iterdir())
    assert captures
    for directory in captures:
        table = read_table((directory / "proc_net_ip_vs.txt").read_text())
        seen = {}
        current = None
        for line in (directory / "ipvsadm_Ln.txt").read_text().splitlines():
            words = line.split()
            if words and words[0] in OPTION and "[" not in words[1]:
                address, _, port = words[1].rpartition(":")
                current = (words[0], address, int(port))
                seen[current] = (words[2], "persistent" in words, {})
            elif words[:1] == ["->"] and len(words) == 6 and current and "[" not in words[1]:
                address, _, port = words[1].rpartition(":")
                numbers = (int(words[3]), int(words[4]) + int(words[5]))
                seen[current][2][(address, int(port))] = numbers
            elif words and words[0] not in ("IP", "Prot", "->"):
                current = None
        ours = {key: (one.scheduler, one.persistent, one.servers) for key, one in table.items()}
        assert {key: value[:2] for key, value in ours.items()} == {
            key: value[:2] for key, value in seen.items()
        }
        weights = {key: {s: n[0] for s, n in value[2].items()} for key, value in ours.items()}
        assert weights == {
            key: {s: n[0] for s, n in value[2].items()} for key, value in seen.items()
        }


@pytest.mark.parametrize(
    ("kernel", "version", "mode"),
    [
        ("3.10.0-1160", "v1.20.2", None),
        ("4.19.0-27-amd64", "v1.36.2", 0),
        ("5.8.18", "v1.36.2", 0),
        ("5.9.0", "v1.22.0", None),
        ("6.1.0", "v1.36.2", None),
        ("6.1.0", "v1.21.1", 0),
    ],
)
def test_conn_reuse_mode_is_written_as_kernel_and_version_ask(
    kernel: str, version: str, mode: int | None
) -> None:
    assert conn_reuse_mode(kernel, version) == mode


# One Service, its slices varied


def service(**spec: Any) -> dict[str, Any]:
    port = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}
    return {
        "metadata": {"name": "s", "namespace": "d", "labels": spec.pop("labels", {})},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "ports": [port], **spec},
        "status": spec.pop("status", {}),
    }


def endpoint(address: str, node: str | None = "n1", **conditions: Any) -> dict[str, Any]:
    hints = conditions.pop("hints", None)
    result: dict[str, Any] = {"addresses": [address], "conditions": conditions}
    if node:
        result["nodeName"] = node
    if hints:
        result["hints"] = hints
    return result


def servers(
    one: dict[str, Any], endpoints: list[dict[str, Any]], address: str = "10.96.0.9", port: int = 80
) -> list[str] | None:
    item = {
        "metadata": {
            "name": "s-1",
            "namespace": "d",
            "labels": {"kubernetes.io/service-name": "s"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }
    goal = wanted([one], [item], node="n1", zone="z1", node_addresses=["192.0.2.1"], scheduler="rr")
    virtual = goal.virtuals.get(("TCP", address, port))
    return None if virtual is None else sorted(host for host, _ in virtual.servers)


READY = {"ready": True, "serving": True, "terminating": False}
ENDING = {"ready": False, "serving": True, "terminating": True}
DOWN = {"ready": False, "serving": False, "terminating": False}


def test_missing_conditions_mean_ready() -> None:
    assert servers(service(), [endpoint("10.0.0.1")]) == ["10.0.0.1"]


def test_terminating_endpoints_serve_only_when_nothing_is_ready() -> None:
    both = [endpoint("10.0.0.1", **ENDING), endpoint("10.0.0.2", **READY)]
    assert servers(service(), both) == ["10.0.0.2"]
    assert servers(service(), [endpoint("10.0.0.1", **ENDING)]) == ["10.0.0.1"]
    assert servers(service(), [endpoint("10.0.0.1", **DOWN)]) == []


def test_internal_local_takes_local_endpoints_and_is_empty_without() -> None:
    one = service(internalTrafficPolicy="Local")
    here, there = endpoint("10.0.0.1", **READY), endpoint("10.0.0.2", "n2", **READY)
    assert servers(one, [here, there]) == ["10.0.0.1"]
    assert servers(one, [there]) == []


def test_external_local_falls_back_to_the_cluster_when_nothing_is_local() -> None:
    one = service(type="NodePort", externalTrafficPolicy="Local")
    one["spec"]["ports"][0]["nodePort"] = 30000
    there = endpoint("10.0.0.2", "n2", **READY)
    here = endpoint("10.0.0.1", **READY)
    assert servers(one, [there], "192.0.2.1", 30000) == ["10.0.0.2"]
    assert servers(one, [there, here], "192.0.2.1", 30000) == ["10.0.0.1"]
    assert servers(one, [there, here]) == ["10.0.0.1", "10.0.0.2"]


def test_zone_hints_count_only_if_all_have_them_and_one_names_ours() -> None:
    ours = endpoint("10.0.0.1", hints={"forZones": [{"name": "z1"}]}, **READY)
    theirs = endpoint("10.0.0.2", hints={"forZones": [{"name": "z2"}]}, **READY)
    without = endpoint("10.0.0.3", **READY)
    assert servers(service(), [ours, theirs]) == ["10.0.0.1"]
    assert servers(service(), [ours, theirs, without]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert servers(service(), [theirs]) == ["10.0.0.2"]


def test_balancer_addresses_are_those_with_mode_vip() -> None:
    ingress = [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "x"}]
    one = service(type="LoadBalancer", status={"loadBalancer": {"ingress": ingress}})
    one["status"] = {"loadBalancer": {"ingress": ingress}}
    ready = [endpoint("10.0.0.1", **READY)]
    assert servers(one, ready, "203.0.113.1") == ["10.0.0.1"]
    assert servers(one, ready, "203.0.113.2") is None


@pytest.mark.parametrize(
    "one",
    [
        service(clusterIP="None"),
        service(type="ExternalName"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
    ],
    ids=["headless", "external-name", "another-proxy"],
)
def test_services_of_others_are_left_alone(one: dict[str, Any]) -> None:
    assert servers(one, [endpoint("10.0.0.1", **READY)]) is None
