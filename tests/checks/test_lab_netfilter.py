"""The lab's stand-in for kube-proxy asks for the sets and rules that the checks expect."""

from __future__ import annotations

from evidence_builder import CLUSTER_CIDR, details, healthy
from ipvs_recorded import addresses, nodes, services, slices, state

from pytest_ipvs.checks import run_check
from pytest_ipvs.ipvs.netfilter import parse_rules
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_sets import expected_sets
from pytest_ipvs.lab import proxy_rules
from pytest_ipvs.lab.proxy_model import wanted

VERSION = "1.36.2"
BUILT_IN = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


def lab_sets() -> dict[str, set[str]]:
    own = [
        text
        for interface, text in addresses(VERSION, "node-1")
        if interface not in ("lo", "kube-ipvs0")
    ]
    return wanted(
        state(VERSION)["services"],
        state(VERSION)["endpointslices"],
        node="node-1",
        zone=None,
        node_addresses=own,
        scheduler="rr",
    ).sets


def test_the_members_are_those_of_the_recorded_objects() -> None:
    found = lab_sets()
    for should in expected_sets(
        services=services(VERSION),
        slices=slices(VERSION),
        node=nodes(VERSION)["node-1"],
        addresses=addresses(VERSION, "node-1"),
        rules=ProxyRules(version=f"v{VERSION}", config={}),
        family="IPv4",
    ):
        assert proxy_rules.SETS[should.name] == should.kind
        members = found.get(should.name, set())
        assert set(should.required) <= members
        assert members <= set(should.required) | set(should.allowed)
    assert set(found) <= set(proxy_rules.SETS)


def test_the_rules_pass_the_checks() -> None:
    written: dict[str, list[str]] = {"nat": [], "filter": []}
    table = ""
    for line in (proxy_rules.rules(lab_sets(), CLUSTER_CIDR) + proxy_rules.jumps()).splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line and line != "COMMIT":
            written[table].append(line)
    text = "\n".join(
        "\n".join((f"*{name}", *(f":{chain} ACCEPT" for chain in BUILT_IN[name]), *lines, "COMMIT"))
        for name, lines in written.items()
    )
    evidence = details(healthy(), iptables=parse_rules(text))
    for check in ("CT-01", "CT-02", "CT-03", "CT-05", "CT-06", "CT-07"):
        outcome = run_check(check, evidence)
        assert (outcome.findings, outcome.not_measured) == ((), ())
