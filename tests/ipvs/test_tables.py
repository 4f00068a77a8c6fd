"""The parser of /proc/net/ip_vs: against ipvsadm, on any text, and its errors."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path

import ipvs_oracle
import pytest
from any_text import any_text
from hypothesis import given, settings
from hypothesis import strategies as st
from ipvs_recorded import HZ, KERNELS, VERSIONS, captured, said, state
from ipvs_render import HEADER, render

from pytest_ipvs.ipvs.tables import (
    RealServer,
    ServiceKey,
    Table,
    TableError,
    VirtualServer,
    parse_table,
)

EMPTY = HEADER.format(version="1.2.1", size=4096)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("prefix", ["", "emptyns_"])
def test_captured_table_is_what_ipvsadm_said(kernel: str, prefix: str) -> None:
    table = parse_table(captured(kernel, f"{prefix}proc_net_ip_vs"))
    said_then = ipvs_oracle.parse_list(captured(kernel, f"{prefix}ipvsadm_Ln"))
    assert ipvs_oracle.as_oracle(table, HZ) == said_then


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", ["A", "B"])
def test_recorded_tables_are_what_ipvsadm_said(version: str, run: str) -> None:
    compared = equal = 0
    for node in ("node-1", "node-2", "node-3"):
        texts = [
            (row["t"], row["out"]) for row in said(f"{version}-{run}", "cat /proc/net/ip_vs", node)
        ]
        # Each can be read, whether ipvsadm was asked at about that time or not.
        assert all(parse_table(text).virtual_servers for _, text in texts)
        for row in said(f"{version}-{run}", "ipvsadm -Ln", node):
            wanted = {
                key: server.without_counters()
                for key, server in ipvs_oracle.parse_list(row["out"]).items()
            }
            near = sorted(texts, key=lambda item: abs(item[0] - row["t"]))[:3]
            compared += 1
            equal += any(_agrees(text, wanted) for _, text in near)
    assert compared >= 50
    # kube-proxy was writing while one of the readings was made.
    assert compared - equal <= 3


@cache
def _without_counters(text: str) -> dict[tuple[str, str], ipvs_oracle.Server]:
    table = ipvs_oracle.as_oracle(parse_table(text), HZ)
    return {key: server.without_counters() for key, server in table.items()}


def _agrees(text: str, wanted: dict[tuple[str, str], ipvs_oracle.Server]) -> bool:
    got = _without_counters(text)
    if len(text) < 3790:
        return got == wanted
    # The recorder took what one read() gave: at most 4096 characters, cut between servers.
    return all(wanted.get(key) == server for key, server in got.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_state_is_what_ipvsadm_saved(version: str) -> None:
    text = state(version)["node-1.ipvs"]
    start = text.index("IP Virtual Server")
    saved = ipvs_oracle.parse_saved(text[:start])
    got = {
        key: server.without_counters()._replace(mask="")
        for key, server in ipvs_oracle.as_oracle(parse_table(text[start:]), HZ).items()
    }
    assert {key: saved[key] for key in got} == got
    assert len(saved) - len(got) == (1 if version == "1.20.2" else 0)


def test_every_field() -> None:
    table = parse_table(
        EMPTY + "TCP  0A60000C:0050 wlc  persistent 75000 FFFFFF00\n"
        "  -> 0AF4000C:1F91      Masq    3      2          7         \n"
        "UDP  [fd96:0000:0000:0000:0000:0000:0000:0012]:0035 rr ops persistent 75000 40000000\n"
        "  -> [fd44:0000:0000:0000:0000:0000:0000:0012]:1F91      Route   1      2          0    \n"
        "FWM  00001000 rr \n"
    )
    assert table == Table(
        version="1.2.1",
        size=4096,
        virtual_servers=(
            VirtualServer(
                protocol="TCP",
                address="10.96.0.12",
                port=80,
                fwmark=None,
                scheduler="wlc",
                flags=(),
                persistence_jiffies=75000,
                netmask="255.255.255.0",
                real_servers=(
                    RealServer.at(
                        address="10.244.0.12",
                        port=8081,
                        forward="Masq",
                        weight=3,
                        active=2,
                        inactive=7,
                    ),
                ),
            ),
            VirtualServer(
                protocol="UDP",
                address="fd96::12",
                port=53,
                fwmark=None,
                scheduler="rr",
                flags=("ops",),
                persistence_jiffies=75000,
                netmask="64",
                real_servers=(
                    RealServer.at(
                        address="fd44::12",
                        port=8081,
                        forward="Route",
                        weight=1,
                        active=2,
                        inactive=0,
                    ),
                ),
            ),
            VirtualServer(
                protocol="FWM",
                address="",
                port=4096,
                fwmark=4096,
                scheduler="rr",
                flags=(),
                persistence_jiffies=None,
                netmask=None,
                real_servers=(),
            ),
        ),
    )
    keys = [str(virtual.key) for virtual in table.virtual_servers]
    assert keys == ["10.96.0.12:80/TCP", "[fd96::12]:53/UDP", "FWM 4096"]
    assert table.virtual_servers[0].key == ServiceKey("TCP", "10.96.0.12", 80)


def test_records_can_not_be_changed_and_can_be_sent() -> None:
    table = parse_table(EMPTY + "TCP  0A60000C:0050 rr  \n  -> 0AF4000C:1F91 Masq 1 0 0\n")
    server = table.virtual_servers[0].real_servers[0]
    with pytest.raises(AttributeError):
        server.weight = 7  # type: ignore[misc]
    with pytest.raises(AttributeError):
        server.other = 7  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(table)) == table


VIRTUAL = "TCP  0A60000C:0050 rr  \n"
REAL = "  -> 0AF4000C:1F91      Masq    1      0          0         \n"


@pytest.mark.parametrize(
    ("text", "line_no", "expected"),
    [
        ("", 1, "IP Virtual Server version"),
        ("cat: /proc/net/ip_vs: No such file or directory\n", 1, "IP Virtual Server version"),
        ("IP Virtual Server version 1.2.1 (size=4096)\n", 2, "column titles"),
        (EMPTY.replace("Weight", "Wait"), 3, "column titles"),
        (EMPTY.replace("Prot ", " Prot "), 2, "column titles"),
        (EMPTY.replace("  -> Remote", "-> Remote"), 3, "column titles"),
        (EMPTY + REAL, 4, "PROTOCOL ADDRESS:PORT"),
        (EMPTY + VIRTUAL + REAL + "  -> 0AF4000C:1F91      Masq    1", 6, "FORWARD WEIGHT"),
        (EMPTY + VIRTUAL + REAL.replace("0AF4000C", "0AF400GC"), 5, "hexadecimal"),
        (EMPTY + VIRTUAL + REAL.replace("0AF4000C", "0A  000C"), 5, "hexadecimal"),
        (EMPTY + VIRTUAL + REAL.replace("Masq", "Misq"), 5, "FORWARD"),
        (EMPTY + VIRTUAL + REAL.replace(" 1 ", " 1_0 "), 5, "WEIGHT"),
        (EMPTY + VIRTUAL + REAL.replace("  ->", "  =>"), 5, "ADDRESS:PORT"),
        (EMPTY + VIRTUAL + "\n" + REAL, 5, "ADDRESS:PORT"),
        (EMPTY + VIRTUAL.replace("rr", "") + REAL.replace("Masq", "Misq"), 4, "SCHEDULER"),
        (EMPTY + VIRTUAL + REAL + "ICMP  0A60000C:0050 rr\n", 6, "PROTOCOL"),
        (EMPTY + VIRTUAL + REAL + "TCP  0A60000C rr\n", 6, "PROTOCOL"),
        (EMPTY + "TCP  0A60000C:0050\n", 4, "SCHEDULER"),
        (EMPTY + "FWM  0A60000C:0050 rr\n", 4, "FWM MARK"),
        (EMPTY + "TCP  0A60000C:0050 rr persistent 10 FFFF\n", 4, "SCHEDULER FLAGS"),
    ],
)
def test_error_names_line_and_expectation(text: str, line_no: int, expected: str) -> None:
    with pytest.raises(TableError, match=f"line {line_no}: ") as caught:
        parse_table(text)
    assert caught.value.line_no == line_no
    assert caught.value.line == (text.split("\n")[line_no - 1] if text else "")
    assert expected in caught.value.expected
    assert "\n" not in str(caught.value)


def test_error_after_the_same_text_was_read_well() -> None:
    good = EMPTY + VIRTUAL + REAL
    assert len(parse_table(good).virtual_servers) == 1
    with pytest.raises(TableError, match="line 7"):
        parse_table(good + VIRTUAL + REAL.replace("Masq", "Misq"))


@given(any_text(300))
def test_any_text_is_a_table_or_a_table_error(text: str) -> None:
    for whole in (text, EMPTY + text):
        try:
            parse_table(whole)
        except TableError:
            pass


KERNEL_TEXT = (
    Path(__file__)
    .parents[1]
    .joinpath("data", "captures", KERNELS[0], "proc_net_ip_vs.txt")
    .read_text()
)


@given(st.data())
def test_damaged_text_is_a_table_or_a_table_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(KERNEL_TEXT)))
    end = data.draw(st.integers(start, min(start + 40, len(KERNEL_TEXT))))
    patch = data.draw(any_text(10))
    text = KERNEL_TEXT[:start] + patch + KERNEL_TEXT[end:]
    line_no = 1
    try:
        parse_table(text)
    except TableError as error:
        line_no = error.line_no
    assert 1 <= line_no <= len(text.splitlines()) + 1


_PORTS = st.integers(0, 65535)
_COUNTS = st.integers(0, 2**31 - 1)
_FORWARDS = st.sampled_from(["Masq", "Local", "Tunnel", "Route", "Bypass"])


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any table that a kernel may show."""
    servers = []
    for _ in range(draw(st.integers(0, 3))):
        version = draw(st.sampled_from([4, 6]))
        address = st.ip_addresses(v=version).map(lambda a: type(a)(int(a))).map(str)
        protocol = draw(st.sampled_from(["TCP", "UDP", "SCTP", "FWM"]))
        mark = draw(st.integers(1, 2**32 - 1)) if protocol == "FWM" else None
        real = tuple(
            RealServer.at(a, p, f, w, x, y)
            for a, p, f, w, x, y in draw(
                st.lists(
                    st.tuples(address, _PORTS, _FORWARDS, _COUNTS, _COUNTS, _COUNTS), max_size=3
                )
            )
        )
        jiffies = draw(st.none() | _COUNTS)
        mask = None
        if jiffies is not None:
            # A mark without real servers does not tell its family.
            dotted = version == 4 or (mark is not None and not real)
            mask = "255.255.0.0" if dotted else str(draw(st.integers(0, 128)))
        servers.append(
            VirtualServer(
                protocol,
                "" if mark is not None else draw(address),
                draw(_PORTS) if mark is None else mark,
                mark,
                draw(st.sampled_from(["rr", "wrr", "lblcr", "mh", "none"])),
                draw(st.sampled_from([(), ("ops",)])),
                jiffies,
                mask,
                real,
            )
        )
    return Table("1.2.1", draw(_COUNTS), tuple(servers))


@given(tables())
@settings(max_examples=40)
def test_round_trip(table: Table) -> None:
    assert parse_table(render(table)) == table


def test_of_a_large_table_each_line_is_read_and_checked() -> None:
    servers = [
        f"TCP  0A60{number:04X}:0050 rr  \n"
        + "".join(REAL.replace("0AF4000C", f"0AF{which}{number:04X}") for which in range(4, 7))
        for number in range(300)
    ]
    table = parse_table(EMPTY + "".join(servers))
    assert [virtual.address for virtual in table.virtual_servers] == [
        f"10.96.{number >> 8}.{number & 255}" for number in range(300)
    ]
    assert [
        [server.address for server in virtual.real_servers] for virtual in table.virtual_servers
    ] == [
        [f"10.{which}.{number >> 8}.{number & 255}" for which in (244, 245, 246)]
        for number in range(300)
    ]
    for number in (0, 127, 128, 299):
        damaged = [*servers]
        damaged[number] = servers[number].replace("0AF5", "0AG5").replace(":0050", ":0051")
        with pytest.raises(TableError) as caught:
            parse_table(EMPTY + "".join(damaged))
        assert caught.value.line_no == 3 + 4 * number + 3


def test_lines_outside_their_columns_are_read_like_those_within() -> None:
    wide = REAL.replace("         \n", " \n")
    lines = [REAL.replace("0C:1F91", f"{number:02X}:1F91") for number in range(70)]
    within = parse_table(EMPTY + VIRTUAL + "".join(lines)).virtual_servers[0]
    outside = parse_table(EMPTY + VIRTUAL + "".join([*lines[:-1], wide])).virtual_servers[0]
    assert len(within.real_servers) == 70
    assert outside.real_servers[:-1] == within.real_servers[:-1]
    assert outside.real_servers[-1] == RealServer.at("10.244.0.12", 8081, "Masq", 1, 0, 0)
    assert outside[:-1] == within[:-1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n  -> 0AF40002", "      0AF40002"),
        ("0AF40002:1F91 ", "0AF40002:1F911"),
        ("0AF40002:1F91", "0AF4002:1F910"),
        ("0AF40002:1F91", "0af40002:1F91"),
        ("0AF40002:1F91", "0AF4000\uff12:1F91"),
    ],
)
def test_damage_that_keeps_the_width_is_found(old: str, new: str) -> None:
    lines = "".join(REAL.replace("0C:1F91", f"{number:02X}:1F91") for number in range(4))
    damaged = (VIRTUAL + lines).replace(old, new)
    assert len(damaged) == len(VIRTUAL + lines)
    with pytest.raises(TableError, match="line 9: " if old[0] == "0" else "line 8: "):
        parse_table(EMPTY + VIRTUAL + REAL + damaged + VIRTUAL)


def test_a_real_server_tells_its_address_and_port() -> None:
    for address, place in (
        ("10.244.1.5", b"0AF40105:1F90"),
        ("fd44::5", b"[fd44:0000:0000:0000:0000:0000:0000:0005]:1F90"),
    ):
        server = RealServer.at(address, 8080, "Masq", 1, 0, 0)
        assert (server.place, server.address, server.port) == (place, address, 8080)
    assert str(server) == "[fd44::5]:8080"
    assert repr(server) == "RealServer.at('fd44::5', 8080, 'Masq', 1, 0, 0)"
    with pytest.raises(ValueError, match="not IP addresses"):
        RealServer.at("web", 8080, "Masq", 1, 0, 0)


def test_real_servers_are_equal_where_all_their_values_are() -> None:
    text = EMPTY + VIRTUAL + REAL + REAL.replace("0C", "0D") + REAL.replace(" 1 ", " 2 ")
    first, second, heavy = parse_table(text).virtual_servers[0].real_servers
    assert first[1] is second[1]
    assert first != second
    assert first == RealServer.at("10.244.0.12", 8081, "Masq", 1, 0, 0)
    assert hash(first) == hash(RealServer.at("10.244.0.12", 8081, "Masq", 1, 0, 0))
    assert heavy == first._replace(weight=2)
    assert {first, second, heavy} == {heavy, first, second}
    assert first._replace(forward="Local", active=3, inactive=4) == RealServer.at(
        "10.244.0.12", 8081, "Local", 1, 3, 4
    )
