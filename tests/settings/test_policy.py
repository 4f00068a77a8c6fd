"""The policy file: what it accepts, and sentences that name file, key, value and expectation."""

from dataclasses import replace
from datetime import date

import pytest
import yaml
from any_text import any_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs import policy as policy_module
from pytest_ipvs.cluster.script import SYSCTL_PATHS
from pytest_ipvs.ipvs.objects import Node
from pytest_ipvs.policy import (
    SYSCTL_CHECKS,
    Policy,
    PolicyError,
    Threshold,
    load_policy,
    sysctl_check,
)
from pytest_ipvs.policy_file import KEYS, NODE_KEYS, SYSCTLS, WAIVER_KEYS
from pytest_ipvs.settings import resolve


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "ipvs.yaml"
        path.write_text(text, encoding="utf-8")
        return load_policy(path)

    return load


def test_every_key(load):
    policy = load(
        """
settings: {jobs: 4, node-selector: "pool=a"}
kernel_fixes:
  'tlinux4': {b: true, d: false}
sysctls:
  net.ipv4.vs.run_estimation: 0
  net.ipv4.ip_local_port_range: ["1024  65535", "32768\\t60999"]
  net.ipv4.conf.all.rp_filter: null
foreign_virtual_servers: ["10.0.0.0/24", "fwmark:7"]
drain_budget: 300
converge_budget: 90
min_reused_tuples: 10
min_new_pod_share: 0.4
slow_connect_ms: 500
severities: {SY-01: warn}
thresholds: {}
nodes:
  - {selector: "pool=edge", names: [edge-*], drain_budget: 900}
waivers:
  - check: TB-*
    node: edge-?
    object: "10.96.0.10:80/TCP*"
    reason: moved
      next month
    expires: 2027-01-31
"""
    )
    (waiver,) = policy.waivers
    assert (waiver.where, waiver.reason) == ("ipvs.yaml:20", "moved next month")
    assert waiver.expires == date(2027, 1, 31)
    assert waiver.covers("TB-03", "edge-1", "10.96.0.10:80/TCP -> 10.244.1.2:8080")
    assert not waiver.covers("TB-03", None, "10.96.0.10:80/TCP")
    assert not waiver.covers("TB-03", "edge-1", "10.96.0.11:80/TCP")
    assert not waiver.covers("KP-01", "edge-1", "10.96.0.10:80/TCP")
    assert policy.kernel_fix_overrides == (("tlinux4", {"b": True, "d": False}),)
    assert policy.sysctls == {
        "net.ipv4.vs.run_estimation": ("0",),
        "net.ipv4.ip_local_port_range": ("1024 65535", "32768 60999"),
        "net.ipv4.conf.all.rp_filter": None,
    }
    assert policy.foreign_virtual_servers == ("10.0.0.0/24", "fwmark:7")
    assert (policy.min_reused_tuples, policy.min_new_pod_share) == (10, 0.4)
    assert policy.slow_connect_ms == 500
    assert policy.severities == {"SY-01": "warn"}
    settings = resolve({}, {}, {}, policy.settings)
    assert (settings.jobs, settings.node_selector) == (4, "pool=a")
    in_force = policy.with_settings(settings)
    assert (in_force.drain_budget, in_force.converge_budget) == (300, 90)


def test_an_option_overrides_the_budget_of_the_file(load):
    policy = load("drain_budget: 300\n")
    settings = resolve({"ipvs_drain_budget": "120"}, {}, {}, policy.settings)
    assert policy.with_settings(settings).drain_budget == 120


def test_an_empty_file_is_the_default(load, tmp_path):
    assert load("") == Policy(path=str(tmp_path / "ipvs.yaml"))


BAD = [
    ("[1]", "ipvs.yaml:1: the document is [1], expected a mapping of keys"),
    ("drain: 3", "ipvs.yaml:1: drain is not a key, expected one of settings, kernel_fixes, "),
    ("drain_budget: soon", "ipvs.yaml:1: drain_budget is 'soon', expected a number of seconds"),
    ("slow_connect_ms: .nan", "ipvs.yaml:1: slow_connect_ms is nan, expected milliseconds"),
    (
        "min_new_pod_share: 50",
        "ipvs.yaml:1: min_new_pod_share is 50, expected a number between",
    ),
    ("min_reused_tuples: true", "ipvs.yaml:1: min_reused_tuples is True, expected a whole"),
    (
        "kernel_fixes: {'(': {b: true}}",
        "ipvs.yaml:1: kernel_fixes[(] is not a regular expression",
    ),
    ("kernel_fixes: {x: {e: true}}", "ipvs.yaml:1: kernel_fixes.x is 'e', expected the fixes"),
    (
        "kernel_fixes: {x: {b: 1}}",
        "ipvs.yaml:1: kernel_fixes.x.b is 1, expected true or false",
    ),
    ("sysctls: {conntrack: 1}", "ipvs.yaml:1: sysctls is 'conntrack', expected a full dotted"),
    (
        "sysctls: {net.ipv4.vs.conntrack: true}",
        "ipvs.yaml:1: sysctls[net.ipv4.vs.conntrack] is True, expected a number or text",
    ),
    (
        "sysctls:\n  net.core.somaxconn: 1024",
        (
            "ipvs.yaml:2: sysctls[net.core.somaxconn] is 1024, expected a key that checks read "
            "instead: one of net.ipv4.vs.*, net.ipv4.ip_forward, "
        ),
    ),
    (
        "sysctls:\n  net.ipv4.conf.eth0.100.rp_filter: null",
        "ipvs.yaml:2: sysctls[net.ipv4.conf.eth0.100.rp_filter] is None, expected a key that",
    ),
    (
        "sysctls:\n  net.ipv4.vs.conntrack: 010",
        (
            "ipvs.yaml:2: sysctls[net.ipv4.vs.conntrack] is 010, expected a number without a "
            "leading 0 or a colon: YAML takes it for 8"
        ),
    ),
    (
        "sysctls:\n  net.ipv4.vs.conntrack: [1, 010]",
        "ipvs.yaml:2: sysctls[net.ipv4.vs.conntrack][2] is 010, expected a number without",
    ),
    ("drain_budget: 1:30", "ipvs.yaml:1: drain_budget is 1:30, expected a number without a lead"),
    (
        "thresholds:\n  masquerade_all: 1.5",
        "ipvs.yaml:2: thresholds.masquerade_all is 1.5, expected 0, 1 or 2",
    ),
    (
        "foreign_virtual_servers:\n- 10.0.0.0/24\n- 10.0.0.0/33",
        "ipvs.yaml:3: foreign_virtual_servers[2] is '10.0.0.0/33', expected a pattern such as",
    ),
    (
        "nodes:\n- names: [a]\n  thresholds:\n\n    <<: {bogus: 3}",
        "ipvs.yaml:5: nodes[1].thresholds.bogus is not a threshold, expected one of",
    ),
    (
        (
            "thresholds: &t\n  conntrack_warn: 70\nnodes:\n"
            "- <<: [{names: [a]}, {drain_budget: x}]\n  thresholds: {<<: *t, conntrack_fail: 9}"
        ),
        "ipvs.yaml:4: nodes[1].drain_budget is 'x', expected a number of seconds",
    ),
    ("severities: {SY-01: error}", "ipvs.yaml:1: severities.SY-01 is 'error', expected fail,"),
    (
        "foreign_virtual_servers: x",
        "ipvs.yaml:1: foreign_virtual_servers is 'x', expected a list",
    ),
    ("a: 1\ndrain_budget: 9\na: 2", "ipvs.yaml:3: 'a' is given twice, the first time on line 1"),
    (
        "settings:\n  jobs: many",
        "ipvs.yaml:2: settings.jobs is 'many', expected a whole number",
    ),
    ("settings:\n  job: 1", "ipvs.yaml:2: settings.job is not a setting, expected one of"),
    (
        "thresholds:\n  no_such: 1",
        "ipvs.yaml:2: thresholds.no_such is not a threshold, expected",
    ),
    ("nodes:\n- drain_budget: 9", "ipvs.yaml:2: nodes[1] chooses no node, expected selector"),
    ("nodes:\n- names: [a]", "ipvs.yaml:2: nodes[1] says nothing of its nodes, expected one"),
    (
        "nodes:\n- names: [a]\n  min_reused_tuples: 1",
        "ipvs.yaml:3: nodes[1].min_reused_tuples is not a key, expected one of selector, names",
    ),
    (
        "nodes: [{selector: '!', sysctls: {}}]",
        "ipvs.yaml:1: nodes[1].selector is '!', expected a label selector",
    ),
    ("nodes: [{names: [], sysctls: {}}]", "ipvs.yaml:1: nodes[1].names is [], expected at"),
    (
        "waivers:\n- {check: TB-03, reason: x}",
        "ipvs.yaml:2: waivers[1] has no expires, expected check, reason and expires",
    ),
    (
        "waivers:\n- check: TB-03\n  reason: ' '",
        "ipvs.yaml:3: waivers[1].reason is ' ', expected the reason in words",
    ),
    (
        "waivers:\n- check: TB-03\n  expires: soon",
        "ipvs.yaml:3: waivers[1].expires is 'soon', expected the last day",
    ),
    ("waivers: [{expires: '2026-02-30'}]", "ipvs.yaml:1: waivers[1].expires is '2026-02-30',"),
    (
        "waivers:\n- check: TB-03\n  expires: 2027-13-01",
        "ipvs.yaml:3: waivers[1].expires is '2027-13-01', expected the last day",
    ),
    (
        "waivers:\n- expires: 2027-01-31T00:00:00",
        "ipvs.yaml:2: waivers[1].expires is '2027-01-31T00:00:00', expected the last day",
    ),
    ("waivers:\n- x: &a [*a]", "ipvs.yaml:2: a value contains itself"),
    (
        "{drain_budget: 9, settings: {drain-budget: 9}}",
        "ipvs.yaml:1: drain_budget and settings.drain-budget say the same thing, expected only",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_bad_files_are_one_sentence(load, text, sentence):
    with pytest.raises(PolicyError) as error:
        load(text)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("10.0.0.0/24", True),
        ("fd00::/64", True),
        ("10.0.0.5", True),
        ("10.0.0.5:443/TCP", True),
        ("[fd00::1]:443/SCTP", True),
        ("198.51.100.*:443/TCP", True),
        ("10.0.0.?:80/*", True),
        ("10.0.0.*", True),
        ("fwmark:7", True),
        ("fwmark:1?*", True),
        ("10.0.0.0/33", False),
        ("10.0.0.555:443/TCP", False),
        ("10.0.0.5:443", False),
        ("10.0.0.5:443/tcp", False),
        ("10.0.0.5:70000/TCP", False),
        ("10.0.0.0/24:80/TCP", False),
        ("fd00::1:443/TCP", False),
        ("[10.0.0.5]:443/TCP", False),
        ("10.0.0.*:443/tcp", False),
        ("10.0.0.?", False),
        ("web", False),
        ("fwmark:x", False),
        ("fwmark:x*", False),
        ("fwmark:4294967296", False),
        ("a b", False),
    ],
)
def test_patterns_that_fit_no_virtual_server_are_refused(load, pattern, accepted):
    text = f"foreign_virtual_servers: ['{pattern}']"
    if accepted:
        assert load(text).foreign_virtual_servers == (pattern,)
    else:
        with pytest.raises(PolicyError, match=r"^ipvs\.yaml:1: foreign_virtual_servers\[1\] is '"):
            load(text)


def test_the_last_day_may_be_written_short(load):
    (waiver,) = load("waivers: [{check: SY, reason: x, expires: 2027-1-5}]").waivers
    assert waiver.expires == date(2027, 1, 5)


def test_a_policy_may_name_what_nodes_are_asked_for_and_nothing_else():
    asked = {path.translate(str.maketrans("/.", "./")) for path in SYSCTL_PATHS}
    # The rest have a check of their own, and a wider pattern asks for them.
    assert asked == set(SYSCTLS)
    for key in SYSCTL_CHECKS:
        assert sysctl_check(key.replace("*", "x")) == SYSCTL_CHECKS[key]
    assert sysctl_check("net.ipv4.conf.eth0/100.rp_filter") == "SY-09"


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(PolicyError, match=r"ipvs\.yaml can't be read: No such file"):
        load_policy(tmp_path / "ipvs.yaml")
    with pytest.raises(PolicyError, match="can't be read: Is a directory"):
        load_policy(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [\n", encoding="utf-8")
    with pytest.raises(PolicyError, match=r"bad\.yaml is not YAML at line 2: "):
        load_policy(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(PolicyError, match=r"latin\.yaml is not UTF-8 text"):
        load_policy(tmp_path / "latin.yaml")


def test_a_key_is_named_with_its_line(load):
    with pytest.raises(PolicyError, match=r"^ipvs\.yaml:3: slow_connect_ms is 'x', expected mil"):
        load("# A comment\n\nslow_connect_ms: x\n")
    with pytest.raises(
        PolicyError, match=r"^ipvs\.yaml:4: sysctls\[net\.ipv4\.tcp_mem\] is True, expected a num"
    ):
        load("drain_budget: 3\nsysctls:\n  net.ipv4.ip_forward: 1\n  net.ipv4.tcp_mem: true\n")


def test_names_of_checks_are_refused_where_the_checks_are_known(tmp_path):
    path = tmp_path / "ipvs.yaml"
    for text, sentence in (
        ("severities: {XX-1: warn}", r"ipvs\.yaml:1: severities\.XX-1 is not a check"),
        (
            "waivers: [{check: XX}]",
            r"ipvs\.yaml:1: waivers\[1\]\.check is 'XX', expected a check id",
        ),
    ):
        path.write_text(text)
        with pytest.raises(PolicyError, match=sentence):
            load_policy(path, ["SY-01"])


def test_rules_for_nodes(load, monkeypatch):
    limit = Threshold(default=80, unit="%", meaning="Conntrack use")
    monkeypatch.setattr(policy_module, "THRESHOLDS", {"conntrack": limit})
    policy = load(
        """
sysctls: {net.ipv4.vs.conntrack: 1, net.ipv4.ip_forward: 1}
severities: {SY-01: warn}
kernel_fixes: {x: {b: true}}
foreign_virtual_servers: [10.0.0.0/24]
nodes:
  - selector: pool in (edge, core)
    sysctls: {net.ipv4.vs.conntrack: 0}
    drain_budget: 900
    foreign_virtual_servers: [10.1.0.0/24]
    kernel_fixes: {y: {c: true}}
  - names: [edge-*]
    severities: {SY-02: info}
    drain_budget: 950
"""
    )
    policy = replace(policy, thresholds={"conntrack": 70})
    other = policy.for_node(Node(name="node-1"))
    assert other is policy
    assert (other.threshold("conntrack"), Policy().threshold("conntrack")) == (70, 80)
    core = policy.for_node(Node(name="edge-core", labels={"pool": "core"}))
    assert core.sysctls == {"net.ipv4.vs.conntrack": ("0",), "net.ipv4.ip_forward": ("1",)}
    assert core.severities == {"SY-01": "warn", "SY-02": "info"}
    assert core.foreign_virtual_servers == ("10.1.0.0/24", "10.0.0.0/24")
    assert [pattern for pattern, _ in core.kernel_fix_overrides] == ["y", "x"]
    assert core.drain_budget == 950
    from_file = policy.with_settings(resolve({}, {}, {}, policy.settings))
    assert from_file.for_node(Node(name="edge-1")).drain_budget == 950
    given = policy.with_settings(resolve({"ipvs_drain_budget": "120"}, {}, {}, {}))
    assert given.for_node(Node(name="edge-1")).drain_budget == 120


@pytest.mark.parametrize(
    "text",
    ["a: \0", "a: !!bool x", "a: !!int ''", "? [a]\n: 1", "a: {<<: 1}"],
)
def test_yaml_that_can_not_be_read_is_one_sentence(load, text):
    with pytest.raises(PolicyError, match=r"ipvs\.yaml is not YAML") as error:
        load(text)
    assert "\n" not in str(error.value)


DAY = date(2027, 1, 31)
VALUES = st.recursive(
    st.sampled_from((None, True, 0, -1, 3.5, float("nan"), "", "a b", "2026-02-30", DAY)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*KEYS, *NODE_KEYS, *WAIVER_KEYS, "a\nb"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@given(document=VALUES.map(yaml.safe_dump) | any_text(20))
@settings(max_examples=40)
def test_no_document_is_a_traceback(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(document, encoding="utf-8", errors="replace")
    told = ""
    try:
        load_policy(path)
    except PolicyError as error:
        told = str(error)
    assert len(told.splitlines()) <= 1
