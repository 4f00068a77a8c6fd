"""The text of a failure: findings grouped, so that one fault on many nodes is read once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.policy import Waiver

NAMES_SHOWN = 3
GROUPS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The same fault on one or more nodes. ``nodes`` is empty where it is the whole cluster's.

    ``finding`` is the first of ``count``, which is more than the nodes where one of them has the
    fault at several of its addresses.
    """

    finding: Finding
    nodes: tuple[str, ...]
    count: int = 1


def group(findings: Iterable[Finding]) -> tuple[Group, ...]:
    """Findings that differ only in node and evidence become one group; worst severity first."""
    nodes: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], Finding] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for finding in findings:
        key = (
            finding.severity,
            finding.check,
            finding.object,
            finding.observed,
            finding.expected,
            finding.reason,
            finding.remedy,
        )
        first.setdefault(key, finding)
        counts[key] += 1
        names = nodes.setdefault(key, [])
        if finding.node is not None and finding.node not in names:
            names.append(finding.node)
    order = {"fail": 0, "warn": 1, "info": 2}
    groups = [
        Group(finding=first[key], nodes=tuple(sorted(nodes[key])), count=counts[key])
        for key in first
    ]
    return tuple(sorted(groups, key=lambda g: (order[g.finding.severity], -len(g.nodes))))


def named(nodes: Sequence[str]) -> str:
    """ "node-1", "node-1 and node-2", "300 nodes (node-1, node-2, node-3, …)"."""
    if not nodes:
        return "the cluster"
    if len(nodes) == 1:
        return nodes[0]
    shown = ", ".join(nodes[:NAMES_SHOWN])
    more = ", …" if len(nodes) > NAMES_SHOWN else ""
    return f"{len(nodes)} nodes ({shown}{more})"


def explain(
    check: str,
    title: str,
    findings: Iterable[Finding],
    not_measured: Iterable[NotMeasured] = (),
) -> str:
    """Everything a reader needs: what, where, observed, expected, why, and what to do."""
    groups = group(findings)
    lines = [f"{check}: {title}"]
    for one in groups[:GROUPS_SHOWN]:
        lines += ["", *_group_lines(one)]
    if len(groups) > GROUPS_SHOWN:
        lines += ["", f"  … and {len(groups) - GROUPS_SHOWN} more findings of {check}"]
    missing: dict[tuple[str, str, str], list[str]] = {}
    for lack in not_measured:
        names = missing.setdefault((lack.fact, lack.reason, lack.known), [])
        if lack.node is not None and lack.node not in names:
            names.append(lack.node)
    for (fact, reason, known), names in missing.items():
        lines += ["", f"  not measured on {named(sorted(names))}: {fact}: {reason}"]
        lines += [f"    {line}" for line in known.splitlines()]
    return "\n".join(lines)


def waiver_line(one: Group) -> str:
    """One entry for ``waivers`` of the policy file that covers the group; YAML reads JSON."""
    finding = one.finding
    parts = [f"check: {finding.check}"]
    if len(one.nodes) == 1:
        parts.append(f"node: {json.dumps(one.nodes[0])}")
    parts.append(f"object: {json.dumps(finding.object, ensure_ascii=False)}")
    return f"waivers: [{{{', '.join(parts)}, reason: WHY, expires: YYYY-MM-DD}}]"


def waived_lines(waived: Sequence[tuple[Finding, Waiver]]) -> list[str]:
    """Accepted findings, one line per group and waiver: what, where, why, and until when."""
    by_waiver: dict[Waiver, list[Finding]] = {}
    for finding, waiver in waived:
        by_waiver.setdefault(waiver, []).append(finding)
    return [
        f"{one.finding.check} on {named(one.nodes)}: {one.finding.object}: "
        f"{' '.join(one.finding.observed.split())} (expected {one.finding.expected}); "
        f"waived until {waiver.expires} by {waiver.where or 'the policy'}: {waiver.reason}"
        for waiver, findings in by_waiver.items()
        for one in group(findings)
    ]


def _group_lines(one: Group) -> list[str]:
    finding = one.finding
    severity = "" if finding.severity == "fail" else f" ({finding.severity})"
    lines = [f"  {named(one.nodes)}: {finding.object}{severity}"]
    evidence = finding.evidence
    if evidence and one.count > max(len(one.nodes), 1):
        # Only one piece of evidence is shown, and a node may have the fault at several addresses.
        evidence += f" (the first of {one.count} findings)"
    parts = (
        ("observed", finding.observed),
        ("expected", finding.expected),
        ("why", finding.reason),
        ("remedy", finding.remedy),
        ("evidence", evidence),
        ("waive", waiver_line(one)),
    )
    for name, text in parts:
        first, *rest = text.splitlines() or [""]
        if text:
            lines.append(f"    {name:<9} {first}")
            lines += [f"    {'':<9} {line}" for line in rest]
    return lines
