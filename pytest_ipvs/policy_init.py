"""``pytest --ipvs-policy-init``: a commented policy file that starts from the cluster as it is.

Everything in it is commented out, so that it changes nothing until somebody read it: a virtual
server that is wrong today must not be accepted because a tool wrote it down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.checks.tables import foreign_pattern
from pytest_ipvs.cluster.expectation import differences_of, node_of, rules_of
from pytest_ipvs.cluster.model import Snapshot
from pytest_ipvs.ipvs.kernel import KernelRelease, fixes
from pytest_ipvs.labrun import start_lab
from pytest_ipvs.policy import THRESHOLDS, Policy
from pytest_ipvs.policy_schema import FILE as SCHEMA
from pytest_ipvs.report.findings import named
from pytest_ipvs.report.progress import Progress
from pytest_ipvs.session import known_errors
from pytest_ipvs.settings import SettingsError, policy_path, resolve

Sources = tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, Any]]


def main(config: pytest.Config, sources: Sources) -> int:
    """Write the file; returns pytest's exit code. Raises ``pytest.UsageError``."""
    path = Path(policy_path(*sources) or "ipvs.yaml")
    try:
        _refuse(path)
        text = _read(config, sources)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except known_errors() as error:
        raise pytest.UsageError(str(error)) from None
    except FileExistsError:
        raise pytest.UsageError(_EXISTS.format(path=path)) from None
    except OSError as error:
        raise pytest.UsageError(f"{path} can't be written: {error.strerror}") from None
    print(f"ipvs: wrote {path}")
    return 0


_EXISTS = "{path} is there already, and --ipvs-policy-init overwrites nothing, expected a new path"


def _refuse(path: Path) -> None:
    # Before the cluster is read, which may take minutes.
    if path.exists() or path.is_symlink():
        raise SettingsError(_EXISTS.format(path=path))
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"{path} can't be written: its directory does not exist")


def _read(config: pytest.Config, sources: Sources) -> str:
    from pytest_ipvs.cluster import cluster

    settings = resolve(*sources, {})
    settings = config.hook.pytest_ipvs_settings(config=config, settings=settings) or settings
    if not settings.active:
        raise SettingsError(
            "--ipvs-policy-init needs a cluster: give --ipvs-kubeconfig, --ipvs-context, "
            "--ipvs-in-cluster or --ipvs-lab"
        )
    settings, lab = start_lab(settings, Progress(config))
    try:
        reached = cluster.Cluster(settings, Policy().with_settings(settings))
        try:
            return starter(reached.snapshot(), str(reached.api.context or "in-cluster"))
        finally:
            reached.close()
    finally:
        if lab is not None:
            lab.close()


def starter(snapshot: Snapshot, context: str) -> str:
    """The file's text. Lines of prose begin with "# ", lines to uncomment with "#" alone."""
    parts = (
        _head(snapshot, context),
        _kernels(snapshot),
        _foreign(snapshot),
        _seen(snapshot),
        _LIMITS,
        _thresholds(),
        _REST,
    )
    return "\n".join("\n".join(part) + "\n" for part in parts)


def _plain(text: object) -> str:
    """Text of the cluster on one line, so that it stays a comment."""
    return " ".join(str(text).split())


def _by_value(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    nodes: dict[str, list[str]] = {}
    for value, node in pairs:
        nodes.setdefault(value, []).append(node)
    return {value: sorted(names) for value, names in sorted(nodes.items())}


def _head(snapshot: Snapshot, context: str) -> Iterator[str]:
    yield f"# yaml-language-server: $schema={SCHEMA}"
    yield f"# What we expect of {_plain(context)} where that differs from the general rules."
    yield f"# API server {_plain(snapshot.server_version)}, {len(snapshot.facts)} nodes were read."
    for node, reason in sorted(snapshot.unreachable.items()):
        yield f"# {node} did not answer: {_plain(reason)}"
    proxies = _by_value(
        (f"{one.proxy.version or 'version not read'}, mode {one.proxy.mode or 'not read'}", name)
        for name, one in snapshot.facts.items()
    )
    for value, names in proxies.items():
        yield f"# kube-proxy {_plain(value)} on {named(names)}"
    yield "# Nothing here counts until you take away the # in front of it."


def _kernels(snapshot: Snapshot) -> Iterator[str]:
    yield "# Kernels whose number says nothing about fixes that their vendor carried back."
    yield "# The pattern is a regular expression, searched in uname -r."
    lines = []
    found = _by_value((one.kernel_release, name) for name, one in snapshot.facts.items())
    for release, names in found.items():
        version = snapshot.facts[names[0]].kernel_version
        try:
            kernel = KernelRelease.parse(release, version)
        except ValueError:
            yield f"# {_plain(release) or 'a kernel that was not read'} on {named(names)}"
            continue
        known = fixes(kernel, ())
        unknown = [fix for fix, has in known.items() if has is None]
        vendor = kernel.vendor or "no vendor that is known"
        told = f"unknown: {', '.join(unknown)}" if unknown else "known by its number"
        yield f"# {_plain(release)} ({vendor}) on {named(names)}; fixes b, c and d: {told}"
        if unknown:
            claim = ", ".join(f"{fix}: false" for fix in unknown)
            lines.append(f"#  {json.dumps(re.escape(release))}: {{{claim}}}")
    yield "#kernel_fixes:" if lines else "#kernel_fixes: {}"
    yield from lines


def _foreign(snapshot: Snapshot) -> Iterator[str]:
    yield "# Virtual servers that no Service explains. Name here what another program makes;"
    yield "# what nobody knows is left over, and TB-01 is right about it."
    found: list[tuple[str, str]] = []
    for name, facts in sorted(snapshot.facts.items()):
        if facts.table is None or facts.proxy.mode not in (None, "ipvs"):
            continue
        try:
            rules = rules_of(facts, node_of(snapshot, name), snapshot.server_version)
        except ValueError:
            yield f"# {name} was not compared: kube-proxy's version was not read"
            continue
        differences, _ = differences_of(snapshot, facts, rules, Policy())
        found += [
            (foreign_pattern(one.key), name)
            for one in differences
            if one.kind == "unexplained-virtual-server"
        ]
    yield "#foreign_virtual_servers:" if found else "#foreign_virtual_servers: []"
    for key, names in _by_value(found).items():
        yield f"#  - {json.dumps(key)}  # on {named(names)}"


def _seen(snapshot: Snapshot) -> Iterator[str]:
    """What the file can't set, but its reader wants to know."""
    schedulers = _by_value(
        (virtual.scheduler, name)
        for name, facts in snapshot.facts.items()
        if facts.table is not None
        for virtual in facts.table.virtual_servers
    )
    for scheduler, names in schedulers.items():
        yield f"# Scheduler {_plain(scheduler)} on {named(sorted(set(names)))}."
    sticky = [one for one in snapshot.services if one.affinity_timeout is not None]
    names = sorted(f"{one.namespace}/{one.name}" for one in sticky)
    shown = f": {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else ""
    yield f"# {len(names)} of {len(snapshot.services)} Services use session affinity{shown}."
    yield "# Accepted values of a sysctl; null: it is not judged."
    yield "#sysctls:"
    yield "#  net.ipv4.vs.conntrack: 1"


_LIMITS = (
    "# Seconds that a real server may stay at weight 0, and that a table may lag behind the API.",
    f"#drain_budget: {Policy().drain_budget:g}",
    f"#converge_budget: {Policy().converge_budget:g}",
)


def _thresholds() -> Iterator[str]:
    yield "# Numbers that checks compare with, and their defaults."
    yield "#thresholds:" if THRESHOLDS else "#thresholds: {}"
    for name, one in THRESHOLDS.items():
        yield f"#  {name}: {one.default:g}  # {_plain(one.meaning)} ({_plain(one.unit)})"


_REST = (
    "# What holds on some nodes only: a label selector, names with * and ?, or both.",
    "#nodes:",
    "#  - selector: pool=edge",
    "#    drain_budget: 900",
    "# Severity of a check, instead of its own: fail, warn or info.",
    "#severities:",
    "#  SY-02: fail",
    "# Findings that you know of and accept until a day. A failed test prints its entry.",
    "#waivers:",
    "#  - check: TB-03",
    "#    node: edge-*",
    '#    object: "10.96.0.10:80/TCP*"',
    "#    reason: the old gateway is taken down in January",
    "#    expires: 2027-01-31",
)
