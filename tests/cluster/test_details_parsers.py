"""Parsers of the second half of the facts script, on made-up sections and on any text."""

from __future__ import annotations

import dataclasses
import json

from any_text import any_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs.cluster.details import Shares, parse_details
from pytest_ipvs.cluster.model import NodeDetails
from pytest_ipvs.cluster.script import Frame, Section
from pytest_ipvs.cluster.script_details import SECTIONS
from pytest_ipvs.cluster.sysctl_files import parse_sysctl_files

FIELDS = [field.name for field in dataclasses.fields(NodeDetails)]


def test_a_key_without_a_value_is_taken_out_of_patterns():
    text = "=etc/sysctl.d/a.conf\netc/sysctl.d/a.conf:1:-net.ipv4.conf.eth0.rp_filter\n"
    text += "etc/sysctl.d/a.conf:2:net.ipv4.conf.*.rp_filter = 1\netc/sysctl.d/a.conf:3:nonsense"
    keys = [f"net.ipv4.conf.{name}.rp_filter" for name in ("eth0", "lo")]
    assert [line.key for line in parse_sysctl_files(text, keys)] == [keys[1]]


def test_nodes_share_what_is_equal():
    sections = {
        "details.ipsets": "create KUBE-A hash:ip\nadd KUBE-A 10.0.0.1\n",
        "details.iptables": "*nat\n:KUBE-A - [0:0]\n-A KUBE-A -j RETURN\nCOMMIT\n",
    }
    shares = Shares()
    first, second = (parse_details(frame(sections), {}, {}, shares) for _ in range(2))
    assert first.ipsets["KUBE-A"] is second.ipsets["KUBE-A"]
    key = ("nat", "KUBE-A")
    assert first.iptables.chains[key] is second.iptables.chains[key]


def frame(sections, status="0"):
    found = {name: Section(text=text, status=status) for name, text in sections.items()}
    return Frame(sections=found, answers={}, complete=True)


PIECES = st.sampled_from(
    [
        *("=", "\n", "= 7 TCP 0A000001 0A600001 0050\n", "=etc/sysctl.d/a.conf\n", "-1\n"),
        *("etc/sysctl.d/a.conf:3:net.*.x = 1\n", "*nat\n", "create KUBE-A hash:ip\n", "0-99999"),
        *("Cpus_allowed_list:\t0-3\n", "none", "rc 7\n", ">a\n", '{"log":"E1121 x\\', "E1121 x\n"),
        *("TCP 0A010002 0000 0A60000F 0050 0AF4000C 1F94 NONE 5\n", "3 10.0.0.1\n", "3 x\n"),
        "eth0\t00000000\t0\tZZ\t0\t0\t0\t00000000\t0\t0\t0\n",
    ]
)


@settings(max_examples=80)
@given(
    st.dictionaries(
        st.sampled_from([f"details.{name}" for name in SECTIONS]),
        st.lists(st.one_of(PIECES, any_text(9)), max_size=6).map("".join),
        max_size=5,
    ),
    st.sampled_from(["0", "0", "0", "1", "124", "143", ""]),
)
def test_any_text_is_details_or_reasons(sections, status):
    unread: dict[str, str] = {}
    details = parse_details(frame(sections, status), {"net.a.x": "1"}, unread)
    for name in FIELDS:
        assert (getattr(details, name) is None) == (f"details.{name}" in unread), name
    assert unread.keys() <= {f"details.{name}" for name in FIELDS}
    assert not any("\n" in reason or not reason for reason in unread.values())
    json.dumps(unread)
