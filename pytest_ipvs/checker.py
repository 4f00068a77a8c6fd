"""One check of the catalogue as a test: run it, give the test its outcome, add a row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_ipvs.checks.waiving import Waived, expiry, waive
from pytest_ipvs.judged import judged
from pytest_ipvs.report.findings import explain, group, named, waived_lines
from pytest_ipvs.report.rows import CheckRow, Verdict
from pytest_ipvs.session import not_run, one_sentence, skip

if TYPE_CHECKING:
    from pytest_ipvs.checks import Evidence
    from pytest_ipvs.checks.findings import Finding, NotMeasured
    from pytest_ipvs.session import IpvsSession

NOT_ALLOWED = "needs --ipvs-allow-disruption"
OTHERS = "it disturbs what is not its own"
MODE_CHECK = "KP-01"
NOTE_LENGTH = 110
# Set on an item once its check has a row, with the row's verdict.
verdict_key = pytest.StashKey[str]()


class Checker:
    """The callable behind the fixture ``ipvs_check``."""

    def __init__(self, session: IpvsSession, item: pytest.Item) -> None:
        self._session = session
        self._item = item
        # What the policy's waivers did to the check that is judged just now.
        self._waived = Waived(left=())
        self._beside = ""

    def __call__(self, check: str, result: Any = None, *, beside: str = "") -> None:
        """Run one check over the session's evidence, or over what traffic met.

        ``beside``: what the row says whatever the verdict, such as a part that was not measured.
        """
        __tracebackhide__ = True
        from pytest_ipvs.checks import CATALOGUE, judge_rollout

        self._waived = Waived(left=())
        self._beside = beside
        if check not in CATALOGUE:
            pytest.fail(
                f"there is no check {check!r}, expected one of {', '.join(CATALOGUE)}",
                pytrace=False,
            )
        if result is not None and CATALOGUE[check].judges_paths:
            outcome = judge_rollout(check, result, policy=self._session.policy)
            self._conclude(check, outcome.findings, outcome.not_measured, "", {})
            return
        if result is not None:
            self._judge_rollout(check, getattr(result, "result", result))
            return
        with one_sentence():
            needs = CATALOGUE[check]
            evidence = self._session.evidence(
                tables="table" in needs.needs, details=needs.needs_details
            )
            self._judge_evidence(check, evidence)

    def not_applicable(self, check: str, reason: str) -> NoReturn:
        """Skip a check that this cluster has no place for, and say so in its row."""
        __tracebackhide__ = True
        self._row(check, "not applicable", note=reason)
        skip(reason)

    def not_run(self, check: str, reason: str) -> NoReturn:
        """Fail a check that could not be measured here: it must not look like a pass."""
        __tracebackhide__ = True
        self._fail(check, "not measured", f"{check}: {_title(check)}\n\n  {reason}", reason)

    def needs_its_name(self, check: str) -> None:
        """Skip a check that disturbs what others own, unless --ipvs-checks has its very id."""
        __tracebackhide__ = True
        if check not in self._session.settings.checks:
            self.not_applicable(check, f"{OTHERS}: name {check} in --ipvs-checks to run it")

    def _judge_evidence(self, check: str, evidence: Evidence) -> None:
        __tracebackhide__ = True
        from pytest_ipvs.checks import run_check

        last = evidence.snapshots[-1]
        selected = len(last.facts) + len(last.unreachable)
        nodes = f"{len(last.facts)} of {selected}"
        if reason := _why_not(check, evidence):
            self._row(check, "not applicable", note=reason)
            skip(reason)
        outcome = run_check(check, evidence)
        # A silent node is told of by its name, once, and not by each check that misses its facts.
        lacks = [lack for lack in outcome.not_measured if lack.node not in last.unreachable]
        self._conclude(check, outcome.findings, lacks, nodes, dict(last.unreachable))

    def _judge_rollout(self, check: str, result: Any) -> None:
        __tracebackhide__ = True
        from pytest_ipvs.checks import judge_rollout

        outcome = judge_rollout(check, judged(result, check), policy=self._session.policy)
        lacks = list(outcome.not_measured)
        self._waived = waived = self._waive(outcome.findings)
        if (
            result.verdict == "inconclusive"
            and not waived.expired
            and not _broken(waived.left, strict=self._session.settings.strict)
        ):
            text = explain(check, _title(check), waived.left, lacks)
            reasons = "; ".join(result.reasons)
            worth = "".join(f"\n  {line}" for line in result.precision)
            told = f"{text}\n\n  inconclusive: {reasons}{worth}"
            self._fail(check, "inconclusive", told, reasons)
        self._conclude(check, outcome.findings, lacks, "", {})

    def _conclude(
        self,
        check: str,
        findings: Sequence[Finding],
        lacks: Sequence[NotMeasured],
        nodes: str,
        silent: dict[str, str],
    ) -> None:
        """Worst first: a finding, a silent node not told of yet, a missing fact, a waived finding,
        a warning.
        """
        __tracebackhide__ = True
        self._waived = waived = self._waive(findings)
        findings = waived.left
        news = self._session.tell(silent)
        broken = _broken(findings, strict=self._session.settings.strict)
        text = explain(check, _title(check), findings, lacks)
        if broken or waived.expired:
            told = [text, "\n".join(map(expiry, waived.expired)), news]
            note = _note(broken or findings)
            self._fail(check, "failed", "\n\n".join(filter(None, told)), note, nodes)
        if news:
            self._fail(check, "error", news, next(iter(silent)) + " did not answer", nodes)
        if lacks:
            same = [lack for lack in lacks if lack.fact == lacks[0].fact]
            note = f"{lacks[0].fact} on {named([lack.node for lack in same if lack.node])}"
            self._fail(check, "not measured", text, note, nodes)
        warned = any(finding.severity == "warn" for finding in findings)
        # What is left by now fails nothing: warnings, and what is only told.
        shown = explain(check, _title(check), findings) if findings else ""
        if silent:
            reason = not_run(silent)
            self._row(check, "not measured", nodes, reason, shown)
            skip(f"{reason}; nothing found on the others")
        if waived.waived:
            note = _note([finding for finding, _ in waived.waived])
            self._row(check, "waived", nodes, note, shown)
            pytest.xfail("; ".join(waived_lines(waived.waived)))
        self._row(check, "warned" if warned else "passed", nodes, _note(findings), shown)

    def _waive(self, findings: Sequence[Finding]) -> Waived:
        return waive(findings, self._session.policy.waivers, date.today())

    def _fail(
        self, check: str, verdict: Verdict, text: str, note: str, nodes: str = ""
    ) -> NoReturn:
        __tracebackhide__ = True
        self._row(check, verdict, nodes, note)
        accepted = "".join(f"\n  waived: {line}" for line in waived_lines(self._waived.waived))
        pytest.fail(f"{text}\n{accepted}" if accepted else text, pytrace=False)

    def _row(
        self, check: str, verdict: Verdict, nodes: str = "", note: str = "", warnings: str = ""
    ) -> None:
        self._item.stash[verdict_key] = verdict
        self._session.rows.append(
            CheckRow(
                check=check,
                verdict=verdict,
                nodes=nodes,
                note="; ".join(filter(None, (note, self._beside))),
                warnings=warnings,
                waived="\n".join(waived_lines(self._waived.waived)),
                waivers="\n".join(waiver.where for waiver in self._waived.used),
            )
        )


def _why_not(check: str, evidence: Evidence) -> str:
    """Why a check does not apply to this cluster, or ""."""
    from pytest_ipvs.checks.applicable import not_applicable

    found = not_applicable(evidence)
    if found is None or (check == MODE_CHECK and found.kind != "absent"):
        return ""
    told = [(state, named(nodes)) for state, nodes in found.parts]
    if found.kind == "mode":
        modes = ", ".join(f"{state} on {nodes}" for state, nodes in told)
        return f"kube-proxy runs in {modes}, not in mode ipvs"
    states = ", ".join(f"{state} on {nodes}" for state, nodes in told)
    if found.kind == "unknown":
        return f"neither a kube-proxy nor a known replacement shows: {states}"
    return f"no kube-proxy runs here: {states}"


def _broken(findings: Sequence[Finding], *, strict: bool) -> list[Finding]:
    bad = ("fail", "warn") if strict else ("fail",)
    return [finding for finding in findings if finding.severity in bad]


def _note(findings: Sequence[Finding]) -> str:
    """The first finding in a few words, for the table."""
    groups = group(findings)
    if not groups:
        return ""
    first = groups[0]
    where = f"{named(first.nodes)}: " if first.nodes else ""
    text = " ".join(f"{where}{first.finding.object}: {first.finding.observed}".split())
    text = text if len(text) <= NOTE_LENGTH else text[: NOTE_LENGTH - 1] + "…"
    return text + (f" (+{len(groups) - 1} more)" if len(groups) > 1 else "")


def _title(check: str) -> str:
    from pytest_ipvs.checks import CATALOGUE

    return CATALOGUE[check].title
