"""The lab's faults: one named defect each, with what it does, where, and what undoes it.

Faults in a table are rules that the node's kube-proxy stand-in follows while it programs the
kernel, so they stay through syncs and rollouts, and work for a Service that comes later. All others
are written where they belong: sysctls, iptables, sshd, the pods' processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_ipvs.lab.blackout import Blackout
from pytest_ipvs.lab.machine import LabError
from pytest_ipvs.lab.proxy_model import Server, Virtual, VirtualKey, Wanted

if TYPE_CHECKING:
    from pytest_ipvs.lab.assembly import Lab

TABLE_NODE = "node-2"
STALE_HOST = 199
LINGERING_HOST = 198
ORPHAN: VirtualKey = ("TCP", "10.96.255.254", 80)
EARLY_DELAY = 4.0
LATE = 4.0
ARMED = "LAB-ARMED"
CHAIN = "LAB-SYN-DROPPED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One defect.

    ``text`` says what it does in one sentence; ``undo`` what clearing does. ``everywhere``: it is
    put on all nodes unless a node is named, else on node-2. ``checks`` are the ids of the checks
    that it trips.
    """

    name: str
    text: str
    undo: str
    everywhere: bool
    checks: tuple[str, ...]
    put: Callable[[Lab, str, str], None]
    """Called with the lab, a node and the target Service ("namespace/name")."""
    lift: Callable[[Lab, str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveFault:
    """A fault that is in force: its name, its nodes, its target Service."""

    name: str
    nodes: tuple[str, ...]
    service: str


# Faults of the table: how the wanted state is bent


def _of(goal: Wanted, service: str) -> list[Virtual]:
    return [goal.virtuals[key] for key in goal.cluster_keys.get(service, [])]


def _pod_address(node_index: int, host: int) -> str:
    return f"10.244.{node_index}.{host}"


def _port(virtual: Virtual) -> int:
    return next((port for _, port in sorted(virtual.servers)), 8080)


def _stale(goal: Wanted, service: str, index: int) -> None:
    for virtual in _of(goal, service):
        virtual.servers[(_pod_address(index, STALE_HOST), _port(virtual))] = 1


def _lingering(goal: Wanted, service: str, index: int) -> None:
    for virtual in _of(goal, service):
        virtual.servers[(_pod_address(index, LINGERING_HOST), _port(virtual))] = 0


def _first(virtual: Virtual) -> Server | None:
    return min(virtual.servers, default=None)


def _missing(goal: Wanted, service: str, _index: int) -> None:
    for virtual in _of(goal, service):
        server = _first(virtual)
        if server is not None:
            del virtual.servers[server]


def _quiesced(goal: Wanted, service: str, _index: int) -> None:
    for virtual in _of(goal, service):
        server = _first(virtual)
        if server is not None:
            virtual.servers[server] = 0


def _orphan(goal: Wanted, _service: str, _index: int) -> None:
    goal.virtuals[ORPHAN] = Virtual(service="", scheduler="rr")
    goal.addresses.add(ORPHAN[1])


def _scheduler(goal: Wanted, service: str, _index: int) -> None:
    for virtual in _of(goal, service):
        virtual.scheduler = "lc"


def _bend(
    name: str, change: Callable[[Wanted, str, int], None], lab: Lab, node: str, service: str
) -> None:
    proxy = lab.proxies[node]
    index = lab.nodes.index(node) + 1
    proxy.bend[name] = lambda goal: change(goal, service, index)
    proxy.sync_now()


def _straighten(name: str, lab: Lab, node: str, _service: str) -> None:
    proxy = lab.proxies[node]
    if proxy.bend.pop(name, None) is not None:
        proxy.sync_now()


def _delete_at_once(lab: Lab, node: str, _service: str) -> None:
    lab.proxies[node].abrupt = True


def _drain(lab: Lab, node: str, _service: str) -> None:
    lab.proxies[node].abrupt = False


# Faults of sysctls


def _write(values: dict[str, str], lab: Lab, node: str, _service: str) -> None:
    before = lab.machine.call("sysctl", node=node, values=dict.fromkeys(values))
    for key, text in before.items():
        # What a second fault finds is the first one's doing, not what to go back to.
        lab.sysctls_before.setdefault((node, key), text)
    after = lab.machine.call("sysctl", node=node, values=values)
    for key, wanted in values.items():
        if str(after[key]).strip() != wanted:
            raise LabError(f"{key} on {node} is {after[key]!r} after writing {wanted!r}")


def _restore(values: dict[str, str], lab: Lab, node: str, _service: str) -> None:
    back = {
        key: before
        for key in values
        if (before := lab.sysctls_before.pop((node, key), None)) is not None
    }
    if back:
        lab.machine.call("sysctl", node=node, values=back)


# Faults of the pods


def _resets(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].set_ending("rst")


def _no_resets(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].set_ending(None)


def _die_early(lab: Lab, node: str, _service: str) -> None:
    behaviour = lab.kubelets[node].behaviour
    behaviour.dies_early = True
    behaviour.report_delay = EARLY_DELAY
    # The node that sends traffic to a dead pod may be any: all tables are late.
    for proxy in lab.proxies.values():
        proxy.lag(EARLY_DELAY)


def _die_in_time(lab: Lab, node: str, _service: str) -> None:
    behaviour = lab.kubelets[node].behaviour
    behaviour.dies_early = False
    behaviour.report_delay = 0.0
    if not any(kubelet.behaviour.dies_early for kubelet in lab.kubelets.values()):
        for proxy in lab.proxies.values():
            proxy.lag(0.0)


def _listen_late(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].behaviour.listens_late = LATE


def _listen_in_time(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].behaviour.listens_late = 0.0


def _crash_unseen(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].behaviour.crash_lag = LATE


def _crash_seen(lab: Lab, node: str, _service: str) -> None:
    lab.kubelets[node].behaviour.crash_lag = 0.0


def _black_out(lab: Lab, node: str, _service: str) -> None:
    kubelets = list(lab.kubelets.values())
    shared = next((k.behaviour.blackout for k in kubelets if k.behaviour.blackout), None)
    if shared is None:
        # One for all nodes: it begins with the first pod, wherever that is.
        shared = Blackout(lambda: [w for k in kubelets for w in k.workers()], LATE)
    lab.kubelets[node].behaviour.blackout = shared


def _light_up(lab: Lab, node: str, _service: str) -> None:
    behaviour = lab.kubelets[node].behaviour
    if behaviour.blackout is not None:
        behaviour.blackout.lift()
        behaviour.blackout = None


# Faults of the network


def _drop_syn(lab: Lab, node: str, _service: str) -> None:
    _keep_syn(lab, node, _service)
    lab.restore(node, ["ipset", "-exist", "restore"], [f"create {ARMED} hash:ip,port timeout 300"])
    own = f"-p tcp -d {lab.service_cidr}"
    lab.restore(
        node,
        ["iptables-restore", "--noflush", "-w"],
        [
            "*raw",
            f":{CHAIN} - [0:0]",
            # A resent SYN finds its tuple disarmed and passes.
            f"-A {CHAIN} -j SET --del-set {ARMED} src,src",
            f"-A {CHAIN} -j DROP",
            f"-A PREROUTING {own} --syn -m set --match-set {ARMED} src,src -j {CHAIN}",
            f"-A PREROUTING {own} --tcp-flags FIN FIN -j SET --add-set {ARMED} src,src --exist",
            f"-A PREROUTING {own} --tcp-flags RST RST -j SET --add-set {ARMED} src,src --exist",
            "COMMIT",
        ],
    )


def _keep_syn(lab: Lab, node: str, _service: str) -> None:
    script = (
        'iptables -w -t raw -S PREROUTING 2>/dev/null | grep -F "$1" | sed "s/^-A/-D/" |'
        ' while read -r rule; do eval "iptables -w -t raw $rule"; done;'
        ' iptables -w -t raw -F "$2" 2>/dev/null; iptables -w -t raw -X "$2" 2>/dev/null;'
        ' ipset destroy "$1" 2>/dev/null; true'
    )
    lab.machine.call(
        "exec", node=node, argv=["sh", "-c", script, "lift-syn-dropped", ARMED, CHAIN], timeout=30
    )


def _close_door(lab: Lab, node: str, _service: str) -> None:
    lab.machine.call("sshd_stop", node=node)


def _open_door(lab: Lab, node: str, _service: str) -> None:
    lab.machine.call("sshd_start", node=node)


def _table(
    name: str,
    text: str,
    checks: tuple[str, ...],
    change: Callable[[Wanted, str, int], None],
) -> Fault:
    return Fault(
        name=name,
        text=text,
        undo="the node's kube-proxy stand-in programs the right table again",
        everywhere=False,
        checks=checks,
        put=partial(_bend, name, change),
        lift=partial(_straighten, name),
    )


def _sysctl(name: str, text: str, checks: tuple[str, ...], values: dict[str, str]) -> Fault:
    return Fault(
        name=name,
        text=text,
        undo="writes back the values that were there before",
        everywhere=True,
        checks=checks,
        put=partial(_write, values),
        lift=partial(_restore, values),
    )


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        _table(
            "stale_real_server",
            "a real server with weight 1 that no endpoint has, at an address where nobody answers",
            ("TB-03",),
            _stale,
        ),
        _table(
            "missing_real_server",
            "the Service's first endpoint is missing from the virtual server",
            ("TB-02",),
            _missing,
        ),
        _table(
            "orphan_virtual_server",
            f"a virtual server {ORPHAN[1]}:{ORPHAN[2]} that no Service has, with its address bound",
            ("TB-01", "TB-09"),
            _orphan,
        ),
        _table(
            "wanted_at_weight_zero",
            "the Service's first endpoint stays at weight 0, as old kube-proxies left it",
            ("TB-05",),
            _quiesced,
        ),
        _sysctl(
            "reuse_leftover",
            "conn_reuse_mode=0 and expire_nodest_conn=0: re-used ports stay with old real servers",
            ("SY-01", "SY-02", "DP-01", "DP-02"),
            {"net.ipv4.vs.conn_reuse_mode": "0", "net.ipv4.vs.expire_nodest_conn": "0"},
        ),
        _sysctl(
            "template_sticks",
            "expire_quiescent_template=0: affine clients stay with a real server that is gone",
            ("SY-03", "PS-02"),
            {"net.ipv4.vs.expire_quiescent_template": "0"},
        ),
        Fault(
            name="server_resets",
            text="the pods' server ends connections with RST, so a re-used port costs one second",
            undo="the pods' server ends connections with FIN again",
            everywhere=True,
            checks=("DP-04",),
            put=_resets,
            lift=_no_resets,
        ),
        Fault(
            name="syn_dropped",
            text="the first SYN of each re-used source port is dropped on the node",
            undo="removes the iptables rules and the ipset",
            everywhere=True,
            checks=("DP-04",),
            put=_drop_syn,
            lift=_keep_syn,
        ),
        _table(
            "never_drains",
            "a real server at weight 0 that no endpoint has and that no sweep removes",
            ("TB-04",),
            _lingering,
        ),
        Fault(
            name="pod_dies_early",
            text=f"pods die at deletion, without preStop, {EARLY_DELAY:.0f} s before tables follow",
            undo="pods get their preStop and grace period, tables follow at once",
            everywhere=True,
            checks=("DP-01", "DP-02"),
            put=_die_early,
            lift=_die_in_time,
        ),
        Fault(
            name="ready_before_listening",
            text=f"restarted pods are called ready {LATE:.0f} s before they listen",
            undo="pods are ready when their probe says so",
            everywhere=True,
            checks=("DP-01", "DP-02"),
            put=_listen_late,
            lift=_listen_in_time,
        ),
        Fault(
            name="readiness_lag",
            text=f"restarted pods crash in service, and are called ready for {LATE:.0f} s more",
            undo="pods do not crash",
            everywhere=True,
            checks=("DP-01", "DP-02"),
            put=_crash_unseen,
            lift=_crash_seen,
        ),
        Fault(
            name="no_endpoints",
            text=f"during a restart all pods are called unready for {LATE:.0f} s",
            undo="pods are ready when their probe says so",
            everywhere=True,
            checks=("DP-01", "DP-02"),
            put=_black_out,
            lift=_light_up,
        ),
        Fault(
            name="deleted_at_once",
            text="kube-proxy deletes real servers at once instead of setting them to weight 0",
            undo="real servers that leave go to weight 0 and are swept",
            everywhere=True,
            checks=("DP-14",),
            put=_delete_at_once,
            lift=_drain,
        ),
        Fault(
            name="node_unreachable",
            text="the node's sshd is stopped",
            undo="starts sshd again",
            everywhere=False,
            checks=(),
            put=_close_door,
            lift=_open_door,
        ),
        _table(
            "wrong_scheduler",
            "the Service's virtual server uses the scheduler lc instead of rr",
            ("KM-03",),
            _scheduler,
        ),
        _sysctl(
            "conntrack_off",
            "vs.conntrack=0: masquerading of IPVS connections no longer works",
            ("SY-04",),
            {"net.ipv4.vs.conntrack": "0"},
        ),
    )
}


def find(name: str) -> Fault:
    """The fault of that name; raises :class:`LabError` with the names that exist."""
    try:
        return FAULTS[name]
    except KeyError:
        known = ", ".join(sorted(FAULTS))
        raise LabError(f"fault {name!r} is not one of {known}") from None


def put(lab: Lab, name: str, node: str | None = None, service: str = "demo/web") -> ActiveFault:
    """Put a fault in force on ``node``, or where it belongs; returns when it is."""
    fault = find(name)
    if node is not None and node not in lab.nodes:
        raise LabError(f"node {node!r} is not one of {', '.join(lab.nodes)}")
    nodes = (node,) if node else tuple(lab.nodes) if fault.everywhere else (_default_node(lab),)
    for one in nodes:
        fault.put(lab, one, service)
    active = ActiveFault(name=name, nodes=nodes, service=service)
    lab.active = [entry for entry in lab.active if entry != active]
    lab.active.append(active)
    return active


def clear(lab: Lab, name: str | None = None, node: str | None = None) -> list[ActiveFault]:
    """Undo one fault (on one node), or all; returns what was undone."""
    if name is not None:
        find(name)
    undone = []
    for active in list(lab.active):
        if name not in (None, active.name):
            continue
        nodes = tuple(one for one in active.nodes if node in (None, one))
        for one in nodes:
            FAULTS[active.name].lift(lab, one, active.service)
        if not nodes:
            continue
        lab.active.remove(active)
        left = tuple(one for one in active.nodes if one not in nodes)
        if left:
            lab.active.append(ActiveFault(name=active.name, nodes=left, service=active.service))
        undone.append(ActiveFault(name=active.name, nodes=nodes, service=active.service))
    return undone


def _default_node(lab: Lab) -> str:
    return TABLE_NODE if TABLE_NODE in lab.nodes else lab.nodes[0]
