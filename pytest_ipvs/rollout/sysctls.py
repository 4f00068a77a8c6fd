"""The sysctls that decide what a re-used tuple meets: observed, expected, and how to set them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.ipvs.kernel import KernelRelease, fixes
from pytest_ipvs.ipvs.proxy import ProxyRules, expected_conn_reuse_mode

REUSE_MODE = "net.ipv4.vs.conn_reuse_mode"
EXPIRE_NODEST = "net.ipv4.vs.expire_nodest_conn"
EXPIRE_TEMPLATE = "net.ipv4.vs.expire_quiescent_template"


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlView:
    """One sysctl on one node. ``observed`` is ``None`` where it could not be read."""

    node: str
    key: str
    observed: str | None
    expected: str
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether the observed value is the expected one, or one of several."""
        return self.observed is not None and self.observed in self.expected.split(" or ")

    def __str__(self) -> str:
        observed = "was not read" if self.observed is None else f"is {self.observed}"
        note = f" ({self.note})" if self.note and not self.right else ""
        return f"{self.node}: {self.key} {observed}, expected {self.expected}{note}"


def sysctl_views(
    node: str, facts: Any, policy: Any = None, *, affinity: bool = False
) -> tuple[SysctlView, ...]:
    """conn_reuse_mode and expire_nodest_conn of a node (and with affinity the template's one).

    ``facts`` is a ``NodeFacts`` or ``None``; the expected values are those of domain table 1.4.
    """
    if facts is None:
        return ()
    values = _values(facts)
    expected, note = _reuse_mode(facts, policy)
    wanted = [(REUSE_MODE, expected, note), (EXPIRE_NODEST, "1", "")]
    if affinity:
        wanted.append((EXPIRE_TEMPLATE, "1", ""))
    return tuple(
        SysctlView(node=node, key=key, observed=values.get(key), expected=value, note=why)
        for key, value, why in wanted
    )


def may_follow(facts: Any, policy: Any = None, *, affinity: bool = False) -> bool | None:
    """Whether a node's IPVS can send a re-used tuple to a real server at weight 0 or removed.

    ``None`` where that is not known: the sysctls were not read, or the kernel's number does not
    tell its fixes. By ``ip_vs_in()`` (Linux 6.1, ip_vs_core.c) the tuple is scheduled anew where
    expire_nodest_conn is 1 and, before fix d, conn_reuse_mode is not 0; templates only where
    expire_quiescent_template is 1 too.
    """
    if facts is None:
        return None
    values = _values(facts)
    mode, expire = values.get(REUSE_MODE), values.get(EXPIRE_NODEST)
    template = values.get(EXPIRE_TEMPLATE) if affinity else "1"
    if None in (mode, expire, template):
        return None
    if expire != "1" or template != "1":
        return True
    if mode != "0":
        return False
    try:
        fixed = fixes(*_kernel(facts, policy))["d"]
    except ValueError:
        return None
    return None if fixed is None else not fixed


def _values(facts: Any) -> dict[str, str]:
    return {key: " ".join(value.split()) for key, value in facts.sysctls.items()}


def _kernel(facts: Any, policy: Any) -> tuple[KernelRelease, Any]:
    kernel = KernelRelease.parse(facts.kernel_release, facts.kernel_version)
    return kernel, getattr(policy, "kernel_fix_overrides", ())


def _reuse_mode(facts: Any, policy: Any) -> tuple[str, str]:
    try:
        kernel, overrides = _kernel(facts, policy)
        rules = ProxyRules(
            version=facts.proxy.version or "v1.36.0", config=facts.proxy.config or {}
        )
        verdict = expected_conn_reuse_mode(
            kernel,
            rules,
            fixes(kernel, overrides),
            expire_nodest_conn=facts.sysctls.get(EXPIRE_NODEST, "").strip() == "1",
        )
    except ValueError:
        return "1", ""
    accepted = verdict.accepted or {1}
    # Modes 2 and 3 do here what 1 does; naming them would only confuse.
    shown = sorted({1 if mode > 1 and 1 in accepted else mode for mode in accepted})
    return " or ".join(map(str, shown)), verdict.reason


def remedy_for(views: Iterable[SysctlView], *, affinity: bool) -> str:
    """Commands and what to repair for good, one a line."""
    wrong = [view for view in views if not view.right]
    lines = []
    for node in dict.fromkeys(view.node for view in wrong):
        settings = " ".join(
            f"{view.key}={view.expected.split(' or ')[0]}" for view in wrong if view.node == node
        )
        lines.append(f"on {node}: sysctl -w {settings}")
    if wrong:
        keys = {view.key for view in wrong}
        lines.append(
            "for good: look for what sets them (sysctl.d, the image, a tuning agent, an older "
            "kube-proxy) and remove it"
            + (
                "; kube-proxy writes 1 to the expire settings only when it starts"
                if keys & {EXPIRE_NODEST, EXPIRE_TEMPLATE}
                else ""
            )
        )
    elif views:
        lines.append(
            "the sysctls are as expected, so the kernel may lack the fix that keeps re-used "
            "tuples away from real servers of weight 0 (5.10.83, 5.15.6, 5.16): upgrade it"
        )
    else:
        keys_text = f"{REUSE_MODE}=1 {EXPIRE_NODEST}=1" + (
            f" {EXPIRE_TEMPLATE}=1" if affinity else ""
        )
        lines.append(f"compare the nodes' sysctls with: {keys_text}")
    return "\n".join(lines)
