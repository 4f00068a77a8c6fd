"""How fast tables are parsed and compared, as ratios to a bare str.split of the same text.

Prints one JSON object as its last line: ``parse_vs_split`` and ``compare_vs_split`` for a table
that was not read before, ``parse_again_vs_split`` for the next reading of the same table (a
recorder reads each second), ``collect_vs_split`` for the garbage collector's look through the
new records, which comes after a first reading when it suits Python,
``thousand_equal_nodes_vs_one`` for 1,000 nodes with equal tables, to one node and the hashing
of the others.

``compare_vs_split`` is for slices that one node was judged by before: all nodes are judged by the
same slices, and a slice remembers the places of its endpoints. ``slices_prepare_vs_split`` is
what that costs, once for all nodes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import time
from collections.abc import Callable

from pytest_ipvs.ipvs import tables
from pytest_ipvs.ipvs.compare import compare
from pytest_ipvs.ipvs.expected import expected_table
from pytest_ipvs.ipvs.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    SlicePort,
)
from pytest_ipvs.ipvs.proxy import ProxyRules

HEADER = (
    "IP Virtual Server version 1.2.1 (size=4096)\n"
    "Prot LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)
NODE = Node(name="node-1", internal_ips=("192.0.2.1",))
RULES = ProxyRules(version="v1.36.2", config={})
ADDRESSES = (("eth0", "192.0.2.1"),)


def table_text(services: int, endpoints: int) -> str:
    """A table in which no real server occurs twice: the hardest to parse."""
    lines = [HEADER]
    for service in range(services):
        lines.append(f"TCP  {0x0A600000 + service:08X}:0050 rr  \n")
        for endpoint in range(endpoints):
            address = 0x0AF40000 + service * endpoints + endpoint
            # Counters as on a node with traffic.
            active, inactive = address % 7, address % 31
            lines.append(
                f"  -> {address:08X}:1F90      Masq    1      {active:<10} {inactive:<10}\n"
            )
    return "".join(lines)


def dotted(number: int) -> str:
    """10.0.0.1 for its number."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def objects(services: int, endpoints: int) -> tuple[list[Service], list[EndpointSlice]]:
    """The Services and slices that ask for that table."""
    port = ServicePort(name="", protocol="TCP", port=80)
    ports = (SlicePort(name="", protocol="TCP", port=8080),)
    asked = [
        Service(
            namespace="demo",
            name=f"s{number}",
            cluster_ips=(dotted(0x0A600000 + number),),
            ports=(port,),
        )
        for number in range(services)
    ]
    slices = [
        EndpointSlice(
            namespace="demo",
            name=f"s{number}-1",
            service=f"s{number}",
            family="IPv4",
            ports=ports,
            endpoints=tuple(
                Endpoint(addresses=(dotted(0x0AF40000 + number * endpoints + index),))
                for index in range(endpoints)
            ),
        )
        for number in range(services)
    ]
    return asked, slices


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of ``work``."""
    gc.collect()
    start = time.process_time()
    result = work()
    end = time.process_time()
    del result
    return end - start


def medians(rounds: int, *works: Callable[[], float]) -> list[float]:
    """The median of each work's seconds. They take turns: a busy moment hits all of them."""
    turns = [[work() for work in works] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def collection(parse: Callable[[], object]) -> float:
    """Processor seconds of the collection of young objects after a first reading."""
    tables.forget()
    gc.collect()
    made = parse()
    start = time.process_time()
    gc.collect(0)
    end = time.process_time()
    del made
    return end - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Fewer rounds, for a first look")
    rounds = 5 if parser.parse_args().quick else 15
    text = table_text(10_000, 10)
    services, slices = objects(10_000, 10)

    def parse() -> tables.Table:
        return tables.parse_table(text)

    def judge() -> None:
        expected = expected_table(
            services=services, slices=slices, node=NODE, addresses=ADDRESSES, rules=RULES
        )
        assert compare(expected, table) == ()

    def prepare() -> None:
        for one in slices:
            one.plain_places(8080)

    def first_reading() -> float:
        tables.forget()
        return seconds(parse)

    def preparation() -> float:
        for one in slices:
            one._plain.clear()
        return seconds(prepare)

    table = parse()
    split, first, again, collected, prepared, comparison = medians(
        rounds,
        lambda: seconds(text.split),
        first_reading,
        lambda: seconds(parse),
        lambda: collection(parse),
        preparation,
        lambda: seconds(judge),
    )
    print(
        f"split {1000 * split:.1f} ms, parse {1000 * first:.1f} ms, again {1000 * again:.1f} ms, "
    )
    print(f"expected table and comparison {1000 * comparison:.1f} ms")

    small = table_text(200, 10)

    def nodes(number: int) -> float:
        def work() -> None:
            known: dict[bytes, tables.Table] = {}
            for _ in range(number):
                digest = hashlib.sha256(small.encode()).digest()
                if digest not in known:
                    known[digest] = tables.parse_table(small)

        tables.forget()
        return seconds(work)

    def hashes() -> float:
        return seconds(lambda: [hashlib.sha256(small.encode()).digest() for _ in range(999)])

    one, hashing, thousand = medians(rounds, lambda: nodes(1), hashes, lambda: nodes(1000))
    print(
        json.dumps(
            {
                "parse_vs_split": round(first / split, 2),
                "parse_again_vs_split": round(again / split, 2),
                "collect_vs_split": round(collected / split, 2),
                "compare_vs_split": round(comparison / split, 2),
                "slices_prepare_vs_split": round(prepared / split, 2),
                "thousand_equal_nodes_vs_one": round(thousand / (one + hashing), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
