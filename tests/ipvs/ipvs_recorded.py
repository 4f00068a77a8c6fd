"""Recordings of real clusters: their objects, tables and readings."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pytest_ipvs.ipvs.objects import EndpointSlice, Node, Service

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ("1.20.2", "1.36.2")
KERNELS = sorted(path.name for path in (DATA / "captures").iterdir())
# The kernel of the recordings and captures counts 250 ticks a second.
HZ = 250


def captured(kernel: str, name: str) -> str:
    """One captured file of one kernel."""
    return (DATA / "captures" / kernel / f"{name}.txt").read_text()


def vs_settings(kernel: str) -> dict[str, str]:
    """``net.ipv4.vs.*`` of one kernel, by dotted key."""
    pairs = (line.partition(" = ") for line in captured(kernel, "sysctl_vs_values").splitlines())
    return {f"net.ipv4.vs.{name}": value.strip() for name, _, value in pairs}


@cache
def state(version: str) -> dict[str, Any]:
    """A cluster at rest: the API's objects and what two nodes said."""
    with lzma.open(DATA / "recordings" / f"{version}-state.json.xz", "rt") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


@cache
def services(version: str) -> tuple[Service, ...]:
    return tuple(Service.from_api(item) for item in state(version)["services"])


@cache
def slices(version: str) -> tuple[EndpointSlice, ...]:
    return tuple(EndpointSlice.from_api(item) for item in state(version)["endpointslices"])


@cache
def nodes(version: str) -> dict[str, Node]:
    return {item["metadata"]["name"]: Node.from_api(item) for item in state(version)["nodes"]}


def addresses(version: str, node: str) -> tuple[tuple[str, str], ...]:
    """(interface, address) of a node; the other nodes are numbered as the recorded one is."""
    number = node.rpartition("-")[2]
    found = []
    interface = ""
    for line in state(version)["node-1.addresses"].splitlines():
        if head := re.match(r"\d+: ([^:@]+)", line):
            interface = head[1]
        if address := re.search(r"inet ([0-9.]+)", line):
            text = address[1]
            if interface not in ("lo", "kube-ipvs0"):
                text = re.sub(r"^10\.0\.2\.101$", f"10.0.2.10{number}", text)
                text = re.sub(r"^192\.168\.50\.11$", f"192.168.50.1{number}", text)
                text = re.sub(r"^10\.244\.1\.1$", f"10.244.{number}.1", text)
            found.append((interface, text))
    return tuple(found)


@cache
def readings(run: str) -> tuple[dict[str, Any], ...]:
    """All readings of a run ("1.36.2-A"), in order of time."""
    with lzma.open(DATA / "recordings" / f"{run}.jsonl.xz", "rt") as file:
        return tuple(json.loads(line) for line in file)


def said(run: str, what: str, node: str | None = None) -> Iterator[dict[str, Any]]:
    """Readings of one kind, of one node or of all."""
    for row in readings(run):
        if row["what"] == what and (node is None or row.get("node") == node):
            yield row


@cache
def _netfilter(run: str) -> tuple[dict[str, Any], ...]:
    with lzma.open(DATA / "recordings" / f"{run}-netfilter.jsonl.xz", "rt") as file:
        rows = [json.loads(line) for line in file]
    last: dict[tuple[str, str], str] = {}
    for row in rows:
        # What equals the reading before it is not written again.
        key = (row["node"], row["what"])
        row["out"] = last[key] = last[key] if row["out"] is None else row["out"]
    return tuple(rows)


def netfilter(run: str, what: str, node: str) -> Iterator[dict[str, Any]]:
    """Readings of netfilter and of what goes with it, in order of time.

    ``what``: "iptables-save", "ipset save", "ip addr show kube-ipvs0" (addresses only),
    "conntrack -L" (unanswered SYNs by address) and "GET :10249/metrics" (when it synced).
    """
    return (row for row in _netfilter(run) if row["node"] == node and row["what"] == what)
