"""A cluster in memory whose Service is real: a port on loopback that plays kube-proxy and pods.

The Deployment follows its spec a little with each look at it. Connections go where IPVS would
send them: round robin over live pods, or, with ``leftover``, on a re-used source port to the pod
that the port had, until its address is gone and for ever after.
"""

from __future__ import annotations

import copy
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from pytest_ipvs.ipvs.objects import Endpoint, EndpointSlice, Node
from pytest_ipvs.policy import Policy

OK = "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{}"


class ApiNotFoundError(Exception):
    """The API's 404."""

    status = 404


class World:
    """The cluster, as far as this room looks at it."""

    def __init__(
        self, replicas: int = 2, *, leftover: bool = False, affinity: bool = False
    ) -> None:
        self.leftover = leftover
        self.affinity = affinity
        self.lock = threading.RLock()
        self.generation, self.observed, self.replicas, self.revision = 1, 1, replicas, 1
        self.number = 0
        self.pods: list[dict[str, Any]] = []
        self.released: list[dict[str, Any]] = []  # out of the Service, and alive
        self.real_servers: dict[str, int] = {}  # address -> weight
        self.sent: dict[int, str] = {}  # source port -> address
        self.calls: list[tuple[str, str]] = []
        self.objects: dict[str, dict[str, Any]] = {}
        self.broken_create = ""
        self.balancer = ""
        self.turn = 0
        for _ in range(replicas):
            self._add_pod()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        self.settings = SimpleNamespace(
            allow_disruption=True,
            client="local",
            rate=100.0,
            source_ports=40,
            baseline=0.5,
            settle=1.8,
            pre_stop=10.0,
            converge_timeout=5.0,
            image="python:3.11-slim",
        )
        self.policy = Policy(min_reused_tuples=50, drain_budget=1.0)
        self.nodes = (Node(name="node-1", internal_ips=("127.0.0.1",)),)
        self.api = self
        self.pool = self
        self.unreadable = ""  # why a node's table can't be read
        self.down = ""  # why the API server can't be reached
        self.watches_lost = ""

    def close(self) -> None:
        """Stop serving."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    # What pods and IPVS do

    def _serve(self) -> None:
        while True:
            try:
                connection, (_, port) = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                name = self._schedule(port)
                if name:
                    connection.send(OK.format(len(name) + 1, name + "\n").encode())
                else:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _schedule(self, port: int) -> str:
        with self.lock:
            alive = [*self.pods, *self.released]
            live = {p["status"]["podIP"]: p["metadata"]["name"] for p in alive}
            address = self.sent.get(port, "")
            if not (self.leftover and address):
                wanted = [a for a, weight in self.real_servers.items() if weight]
                if not wanted:
                    return ""
                self.turn += 0 if self.affinity else 1
                address = wanted[self.turn % len(wanted)]
            self.sent[port] = address
            return live.get(address, "")

    def _add_pod(self) -> None:
        self.number += 1
        name = f"web-{self.revision}-{self.number}"
        address = f"10.244.1.{self.number}"
        self.pods.append(
            {
                "metadata": {"name": name, "uid": f"uid-{name}", "revision": self.revision},
                "spec": {"nodeName": "node-1"},
                "status": {
                    "podIP": address,
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )
        self.real_servers[address] = 1

    def _step(self) -> None:
        """One step towards the spec: first what leaves is gone, then one more is replaced."""
        self.observed = self.generation
        leaving = [p for p in self.pods if p["metadata"].get("deletionTimestamp")]
        for pod in leaving:
            pod["looks"] = pod.get("looks", 0) + 1
            # It serves on for a while, as with a preStop pause.
            if pod["looks"] > 2:
                self.pods.remove(pod)
                if not self.leftover:
                    del self.real_servers[pod["status"]["podIP"]]
        staying = [p for p in self.pods if p not in leaving]
        old = [p for p in staying if p["metadata"]["revision"] != self.revision]
        if len(staying) < self.replicas or (old and len(staying) <= self.replicas):
            self._add_pod()
        elif old or len(staying) > self.replicas:
            self._leave((old or staying)[0])

    def _leave(self, pod: dict[str, Any]) -> None:
        pod["metadata"]["deletionTimestamp"] = "now"
        self.real_servers[pod["status"]["podIP"]] = 0

    # The API

    def _up(self) -> None:
        if self.down:
            raise ConnectionError(self.down)

    def get(self, path: str, **_: Any) -> dict[str, Any]:
        """The Deployment; what was created."""
        self._up()
        with self.lock:
            if path in self.objects:
                return self.objects[path]
            if "/deployments/" not in path:
                raise ApiNotFoundError(path)
            status = self._status()
            self._step()
            return {
                "metadata": {"generation": self.generation},
                "spec": {
                    "replicas": self.replicas,
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}},
                },
                "status": status,
            }

    def _status(self) -> dict[str, int]:
        staying = [p for p in self.pods if not p["metadata"].get("deletionTimestamp")]
        new = [p for p in staying if p["metadata"]["revision"] == self.revision]
        return {
            "observedGeneration": self.observed,
            "updatedReplicas": len(new),
            "replicas": len(staying),
            "availableReplicas": len(staying),
        }

    def items(self, path: str, **_: Any) -> Iterator[dict[str, Any]]:
        """Pods, Services, slices, namespaces."""
        self._up()
        with self.lock:
            if path.endswith("/pods"):
                return iter([{**p, "metadata": dict(p["metadata"])} for p in self.pods])
            if path.endswith("/services"):
                return iter([self._service(path.split("/")[4])])
            if path.endswith("/endpointslices"):
                return iter([{}])
            prefix = "/api/v1/namespaces/"
            return iter([o for p, o in self.objects.items() if p.startswith(prefix)])

    def watch(self, path: str, **_: Any) -> WorldWatch:
        """Pods, slices and events as they change."""
        return WorldWatch(self, path)

    def _service(self, namespace: str) -> dict[str, Any]:
        spec = {
            "clusterIP": "127.0.0.1",
            "clusterIPs": ["127.0.0.1"],
            "selector": {"app": "web"},
            "ports": [{"port": self.port, "protocol": "TCP"}],
        }
        if self.affinity:
            spec["sessionAffinity"] = "ClientIP"
        ingress = [{"ip": self.balancer}] if self.balancer else []
        status = {"loadBalancer": {"ingress": ingress}}
        meta = {"namespace": namespace, "name": "web"}
        return {"metadata": meta, "spec": spec, "status": status}

    def endpoint_slices_path(self) -> str:
        """Where slices are."""
        return "/apis/discovery.k8s.io/v1/endpointslices"

    def slices_of(self, _: Mapping[str, Any]) -> tuple[EndpointSlice, ...]:
        """The Service's slice."""
        ready = [a for a, weight in self.real_servers.items() if weight]
        return (
            EndpointSlice(
                namespace="shop",
                name="web-1",
                service="web",
                family="IPv4",
                ports=(),
                endpoints=tuple(Endpoint(addresses=(address,)) for address in ready),
            ),
        )

    def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        """Restart, scale, or renew a lease."""
        self._up()
        with self.lock:
            self.calls.append(("PATCH", path))
            if path in self.objects:
                self.objects[path]["spec"].update(body["spec"])
                return self.objects[path]
            for pod in self.pods:
                if path.endswith(f"/pods/{pod['metadata']['name']}"):
                    assert body == {"metadata": {"labels": {"app": None}}}
                    self.pods.remove(pod)
                    self.released.append(pod)
                    self.real_servers[pod["status"]["podIP"]] = 0
                    return {}
            self.generation += 1
            if path.endswith("/scale"):
                self.replicas = body["spec"]["replicas"]
            else:
                assert body["spec"]["template"]["metadata"]["annotations"]
                self.revision += 1
            return {}

    def create(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        """Remember an object."""
        self._up()
        with self.lock:
            self.calls.append(("POST", path))
            if body["kind"] == self.broken_create:
                raise PermissionError(f"{body['kind']} forbidden")
            self.objects[f"{path}/{body['metadata']['name']}"] = body
            if body["kind"] == "Deployment":
                del self.objects[f"{path}/{body['metadata']['name']}"]
            return dict(body)

    def delete(self, path: str, **_: Any) -> dict[str, Any]:
        """Let a pod go, or forget an object with all that is in it."""
        self._up()
        with self.lock:
            self.calls.append(("DELETE", path))
            for pod in self.pods:
                if path.endswith(f"/pods/{pod['metadata']['name']}"):
                    self._leave(pod)
                    return {}
            name = path.rpartition("/")[2]
            self.released = [p for p in self.released if p["metadata"]["name"] != name]
            gone = [p for p in self.objects if f"/namespaces/{name}" in p]
            if not gone:
                raise ApiNotFoundError(path)
            for each in gone:
                del self.objects[each]
            return {}

    # The nodes

    def run(self, name: str, command: str, *args: str) -> SimpleNamespace:
        """The table, or entries of it."""
        with self.lock:
            if command.startswith("grep -m 1"):
                return self._first_entry(*args)
            if command.startswith("grep"):
                return SimpleNamespace(rc=0, stdout=self._entries(args), stderr="")
            if self.unreadable:
                return SimpleNamespace(rc=1, stdout="", stderr=self.unreadable)
            lines = [
                "IP Virtual Server version 1.2.1 (size=4096)",
                "Prot LocalAddress:Port Scheduler Flags",
                "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
                f"TCP  7F000001:{self.port:04X} rr  ",
            ]
            for address, weight in self.real_servers.items():
                used = sum(1 for sent in self.sent.values() if sent == address)
                words = f"{hexadecimal(address)}:1F90      Masq    {weight}      0          {used}"
                lines.append(f"  -> {words}         ")
            return SimpleNamespace(rc=0, stdout="\n".join(lines) + "\n", stderr="")

    def _first_entry(self, pattern: str) -> SimpleNamespace:
        for port, address in self.sent.items():
            line = f"TCP 7F000001 {port:04X} 7F000001 {self.port:04X} {hexadecimal(address)} 1F90"
            if re.search(pattern, line):
                return SimpleNamespace(rc=0, stdout=f"{line} TIME_WAIT 99\n", stderr="")
        return SimpleNamespace(rc=1, stdout="", stderr="")

    def _entries(self, patterns: tuple[str, ...]) -> str:
        lines = ""
        for port, address in self.sent.items():
            client = f"TCP 7F000001 {port:04X} 7F000001 {self.port:04X} "
            if client in patterns:
                lines += f"{client}{hexadecimal(address)} 1F90 CLOSE             9\n"
        return lines

    def map(self, function: Callable[[str], Any], names: Any) -> dict[str, Any]:
        """Each node's answer."""
        return {name: function(name) for name in names}

    def snapshot(self) -> SimpleNamespace:
        """Facts by node."""
        values = ("0", "0") if self.leftover else ("1", "1")
        keys = ("net.ipv4.vs.conn_reuse_mode", "net.ipv4.vs.expire_nodest_conn")
        facts = SimpleNamespace(
            kernel_release="6.1.0-56-amd64",
            kernel_version="Debian 6.1.176-1",
            sysctls=dict(zip(keys, values, strict=True)),
            proxy=SimpleNamespace(version="v1.36.2", config={}),
        )
        return SimpleNamespace(facts={"node-1": facts})


class WorldWatch:
    """A list's changes, found by looking often; each is told as a new list."""

    def __init__(self, world: World, path: str) -> None:
        self.world, self.path = world, path
        self.closed = threading.Event()
        self.open = True

    def close(self) -> None:
        """End the iteration."""
        self.closed.set()

    def __iter__(self) -> Iterator[SimpleNamespace]:
        before: Any = None
        while not self.closed.is_set():
            if lost := self.world.down or self.world.watches_lost:
                raise ConnectionError(lost)
            items, state = self._look()
            if state != before:
                before = state
                listed = {"items": items}
                yield SimpleNamespace(type="LISTED", object=listed, received_at=time.time())
            self.closed.wait(0.1)

    def _look(self) -> tuple[list[dict[str, Any]], Any]:
        with self.world.lock:
            if self.path.endswith("/events"):
                return [], []
            if self.path.endswith("/pods"):
                items = copy.deepcopy(list(self.world.items(self.path)))
                return items, items
            return [{"metadata": {"name": "web-1"}}], dict(self.world.real_servers)


def hexadecimal(address: str) -> str:
    """ "0AF40101" of "10.244.1.1"."""
    return "".join(f"{int(part):02X}" for part in address.split("."))


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Until a condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
