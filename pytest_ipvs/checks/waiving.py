"""Findings that the policy accepts for a time: which they are, and by which waiver."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from pytest_ipvs.checks.findings import Finding
from pytest_ipvs.policy import Waiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Waived:
    """What waivers leave of a check's findings.

    ``left`` still counts. ``waived`` has each accepted finding with its waiver. ``expired`` are
    waivers that would have covered something that is left, in file order.
    """

    left: tuple[Finding, ...]
    waived: tuple[tuple[Finding, Waiver], ...] = ()
    expired: tuple[Waiver, ...] = ()

    @property
    def used(self) -> tuple[Waiver, ...]:
        """Waivers that matched a finding, expired or not."""
        return tuple(dict.fromkeys((*(waiver for _, waiver in self.waived), *self.expired)))


def waive(findings: Iterable[Finding], waivers: Iterable[Waiver], today: date) -> Waived:
    """Take out what waivers cover on that day; the first one in the file that covers it counts."""
    waivers = tuple(waivers)
    left: list[Finding] = []
    waived: list[tuple[Finding, Waiver]] = []
    expired: dict[Waiver, None] = {}
    for finding in findings:
        covering = [w for w in waivers if w.covers(finding.check, finding.node, finding.object)]
        valid = next((waiver for waiver in covering if waiver.expires >= today), None)
        if valid is not None:
            waived.append((finding, valid))
            continue
        left.append(finding)
        expired.update(dict.fromkeys(covering))
    in_order = tuple(waiver for waiver in waivers if waiver in expired)
    return Waived(left=tuple(left), waived=tuple(waived), expired=in_order)


def expiry(waiver: Waiver) -> str:
    """ "the waiver at ipvs.yaml:12 of TB-03 expired on 2026-10-01 (moving to …)"."""
    return (
        f"the waiver at {waiver.where or 'the policy'} of {waiver.check} expired on "
        f"{waiver.expires} ({waiver.reason})"
    )
