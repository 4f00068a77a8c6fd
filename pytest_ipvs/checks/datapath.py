"""DP: what short connections see while pods are replaced. These judge the result of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Permission, RolloutResult, Said
from pytest_ipvs.policy import Policy

# What the client itself could not do says nothing about the cluster.
OWN_LIMITS = frozenset({"no_port", "no_descriptor", "missed_schedule"})
_REMEDY = (
    "check net.ipv4.vs.conn_reuse_mode and expire_nodest_conn on the nodes (SY-01, SY-02), the "
    "kernel's fixes (KM-02), and that pods serve until their endpoint is gone"
)


_NEEDED = {
    "rollout": "it judges a rollout under traffic, and none was run",
    "paths": "it judges connections of its own, and none were made",
}


def needs_traffic(
    check: str, judge: Callable[[Any, Policy], Said], fact: str = "rollout"
) -> Callable[[Evidence], Said]:
    """What a data-path check says of evidence alone: that it needs traffic."""

    def run(_: Evidence) -> Said:
        yield NotMeasured(check=check, node=None, fact=fact, reason=_NEEDED[fact])

    run.__doc__ = judge.__doc__
    return run


def failed_by_class(result: RolloutResult) -> dict[str, int]:
    """Failed connections by class, most first, without the client's own limits."""
    counted = {name: n for name, n in result.failures.items() if n and name not in OWN_LIMITS}
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def power_lacks(check: str, result: RolloutResult, policy: Policy) -> Said:
    """Why the absence of failures proves nothing here; nothing where it does."""
    if result.results.connections <= 0:
        yield NotMeasured(
            check=check, node=None, fact="connections", reason="the client made no connection"
        )
    elif result.reused_tuples < policy.min_reused_tuples:
        yield NotMeasured(
            check=check,
            node=None,
            fact="reused tuples",
            reason=f"only {result.reused_tuples} connections reused a client port that IPVS "
            f"remembers, expected at least {policy.min_reused_tuples}: without reuse nothing can "
            "fail; raise the rate or lower the number of source ports",
        )
    elif result.verdict == "inconclusive":
        yield NotMeasured(
            check=check, node=None, fact="rollout", reason="; ".join(result.reasons) or "no reason"
        )


def lost_connections(check: str, result: RolloutResult, policy: Policy, why: str) -> Said:
    """A finding if a connection failed, else what the run lacks to prove that none does."""
    failed = failed_by_class(result)
    if failed and result.verdict == "inconclusive":
        # The verdict has found that the client may have brought all of them about itself.
        yield NotMeasured(
            check=check,
            node=None,
            fact="rollout",
            reason="; ".join(result.reasons) or "no reason",
            known=str(result.cause or ""),
        )
        return
    if not failed:
        yield from power_lacks(check, result, policy)
        return
    classes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items())
    yield Finding(
        check=check,
        severity="fail",
        node=None,
        object="connections during the rollout",
        observed=f"{sum(failed.values())} of {result.results.connections} failed: {classes}",
        expected="0 failed",
        reason=str(result.cause or "") or why,
        remedy=_REMEDY,
        evidence=f"{result.reused_tuples} connections reused a client port",
    )


def no_failures(result: RolloutResult, policy: Policy) -> Said:
    """No short connection fails while a Deployment is replaced.

    It proves something only if client ports were used again while IPVS remembered them.
    """
    why = "clients of the Service lose connections whenever its pods are replaced"
    yield from lost_connections("DP-01", result, policy, why)


def no_affinity(check: str) -> NotMeasured:
    """What a check of session affinity says of a run whose Service has none."""
    return NotMeasured(
        check=check,
        node=None,
        fact="session affinity",
        reason="the Service of this rollout has none",
    )


def affinity_moves(result: RolloutResult, policy: Policy) -> Said:
    """A client with session affinity goes on with a live pod when its own is replaced."""
    if not result.affinity:
        yield no_affinity("PS-02")
        return
    why = (
        "clients with session affinity stay with a removed pod: expire_quiescent_template and "
        "expire_nodest_conn must both be 1"
    )
    yield from lost_connections("PS-02", result, policy, why)


def no_slow_connects(result: RolloutResult, policy: Policy) -> Said:
    """No connect needs its SYN sent twice, which costs a second. One in a thousand only warns.

    A SYN to a pod that is gone is sent again too. That is DP-01's finding, so what lost
    connections explain does not count here, nor what a moment without endpoints explains, or a
    client that had fallen behind. Where nothing else is left nothing was measured.
    """
    check = "DP-04"
    resent = result.resent_apart
    if not resent:
        if result.resent:
            yield NotMeasured(
                check=check,
                node=None,
                fact="resent SYNs",
                reason=f"{result.resent} connects needed a resent SYN, each with another reason: "
                "connections lost before it or around it (DP-01: mend that first), no endpoint at "
                "that moment, or a client behind its schedule",
            )
        else:
            yield from power_lacks(check, result, policy)
        return
    share = resent / max(result.results.connections, 1)
    severity: Severity = "fail" if share > policy.threshold("resent_syn_share") else "warn"
    yield Finding(
        check=check,
        severity=severity,
        node=None,
        object="connects during the rollout",
        observed=f"{resent} of {result.results.connections} needed a resent SYN "
        f"({1000 * share:.1f} in a thousand)",
        expected="0 with a resent SYN",
        reason=str(result.cause or "")
        or "a first SYN was dropped: IPVS drops it where a reused port's old conntrack entry is "
        "not in TIME_WAIT, for example when servers end connections with RST",
        remedy="let servers end connections with FIN, not RST; else a kernel with fix b (KM-02)",
        evidence=f"{result.reused_tuples} connections reused a client port",
    )


def new_pods_get_their_share(result: RolloutResult, policy: Policy) -> Said:
    """New pods get at least the policy's part of their fair share of connections."""
    check = "DP-06"
    share, fair = result.share_of_new_pods, result.fair_share_of_new_pods
    if share is None or not fair:
        yield NotMeasured(
            check=check,
            node=None,
            fact="share of new pods",
            reason="no new pod took part in the rollout, or no connection was answered",
        )
        return
    if share < policy.min_new_pod_share * fair:
        yield Finding(
            check=check,
            severity="warn",
            node=None,
            object="share of new pods",
            observed=f"{100 * share:.0f} % of connections",
            expected=f"at least {100 * policy.min_new_pod_share * fair:.0f} % "
            f"(fair: {100 * fair:.0f} %)",
            reason="reused client ports stay with the pods they had, so new pods starve",
            remedy="sysctl -w net.ipv4.vs.conn_reuse_mode=1 where the kernel has fix b (SY-01)",
            evidence=f"{result.reused_tuples} connections reused a client port",
        )
        return
    yield from power_lacks(check, result, policy)


def data_path_check(
    number: str,
    title: str,
    severity: Severity,
    source: str,
    judge: Callable[[Any, Policy], Said],
    *,
    permission: Permission = "write",
    needs: str = "rollout",
) -> Check:
    """A check that judges a rollout, or "paths" that were tried; its group is that of its id."""
    return Check(
        id=number,
        title=title,
        group=number.partition("-")[0],
        severity=severity,
        permission=permission,
        needs=frozenset({needs}),
        source=source,
        run=needs_traffic(number, judge, needs),
        judge=judge,
    )


CHECKS = (
    data_path_check(
        "DP-01",
        "no connection fails during a rolling update",
        "fail",
        "kubernetes/kubernetes issue 81775",
        no_failures,
    ),
    data_path_check(
        "DP-04",
        "no SYN has to be sent twice",
        "fail",
        "kubernetes/kubernetes issue 70747",
        no_slow_connects,
    ),
    data_path_check(
        "DP-06",
        "new pods get at least half of their fair share",
        "warn",
        "cloudnativelabs/kube-router issue 544",
        new_pods_get_their_share,
    ),
)
