"""Faults of what a node is told and is: sysctls, kernel, kube-proxy."""

from __future__ import annotations

from evidence_builder import WEB, kernel, on_node, proxy, sysctl, virtual
from fault_registry import passes, trips

from pytest_ipvs.checks import Evidence

VS = "net.ipv4.vs."


@trips(
    "SY-01 warn",
    words=(f"{VS}conn_reuse_mode", "0", "1", "default 1 was overwritten", "sysctl -w"),
)
def reuse_mode_is_a_leftover(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}conn_reuse_mode": "0"})


@trips(
    "SY-01",
    "SY-02",
    words=("0", "1", "after its pod is gone", f"sysctl -w {VS}conn_reuse_mode=1"),
)
def reuse_mode_and_expire_nodest_conn_are_0(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}conn_reuse_mode": "0", f"{VS}expire_nodest_conn": "0"})


@trips("SY-02", words=(f"{VS}expire_nodest_conn", "0", "1", f"sysctl -w {VS}expire_nodest_conn=1"))
def expire_nodest_conn_is_0(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}expire_nodest_conn": "0"})


@trips("SY-03 fail", words=(f"{VS}expire_quiescent_template", "session affinity"))
def expire_quiescent_template_is_0(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}expire_quiescent_template": "0"})


@trips("SY-04", words=(f"{VS}conntrack", "masquerading"))
def conntrack_is_off(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}conntrack": "0"})


@trips("KM-02", words=("4.19.100 without fix b and c and d", "kernel_fixes"))
def kernel_without_b_c_and_d(evidence: Evidence) -> Evidence:
    return on_node(sysctl(evidence, {f"{VS}conn_reuse_mode": "0"}), kernel("4.19.100"))


@trips("KM-02 warn", words=("5.10.50 without fix d", "weight 0"))
def kernel_without_d(evidence: Evidence) -> Evidence:
    return on_node(evidence, kernel("5.10.50"))


@trips("KM-03 warn", words=("10.96.0.10:80/TCP", "wlc", "rr"))
def another_scheduler(evidence: Evidence) -> Evidence:
    return virtual(evidence, WEB, scheduler="wlc")


@trips("KP-01", words=("kube-proxy mode", "iptables", "ipvs"))
def another_mode(evidence: Evidence) -> Evidence:
    return on_node(evidence, proxy(mode="iptables"))


@passes("SY-01")
def reuse_mode_with_the_bit_that_nat_ignores(evidence: Evidence) -> Evidence:
    return sysctl(evidence, {f"{VS}conn_reuse_mode": "3"})


@passes("KM-02")
def a_long_term_kernel_with_the_late_fix(evidence: Evidence) -> Evidence:
    return on_node(evidence, kernel("5.10.83"))
