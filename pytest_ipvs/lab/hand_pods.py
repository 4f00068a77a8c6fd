"""Pods of a node: a network namespace that lasts, and a process in it that comes and goes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pytest_ipvs.lab import hand_root
from pytest_ipvs.lab.hand_agent import (
    ENVIRONMENT,
    LATER,
    Agent,
    Later,
    Reply,
    memory_file,
)
from pytest_ipvs.lab.hand_loop import Loop, forget_parent
from pytest_ipvs.lab.hand_netlink import Netlink
from pytest_ipvs.lab.hand_probe import probe

__all__ = ["GATEWAY_MAC", "PodAgent", "connect_pod", "run_python"]

GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
"""Every pod's gateway has this address, as Calico does it: no pod ever waits for ARP."""


def _pod_mac(address: str) -> str:
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(address))


def connect_pod(node: Netlink, node_namespace: int, address: str, gateway: str) -> tuple[int, str]:
    """A network namespace with ``eth0``, routed to by a node.

    ``node`` works in the node's namespace, ``node_namespace`` is its descriptor. Returns the new
    namespace's descriptor and the interface's name on the node.
    """
    device = "veth" + hashlib.sha256(address.encode()).hexdigest()[:8]
    namespace = hand_root.new_net()
    try:
        with hand_root.inside_net(namespace):
            pod = Netlink()
        try:
            mac = _pod_mac(address)
            pod.add_veth("eth0", mac, device, GATEWAY_MAC, node_namespace)
            # The node's end first: the pod's end has no carrier, so no route, before it is up.
            # Its own address makes it the source of what the node masquerades towards the pod.
            node.change_address(device, f"{gateway}/32")
            node.set_link(device, up=True)
            node.add_neighbour(device, address, mac)
            node.add_route(f"{address}/32", device=device, source=gateway)
            pod.set_link("lo", up=True)
            pod.change_address("eth0", f"{address}/32")
            pod.set_link("eth0", up=True)
            pod.add_neighbour("eth0", gateway, GATEWAY_MAC)
            pod.add_route(f"{gateway}/32", device="eth0")
            pod.add_route("default", via=gateway, device="eth0")
        finally:
            pod.close()
    except BaseException:
        os.close(namespace)
        raise
    return namespace, device


@dataclass(slots=True, kw_only=True)
class _Pod:
    uid: str
    name: str
    address: str
    namespace: int
    device: str
    log: int
    pid: int | None = None
    rc: int | None = None
    gone: bool = field(default=False)


class PodAgent(Agent):
    """An agent that also has pods; ``gateway`` is the node's address in its pod network."""

    def __init__(self, loop: Loop, name: str, gateway: str) -> None:
        super().__init__(loop, name)
        self._gateway = gateway
        self._pods: dict[str, _Pod] = {}
        self._namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.operations.update(
            pod_create=self.pod_create,
            pod_exec=self.pod_exec,
            pod_signal=self.pod_signal,
            pod_delete=self.pod_delete,
            pod_probe=self.pod_probe,
            pod_log=self.pod_log,
            pod_list=self.pod_list,
        )

    def _pod(self, uid: str) -> _Pod:
        if uid not in self._pods:
            raise ValueError(f"node {self.name} has no pod {uid}")
        return self._pods[uid]

    def pod_create(
        self,
        uid: str,
        name: str,
        address: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        hostname: str | None = None,
        workdir: str = "/",
    ) -> dict[str, Any]:
        """See ``machine.OPERATIONS``."""
        pod = self._pods.get(uid)
        if pod is None:
            namespace, device = connect_pod(self.netlink, self._namespace, address, self._gateway)
            log = memory_file()
            pod = _Pod(
                uid=uid, name=name, address=address, namespace=namespace, device=device, log=log
            )
            self._pods[uid] = pod
        elif pod.pid is not None:
            raise ValueError(f"pod {uid} is running")
        if command:
            environment = ENVIRONMENT | {"HOSTNAME": hostname or name} | (env or {})
            running = pod

            def child() -> None:
                self._enter_pod(running, hostname or name, files or {})
                os.chdir(workdir)
                _become(command, environment)

            pod.rc = None
            pod.pid = hand_root.fork_into_new_pids(child)
            self.loop.on_exit(pod.pid, lambda code: self._ended(running, code))
        return {"pid": pod.pid}

    def _enter_pod(self, pod: _Pod, hostname: str, files: dict[str, str]) -> None:
        """In the pod's first process: its namespaces, its root, its output."""
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(pod.log, 1)
        os.dup2(pod.log, 2)
        os.setsid()
        hand_root.enter(pod.namespace, hand_root.NEW_NET)
        hand_root.unshare(hand_root.NEW_MOUNT | hand_root.NEW_UTS | hand_root.NEW_IPC)
        forget_parent(self, ())
        hand_root.build_root(hostname, pod.address, files)

    def _ended(self, pod: _Pod, code: int) -> None:
        pod.pid = None
        pod.rc = code
        if not pod.gone:
            self.send({"event": "pod_exited", "uid": pod.uid, "node": self.name, "rc": code})

    def pod_exec(
        self, reply: Reply, uid: str, argv: list[str], stdin: str = "", timeout: float = 30
    ) -> Later:
        """See ``machine.OPERATIONS``."""
        pod = self._pod(uid)
        if pod.pid is None:
            raise ValueError(f"pod {uid} is not running")
        source, out, err = memory_file(stdin.encode()), memory_file(), memory_file()
        kinds = {"pid": hand_root.NEW_PID, "uts": hand_root.NEW_UTS, "ipc": hand_root.NEW_IPC}
        kinds["mnt"] = hand_root.NEW_MOUNT
        where = {name: os.open(f"/proc/{pod.pid}/ns/{name}", os.O_RDONLY) for name in kinds}
        here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            hand_root.enter(where["pid"], hand_root.NEW_PID)
            try:
                pid = os.fork()
                if pid == 0:
                    self._exec_in_pod(pod, where, kinds, argv, (source, out, err))
            finally:
                hand_root.enter(here, hand_root.NEW_PID)
        finally:
            for number in (source, here, *where.values()):
                os.close(number)
        self.await_output(pid, out, err, timeout, reply)
        return LATER

    pod_exec.replies = True  # type: ignore[attr-defined]

    def _exec_in_pod(
        self,
        pod: _Pod,
        where: dict[str, int],
        kinds: dict[str, int],
        argv: list[str],
        streams: tuple[int, int, int],
    ) -> None:
        try:
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            hand_root.enter(pod.namespace, hand_root.NEW_NET)
            for name in ("uts", "ipc", "mnt"):
                hand_root.enter(where[name], kinds[name])
            forget_parent(self, ())
            os.chdir("/")
            _become(argv, ENVIRONMENT | {"HOSTNAME": socket.gethostname()})
        finally:
            os._exit(70)

    def pod_signal(self, uid: str, signal: str) -> dict[str, bool]:
        """See ``machine.OPERATIONS``."""
        pod = self._pod(uid)
        if pod.pid is None:
            return {"running": False}
        os.kill(pod.pid, _signal_number(signal))
        return {"running": True}

    def pod_delete(self, uid: str) -> None:
        """See ``machine.OPERATIONS``."""
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        pod.gone = True
        # The namespace itself ends when its last process has; the address must not wait for that.
        with contextlib.suppress(OSError):
            self.netlink.delete_link(pod.device)
        if pod.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pod.pid, signal.SIGKILL)
        os.close(pod.namespace)
        os.close(pod.log)

    def pod_probe(
        self,
        reply: Reply,
        uid: str,
        kind: str,
        port: int,
        path: str = "/",
        timeout: float = 1,
    ) -> Later:
        """See ``machine.OPERATIONS``."""
        pod = self._pod(uid)
        probe(self.loop, reply, kind, pod.address, port, path, timeout)
        return LATER

    pod_probe.replies = True  # type: ignore[attr-defined]

    def pod_log(self, uid: str, tail: int = 65536) -> str:
        """See ``machine.OPERATIONS``."""
        number = self._pod(uid).log
        size = os.fstat(number).st_size
        return os.pread(number, min(tail, size), max(0, size - tail)).decode(errors="replace")

    def pod_list(self) -> list[dict[str, Any]]:
        """See ``machine.OPERATIONS``."""
        return [
            {"uid": pod.uid, "name": pod.name, "address": pod.address, "pid": pod.pid, "rc": pod.rc}
            for pod in self._pods.values()
        ]


def _signal_number(name: str) -> int:
    return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value


def _become(argv: list[str], env: dict[str, str]) -> None:
    """Turns the calling process into a program; Python programs run in the warm interpreter."""
    name = argv[0].rsplit("/", 1)[-1]
    if name == "python" or name.startswith("python3"):
        plan = _python_plan(argv[1:])
        if plan is not None:
            run_python(plan[0], plan[1], env)
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)


def _python_plan(words: list[str]) -> tuple[Callable[[], object], list[str]] | None:
    """What to run and its sys.argv; None for options that a fork can't give."""
    while words and words[0] in ("-u", "-B", "-E", "-s", "-S", "-I"):
        words = words[1:]
    if not words:
        return None
    first, rest = words[0], words[1:]
    if first == "-c" and rest:
        code = rest[0]
        return lambda: exec(compile(code, "<string>", "exec"), _main_namespace()), ["-c", *rest[1:]]
    if first == "-m" and rest:
        module = rest[0]
        return lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), rest
    if first.startswith("-"):
        return None
    return lambda: runpy.run_path(first, run_name="__main__"), [first, *rest]


def _main_namespace() -> dict[str, Any]:
    return {"__name__": "__main__", "__builtins__": __builtins__}


def run_python(run: Callable[[], object], argv: list[str], env: dict[str, str]) -> None:
    """Runs Python code as a fresh interpreter would, then ends the process."""
    os.environ.clear()
    os.environ.update(env)
    # Unbuffered enough for logs: whole lines.
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),  # noqa: SIM115
        open(1, "w", buffering=1, closefd=False),  # noqa: SIM115
        open(2, "w", buffering=1, closefd=False),  # noqa: SIM115
    )
    sys.argv = argv
    sys.path[0:1] = [os.path.dirname(argv[0]) if argv[0] != "-c" else ""]  # noqa: PTH120
    # The kernel's name of the process, so that ps and killall show what it is.
    ctypes.CDLL(None).prctl(15, os.path.basename(argv[0])[:15].encode(), 0, 0, 0)  # noqa: PTH119
    code = 0
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int):
            code = end.code
        elif end.code is not None:
            print(end.code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)
