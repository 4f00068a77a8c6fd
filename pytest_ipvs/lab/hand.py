"""The hand: the lab's process inside the machine, which makes nodes and passes them their work.

Started as ``python -m pytest_ipvs.lab.hand --machine`` by the guest's init, where it is the first
process and talks over a virtio port, or as ``… --namespaces FD`` on a kernel with IPVS, where it
makes itself a network, PID and mount namespace and talks over an inherited socket. It never touches
the network namespace in which it was started but for listening on 127.0.0.1 there.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_ipvs.lab import hand_root
from pytest_ipvs.lab.hand_agent import Agent
from pytest_ipvs.lab.hand_loop import Lines, Loop, forget_parent
from pytest_ipvs.lab.hand_netlink import Netlink
from pytest_ipvs.lab.hand_pods import PodAgent, connect_pod

__all__ = ["DOOR_BASE", "MACHINE_ADDRESS", "PORT_NAME", "main"]

PORT_NAME = "pytest-ipvs.hand"
"""Name of the virtio port."""
MACHINE_ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
"""The host, as QEMU's user network has it; in namespace mode the bridge itself."""
DOOR_BASE = 2200
"""In the guest, door N listens on this port + N; a door leads to one node's sshd."""
FABRIC = "fabric"


@dataclass(slots=True, kw_only=True)
class _Node:
    name: str
    door: int
    namespace: int
    pid: int
    lines: Lines
    netlink: Netlink
    address: str
    pod_cidr: str | None
    device: str | None
    """The node's end of the link to a client; None for nodes."""
    parent: str | None = None
    listener: socket.socket | None = None
    pods: set[str] = field(default_factory=set)
    waiting: dict[Any, None] = field(default_factory=dict)


class Hand(Agent):
    """The machine's agent, which also has nodes; requests that name a node are passed on to it."""

    def __init__(self, loop: Loop, doors: Callable[[int], socket.socket]) -> None:
        super().__init__(loop, "")
        self._doors = doors
        self._nodes: dict[str, _Node] = {}
        self._pod_nodes: dict[str, str] = {}
        self._namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.on_shutdown: Callable[[], None] = lambda: None
        self.operations.update(
            ping=self.ping,
            shutdown=self.shutdown,
            set_clock=self.set_clock,
            node_create=self.node_create,
            node_delete=self.node_delete,
            client_create=self.client_create,
            sshd_start=self.sshd_start,
            sshd_stop=self.sshd_stop,
        )

    # Requests

    def handle(self, line: bytes) -> None:
        """Performs a request of the machine, or passes it on as it is."""
        if not line.strip():
            return
        request = json.loads(line)
        arguments = request["args"]
        op = request["op"]
        name = arguments.get("node") or ""
        if not name and op.startswith("pod_"):
            name = self._pod_nodes.get(arguments.get("uid"), "")
            if not name:
                self.send({"id": request["id"], "error": f"there is no pod {arguments.get('uid')}"})
                return
        if not name or op in ("client_create", "sshd_start", "sshd_stop"):
            if op.startswith("sshd_"):
                arguments = request["args"] = {"name": name}
            if op == "client_create":
                arguments["parent"] = arguments.pop("node")
            self.perform(request)
            return
        node = self._nodes.get(name)
        if node is None:
            self.send({"id": request["id"], "error": f"there is no node or client {name}"})
            return
        if op == "pod_create":
            self._pod_nodes[arguments["uid"]] = name
        elif op == "pod_delete":
            self._pod_nodes.pop(arguments["uid"], None)
        node.waiting[request["id"]] = None
        node.lines.send(line)

    def ping(self) -> dict[str, Any]:
        """See ``machine.OPERATIONS``."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return {"kernel": os.uname().release, "pid": os.getpid(), "uptime": uptime}

    def set_clock(self, now: float) -> None:
        """Sets the guest's clock, which its hardware gives in whole seconds only."""
        time.clock_settime(time.CLOCK_REALTIME, now)

    def shutdown(self) -> None:
        """See ``machine.OPERATIONS``."""
        self.loop.later(0.01, self.on_shutdown)

    # The fabric: the network of the nodes

    def build_fabric(self, uplink: str | None) -> None:
        """Makes the nodes' bridge, with the machine's own interface on it if it has one."""
        self.netlink.set_link("lo", up=True)
        self.netlink.add_link(FABRIC, "bridge")
        if uplink:
            self.netlink.set_link(uplink, master=FABRIC, up=True)
        address = MACHINE_ADDRESS if uplink else GATEWAY
        self.netlink.change_address(FABRIC, f"{address}/24")
        self.netlink.set_link(FABRIC, up=True)
        if uplink:
            self.netlink.add_route("default", via=GATEWAY)

    # Nodes

    def _free_door(self) -> int:
        used = {node.door for node in self._nodes.values()}
        return next(number for number in range(1000) if number not in used)

    def _reserve(self, name: str) -> None:
        if name in self._nodes:
            raise ValueError(f"there is a node or client {name} already")

    def node_create(
        self,
        name: str,
        index: int,
        address: str,
        pod_cidr: str,
        authorized_key: str,
        host_key: str,
    ) -> dict[str, Any]:
        """See ``machine.OPERATIONS``."""
        self._reserve(name)
        namespace = hand_root.new_net()
        device = f"n{index}"
        with hand_root.inside_net(namespace):
            netlink = Netlink()
            netlink.set_link("lo", up=True)
            # As kube-proxy makes it: NOARP, and down for ever.
            netlink.add_link("kube-ipvs0", "dummy")
            netlink.set_link("kube-ipvs0", noarp=True)
            macs = (f"0a:00:00:00:01:{index:02x}", f"0a:00:00:00:00:{index:02x}")
            netlink.add_veth("eth0", macs[1], device, macs[0], self._namespace)
            netlink.change_address("eth0", f"{address}/24")
            netlink.set_link("eth0", up=True)
            for key in ("conf/all/rp_filter", "conf/default/rp_filter"):
                _write_sysctl(f"net/ipv4/{key}", "0")
            _write_sysctl("net/ipv4/ip_forward", "1")
            # The pods' network ends on a device that nobody answers on, as on a CNI's bridge: a pod
            # that is gone is looked for by ARP, and what waits for it gets "no route" after 3 s.
            netlink.add_link("cni0", "dummy")
            netlink.set_link("cni0", noarp=False, up=True)
            gateway = str(next(ipaddress.ip_network(pod_cidr).hosts()))
            prefix = pod_cidr.partition("/")[2]
            netlink.change_address("cni0", f"{gateway}/{prefix}")
        self.netlink.set_link(device, up=True, master=FABRIC)
        netlink.add_route("default", via=GATEWAY, device="eth0")
        for other in self._nodes.values():
            if other.pod_cidr is not None:
                other.netlink.add_route(pod_cidr, via=address, device="eth0")
                netlink.add_route(other.pod_cidr, via=other.address, device="eth0")
        return self._join(
            (authorized_key, host_key),
            gateway,
            name=name,
            namespace=namespace,
            netlink=netlink,
            address=address,
            pod_cidr=pod_cidr,
            device=device,
        )

    def client_create(
        self, name: str, parent: str, address: str, authorized_key: str, host_key: str
    ) -> dict[str, Any]:
        """See ``machine.OPERATIONS``."""
        self._reserve(name)
        node = self._nodes.get(parent)
        if node is None or node.pod_cidr is None:
            raise ValueError(f"there is no node {parent}")
        gateway = str(next(ipaddress.ip_network(node.pod_cidr).hosts()))
        namespace, device = connect_pod(node.netlink, node.namespace, address, gateway)
        with hand_root.inside_net(namespace):
            netlink = Netlink()
        return self._join(
            (authorized_key, host_key),
            name=name,
            namespace=namespace,
            netlink=netlink,
            address=address,
            pod_cidr=None,
            device=device,
            parent=parent,
        )

    def _join(self, keys: tuple[str, str], gateway: str = "", **made: Any) -> dict[str, Any]:
        """Starts the agent of a node or client whose network is made; ``made`` is for `_Node`."""
        name = made["name"]
        pid, lines = self._start_agent(name, made["namespace"], made["address"], gateway, *keys)
        self._nodes[name] = node = _Node(door=self._free_door(), pid=pid, lines=lines, **made)
        self.sshd_start(name)
        return {"pid": pid, "door": node.door}

    def _start_agent(
        self,
        name: str,
        namespace: int,
        address: str,
        gateway: str,
        authorized_key: str,
        host_key: str,
    ) -> tuple[int, Lines]:
        ours, theirs = socket.socketpair()

        def child() -> None:
            hand_root.enter(namespace, hand_root.NEW_NET)
            hand_root.unshare(hand_root.NEW_MOUNT | hand_root.NEW_UTS | hand_root.NEW_IPC)
            os.setsid()
            forget_parent(self, (theirs.fileno(),))
            hand_root.build_root(name, address)
            _install_keys(authorized_key, host_key)
            loop = Loop()
            agent = PodAgent(loop, name, gateway) if gateway else Agent(loop, name)
            # Its hand gone, a node has no reason to live, and takes all its processes along.
            agent.lines = Lines(loop, theirs, agent.handle, lambda: os._exit(0))
            loop.run()

        pid = hand_root.fork_into_new_pids(child)
        theirs.close()
        lines = Lines(self.loop, ours, lambda line: self._from_agent(name, line), lambda: None)
        self.loop.on_exit(pid, lambda code: self._agent_ended(name, pid, code))
        return pid, lines

    def _from_agent(self, name: str, line: bytes) -> None:
        node = self._nodes.get(name)
        if node is not None and line.startswith(b'{"id":'):
            number, _, _ = line[6:].partition(b",")
            node.waiting.pop(json.loads(number), None)
        if self.lines is not None:
            self.lines.send(line)

    def _agent_ended(self, name: str, pid: int, code: int) -> None:
        node = self._nodes.get(name)
        if node is None or node.pid != pid:
            return
        self._drop(node)
        for number in node.waiting:
            self.send({"id": number, "error": f"node {name} ended"})
        self.send({"event": "node_ended", "node": name, "rc": code})

    def _drop(self, node: _Node) -> None:
        self._nodes.pop(node.name, None)
        for uid in [uid for uid, where in self._pod_nodes.items() if where == node.name]:
            del self._pod_nodes[uid]
        if node.listener is not None:
            self.loop.unwatch(node.listener)
            node.listener.close()
        node.lines.close()
        above = self.netlink if node.parent is None else None
        if node.parent in self._nodes:
            above = self._nodes[node.parent].netlink
        if above is not None and node.device is not None:
            with contextlib.suppress(OSError):
                above.delete_link(node.device)
        node.netlink.close()
        os.close(node.namespace)
        for other in self._nodes.values():
            if node.pod_cidr is not None and other.pod_cidr is not None:
                with contextlib.suppress(OSError):
                    other.netlink.delete_route(node.pod_cidr)

    def node_delete(self, name: str) -> None:
        """See ``machine.OPERATIONS``."""
        node = self._nodes.get(name)
        if node is None:
            return
        for client in [one for one in self._nodes.values() if one.parent == name]:
            self.node_delete(client.name)
        self._drop(node)
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, signal.SIGKILL)
        for number in node.waiting:
            self.send({"id": number, "error": f"node {name} was deleted"})

    # ssh

    def sshd_start(self, name: str) -> None:
        """See ``machine.OPERATIONS``."""
        node = self._node(name)
        if node.listener is not None:
            return
        listener = self._doors(node.door)
        node.listener = listener

        def accept(_mask: int) -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = {"op": "ssh_session", "args": {"key": "/run/dropbear.key"}}
                node.lines.send(json.dumps(request).encode(), [os.dup(connection.fileno())])

        self.loop.watch(listener, accept)

    def sshd_stop(self, name: str) -> None:
        """See ``machine.OPERATIONS``."""
        node = self._node(name)
        if node.listener is not None:
            self.loop.unwatch(node.listener)
            node.listener.close()
            node.listener = None
        node.lines.send(b'{"id":null,"op":"end_sessions","args":{}}')

    def _node(self, name: str) -> _Node:
        if name not in self._nodes:
            raise ValueError(f"there is no node or client {name}")
        return self._nodes[name]


def _write_sysctl(path: str, value: str) -> None:
    Path("/proc/sys", path).write_text(value)


def _install_keys(authorized_key: str, host_key: str) -> None:
    directory = Path(hand_root.HOME, ".ssh")
    directory.mkdir(mode=0o700)
    (directory / "authorized_keys").write_text(authorized_key.strip() + "\n")
    (directory / "authorized_keys").chmod(0o600)
    key = Path("/run/dropbear.key")
    key.touch(mode=0o600)
    key.write_bytes(base64.b64decode(host_key))


def _port() -> int:
    """Opens the virtio port of our name; the module that makes it may still be loading."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                with contextlib.suppress(FileNotFoundError):
                    return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.01)
    raise SystemExit(f"pytest-ipvs: there is no virtio port {PORT_NAME}")


def _uplink() -> str | None:
    """The guest's network card, once its driver made it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        names = [path.parent.name for path in Path("/sys/class/net").glob("*/device")]
        if names:
            return min(names)
        time.sleep(0.01)
    return None


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(16)
    listener.setblocking(False)
    return listener


def _power_off() -> None:
    import ctypes

    # RB_POWER_OFF needs ACPI, which the guest lacks; a restart ends QEMU too (-no-reboot).
    ctypes.CDLL(None).reboot(0x01234567)


def _serve_machine() -> None:
    """The guest's first process."""
    print("pytest-ipvs: the hand is up", flush=True)
    loop = Loop()
    hand = Hand(loop, lambda door: _listen(MACHINE_ADDRESS, DOOR_BASE + door))
    port = _port()
    uplink = _uplink()
    # Modules may still be loading; a bridge and what it carries need theirs now.
    hand.build_fabric(uplink)
    hand.on_shutdown = _power_off
    hand.lines = Lines(loop, port, hand.handle, _power_off)
    hand.send({"event": "ready", "kernel": os.uname().release})
    loop.run()


def _serve_namespaces(number: int) -> None:
    """The first process of namespaces of our own; ``number`` is the connection to the daemon."""
    hand_root.die_with_parent()
    connection = socket.socket(fileno=number)
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    hand_root.unshare(
        hand_root.NEW_NET | hand_root.NEW_MOUNT | hand_root.NEW_UTS | hand_root.NEW_IPC
    )

    def child() -> None:
        hand_root.die_with_parent()
        hand_root.mount("", "/", "", 16384 | 1 << 18)
        hand_root.mount("proc", "/proc", "proc")
        loop = Loop()
        ports: dict[int, int] = {}

        def door(index: int) -> socket.socket:
            with hand_root.inside_net(outside):
                listener = _listen("127.0.0.1", ports.get(index, 0))
            ports[index] = listener.getsockname()[1]
            hand.send({"event": "door", "door": index, "port": ports[index]})
            return listener

        hand = Hand(loop, door)
        hand.build_fabric(None)
        hand.on_shutdown = lambda: os._exit(0)
        hand.lines = Lines(loop, connection, hand.handle, lambda: os._exit(0))
        hand.send({"event": "ready", "kernel": os.uname().release})
        loop.run()

    pid = hand_root.fork_into_new_pids(child)
    connection.close()
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main(arguments: list[str]) -> None:
    """``--machine`` or ``--namespaces FD``."""
    if arguments[:1] == ["--machine"]:
        _serve_machine()
    elif arguments[:1] == ["--namespaces"]:
        _serve_namespaces(int(arguments[1]))
    else:
        raise SystemExit("the hand is started by the lab, not by hand")


if __name__ == "__main__":
    main(sys.argv[1:])
