"""A whole lab in this process: machine, API, stand-ins, demo objects, and its files."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pytest_ipvs.lab import demo, faults, machine, machine_ssh, proxy_http
from pytest_ipvs.lab.api import Server
from pytest_ipvs.lab.client import (
    DEPLOYMENTS,
    SERVICES,
    SLICES,
    SLICES_V1BETA1,
    ApiClient,
    Object,
)
from pytest_ipvs.lab.controllers_balancer import BalancerController
from pytest_ipvs.lab.controllers_cleanup import GarbageCollector, NamespaceController
from pytest_ipvs.lab.controllers_deployment import DeploymentController
from pytest_ipvs.lab.controllers_endpoints import (
    SLICE_SERVICE,
    EndpointsController,
    EndpointSliceController,
)
from pytest_ipvs.lab.controllers_job import JobController
from pytest_ipvs.lab.controllers_node import Heartbeat
from pytest_ipvs.lab.controllers_replicaset import ReplicaSetController
from pytest_ipvs.lab.controllers_scheduler import Scheduler
from pytest_ipvs.lab.faults import ActiveFault
from pytest_ipvs.lab.informers import Cluster, Controller
from pytest_ipvs.lab.kubelet import KEPT_LOG, Kubelet
from pytest_ipvs.lab.machine import Event, HandError, LabError, Machine, Progress
from pytest_ipvs.lab.options import LabOptions
from pytest_ipvs.lab.proxy import Proxy
from pytest_ipvs.lab.state import StateDirectory, ssh_config

log = logging.getLogger(__name__)

CLUSTER_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
CLIENT_HOST = 250
HOST_ADDRESS = "10.0.2.2"
READY_SECONDS = 120.0


@dataclass(slots=True)
class Steps:
    """Tells how the start goes on: one line per step, with its seconds."""

    progress: Progress
    began: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def done(self, text: str) -> None:
        """A step is over."""
        now = time.monotonic()
        self.progress(f"{text} ({now - self.last:.1f} s)")
        self.last = now


class Lab:
    """Everything that makes up one lab. Start and stop it once each."""

    def __init__(
        self,
        options: LabOptions,
        directory: StateDirectory,
        progress: Progress,
        choose: Callable[..., Machine] = machine.choose,
    ) -> None:
        self.options = options
        self.directory = directory
        self.service_cidr = SERVICE_CIDR
        self.nodes = [f"node-{index}" for index in range(1, options.nodes + 1)]
        self.clients = [
            "client" if index == 1 else f"client-{index}" for index in range(1, options.nodes + 1)
        ]
        self.active: list[ActiveFault] = []
        self.sysctls_before: dict[tuple[str, str], str] = {}
        self.kubelets: dict[str, Kubelet] = {}
        self.proxies: dict[str, Proxy] = {}
        self.machine = choose(
            options.backend,
            options.kernel,
            directory=directory.path,
            progress=progress,
            programs=options.programs,
            processors=options.processors,
        )
        self.started_at = time.time()
        self._progress = progress
        self._server: Server | None = None
        self._cluster: Cluster | None = None
        self._controllers: list[Controller] = []
        self._fault_lock = threading.Lock()

    @property
    def slices(self) -> Any:
        """The EndpointSlice resource that this version of the API serves."""
        minor = int(self.options.version.split(".")[1])
        return SLICES if minor >= 21 else SLICES_V1BETA1

    # Start

    def start(self) -> None:
        """Start everything; returns when demo/web serves on every node's table."""
        steps = Steps(self._progress)
        public = machine_ssh.generate_identity(self.directory.identity)
        keys = {
            name: machine_ssh.generate_host_key(self.directory.path / f"host_key_{name}")
            for name in [*self.nodes, *self.clients]
        }
        self.machine.on_event = self._on_event
        self.machine.start()
        steps.done(f"kernel {self.machine.kernel} is up, {self.machine.kind}")
        self._start_api()
        self._make_nodes(public, keys)
        steps.done(f"nodes are up: {', '.join(self.nodes)}; clients: {', '.join(self.clients)}")
        self._write_files(keys)
        self._register()
        self._start_stand_ins()
        steps.done("API and stand-ins run")
        self._wait_ready()
        steps.done("demo/web is available and all IPVS tables are programmed")
        self.directory.write(self.directory.record, _json(self.describe()))
        total = time.monotonic() - steps.began
        self._progress(f"the lab {self.options.name!r} is ready after {total:.1f} s")

    def _start_api(self) -> None:
        self._server = Server(
            self.options.version, service_cidr=SERVICE_CIDR, log_reader=self._read_log
        )
        self._server.start()
        self._cluster = Cluster(ApiClient(self._server.url, self._server.token))

    def _make_nodes(self, public: str, keys: dict[str, machine_ssh.HostKey]) -> None:
        for index, name in enumerate(self.nodes, 1):
            self.machine.call(
                "node_create",
                60,
                name=name,
                index=index,
                address=self.address(index),
                pod_cidr=self.pod_cidr(index),
                authorized_key=public,
                host_key=keys[name].private,
            )
        for index, name in enumerate(self.clients, 1):
            self.machine.call(
                "client_create",
                60,
                name=name,
                node=self.nodes[index - 1],
                address=f"10.244.{index}.{CLIENT_HOST}",
                authorized_key=public,
                host_key=keys[name].private,
            )

    @staticmethod
    def address(index: int) -> str:
        """The internal address of the node with that number, from 1."""
        return f"10.0.2.{100 + index}"

    @staticmethod
    def pod_cidr(index: int) -> str:
        """The pod network of the node with that number, from 1."""
        return f"10.244.{index}.0/24"

    def _write_files(self, keys: dict[str, machine_ssh.HostKey]) -> None:
        assert self._server is not None
        hosts = "".join(f"{name} {key.public}\n" for name, key in keys.items())
        self.directory.write(self.directory.known_hosts, hosts)
        endpoints = {name: self.machine.ssh_endpoint(name) for name in keys}
        addresses = {name: self.address(index) for index, name in enumerate(self.nodes, 1)}
        config = ssh_config(self.directory, endpoints, addresses)
        self.directory.write(self.directory.ssh_config, config)
        self.directory.write(self.directory.kubeconfig, self._server.kubeconfig())

    def _register(self) -> None:
        assert self._server is not None
        assert self._cluster is not None
        api = self._cluster.api
        bodies, statuses = [], []
        version = f"v{self.options.version}"
        for index, name in enumerate(self.nodes, 1):
            bodies.append(demo.node_object(name, index, self.address(index), self.pod_cidr(index)))
            statuses.append(
                demo.node_status(
                    name,
                    index,
                    self.address(index),
                    kernel=self.machine.kernel,
                    os_image=self._os_image(),
                    version=version,
                )
            )
        demo.register_nodes(api, bodies, statuses)
        demo.create(
            api,
            api_address=(HOST_ADDRESS, self._server.address[1]),
            proxy_config=proxy_http.configuration("", cluster_cidr=CLUSTER_CIDR, scheduler="rr"),
            slices=self.slices,
        )

    def _os_image(self) -> str:
        try:
            text = self.machine.call("proc", node=self.nodes[0], path="/etc/os-release")
        except HandError:
            return "Linux"
        for line in text.splitlines():
            if line.startswith("PRETTY_NAME="):
                return str(line.partition("=")[2].strip('"'))
        return "Linux"

    def _start_stand_ins(self) -> None:
        assert self._cluster is not None
        cluster = self._cluster
        self._controllers = [
            NamespaceController(cluster),
            DeploymentController(cluster),
            ReplicaSetController(cluster),
            JobController(cluster),
            Scheduler(cluster),
            EndpointsController(cluster),
            EndpointSliceController(cluster, self.slices),
            GarbageCollector(cluster, self.slices),
            Heartbeat(cluster),
            BalancerController(cluster),
        ]
        for index, name in enumerate(self.nodes, 1):
            self.kubelets[name] = Kubelet(
                cluster,
                self.machine,
                name,
                host=self.address(index),
                pod_cidr=self.pod_cidr(index),
            )
            self.proxies[name] = Proxy(
                cluster,
                self.machine,
                name,
                version=f"v{self.options.version}",
                cluster_cidr=CLUSTER_CIDR,
                sweep_period=self.options.sweep_period,
                slices=self.slices,
            )
        starters: list[Any] = [
            *self._controllers,
            *self.kubelets.values(),
            *self.proxies.values(),
        ]
        for starter in starters:
            starter.start()

    def _wait_ready(self) -> None:
        assert self._cluster is not None
        deployments = self._cluster.informer(DEPLOYMENTS)
        self._until(
            lambda: _is_available(deployments.get(demo.DEMO, "web")),
            "demo/web did not become available",
        )
        self._until(self._endpoints_known, "the Services of demo did not get their endpoints")
        for name, proxy in self.proxies.items():
            self._until(proxy.synced.is_set, f"kube-proxy's stand-in on {name} did not sync")
        self.sync_proxies()

    def _endpoints_known(self) -> bool:
        """Whether the caches have what the first tables are made of."""
        assert self._cluster is not None
        balancer = self._cluster.informer(SERVICES).get(demo.DEMO, "web-lb")
        if balancer is None or not balancer["status"].get("loadBalancer"):
            return False
        slices = self._cluster.informer(self.slices).items(demo.DEMO)
        ready = {
            item["metadata"]["labels"][SLICE_SERVICE]: sum(
                bool(entry["conditions"].get("ready")) for entry in item.get("endpoints") or []
            )
            for item in slices
        }
        return all(
            ready.get(service["metadata"]["name"]) == demo.REPLICAS
            for service in demo.services()
            if service["spec"].get("selector") == demo.SELECTOR
        )

    def _until(self, met: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not met():
            if not self.machine.alive:
                raise LabError(f"the lab's machine ended; see {self.directory.path}/console.log")
            if time.monotonic() > deadline:
                raise LabError(f"{otherwise} within {READY_SECONDS:g} s: see {self.directory.log}")
            time.sleep(0.05)

    def sync_proxies(self, nodes: Iterable[str] | None = None) -> None:
        """Program all tables (of these nodes) now; returns when the kernel has them."""
        proxies = [self.proxies[name] for name in nodes or self.nodes]
        with ThreadPoolExecutor(len(proxies)) as pool:
            list(pool.map(lambda proxy: proxy.sync_now(), proxies))

    # While it runs

    def _on_event(self, event: Event) -> None:
        if event.get("event") == "pod_exited":
            for kubelet in self.kubelets.values():
                if kubelet.exited(event["uid"], int(event["rc"])):
                    return

    def _read_log(self, pod: Object, query: Any) -> str:
        uid = pod["metadata"]["uid"]
        more = {"tail": KEPT_LOG} if query.get("follow") else {}
        try:
            text = str(self.machine.call("pod_log", uid=uid, **more))
        except LabError as error:
            kept = [kubelet.logs[uid] for kubelet in self.kubelets.values() if uid in kubelet.logs]
            text = kept[0] if kept else f"{error}\n"
        tail = query.get("tailLines")
        if tail is not None and str(tail).isdigit():
            lines = text.splitlines(keepends=True)
            return "".join(lines[len(lines) - int(tail) :]) if int(tail) else ""
        return text

    def restore(self, node: str, argv: list[str], lines: list[str]) -> None:
        """Run a restore command (ipset, iptables) on a node; raises :class:`LabError`."""
        answer = self.machine.call("exec", 60, node=node, argv=argv, stdin="\n".join([*lines, ""]))
        if answer["rc"]:
            raise LabError(f"{argv[0]} on {node} failed: {answer['err'].strip()}")

    def fault(self, name: str, node: str | None = None, service: str = "demo/web") -> ActiveFault:
        """Put a fault in force."""
        with self._fault_lock:
            return faults.put(self, name, node, service)

    def clear(self, name: str | None = None, node: str | None = None) -> list[ActiveFault]:
        """Undo a fault (on one node), or all of them."""
        with self._fault_lock:
            return faults.clear(self, name, node)

    def describe(self) -> Object:
        """What ``status`` and ``lab.json`` tell."""
        return {
            "name": self.options.name,
            "pid": os.getpid(),
            "kind": self.machine.kind,
            "kernel": self.machine.kernel,
            "version": self.options.version,
            "programs": self.options.programs,
            "started_at": self.started_at,
            "nodes": {
                name: {
                    "address": self.address(index),
                    "ssh": list(self.machine.ssh_endpoint(name)),
                }
                for index, name in enumerate(self.nodes, 1)
            },
            "clients": {
                name: {"ssh": list(self.machine.ssh_endpoint(name))} for name in self.clients
            },
            "api": list(self._server.address) if self._server else None,
            "kubeconfig": str(self.directory.kubeconfig),
            "ssh_config": str(self.directory.ssh_config),
        }

    # End

    def stop(self) -> None:
        """End everything that was started; may be called at any time, and again."""
        for kubelet in self.kubelets.values():
            kubelet.stop()
        if self._cluster is not None:
            self._cluster.close()
        # The machine first: whoever waits for an answer of its hand wakes up.
        self.machine.stop()
        for proxy in self.proxies.values():
            proxy.stop()
        for controller in self._controllers:
            controller.stop()
        if self._cluster is not None:
            self._cluster.stop()
        if self._server is not None:
            self._server.stop()
            self._server = None


def _is_available(item: Object | None) -> bool:
    if item is None:
        return False
    status = item.get("status", {})
    wanted = item["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= item["metadata"].get("generation", 1)
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
    )


def _json(value: Object) -> str:
    return json.dumps(value, indent=2) + "\n"
