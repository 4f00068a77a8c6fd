"""The second half of the facts script under every shell, on a made-up node."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial

import pytest
from cluster_fakes import ip_program, proxy_answers
from details_fakes import CONNECTIONS, FILES, PROGRAMS, fails, says

from pytest_ipvs.cluster.facts import Probe, read_facts
from pytest_ipvs.cluster.model import NodeDetails, PortUse
from pytest_ipvs.cluster.nodes import NodePool
from pytest_ipvs.cluster.script import facts_script
from pytest_ipvs.cluster.template import Template
from pytest_ipvs.ipvs.objects import Node

pytestmark = pytest.mark.system

FIELDS = [field.name for field in dataclasses.fields(NodeDetails)]


@pytest.fixture
def pool():
    made = NodePool([Node(name="node-1")], Template.parse("local://"))
    yield made
    made.close()


@pytest.fixture
def read(pool, current, node_root, programs, serve):
    """Read the details of a made-up node: ``read(files=…, tools=…, shell=…)``."""
    programs("ip", ip_program(current))
    port = serve(proxy_answers(current)).port

    def act(shell="dash", files=FILES, tools=PROGRAMS, without=(), details=True):
        for name, text in tools.items():
            programs(name, text)
        root = str(node_root(current, extra=files, without=without))
        probe = Probe(root=root, metrics_port=port, health_port=port, shell=shell)
        return read_facts(pool, "node-1", probe=probe, details=details)

    return act


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_every_detail_is_read_under_each_shell(read, shell):
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"{shell} is not installed")
    facts = read(shell)
    assert facts.unread == {}
    details = facts.details
    assert [name for name in FIELDS if getattr(details, name) is None] == []
    assert details.modules >= {"ip_vs", "ip_vs_rr", "ip_set", "tcp_cubic", "nf_flow"}
    assert details.cpus == 2
    assert details.proxy_command == ("/usr/local/bin/kube-proxy", "--config=/a b", "--v=2")
    assert [(line.path, line.line, line.key, line.value) for line in details.sysctl_files] == [
        ("/usr/lib/sysctl.d/10-first.conf", 1, "net.ipv4.conf.eth0/100.rp_filter", "2"),
        ("/usr/lib/sysctl.d/10-first.conf", 2, "kernel.x.*.y", "3"),
        ("/etc/sysctl.d/50-ipvs.conf", 3, "net.ipv4.vs.conn_reuse_mode", "0"),
        ("/etc/sysctl.d/50-ipvs.conf", 4, "net.ipv4.vs.drop_entry", "0"),
        # The interface that a line names in full is not what a pattern stands for.
        ("/etc/sysctl.d/50-ipvs.conf", 5, "net.ipv4.conf.all.rp_filter", "1"),
        ("/etc/sysctl.conf", 1, "net.ipv4.ip_forward", "1"),
    ]
    assert [line.optional for line in details.sysctl_files] == [False] * 3 + [True] + [False] * 2
    assert details.uplinks == ("eth0", "data0")
    assert details.iptables.rules("nat", "KUBE-MARK-MASQ")[0].target == "MARK"
    assert ("mangle", "PREROUTING") in details.iptables.chains
    assert details.ip6tables.rules("nat", "POSTROUTING")[0].target == "MASQUERADE"
    assert "10.96.0.10,tcp:80" in details.ipsets["KUBE-CLUSTER-IP"].members
    assert "LAB-TIMEOUT" not in details.ipsets
    assert details.ipvs_timeouts == (900, 120, 300)
    assert details.syn_sent == {"10.244.0.14": 2}
    assert details.udp_sent == {("10.96.0.53", "10.244.0.53"): 2}
    assert details.table_full == 1
    assert details.tools == {"iptables": "1.8.9 (nf_tables)", "ipset": "7.17"}
    assert [line.rpartition("] ")[2] for line in details.proxy_log] == [
        '"Failed" err="x"',
        '"Again"',
    ]


@pytest.mark.parametrize("shell", ["dash", "busybox sh"])
def test_errors_of_a_log_in_json_are_read_in_each_runtime_s_form(read, shell):
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"{shell} is not installed")
    head = {"ts": 1795225000000.1, "caller": "ipvs/proxier.go:1702"}
    lines = (
        head | {"msg": "fine", "v": 0, "err": "told, and none"},
        head | {"msg": 'says {"ts":1,"v":2}', "err": "busy"},
        head | {"msg": "without a cause"},
    )
    dumps = partial(json.dumps, separators=(",", ":"))
    texts = [dumps(line) for line in lines]
    wrapped = [dumps({"log": f"{text}\n", "stream": "stderr"}) for text in texts]
    log = "".join(f"2026-11-21T01:00:00.1Z stderr F {text}\n" for text in texts)
    pod = "var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/0.log"
    errors = tuple(f"E0000 {text}" for text in texts[1:])
    for files in (
        {pod: log, "var/log/kube-proxy.log": ""},
        {pod: "\n".join(wrapped), "var/log/kube-proxy.log": ""},
        {pod: "", "var/log/kube-proxy.log": "\n".join(texts)},
    ):
        assert read(shell, files=FILES | files).details.proxy_log == errors


def test_entries_are_counted_by_client_and_virtual_server(read):
    details = read().details
    wanted: dict[tuple[str, ...], int] = {}
    templates = 0
    for row in CONNECTIONS.splitlines()[1:]:
        protocol, client, port, address, number = row.split()[:5]
        if port == "0000":
            templates += 1
        else:
            key = (protocol, client, address, number)
            wanted[key] = wanted.get(key, 0) + 1
    assert len(details.templates) == templates > 0
    assert all(template.template for template in details.templates)
    assert [use.entries for use in details.port_use] == sorted(wanted.values(), reverse=True)
    best = max(wanted, key=lambda key: (wanted[key], key))
    assert details.port_use[0].entries == wanted[best]
    assert PortUse(protocol="TCP", client="10.1.0.2", address="10.96.0.10", port=80, entries=8) in (
        dataclasses.replace(use, entries=8) for use in details.port_use
    )


def test_without_details_none_of_it_is_sent_or_run(read):
    tools = {name: fails("must not be run") for name in PROGRAMS}
    facts = read(tools=tools, details=False)
    assert facts.details is None
    assert facts.unread == {}
    assert "details" not in facts_script()
    assert "'" not in facts_script(details=True)


def test_what_is_always_read_has_counters_metrics_and_settings_of_interfaces(read):
    facts = read(details=False)
    assert facts.conntrack["entries"] == 0x120
    assert (facts.conntrack["insert_failed"], facts.conntrack["early_drop"]) == (0x15, 2)
    assert facts.sysctls["net.ipv4.conf.eth0/100.rp_filter"] == "2"
    metrics = facts.proxy.metrics
    assert metrics['kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}'] > 0
    assert metrics['kubeproxy_proxy_healthz_total{code="200"}'] > 0
    assert {name.partition("{")[0].rpartition("_")[2] for name in metrics} >= {"bucket", "sum"}
    assert all(name.startswith("kubeproxy_") for name in metrics)


TOOLS = ("iptables-save", "ip6tables-save", "ipset", "ipvsadm", "conntrack", "dmesg")


def test_programs_that_fail_are_reasons(read):
    facts = read(tools=PROGRAMS | {name: fails(f"{name}: you must be root") for name in TOOLS})
    reasons = {name: f"{name}: you must be root" for name in TOOLS}
    assert {name: facts.unread[name] for name in facts.unread} == {
        "details.iptables": reasons["iptables-save"],
        "details.ip6tables": reasons["ip6tables-save"],
        "details.ipsets": reasons["ipset"],
        "details.ipvs_timeouts": reasons["ipvsadm"],
        "details.syn_sent": reasons["conntrack"],
        "details.udp_sent": reasons["conntrack"],
        "details.table_full": reasons["dmesg"],
    }
    for fact in facts.unread:
        assert getattr(facts.details, fact.partition(".")[2]) is None


def test_what_a_program_says_besides_is_not_in_its_text(read):
    """Its buffer is full in the middle of a line, and what it says besides waits for no buffer."""
    tools = dict(PROGRAMS)
    for name, cut, words in (
        ("iptables-save", "KUBE-MARK-M", "# Warning: iptables-legacy tables present"),
        ("ipset", "add KUBE-CLUSTER-IP 10", "Warning: userspace is newer"),
        ("conntrack", "src=10.2", "conntrack v1.4.7 (conntrack-tools): 2 flow entries shown"),
    ):
        start, found, after = PROGRAMS[name].partition(cut)
        assert found
        start = start.replace("<<'END'", "<<'END' | head -c -1")
        tools[name] = f"{start}{found}\nEND\necho '{words}' >&2\ncat <<'END'\n{after}"
    facts = read(tools=tools)
    assert facts.unread == {}
    assert facts.details == read().details


def test_what_a_program_s_text_lacks_is_a_reason(read):
    tools = PROGRAMS | {
        "iptables-save": says("*nat\n:KUBE-X - [0:0]\n-A OTHER -j X\nCOMMIT"),
        "ipset": says("add KUBE-A 1.2.3.4"),
        "ipvsadm": says("something else"),
    }
    unread = read(tools=tools).unread
    assert sorted(unread) == ["details.ipsets", "details.iptables", "details.ipvs_timeouts"]
    assert "a chain that was named before" in unread["details.iptables"]
    assert "ipset save line 1" in unread["details.ipsets"]


def test_the_flavour_of_iptables_that_kube_proxy_uses_is_found(read):
    tools = PROGRAMS | {
        "iptables-save": says("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT"),
        "iptables-legacy-save": PROGRAMS["iptables-save"],
        "iptables-nft-save": fails("must not be run"),
    }
    facts = read(tools=tools, files=FILES | {"proc/net/ip_tables_names": "nat\n"})
    assert "details.iptables" not in facts.unread
    assert facts.details.iptables.rules("nat", "KUBE-MARK-MASQ")
    # Where the other flavour was never used, asking it could load it.
    facts = read(tools=tools, files=FILES | {"proc/net/ip_tables_names": ""})
    assert dict(facts.details.iptables.chains).keys() == {("nat", "OUTPUT")}


def test_a_node_without_ip_vs_and_kube_proxy_says_so(read):
    files = {p: t for p, t in FILES.items() if "/42/" not in p and not p.startswith("var/log")}
    files |= {"proc/modules": "x 1\n", "proc/net/ipv6_route": ""}
    gone = ("proc/net/ip_vs", "lib/modules/6.1.0-56-amd64/modules.builtin", "proc/net/if_inet6")
    gone += ("sys/module/ip_vs/parameters/conn_tab_bits",)
    facts = read(files=files, without=gone)
    assert facts.unread == {
        "details.modules": "the kernel's list of built-in modules is not on the node",
        "details.proxy_command": "no process is named kube-proxy",
        "details.proxy_log": "no log of kube-proxy is under /var/log",
        "details.ipvs_timeouts": "ip_vs is not loaded",
        "details.port_use": "ip_vs is not loaded",
        "details.templates": "ip_vs is not loaded",
        "details.ip6tables": "the node has no IPv6",
    }
    assert facts.details.cpus == 4
    assert facts.details.uplinks == ("eth0",)


def test_tables_too_large_to_walk_are_left_out(read):
    table = FILES | {
        "proc/net/ip_vs": (
            "IP Virtual Server version 1.2.1 (size=4096)\n"
            "Prot LocalAddress:Port Scheduler Flags\n"
            "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
            "TCP  0A60000A:0050 rr  \n  -> 0AF4000C:1F90      Masq    1      150000     90000\n"
        ),
        "proc/sys/net/netfilter/nf_conntrack_count": "2000000\n",
    }
    unread = read(files=table).unread
    assert unread["details.port_use"] == "the table has 240000 connections, more than 200000"
    assert unread["details.syn_sent"] == "nf_conntrack has 2000000 entries, more than 1000000"
    assert unread["details.udp_sent"] == unread["details.syn_sent"]


def test_after_three_sections_that_hang_the_rest_is_left_out(read):
    hung = "*-save|ipset|dmesg"
    timeout = f'#!/bin/sh\nshift\ncase $1 in {hung}) exit 124 ;; *) exec "$@" ;; esac\n'
    facts = read(tools=PROGRAMS | {"timeout": timeout})
    for name in ("iptables", "ip6tables", "ipsets"):
        assert facts.unread[f"details.{name}"] == "the time limit on the node ended the reading"
    assert "three sections" in facts.unread["details.table_full"]
    assert facts.details.cpus == 2
    assert facts.table is not None


def test_a_file_that_is_linked_to_nothing_hides_those_of_its_name(read, current, node_root):
    root = node_root(current)
    (root / "etc/sysctl.d").mkdir(parents=True)
    (root / "etc/sysctl.d/10-first.conf").symlink_to("/dev/null")
    (root / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    lines = read().details.sysctl_files
    assert {line.path for line in lines} == {
        "/etc/sysctl.d/50-ipvs.conf",
        "/etc/sysctl.d/99-sysctl.conf",
    }
