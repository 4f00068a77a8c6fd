"""DP: single paths through the nodes' tables, judged by connections that were made to try them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_ipvs.checks.datapath import data_path_check
from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Said
from pytest_ipvs.policy import Policy

if TYPE_CHECKING:
    from pytest_ipvs.rollout.paths import Path

_RULES = "compare the node's rules and ipsets with what kube-proxy should have made (CT-02, TB-11)"


def _check(
    check: str, title: str, severity: Severity, source: str, reason: str, remedy: str, text: str
) -> Check:
    """A check that no connection on its paths fails. Few that fail only warn."""

    def judge(paths: Sequence[Path], policy: Policy) -> Said:
        least = policy.threshold("min_path_connections")
        if not paths:
            yield NotMeasured(check=check, node=None, fact="paths", reason="none was tried")
        for path in paths:
            failed = dict(sorted(path.failed.items(), key=lambda pair: (-pair[1], pair[0])))
            lost = sum(failed.values())
            if failed:
                few = lost <= policy.threshold("path_failures") * path.tried
                yield Finding(
                    check=check,
                    severity="warn" if few and severity == "fail" else severity,
                    node=path.node,
                    object=path.what,
                    observed=f"{lost} of {path.tried} failed: "
                    + ", ".join(f"{number} {name}" for name, number in failed.items()),
                    expected="0 failed",
                    reason=reason,
                    remedy=remedy,
                )
            elif path.problem or path.tried < least:
                few_words = f"only {path.tried} connections met it, expected at least {least:g}"
                yield NotMeasured(
                    check=check,
                    node=path.node,
                    fact=path.what,
                    reason=path.problem or few_words,
                )

    judge.__doc__ = text
    return data_path_check(check, title, severity, source, judge, needs="paths")


CHECKS = (
    _check(
        "DP-08",
        "one source port works to a cluster IP and to the pod behind it at the same time",
        "info",
        "kubernetes/kubernetes issues 90042 and 107249; Linux ip_vs_core.c, ip_vs_out",
        "IPVS takes the pod's answers to the direct connection for those of the Service's, so one "
        "of the two times out; it hits clients in pods that use a Service and also its pods",
        "a limit of IPVS that no setting lifts: let such clients use either the Service or the "
        "pods, or use another mode of kube-proxy",
        "Connections to a Service and to its pod do not collide on one source port.\n\n"
        "In IPVS mode they do on every kernel that we know of: expect to be told so.",
    ),
    _check(
        "DP-09",
        "a node reaches a cluster IP whose pod is on another node, without a resent SYN",
        "fail",
        "kubernetes/kubernetes issues 88986 and 90854",
        "the node's own connections to Services take 1, 3 or 63 s: packets with a wrong checksum "
        "are dropped on the way, as where the overlay's checksum offload meets masquerading",
        "ethtool -K flannel.1 tx-checksum-ip-generic off (the device of your overlay); "
        "then a kernel or a network plugin with the fix",
        "A node's connect to a pod on another node, through a cluster IP, takes less than a second."
        "\n\nA SYN that is sent again costs that second.",
    ),
    _check(
        "DP-10",
        "a pod reaches itself through its own cluster IP, and its load balancer's address",
        "fail",
        "kube-proxy pkg/proxy/ipvs/ipset.go, KUBE-LOOP-BACK; kubernetes/kubernetes issue 71596",
        "a pod that calls its own Service fails whenever the Service chooses that pod itself",
        "the ipset KUBE-LOOP-BACK must have the pod, and the port of its bridge hairpin mode; "
        + _RULES,
        "A pod's connections to its own Service succeed, those that come back to it as well.\n\n"
        "With --ipvs-load-balancer also those to the address of its load balancer.",
    ),
    _check(
        "DP-11",
        "a host port is reached in IPVS mode",
        "warn",
        "kubernetes/kubernetes issue 61938",
        "pods that are reached by a port of their node, such as ingress controllers, are cut off",
        "iptables -t nat -S on the node: the jump to the host ports' chain must be reached by "
        "what KUBE-SERVICES does not accept; " + _RULES,
        "A pod's host port answers at its node's address, from another pod.\n\n"
        "Not applicable where the node has no rule for it: its network plugin has no host ports.",
    ),
    _check(
        "DP-14",
        "an established connection outlives the removal of a pod, its own until that is killed",
        "warn",
        "kube-proxy pkg/proxy/ipvs/graceful_termination.go",
        "long downloads, WebSockets and database connections break whenever a pod is replaced",
        "see that kube-proxy sets real servers that leave to weight 0 instead of deleting them "
        "(KP-06), and that pods serve until they are killed",
        "Held connections to a pod that is deleted stay until the end of its grace period.\n\n"
        "Those to the other pods stay throughout.",
    ),
)
