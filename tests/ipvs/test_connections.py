"""The parser of connection entries: against ipvsadm, and its errors."""

from __future__ import annotations

import ipvs_oracle
import pytest
from any_text import any_text
from hypothesis import given
from ipvs_recorded import KERNELS, captured, said

from pytest_ipvs.ipvs.connections import Connection, parse_connections
from pytest_ipvs.ipvs.tables import TableError

TITLES = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("prefix", ["", "emptyns_", "after_delete_", "later10s_"])
def test_captured_entries_are_what_ipvsadm_said(kernel: str, prefix: str) -> None:
    got = ipvs_oracle.connections_as_oracle(
        parse_connections(captured(kernel, f"{prefix}proc_net_ip_vs_conn"))
    )
    wanted = ipvs_oracle.parse_connections(captured(kernel, f"{prefix}ipvsadm_Lnc"))
    assert [entry[:5] for entry in got] == [entry[:5] for entry in wanted]
    # The two were read some seconds apart.
    assert all(abs(a[5] - b[5]) <= 10 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("run", ["1.20.2-A", "1.20.2-B", "1.36.2-A", "1.36.2-B"])
def test_recorded_entries_parse(run: str) -> None:
    count = 0
    for row in said(run, "cat /proc/net/ip_vs_conn"):
        entries = list(parse_connections(row["out"]))
        assert all(entry.protocol in ("TCP", "UDP") for entry in entries)
        count += len(entries)
    assert count > 50


def test_fields_and_templates() -> None:
    template, entry = parse_connections(
        "TCP 0A010000 0000 0A60000C 0050 0AF4000C 1F91 ASSURED         295 sip abc def\n"
        "TCP fd01:0000:0000:0000:0000:0000:0000:0002 DC5C fd96:0000:0000:0000:0000:0000:0000:0017 "
        "0050 fd44:0000:0000:0000:0000:0000:0000:0014 1F99 SYN_RECV         58\n"
    )
    assert template.template
    assert entry == Connection(
        "TCP", "fd01::2", 56412, "fd96::17", 80, "fd44::14", 8089, "SYN_RECV", 58
    )
    assert not entry.template


def test_a_line_filtered_on_the_node_needs_no_titles() -> None:
    line = "TCP 0A010002 B19C 0A60000A 0051 0AF4000C 1F91 ESTABLISHED     895"
    assert list(parse_connections(line)) == list(parse_connections(TITLES + line + "\n"))


def test_error_names_the_line() -> None:
    with pytest.raises(TableError, match="line 2: 'TCP 0A01'"):
        list(parse_connections(TITLES + "TCP 0A01\n"))


@given(any_text(200))
def test_any_text_is_read_or_a_table_error(text: str) -> None:
    try:
        list(parse_connections(TITLES + text))
    except TableError:
        pass
