"""KM: the kernel and what it was told."""

from __future__ import annotations

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import RESTART_PROXY, kernel_of, silent_nodes, views
from pytest_ipvs.checks.tables import configured_findings
from pytest_ipvs.ipvs.kernel import fixes

_PROBE = (
    "a rolling update under traffic (DP-01, DP-04) shows it, or say in the policy file under "
    "kernel_fixes what the kernel has"
)
_WHAT = {
    "b": "a reused port costs a second while conn_reuse_mode is 1",
    "c": "connections to a deleted real server are dropped instead of rescheduled",
    "d": "with conn_reuse_mode 0, reused ports go to real servers at weight 0",
}


def kernel_fixes(evidence: Evidence) -> Said:
    """The kernel has the three fixes that rolling updates need.

    b: a reused port is rescheduled without delay. c: connections to a deleted real server are
    expired. d: a real server at weight 0 gets no reused port. A vendor's number may not tell:
    then a rolling update under traffic or the policy decides.
    """
    check = "KM-02"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        kernel = kernel_of(check, view.facts)
        if isinstance(kernel, NotMeasured):
            yield kernel
            continue
        known = fixes(kernel, view.policy.kernel_fix_overrides)
        lacking = [fix for fix, has in known.items() if has is False]
        unknown = [fix for fix, has in known.items() if has is None]
        if lacking:
            severity: Severity = "fail" if {"b", "d"} <= set(lacking) else "warn"
            yield Finding(
                check=check,
                severity=severity,
                node=view.name,
                object="kernel",
                observed=f"{kernel} without fix {' and '.join(lacking)}",
                expected="fixes b, c and d",
                reason="; ".join(_WHAT[fix] for fix in lacking),
                remedy="run a kernel of at least 5.16 (or 5.15.6, 5.10.83); if the vendor ported "
                "the fixes back, say so in the policy file under kernel_fixes",
            )
        if unknown and known["b"] is None and known["d"] is None:
            yield NotMeasured(
                check=check,
                node=view.name,
                fact=f"kernel fixes {' and '.join(unknown)}",
                reason=f"the number of kernel {kernel} does not tell whether they were ported "
                f"back: {_PROBE}",
            )
        elif unknown:
            yield Finding(
                check=check,
                severity="info",
                node=view.name,
                object="kernel",
                observed=f"{kernel}: fix {' and '.join(unknown)} not known from its number",
                expected="fixes b, c and d",
                reason="; ".join(f"without it {_WHAT[fix]}" for fix in unknown),
                remedy=_PROBE,
            )


def scheduler(evidence: Evidence) -> Said:
    """Every virtual server that kube-proxy programs uses the scheduler of its configuration."""
    # Without the configuration the right scheduler is not known.
    yield from configured_findings(
        "KM-03",
        evidence,
        {
            "wrong-scheduler": (
                "connections are spread in another way than kube-proxy was told",
                RESTART_PROXY,
            )
        },
        severity="warn",
    )


CHECKS = (
    Check(
        id="KM-02",
        title="the kernel has the fixes that rolling updates need",
        group="KM",
        severity="fail",
        permission="node",
        needs=frozenset({"kernel"}),
        source="Linux commits f0a5e4d7a594 (b), 35dfb013149f (c) and c95c07836fa4 (d)",
        run=kernel_fixes,
    ),
    Check(
        id="KM-03",
        title="the scheduler in use is the one that kube-proxy was told to use",
        group="KM",
        severity="warn",
        permission="node",
        needs=frozenset({"table", "proxy.config", "proxy.version"}),
        source="kube-proxy configuration, ipvs.scheduler",
        run=scheduler,
    ),
)
