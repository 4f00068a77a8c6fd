"""What a check says: findings, and the severities they carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["fail", "warn", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One broken promise on one node (or of the whole cluster, ``node`` = ``None``).

    ``object`` names what is wrong ("10.96.0.10:80/TCP -> 10.244.1.5:8080", a sysctl key …),
    ``reason`` says in one sentence why it matters, ``remedy`` is a command or a setting.
    """

    check: str
    severity: Severity
    node: str | None
    object: str
    observed: str
    expected: str
    reason: str
    remedy: str
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """A check could not judge: the fact it lacks, where, and why. Never a pass.

    ``known`` is what was seen all the same, in lines; it proves nothing.
    """

    check: str
    node: str | None
    fact: str
    reason: str
    known: str = ""
