"""Sysctls as checks judge them: read, absent with a reason, and the policy's word first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, silent_nodes, views, why_unread
from pytest_ipvs.ipvs.kernel import KernelRelease, why_absent
from pytest_ipvs.policy import sysctl_check

VS = "net.ipv4.vs."
IP_FORWARD = "net.ipv4.ip_forward"
ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one sysctl should be on one node.

    ``accepted``: the right values, the one to set first. ``absent`` says what a key means that
    does not exist: "lack" = it can't be judged, "skip" = the rule does not apply, "finding" = a
    finding.
    """

    key: str
    accepted: tuple[str, ...]
    severity: Severity
    reason: str
    remedy: str = ""
    evidence: str = ""
    absent: Literal["lack", "skip", "finding"] = "lack"


def value_of(check: str, view: NodeView, key: str) -> str | NotMeasured | None:
    """The text of a sysctl with single blanks; ``None`` where it surely does not exist."""
    text = view.facts.sysctls.get(key)
    if text is not None:
        return " ".join(text.split())
    if _surely_absent(view, key):
        return None
    return lack(check, view, key)


def lack(check: str, view: NodeView, key: str) -> NotMeasured:
    """That a sysctl has no value on a node, and why."""
    facts = view.facts
    why = facts.unread.get(key) or why_unread(facts, "sysctls", _why_absent(view, key))
    return NotMeasured(check=check, node=view.name, fact=key, reason=why)


def _surely_absent(view: NodeView, key: str) -> bool:
    """Whether its neighbours were read, so that a key without a value does not exist."""
    facts = view.facts
    if key in facts.unread:
        return False
    if key.startswith(VS) and any(other.startswith(VS) for other in facts.sysctls):
        return True
    # This one exists on every Linux: without it the reading was not a whole one.
    return IP_FORWARD in facts.sysctls


def _why_absent(view: NodeView, key: str) -> str:
    facts = view.facts
    try:
        kernel = KernelRelease.parse(facts.kernel_release, facts.kernel_version)
    except ValueError:
        kernel = None
    loaded = facts.table is not None or "table" in facts.unread
    return f"it does not exist on the node: {why_absent(key, kernel, ip_vs_loaded=loaded)}"


def number_of(check: str, view: NodeView, key: str) -> int | NotMeasured | None:
    """A sysctl as a whole number; ``None`` where it surely does not exist."""
    text = value_of(check, view, key)
    if text is None or isinstance(text, NotMeasured):
        return text
    try:
        return int(text)
    except ValueError:
        reason = f"it is {text!r}, expected a whole number"
        return NotMeasured(check=check, node=view.name, fact=key, reason=reason)


def waived(view: NodeView, key: str) -> bool:
    """Whether the policy says not to judge this sysctl on the node."""
    return view.policy.sysctls.get(key, ()) is None


def by_policy(check: str, view: NodeView, key: str, value: str) -> Said | None:
    """The answer where the policy says what is right; ``None`` where it does not."""
    if key not in view.policy.sysctls:
        return None
    accepted = view.policy.sysctls[key]
    if accepted is None or value in accepted:
        return ()
    return (
        Finding(
            check=check,
            severity="fail",
            node=view.name,
            object=key,
            observed=value,
            expected=" or ".join(accepted),
            reason="the policy file says so",
            remedy=f"sysctl -w {key}='{accepted[0]}'",
        ),
    )


def each_node(
    check: str, evidence: Evidence, said: Callable[[str, Evidence, NodeView], Said]
) -> Said:
    """What a check says node by node, and the policy's demands on what it says nothing of."""
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        yield from demanded(check, view, said(check, evidence, view))


def demanded(check: str, view: NodeView, said: Said) -> Said:
    """What a check said of a node, then the policy's values of sysctls that it left out.

    A check's own rule may not apply to a node, or know nothing of a key. The policy's value holds
    all the same, and a key that has no value on the node is not measured.
    """
    told: set[str] = set()
    for one in said:
        told.add(one.object if isinstance(one, Finding) else one.fact)
        yield one
    for key, accepted in view.policy.sysctls.items():
        if accepted is None or key in told or sysctl_check(key) != check:
            continue
        value = value_of(check, view, key)
        if isinstance(value, str):
            yield from by_policy(check, view, key, value) or ()
        elif ABSENT not in accepted:
            yield value or lack(check, view, key)


def judge(check: str, view: NodeView, rule: Rule) -> Said:
    """Compare one sysctl of one node with its rule, or with the policy where that names it."""
    if waived(view, rule.key):
        return
    value = value_of(check, view, rule.key)
    if isinstance(value, NotMeasured):
        yield value
        return
    if value is None:
        if rule.key not in view.policy.sysctls and rule.absent != "finding":
            if rule.absent == "lack":
                yield lack(check, view, rule.key)
            return
        value = ABSENT
    answer = by_policy(check, view, rule.key, value)
    if answer is not None:
        yield from answer
    elif value not in rule.accepted:
        yield Finding(
            check=check,
            severity=rule.severity,
            node=view.name,
            object=rule.key,
            observed=value,
            expected=" or ".join(rule.accepted),
            reason=rule.reason,
            remedy=rule.remedy or f"sysctl -w {rule.key}={rule.accepted[0]}",
            evidence=rule.evidence,
        )


def interface_key(interface: str, name: str) -> str:
    """ "net.ipv4.conf.eth0.rp_filter"; a dot in the interface's name is spelled as a slash."""
    return f"net.ipv4.conf.{interface.replace('.', '/')}.{name}"


def effective(
    check: str, evidence: Evidence, view: NodeView, name: str, interface: str
) -> int | NotMeasured:
    """What counts on an interface: the larger of its own value and that of "all".

    Settings of interfaces may have been read with the node's details only.
    """
    detailed = evidence.detailed(view.name)
    if detailed is not None:
        known = {**detailed.sysctls, **view.facts.sysctls}
        view = replace(view, facts=replace(view.facts, sysctls=known))
    values: list[int] = []
    for where in ("all", interface):
        key = interface_key(where, name)
        value = number_of(check, view, key)
        if value is None:
            return lack(check, view, key)
        if isinstance(value, NotMeasured):
            return value
        values.append(value)
    return max(values)
