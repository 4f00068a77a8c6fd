"""A machine without a kernel: keeps IPVS tables, sysctls and pods in memory, for control tests."""

from __future__ import annotations

import itertools
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_ipvs.lab.machine import Event, HandError


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Polls until the condition is true; fails the test after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s: {what}")
        time.sleep(0.02)


class Table:
    """One node's IPVS table, programmed by ipvsadm's words."""

    def __init__(self) -> None:
        self.virtuals: dict[tuple[str, str], dict[str, Any]] = {}

    def apply(self, line: str) -> None:
        words = shlex.split(line)
        action, protocol, service = words[:3]
        options = dict(itertools.pairwise(words[3:]))
        key = ({"-t": "TCP", "-u": "UDP", "--sctp-service": "SCTP"}[protocol], service)
        if action in ("-A", "-E"):
            if (action == "-A") == (key in self.virtuals):
                raise ValueError(line)
            before = self.virtuals.get(key, {"servers": {}})
            self.virtuals[key] = {
                "scheduler": options["-s"],
                "persistence": options.get("-p"),
                "servers": before["servers"],
            }
        elif action == "-D":
            del self.virtuals[key]
        else:
            servers = self.virtuals[key]["servers"]
            address = options["-r"]
            if action == "-d":
                del servers[address]
                return
            if (action == "-a") == (address in servers):
                raise ValueError(line)
            connections = servers.get(address, {}).get("connections", 0)
            servers[address] = {"weight": int(options["-w"]), "connections": connections}

    def text(self) -> str:
        lines = [
            "IP Virtual Server version 1.2.1 (size=4096)",
            "Prot LocalAddress:Port Scheduler Flags",
            "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
        ]
        for (protocol, service), virtual in self.virtuals.items():
            flags = ""
            if virtual["persistence"]:
                flags = f"persistent {int(virtual['persistence']) * 250} FFFFFFFF"
            lines.append(f"{protocol}  {_hex(service)} {virtual['scheduler']}  {flags}")
            lines += [
                f"  -> {_hex(address)}      Masq    {server['weight']}      0"
                f"          {server['connections']}         "
                for address, server in virtual["servers"].items()
            ]
        return "\n".join([*lines, ""])

    def servers(self, service: str, protocol: str = "TCP") -> dict[str, int] | None:
        """Real servers and their weights; ``None`` without such a virtual server."""
        virtual = self.virtuals.get((protocol, service))
        if virtual is None:
            return None
        return {address: server["weight"] for address, server in virtual["servers"].items()}


def _hex(service: str) -> str:
    host, _, port = service.partition(":")
    return "".join(f"{int(part):02X}" for part in host.split(".")) + f":{int(port):04X}"


class FakeMachine:
    """See :class:`pytest_ipvs.lab.machine.Machine`; what was called is in ``calls``."""

    kind = "namespace"
    kernel = "6.1.0-56-amd64"
    alive = True

    def __init__(self) -> None:
        self.on_event: Callable[[Event], None] | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.tables: dict[str, Table] = {}
        self.sysctls: dict[tuple[str, str], str] = {}
        self.device: dict[str, set[str]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.ready = True
        self.ignores_term = False
        self.exec_rc = 0
        self.stopped_ssh: set[str] = set()
        self.http: dict[tuple[str, int], dict[str, Any]] = {}
        self._lock = threading.RLock()

    def table(self, node: str) -> Table:
        return self.tables.setdefault(node, Table())

    def of(self, op: str) -> list[dict[str, Any]]:
        """Arguments of all calls of one operation."""
        with self._lock:
            return [arguments for name, arguments in self.calls if name == op]

    def start(self) -> None: ...

    def stop(self) -> None:
        self.alive = False

    def ssh_endpoint(self, node: str) -> tuple[str, int]:
        return "127.0.0.1", 2200 + len(node)

    def call(self, op: str, /, timeout: float = 30, **arguments: Any) -> Any:
        with self._lock:
            self.calls.append((op, arguments))
            return getattr(self, f"_{op}")(**arguments)

    def _sysctl(self, node: str, values: dict[str, str | None]) -> dict[str, str]:
        for key, value in values.items():
            if value is not None:
                self.sysctls[(node, key)] = value
        return {key: self.sysctls.get((node, key), "1") for key in values}

    def _exec(self, node: str, argv: list[str], stdin: str = "") -> dict[str, Any]:
        out = ""
        if argv[:2] == ["ip", "-4"]:
            out = (
                "1: lo    inet 127.0.0.1/8 scope host lo\n"
                f"2: eth0    inet 10.0.2.10{node[-1]}/24 scope global eth0\n"
                "3: kube-ipvs0    inet 10.96.10.1/32 scope global kube-ipvs0\n"
            )
        return {"rc": self.exec_rc, "out": out, "err": "no" if self.exec_rc else ""}

    def _proc(self, node: str, path: str) -> str:
        if path != "/proc/net/ip_vs":
            raise HandError("proc", f"{path} does not exist")
        return self.table(node).text()

    def _addresses(
        self,
        node: str,
        device: str,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
    ) -> list[str]:
        present = self.device.setdefault(node, set())
        present |= set(add)
        present -= set(remove)
        return sorted(present)

    def _ipvs_restore(self, node: str, lines: list[str]) -> dict[str, Any]:
        for line in lines:
            self.table(node).apply(line)
        return {"applied": len(lines), "errors": []}

    def _http_serve(self, node: str, port: int, address: str, routes: dict[str, Any]) -> None:
        self.http[(node, port)] = dict(routes)

    def _http_update(self, node: str, port: int, routes: dict[str, Any]) -> None:
        self.http[(node, port)] |= routes

    def _http_stop(self, node: str, port: int) -> None:
        del self.http[(node, port)]

    def _pod_create(self, uid: str, **arguments: Any) -> dict[str, Any]:
        if arguments["command"][0] == "missing-program":
            raise HandError("pod_create", "there is no program missing-program")
        self.pods[uid] = {**arguments, "running": True, "signals": []}
        return {"pid": 1}

    def _pod_exec(self, uid: str, argv: list[str]) -> dict[str, Any]:
        return {"rc": self.exec_rc, "out": "", "err": ""}

    def _pod_signal(self, uid: str, signal: str) -> dict[str, bool]:
        pod = self.pods[uid]
        pod["signals"].append(signal)
        if signal == "KILL" or (signal == "TERM" and not self.ignores_term):
            self.end(uid, 137 if signal == "KILL" else 0)
        return {"running": pod["running"]}

    def end(self, uid: str, code: int) -> None:
        """The pod's process ends by itself."""
        with self._lock:
            if not self.pods[uid]["running"]:
                return
            self.pods[uid]["running"] = False
        if self.on_event is not None:
            self.on_event({"event": "pod_exited", "uid": uid, "rc": code})

    def _pod_delete(self, uid: str) -> None:
        self.pods.pop(uid, None)

    def _pod_probe(self, uid: str, kind: str, port: int, path: str) -> dict[str, Any]:
        return {"ok": self.ready and self.pods[uid]["running"], "detail": "fake"}

    def _sshd_stop(self, node: str) -> None:
        self.stopped_ssh.add(node)

    def _sshd_start(self, node: str) -> None:
        self.stopped_ssh.discard(node)
