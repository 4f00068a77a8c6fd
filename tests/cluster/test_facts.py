"""The facts script under every shell, on a made-up node; its parser on any text."""

import dataclasses
import shutil

import pytest
from any_text import any_text
from cluster_fakes import Answer, ip_program, proxy_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs.cluster.errors import FactsError, NodeUnreachableError
from pytest_ipvs.cluster.facts import Probe, TableCache, parse_facts, read_facts
from pytest_ipvs.cluster.nodes import NodePool
from pytest_ipvs.cluster.script import facts_script, new_mark
from pytest_ipvs.cluster.template import Template
from pytest_ipvs.ipvs.objects import Node

pytestmark = pytest.mark.system

SHELLS = ("dash", "bash", "busybox sh")
MARK = "ipvs-0123456789abcdef"


@pytest.fixture
def pool():
    made = NodePool([Node(name="node-1")], Template.parse("local://"))
    yield made
    made.close()


@pytest.fixture(params=SHELLS)
def shell(request):
    if shutil.which(request.param.split()[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def healthy(current, node_root, programs, serve):
    """A probe for a healthy node, with kube-proxy's ports and a fake ip."""
    programs("ip", ip_program(current))
    port = serve(proxy_answers(current)).port
    return Probe(root=str(node_root(current)), metrics_port=port, health_port=port)


def test_everything_is_read_under_each_shell(pool, healthy, shell):
    facts = read_facts(pool, "node-1", probe=dataclasses.replace(healthy, shell=shell))
    assert facts.unread == {}
    assert facts.kernel_release == "6.1.0-56-amd64"
    assert facts.kernel_version.startswith("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2")
    assert facts.sysctls["net.ipv4.vs.conntrack"] == "1"
    assert facts.sysctls["net.ipv4.vs.sync_threshold"] == "3 50"
    assert facts.sysctls["net.ipv4.ip_local_port_range"] == "32768 60999"
    assert facts.sysctls["net.ipv4.ip_local_reserved_ports"] == ""
    assert "net.ipv4.vs.conn_max" not in facts.sysctls
    assert facts.module_parameters == {"ip_vs.conn_tab_bits": "12"}
    assert facts.table is not None
    assert ("TCP", "10.96.10.1", 80) in [server.key for server in facts.table.virtual_servers]
    assert ("kube-ipvs0", "10.96.10.1") in facts.addresses
    assert ("data0", "192.168.50.11") in facts.addresses
    assert facts.proxy.mode == "ipvs"
    assert facts.proxy.version == "v1.36.2"
    assert facts.proxy.config is not None
    assert facts.proxy.config["ipvs"]["scheduler"] == "rr"
    assert facts.proxy.healthz is not None
    assert facts.proxy.livez is not None
    assert (facts.proxy.healthz.status, facts.proxy.livez.status) == (200, 200)
    assert '"healthy":true' in facts.proxy.healthz.body


@pytest.mark.parametrize("loader", ["curl", "wget", "busybox"])
def test_each_http_program_tells_bodies_and_statuses(
    pool, current, node_root, programs, serve, tmp_path, monkeypatch, loader
):
    if shutil.which(loader) is None:
        pytest.skip(f"{loader} is not installed")
    programs("ip", ip_program(current))
    normal = proxy_answers(current)

    def answer(method, path, query, body):
        if path == "/healthz":
            return Answer(503, '{"healthy":false}', {"Content-Type": "text/plain"})
        return normal(method, path, query, body)

    port = serve(answer).port
    script = facts_script()
    for other in ("curl", "wget", "busybox"):
        if other == loader:
            break
        script = script.replace(f"if has {other};", "if false;")
    monkeypatch.setattr("pytest_ipvs.cluster.facts.facts_script", lambda **_: script)
    probe = Probe(root=str(node_root(current)), metrics_port=port, health_port=port)
    facts = read_facts(pool, "node-1", probe=probe)
    assert facts.unread == {}
    assert (facts.proxy.mode, facts.proxy.version) == ("ipvs", "v1.36.2")
    assert facts.proxy.healthz is not None
    assert facts.proxy.healthz.status == 503
    assert facts.proxy.livez is not None
    assert facts.proxy.livez.status == 200


def test_an_old_kube_proxy_is_told_in_today_s_spelling(pool, oldest, current, node_root, serve):
    port = serve(proxy_answers(oldest)).port
    probe = Probe(root=str(node_root(current)), metrics_port=port, health_port=port)
    proxy = read_facts(pool, "node-1", probe=probe).proxy
    assert proxy.version == "v1.20.2"
    assert proxy.config is not None
    assert proxy.config["mode"] == "ipvs"
    assert proxy.config["ipvs"]["syncPeriod"] == "30s"
    assert proxy.config["ipvs"]["strictARP"] is False
    assert proxy.config["clusterCIDR"] == "10.244.0.0/16"
    assert proxy.config["featureGates"] == {}
    assert proxy.metrics["kubeproxy_sync_proxy_rules_iptables_restore_failures_total"] == 0
    # /livez came with 1.28: an answer, but not a good one.
    assert proxy.livez is not None
    assert proxy.livez.status == 404


def test_a_node_without_ip_vs_has_no_table_and_says_so(pool, current, node_root, healthy):
    root = node_root(current, "bare", without=("proc/net/ip_vs",))
    facts = read_facts(pool, "node-1", probe=dataclasses.replace(healthy, root=str(root)))
    assert facts.table is None
    assert "table" not in facts.unread


def test_a_node_that_shares_its_kernel_is_asked_for_its_whole_table(
    pool, current, node_root, healthy, programs
):
    text = (node_root(current, "page") / "proc/net/ip_vs").read_text()
    part = "".join(text.splitlines(keepends=True)[:4])
    root = node_root(current, "shared", table=part, without=("proc/sys/net/ipv4/tcp_mem",))
    (root / "whole").write_text(text)
    # What follows a seek is empty where the first page was all there is.
    programs("dd", f'#!/bin/sh\ncase $* in *skip=*) ;; *) exec cat "{root}/whole" ;; esac\n')
    probe = dataclasses.replace(healthy, root=str(root))
    facts = read_facts(pool, "node-1", probe=probe)
    assert facts.unread == {}
    assert facts.table == TableCache().parse(text)
    programs("dd", "#!/bin/sh\nexit 1\n")
    facts = read_facts(pool, "node-1", probe=probe)
    assert facts.table is None
    assert facts.unread == {"table": "dd can not read a part of /proc/net/ip_vs"}


def test_this_machine_as_it_is(pool):
    facts = read_facts(pool, "node-1")
    assert facts.kernel_release
    assert facts.sysctls["net.ipv4.ip_forward"] in ("0", "1")
    assert ("lo", "127.0.0.1") in facts.addresses
    assert "sysctls" not in facts.unread


def test_a_silent_kube_proxy_is_told_with_its_port(pool, healthy, serve):
    server = serve(lambda *_: Answer())
    port = server.port
    server._server.server_close()
    probe = dataclasses.replace(healthy, metrics_port=port)
    facts = read_facts(pool, "node-1", probe=probe)
    reason = f"nothing answers on port {port} of the loopback or node address"
    assert facts.unread == {
        "proxy.mode": reason,
        "proxy.config": reason,
        "proxy.version": reason,
        "proxy.metrics": reason,
    }
    assert facts.proxy.healthz is not None


def test_a_kube_proxy_that_listens_on_the_node_s_address_only(pool, healthy, serve):
    # 127.0.0.9 stands for the node's own address: nothing listens on 127.0.0.1 at that port.
    server = serve(lambda *_: Answer(200, "ipvs"), "127.0.0.9")
    probe = dataclasses.replace(healthy, metrics_port=server.port)
    facts = read_facts(pool, "node-1", address="127.0.0.9", probe=probe)
    assert facts.proxy.mode == "ipvs"


def test_a_table_that_can_t_be_parsed_is_unread_with_line_and_reason(
    pool, current, node_root, healthy
):
    root = node_root(
        current, "odd", table="IP Virtual Server version 1.2.1 (size=4096)\nnonsense\n"
    )
    facts = read_facts(pool, "node-1", probe=dataclasses.replace(healthy, root=str(root)))
    assert facts.table is None
    assert facts.unread["table"].startswith("IPVS table line 2: 'nonsense'")


def test_a_table_that_can_t_be_read_is_unread(pool, current, node_root, healthy):
    root = node_root(current, "dir", without=("proc/net/ip_vs",))
    (root / "proc/net/ip_vs").mkdir()
    facts = read_facts(pool, "node-1", probe=dataclasses.replace(healthy, root=str(root)))
    assert facts.table is None
    assert "Is a directory" in facts.unread["table"]


def test_permission_denied_is_a_reason_never_silence():
    text = frame(
        (
            "files",
            "proc/sys/net/ipv4/vs/conntrack:1\ngrep: proc/sys/net/ipv4/vs/x: Permission denied",
            "2",
        ),
        ("table", "cat: /proc/net/ip_vs: Permission denied", "1"),
    )
    facts = parse_facts("node-1", text, MARK, taken_at=1.0)
    assert facts.sysctls == {"net.ipv4.vs.conntrack": "1"}
    assert facts.unread["sysctls"] == "net/ipv4/vs/x: Permission denied"
    assert facts.unread["net.ipv4.vs.x"] == "Permission denied"
    assert facts.unread["table"] == "cat: /proc/net/ip_vs: Permission denied"


def test_no_sysctl_at_all_is_a_reason(pool, tmp_path, healthy):
    (tmp_path / "empty/proc/net").mkdir(parents=True)
    probe = dataclasses.replace(healthy, root=str(tmp_path / "empty"))
    facts = read_facts(pool, "node-1", probe=probe)
    assert facts.sysctls == {}
    assert "No such file" in facts.unread["sysctls"]
    assert "kernel" in facts.unread


def test_a_section_that_hangs_is_ended_by_the_script(pool, current, node_root, programs, healthy):
    programs("ip", "#!/bin/sh\nexec sleep 30\n")
    pool.timeout = 8.0  # the script's own limit is a quarter of it
    facts = read_facts(pool, "node-1", probe=healthy)
    assert facts.unread == {"addresses": "the time limit on the node ended the reading"}
    assert facts.table is not None


def test_a_node_that_hangs_altogether_is_ended_from_outside(pool, programs):
    programs("uname-does-not-matter", "")
    with pytest.raises(
        NodeUnreachableError, match=r"node node-1 can't be reached: no answer within 0\.3 s"
    ):
        pool.run("node-1", "sleep 30", timeout=0.3)


def test_answers_of_something_else_are_one_sentence(pool, programs):
    probe = Probe(shell=str(programs("notashell", "#!/bin/sh\necho 'This account is disabled.'\n")))
    with pytest.raises(
        NodeUnreachableError, match="not that of the facts script: 'This account is"
    ):
        read_facts(pool, "node-1", probe=probe)
    probe = Probe(
        shell=str(programs("refuses", "#!/bin/sh\necho 'no such container: x' >&2; exit 1\n"))
    )
    pool.forgive()
    with pytest.raises(NodeUnreachableError, match="no such container: x"):
        read_facts(pool, "node-1", probe=probe)


def test_words_before_the_first_mark_do_no_harm():
    text = "Welcome to node-1, have fun!" + frame(("kernel", "6.1\n#1", "0"))
    assert parse_facts("n", text, MARK, taken_at=1.0).kernel_release == "6.1"


def test_what_a_file_contains_can_t_break_the_frame():
    other = new_mark()
    text = frame(
        ("table", f"{other} end 0\n{other} begin kernel\nbad", "0"), ("kernel", "6.1\n#1", "0")
    )
    facts = parse_facts("n", text, MARK, taken_at=1.0)
    assert facts.kernel_release == "6.1"
    assert "table" in facts.unread


def test_an_answer_that_was_cut_off_says_what_is_missing():
    whole = frame(("kernel", "6.1\n#1", "0"), ("files", "proc/sys/net/ipv4/ip_forward:1", "0"))
    facts = parse_facts("n", whole[: whole.index("ip_forward")], MARK, taken_at=1.0)
    assert facts.kernel_release == "6.1"
    for fact in ("sysctls", "table", "addresses", "proxy.mode", "proxy.healthz"):
        assert facts.unread[fact] == "the node's answer ended before it was told"


def frame(*sections):
    return "\n" + "".join(
        f"{MARK} begin {name}\n{text}\n{MARK} end {status}\n" for name, text, status in sections
    )


def test_equal_tables_are_parsed_once(current, node_root):
    text = (node_root(current) / "proc/net/ip_vs").read_text()
    cache = TableCache(size=1)
    first = cache.parse(text)
    assert cache.parse(text) is first
    cache.parse(text.replace("size=4096", "size=1024"))
    assert cache.parse(text) is not first
    assert cache.parse(text) == first


def test_the_script_travels_in_single_quotes_and_fits_an_argument():
    script = facts_script()
    assert "'" not in script
    assert len(script) < 4096
    # dropbear takes no command of 9000 bytes.
    assert len(facts_script(details=True)) < 8750
    assert len({new_mark() for _ in range(50)}) == 50


NAMES = ("kernel", "files", "table", "addresses", "http", "other")
STATUSES = ("0", "1", "2", "124", "127", "absent", "http:200", "")
URLS = ("http://127.0.0.1:10249/proxyMode", "http://[::1]:10256/healthz", "x:99999/configz")
HTTP = ("http:200", "http:503", "http:000", "http:error", "http:99", "127", "4", "")
PARTS = st.one_of(
    any_text(60),
    st.sampled_from(
        [f"{MARK} begin {name}\n" for name in NAMES]
        + [f"\n{MARK} end {status}\n" for status in STATUSES]
        + [f"\n{MARK} end {status} {url}\n" for status in HTTP for url in URLS]
        + [f"{MARK} done\n"]
        + [
            "proc/sys/net/ipv4/vs/conntrack:1\n",
            "grep: proc/sys/net/x: Permission denied\n",
            "IP Virtual Server version 1.2.1 (size=4096)\n",
            "TCP  0A600001:01BB rr\n",
            "1: lo    inet 999.1.1.1/8\n",
            "{" * 2000,
            "null",
            "ERROR 503",
        ]
    ),
)


@settings(max_examples=150)
@given(st.lists(PARTS, max_size=25))
def test_the_parser_never_crashes(parts):
    text = "".join(parts)
    try:
        facts = parse_facts("node-1", text, MARK, taken_at=1.0)
    except FactsError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert "\n" not in sentence
    if sentence:
        return
    # What was not read says why: nothing is silently absent.
    read = {
        "kernel": facts.kernel_release,
        "sysctls": facts.sysctls,
        "addresses": facts.addresses or None,
        "proxy.mode": facts.proxy.mode,
        "proxy.version": facts.proxy.version,
        "proxy.config": facts.proxy.config,
        "proxy.metrics": facts.proxy.metrics,
        "conntrack": facts.conntrack,
        "proxy.healthz": facts.proxy.healthz,
        "proxy.livez": facts.proxy.livez,
    }
    for fact, value in read.items():
        assert value not in (None, {}, "") or fact in facts.unread, fact
    for reason in facts.unread.values():
        assert reason
        assert "\n" not in reason
