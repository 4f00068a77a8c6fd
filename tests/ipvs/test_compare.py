"""Comparison at one moment and over time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ipvs.ipvs.compare import Difference, Kind, compare, is_foreign, likely_hz
from pytest_ipvs.ipvs.expected import ExpectedTable, ExpectedVirtualServer
from pytest_ipvs.ipvs.overtime import Budgets, Judged, Sample, Tracker, compare_over_time
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, Table, VirtualServer

WEB, API = ServiceKey("TCP", "10.96.0.10", 80), ServiceKey("TCP", "10.96.0.11", 80)
RULES = ProxyRules(version="v1.36.2", config={})


def wanted(*addresses: str) -> frozenset[str]:
    return frozenset(real(address).place for address in addresses)


def should(*addresses: str, **more: Any) -> ExpectedVirtualServer:
    values: dict[str, Any] = {
        "scheduler": "rr",
        "persistence_seconds": None,
        "service": "demo/web",
        "port_name": "",
        "wanted": wanted(*addresses),
        **more,
    }
    return ExpectedVirtualServer(**values)


def expected(servers: dict[ServiceKey, ExpectedVirtualServer]) -> ExpectedTable:
    return ExpectedTable(virtual_servers=servers, rules=RULES)


def real(address: str, weight: int = 1, forward: str = "Masq", active: int = 0) -> RealServer:
    return RealServer.at(address, 8080, forward, weight, active, 0)


def virtual(key: ServiceKey, *servers: RealServer, **more: Any) -> VirtualServer:
    values: dict[str, Any] = {
        "fwmark": None,
        "scheduler": "rr",
        "flags": (),
        "persistence_jiffies": None,
        "netmask": None,
        **more,
    }
    return VirtualServer(*key, **values, real_servers=servers)


def table(*servers: VirtualServer) -> Table:
    return Table("1.2.1", 4096, servers)


ONE = expected({WEB: should("10.244.1.2")})


def one_kind(observed: Table, told: ExpectedTable = ONE, **more: Any) -> Difference:
    (found,) = compare(told, observed, **more)
    return found


def test_equal_tables_have_no_difference() -> None:
    assert compare(ONE, table(virtual(WEB, real("10.244.1.2")))) == ()


@pytest.mark.parametrize(
    ("servers", "kind", "observed", "wants"),
    [
        ([], "no-real-server", "no real server", "at least one real server"),
        ([real("10.244.1.2", 0)], "quiesced-but-wanted", "weight 0", "weight 1"),
        ([real("10.244.1.2", 7)], "wrong-weight", "weight 7", "weight 1"),
        ([real("10.244.1.2", 1, "Route")], "wrong-forward", "Route", "Masq"),
        (
            [real("10.244.1.2"), real("10.244.9.9", active=3)],
            "stale",
            "weight 1",
            "absent: no endpoint wants it",
        ),
        (
            [real("10.244.1.2"), real("10.244.9.9", 0)],
            "draining",
            "weight 0",
            "absent: no endpoint wants it",
        ),
    ],
)
def test_real_servers(servers: list[RealServer], kind: str, observed: str, wants: str) -> None:
    found = one_kind(table(virtual(WEB, *servers)))
    assert (found.kind, found.observed, found.expected) == (kind, observed, wants)
    assert found.object.startswith("10.96.0.10:80/TCP")
    assert ("-> 10.244." in found.object) == (kind != "no-real-server")
    assert found.service == "demo/web"


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (real("10.244.1.3"), None),
        (real("10.244.1.3", weight=5), "wrong-weight"),
        (real("10.244.1.3", forward="Route"), "wrong-forward"),
    ],
)
def test_real_servers_of_another_right_set_are_judged_too(
    server: RealServer, kind: str | None
) -> None:
    told = expected({WEB: should("10.244.1.2", alternatives=(wanted("10.244.1.3"),))})
    found = compare(told, table(virtual(WEB, server)))
    assert [one.kind for one in found] == ([kind] if kind else [])


def test_counters_are_a_detail() -> None:
    found = one_kind(table(virtual(WEB, real("10.244.1.2"), real("10.244.9.9", active=3))))
    assert found.detail == "3 active and 0 inactive connections"


def test_virtual_servers() -> None:
    missing, extra = compare(ONE, table(virtual(API)))
    assert (missing.kind, extra.kind) == ("missing-virtual-server", "unexplained-virtual-server")
    assert (str(missing.key), extra.object) == ("10.96.0.10:80/TCP", "10.96.0.11:80/TCP")


def test_optional_virtual_servers_may_be_absent() -> None:
    told = expected({WEB: should("10.244.1.2", optional=True)})
    assert compare(told, table()) == ()
    assert one_kind(table(virtual(WEB)), told).kind == "no-real-server"


def test_scheduler() -> None:
    found = one_kind(table(virtual(WEB, real("10.244.1.2"), scheduler="wlc")))
    assert (found.kind, found.observed, found.expected) == ("wrong-scheduler", "wlc", "rr")


def test_a_firewall_mark_is_unexplained_unless_it_is_named() -> None:
    mark = VirtualServer("FWM", "", 7, 7, "rr", (), None, None, ())
    observed = table(virtual(WEB, real("10.244.1.2")), mark)
    assert one_kind(observed).kind == "unexplained-virtual-server"
    assert one_kind(observed, foreign=("fwmark:7",)).kind == "foreign"


def test_foreign_patterns() -> None:
    assert is_foreign(ServiceKey("TCP", "fd00::5", 443), ("[[]fd00::*",)) is False
    assert is_foreign(ServiceKey("TCP", "fd00::5", 443), ("[fd00::5]:443/TCP",))
    assert is_foreign(ServiceKey("TCP", "fd00::5", 443), ("fd00::/16",))
    assert not is_foreign(ServiceKey("TCP", "10.0.0.5", 443), ("10.0.0.5:80/*", "fwmark:7"))


def test_a_moving_service_is_not_judged() -> None:
    found = one_kind(table(virtual(WEB)), moving=frozenset({"demo/web"}))
    assert found.kind == "moving"
    assert compare(ONE, table(virtual(WEB, real("10.244.1.2"))), moving={"demo/web"}) == ()


PERSISTENT = {
    WEB: should(persistence_seconds=10800),
    API: should(persistence_seconds=600),
}


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_persistence_in_ticks_of_any_length(hz: int) -> None:
    observed = table(
        virtual(WEB, persistence_jiffies=10800 * hz), virtual(API, persistence_jiffies=600 * hz)
    )
    assert compare(expected(PERSISTENT), observed) == ()


def test_persistence_must_be_consistent() -> None:
    # Each alone would be right for some length of a tick.
    observed = table(
        virtual(WEB, persistence_jiffies=10800 * 250), virtual(API, persistence_jiffies=600 * 100)
    )
    found = one_kind(observed, expected(PERSISTENT))
    assert found.kind == "wrong-persistence"
    assert (found.key, found.observed) == (API, "240 s (60000 ticks of 1/250 s)")
    assert found.expected == "persistence 600 s"
    assert one_kind(observed, expected(PERSISTENT), hz=100).key == WEB


def test_persistence_absent_or_not_wanted() -> None:
    assert one_kind(table(virtual(WEB)), expected({WEB: PERSISTENT[WEB]})).observed == "none"
    found = one_kind(table(virtual(WEB, persistence_jiffies=2700000)), expected({WEB: should()}))
    assert (found.kind, found.expected) == ("wrong-persistence", "persistence none")


def test_likely_ticks() -> None:
    assert likely_hz([]) == 250
    assert likely_hz([(1080000, 10800), (60000, 600), (150000, 600)]) == 100


_NAMES = ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5"]


@st.composite
def observed_tables(draw: st.DrawFn) -> Table:
    keys = draw(
        st.lists(st.sampled_from([WEB, API, ServiceKey("UDP", "10.96.0.10", 80)]), unique=True)
    )
    return table(
        *(
            virtual(
                key,
                *(
                    real(name, draw(st.integers(0, 2)))
                    for name in draw(st.lists(st.sampled_from(_NAMES), unique=True))
                ),
                scheduler=draw(st.sampled_from(["rr", "wlc"])),
                persistence_jiffies=draw(st.sampled_from([None, 2700000, 1080000])),
            )
            for key in keys
        )
    )


@settings(max_examples=50)
@given(observed_tables(), st.randoms(use_true_random=False))
def test_order_does_not_matter(observed: Table, random: Any) -> None:
    told = expected(
        {
            WEB: should(*_NAMES[:2], persistence_seconds=10800),
            API: should(_NAMES[2], alternatives=(wanted(_NAMES[3]),)),
        }
    )
    servers = []
    for server in observed.virtual_servers:
        mixed = list(server.real_servers)
        random.shuffle(mixed)
        servers.append(server._replace(real_servers=tuple(mixed)))
    random.shuffle(servers)
    assert compare(told, table(*servers)) == compare(told, observed)


def difference(kind: Kind, server: str | None = "10.244.9.9:8080") -> Difference:
    return Difference(
        kind=kind, key=WEB, real_server=server, observed="", expected="", service="demo/web"
    )


def over_time(*samples: tuple[float, Kind | None]) -> tuple[Judged, ...]:
    return compare_over_time(
        [
            Sample(taken_at=at, differences=(difference(kind),) if kind else ())
            for at, kind in samples
        ],
        Budgets(converge=60.0, drain=210.0),
    )


@pytest.mark.parametrize(
    ("samples", "kind", "decided"),
    [
        ([(0.0, "stale")], "stale", False),
        ([(0.0, "stale"), (59.0, "stale")], "stale", False),
        ([(0.0, "stale"), (60.0, "stale")], "stale", True),
        ([(0.0, "stale"), (30.0, None), (60.0, "stale")], "stale", False),
        ([(0.0, "draining")], "draining", False),
        ([(0.0, "draining"), (209.0, "draining")], "draining", False),
        ([(0.0, "draining"), (210.0, "draining")], "draining-overdue", True),
        ([(0.0, "stale"), (100.0, "draining"), (220.0, "draining")], "draining", False),
        ([(0.0, "moving"), (500.0, "moving")], "moving", False),
        ([(60.0, "missing"), (0.0, "missing")], "missing", True),
    ],
)
def test_a_difference_is_judged_by_its_age(
    samples: list[tuple[float, Kind | None]], kind: str, decided: bool
) -> None:
    (judged,) = over_time(*samples)
    assert (judged.difference.kind, judged.decided) == (kind, decided)
    assert (judged.open_for == 0.0) == decided or kind == "moving"


def test_what_went_away_is_not_judged() -> None:
    assert over_time((0.0, "stale"), (100.0, "stale"), (101.0, None)) == ()


def test_what_is_foreign_is_not_judged() -> None:
    assert over_time((0.0, "foreign"), (100.0, "foreign")) == ()


def test_the_tracker_tells_how_long_it_takes_to_decide() -> None:
    tracker = Tracker(Budgets(converge=60.0, drain=210.0))
    tracker.add(Sample(taken_at=1000.0, differences=(difference("stale"),)))
    (judged,) = tracker.judge()
    assert (judged.since, judged.age, judged.open_for) == (1000.0, 0.0, 60.0)
    tracker.add(Sample(taken_at=1050.0, differences=(difference("stale"),)))
    (judged,) = tracker.judge()
    assert (judged.age, judged.samples, judged.open_for) == (50.0, 2, 10.0)
