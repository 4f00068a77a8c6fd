"""The catalogue for readers: ``--ipvs-list-checks``, ``--ipvs-explain``, the page on checks.

``python -m pytest_ipvs.report.catalogue docs/checks.md docs/policy.md`` writes the tables of these
pages anew; with ``--check`` it only says whether they are up to date.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_ipvs.checks import CATALOGUE, Check
from pytest_ipvs.policy import THRESHOLDS

WIDTH = 92
COMMAND = "python -m pytest_ipvs.report.catalogue"
FORMATS = ("text", "json")
WHO = {
    "node": "nodes",
    "api": "API",
    "proxy": "kube-proxy",
    "write": "disruption",
    "disrupt": "disruption",
}
_THRESHOLDS = re.compile(r"(<!-- thresholds -->\n).*?(<!-- end of thresholds -->)", re.DOTALL)
_REGION = re.compile(r"(<!-- checks: (\w+) -->\n).*?(<!-- end of checks -->)", re.DOTALL)


def show(explain: str | None, form: str) -> int:
    """Print one check, or the list of all, as text or JSON; returns pytest's exit code."""
    if form not in FORMATS:
        raise pytest.UsageError(f"--ipvs-format is {form!r}, expected {' or '.join(FORMATS)}")
    if explain is None:
        checks = list(CATALOGUE.values())
        print(_json([plain(check) for check in checks]) if form == "json" else listed(checks))
        return 0
    wanted = CATALOGUE.get(explain.upper())
    if wanted is None:
        raise pytest.UsageError(
            f"--ipvs-explain is {explain!r}, expected one of {', '.join(CATALOGUE)}"
        )
    print(_json(plain(wanted)) if form == "json" else "\n".join(explained(wanted)))
    return 0


def plain(check: Check) -> dict[str, Any]:
    """A check as data: builtin types only."""
    return {
        "id": check.id,
        "title": check.title,
        "group": check.group,
        "severity": check.severity,
        "permission": check.permission,
        "needs": sorted(check.needs),
        "source": check.source,
        "text": " ".join((check.run.__doc__ or "").split()),
    }


def listed(checks: Iterable[Check]) -> str:
    """One line per check."""
    checks = list(checks)
    width = max((len(check.id) for check in checks), default=0)
    return "\n".join(f"{one.id:<{width}}  {one.severity:<4}  {one.title}" for one in checks)


def explained(check: Check) -> list[str]:
    """What a check asserts, by whom it may be run, and where its expectation comes from."""
    data = plain(check)
    lines = [f"{check.id}: {check.title}", ""]
    data["needs"] = ", ".join(data["needs"])
    for name in ("group", "severity", "permission", "needs", "source"):
        if data[name]:
            lines += [f"{name:<11} {data[name]}"]
    paragraphs = (check.run.__doc__ or "").strip().split("\n\n")
    for paragraph in filter(None, paragraphs):
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), WIDTH)]
    return lines


def table(checks: Iterable[Check]) -> str:
    """The checks as a table in Markdown."""
    rows = [
        "| id | what it asserts | severity | reads | facts |",
        "|---|---|---|---|---|",
    ]
    for check in checks:
        facts = ", ".join(f"`{fact}`" for fact in sorted(check.needs))
        title = check.title.replace("|", "\\|")
        who = WHO.get(check.permission, check.permission)
        rows.append(f"| {check.id} | {title} | {check.severity} | {who} | {facts} |")
    found = len(rows) > 2
    return "\n" + ("\n".join(rows) if found else "This version has none.") + "\n\n"


def thresholds() -> str:
    """The numbers that a policy file can set, as a table in Markdown."""
    rows = ["| threshold | default | unit | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {one.default:g} | {one.unit} | {one.meaning} |"
        for name, one in THRESHOLDS.items()
    ]
    return "\n" + ("\n".join(rows) if THRESHOLDS else "This version has none.") + "\n\n"


def page(text: str) -> str:
    """The page on checks with its marked regions made anew.

    Each group has a region ``<!-- checks: SY -->`` to ``<!-- end of checks -->``, and the
    thresholds have one. Raises ``ValueError`` for a group that a page with groups lacks.
    """
    groups: dict[str, list[Check]] = {}
    for check in CATALOGUE.values():
        groups.setdefault(check.group, []).append(check)
    regions = [match[2] for match in _REGION.finditer(text)]
    if regions and (lacking := [name for name in groups if name not in regions]):
        raise ValueError(
            f"the page has no region of {', '.join(lacking)}, expected <!-- checks: {lacking[0]} "
            "--> and <!-- end of checks --> below a heading"
        )
    text = _REGION.sub(lambda m: m[1] + table(groups.get(m[2], [])) + m[3], text)
    return _THRESHOLDS.sub(lambda m: m[1] + thresholds() + m[2], text)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` say whether they are up to date."""
    failed = 0
    for path in (Path(argument) for argument in arguments if argument != "--check"):
        old = path.read_text(encoding="utf-8")
        try:
            new = page(old)
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = 1
            continue
        if new != old and "--check" in arguments:
            print(f"{path} is out of date, write it with {COMMAND} {path}", file=sys.stderr)
            failed = 1
        elif new != old:
            path.write_text(new, encoding="utf-8")
    return failed


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
