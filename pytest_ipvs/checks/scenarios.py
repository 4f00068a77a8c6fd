"""DP: what connections meet while pods leave, nodes are drained and kube-proxy restarts."""

from __future__ import annotations

from dataclasses import replace

from pytest_ipvs.checks.datapath import data_path_check, failed_by_class, lost_connections
from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import RolloutResult, Said
from pytest_ipvs.policy import Policy


def through_node_ports(result: RolloutResult, policy: Policy) -> Said:
    """No short connection to a NodePort fails while a Deployment is replaced."""
    why = "clients outside the cluster lose connections whenever pods are replaced"
    yield from lost_connections("DP-02", result, policy, why)


def through_load_balancer(result: RolloutResult, policy: Policy) -> Said:
    """No more short connections through a load balancer fail than the policy accepts.

    As many as it accepts still warn.
    """
    why = "clients that come through the load balancer lose connections whenever pods are replaced"
    accepted = policy.threshold("load_balancer_failures") / 100 * result.results.connections
    for one in lost_connections("DP-03", result, policy, why):
        if isinstance(one, Finding) and sum(failed_by_class(result).values()) <= accepted:
            yield replace(one, severity="warn")
        else:
            yield one


def kernel_follows_weight_zero(result: RolloutResult, policy: Policy) -> Said:
    """A re-used tuple of a real server at weight 0 goes to a live pod, at once.

    The pod goes on serving, so its answers tell what the kernel does, whatever its version says.
    """
    check = "DP-05"
    probe = result.probe
    if probe is None or probe.problem:
        reason = "no endpoint left while its pod lived" if probe is None else probe.problem
        yield NotMeasured(check=check, node=None, fact="endpoint that left", reason=reason)
        return
    if probe.old_answers:
        missing = "fix d is missing" if probe.fix_d is False else "expire_nodest_conn is not 1"
        yield Finding(
            check=check,
            severity="fail",
            node=None,
            object="re-used tuples of a real server at weight 0",
            observed=f"{probe.old_answers} answers by the pod that had left",
            expected="0 answers by it",
            reason="connections on re-used ports go to pods that are going away, and fail when "
            f"these are gone: {missing}",
            remedy="sysctl -w net.ipv4.vs.expire_nodest_conn=1 net.ipv4.vs.conn_reuse_mode=1; "
            "where these are set, a kernel with fix d (5.10.83, 5.15.6, 5.16; KM-02)",
            evidence=str(probe),
        )
    if probe.fix_b is False:
        yield Finding(
            check=check,
            severity="fail",
            node=None,
            object="connects on re-used tuples",
            observed=f"{probe.resent} needed a resent SYN",
            expected="0 with a resent SYN",
            reason="each re-used port costs one second: fix b is missing",
            remedy="a kernel with fix b (5.9, 4.19.140; KM-02)",
            evidence=str(probe),
        )
    if probe.old_answers or probe.fix_b is False:
        return
    if not probe.exposed:
        yield NotMeasured(
            check=check,
            node=None,
            fact="re-used tuples",
            reason=f"no re-used tuple met {probe.pod} at weight 0; lower the number of ports",
        )
        return
    why = "connections are lost when an endpoint leaves, although its pod goes on serving"
    yield from lost_connections(check, result, policy, why)


def scale_in(result: RolloutResult, policy: Policy) -> Said:
    """No short connection fails while replicas are taken away, nor after they are gone."""
    why = "connections still go to pods that a scale-in has removed"
    yield from lost_connections("DP-07", result, policy, why)


def drained_node(result: RolloutResult, policy: Policy) -> Said:
    """No short connection fails while a node is drained."""
    why = "clients lose connections whenever a node is taken out for maintenance"
    yield from lost_connections("DP-12", result, policy, why)


def restarted_proxy(result: RolloutResult, policy: Policy) -> Said:
    """No short connection fails while kube-proxy restarts, and it takes up its real servers again.

    A kube-proxy that starts forgets which real servers it was draining. One that is wanted again
    must come back from weight 0.
    """
    why = "clients lose connections whenever kube-proxy restarts, as in each upgrade"
    quiesced = list(result.wanted_at_zero)
    for server in sorted({f"{one.node}: {one}" for one in quiesced}):
        node, _, name = server.partition(": ")
        yield Finding(
            check="DP-13",
            severity="fail",
            node=node,
            object=name,
            observed="weight 0 after the restart",
            expected="weight 1: its pod is a ready endpoint",
            reason="the pod gets no new connections from this node",
            remedy="upgrade kube-proxy (TB-05); until then delete the real server with ipvsadm -d",
        )
    failed = list(lost_connections("DP-13", result, policy, why))
    if not quiesced or any(isinstance(one, Finding) for one in failed):
        yield from failed


CHECKS = (
    data_path_check(
        "DP-02",
        "no connection through a NodePort fails during a rolling update",
        "fail",
        "kubernetes/kubernetes issue 81775; Service spec.ports[].nodePort",
        through_node_ports,
    ),
    data_path_check(
        "DP-03",
        "no connection through a load balancer fails during a rolling update",
        "fail",
        "Service status.loadBalancer; kubernetes/kubernetes issue 81775",
        through_load_balancer,
    ),
    data_path_check(
        "DP-05",
        "a re-used tuple leaves a real server at weight 0 at once",
        "fail",
        "Linux commits f0a5e4d7a594 and c95c07836fa4",
        kernel_follows_weight_zero,
    ),
    data_path_check(
        "DP-07",
        "no connection fails when a Deployment is scaled in",
        "fail",
        "kubernetes/kubernetes issue 81775; kube-proxy pkg/proxy/ipvs/graceful_termination.go",
        scale_in,
    ),
    data_path_check(
        "DP-12",
        "no connection fails when a node is drained",
        "fail",
        "Kubernetes Eviction API (policy/v1); kubernetes/kubernetes issue 81775",
        drained_node,
        permission="disrupt",
    ),
    data_path_check(
        "DP-13",
        "no connection fails when kube-proxy restarts, and weights come back",
        "fail",
        "kubernetes/kubernetes issues 92019 and 108319",
        restarted_proxy,
        permission="disrupt",
    ),
)
