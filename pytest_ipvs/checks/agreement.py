"""SY: settings that agree, of files with what runs, and of nodes with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from pytest_ipvs.checks import network, ports, sysctl
from pytest_ipvs.checks.capacity import estimation
from pytest_ipvs.checks.findings import Finding, NotMeasured
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import NodeView, detail, silent_nodes, views
from pytest_ipvs.checks.pools import pool_of
from pytest_ipvs.checks.values import IP_FORWARD, VS, lack, waived
from pytest_ipvs.cluster.model import SysctlLine
from pytest_ipvs.ipvs.kernel import MACHINE_KEYS

# kube-proxy writes nf_conntrack_* at each start by its own configuration: a file that differs is
# overruled on purpose, so those keys are not here.
JUDGED_KEYS = frozenset(
    {
        IP_FORWARD,
        network.IPV6_FORWARD,
        network.ARP_IGNORE,
        network.ARP_ANNOUNCE,
        network.ROUTE_LOCALNET,
        network.RP_FILTER,
        *network.BRIDGE.values(),
        ports.PORT_RANGE,
        ports.TW_REUSE,
    }
)
"""Besides ``net.ipv4.vs.*``: what a file of sysctl.d may contradict."""

# A node where one of these found a wrong value is told of there, and not once more as different.
_TOLD_BY: tuple[Callable[[Evidence], Said], ...] = (
    *(check.run for check in sysctl.CHECKS),
    network.defences_off,
    estimation,
)


def persistent(evidence: Evidence) -> Said:
    """No file of sysctl.d contradicts what runs, so that the next boot changes nothing.

    Of each key the last line counts. Lines with wildcards, and keys that don't exist on the node,
    are left out.
    """
    check = "SY-05"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        lines = detail(check, evidence, view, "sysctl_files")
        if isinstance(lines, NotMeasured):
            yield lines
            continue
        if not view.facts.sysctls:
            yield lack(check, view, "sysctls")
            continue
        for line in _last_lines(lines).values():
            yield from _contradicts(check, view, line)


def _last_lines(lines: tuple[SysctlLine, ...]) -> Mapping[str, SysctlLine]:
    return {
        line.key: line
        for line in lines
        if line.value.strip() and (line.key in JUDGED_KEYS or line.key.startswith(VS))
    }


def _contradicts(check: str, view: NodeView, line: SysctlLine) -> Iterator[Finding]:
    running = view.facts.sysctls.get(line.key)
    if running is None or waived(view, line.key):
        return
    written, runs = " ".join(line.value.split()), " ".join(running.split())
    if written != runs:
        yield Finding(
            check=check,
            severity="warn",
            node=view.name,
            object=line.key,
            observed=f"{written} in sysctl.d",
            expected=f"{runs}, which is what runs",
            reason="the next boot or the next sysctl --system brings the other value back",
            remedy=f"correct or remove the line {line.key} in {line.path}",
            evidence=f"{line.path}, line {line.line}",
        )


def pools_agree(evidence: Evidence) -> Said:
    """The nodes of a pool have the same ``net.ipv4.vs.*``.

    Nodes of a pool (`pool_of`) with other kernels are not compared with each other.
    Left out: what the kernel takes from memory and processors, keys that the policy names for a
    node, and nodes whose value another check found wrong.
    """
    check = "SY-06"
    yield from silent_nodes(check, evidence)
    pools: dict[tuple[str, str], list[NodeView]] = {}
    for view in views(evidence):
        if any(key.startswith(VS) for key in view.facts.sysctls):
            pools.setdefault((pool_of(view.node), view.facts.kernel_release), []).append(view)
        else:
            yield lack(check, view, f"{VS}*")
    told = {
        (one.object, one.node)
        for run in _TOLD_BY
        for one in run(evidence)
        if isinstance(one, Finding)
    }
    for (pool, release), members in sorted(pools.items()):
        keys = {key for view in members for key in view.facts.sysctls if key.startswith(VS)}
        for key in sorted(keys - MACHINE_KEYS):
            values = {
                view.name: _effect(key, view.facts.sysctls[key])
                for view in members
                if key in view.facts.sysctls
                and key not in view.policy.sysctls
                and (key, view.name) not in told
            }
            yield from _differing(check, key, values, f"pool {pool}, kernel {release}")


def _effect(key: str, text: str) -> str:
    """A value, or the one that does the same."""
    value = " ".join(text.split())
    # Modes 2 and 3 of conn_reuse_mode add what has no effect with NAT.
    return "1" if key == sysctl.REUSE and value in ("2", "3") else value


def _differing(check: str, key: str, values: Mapping[str, str], pool: str) -> Iterator[Finding]:
    counts = Counter(values.values())
    if len(counts) < 2:
        return
    # Most nodes are taken to be right; where as many have either, the smaller text is.
    usual = min(counts, key=lambda value: (-counts[value], value))
    others = [f"{value} on {name}" for name, value in sorted(values.items()) if value != usual]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    yield Finding(
        check=check,
        severity="warn",
        node=None,
        object=key,
        observed=shown,
        expected=f"{usual}, as on {counts[usual]} of {len(values)} nodes of the pool",
        reason="connections behave differently from node to node, which makes failures look random",
        remedy=f"set {key} alike on all nodes of the pool, or name it for these nodes in the "
        "policy file under sysctls",
        evidence=pool,
    )


_CHECK = Check(
    id="SY-05",
    title="no file of sysctl.d contradicts what runs",
    group="SY",
    severity="warn",
    permission="node",
    needs=frozenset({"sysctls", "details.sysctl_files"}),
    source="Linux sysctl.d(5)",
    run=persistent,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="SY-06",
        title="the nodes of a pool have the same IPVS settings",
        needs=frozenset({"sysctls", "kernel"}),
        source="Linux ipvs-sysctl.rst",
        run=pools_agree,
    ),
)
