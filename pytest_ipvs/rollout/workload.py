"""A throw-away Deployment and Service in a namespace of ours, removed whatever happens."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple

from pytest_ipvs.rollout.disrupt import wait_complete
from pytest_ipvs.rollout.errors import DisruptionNotAllowed
from pytest_ipvs.rollout.manifests import NAME, manifests
from pytest_ipvs.rollout.protocols import ApiLike, ClusterLike, Say, silent
from pytest_ipvs.rollout.record import is_ready
from pytest_ipvs.rollout.tables import wait_programmed
from pytest_ipvs.rollout.target import Target, find_target
from pytest_ipvs.rollout.times import age_of
from pytest_ipvs.traffic.namespace import (
    LEASE,
    LEASE_SECONDS,
    MANAGED_BY,
    PREFIX,
    OwnNamespace,
    delete_namespace,
)

ORPHAN_SECONDS = 600.0
"""A namespace of ours without a lease is one whose making was cut short: removed after this."""

POLL_SECONDS = 1.0
WATCH_SECONDS = 5.0
"""Between two looks at the lease of a namespace that seems to be a dead run's."""


class PodPlace(NamedTuple):
    """A pod: its name, its address, its node, and the node's address."""

    name: str
    address: str
    node: str
    host: str


class Workload:
    """``with Workload(cluster, replicas=3) as web: ...``, or `create` and `remove`.

    The Service "web" has port 80 on ``address``; each answer's body is the pod's name.
    ``affinity``: True or seconds for ClientIP affinity. ``node_port`` makes it reachable from
    outside. ``ending``: how the application ends connections, "fin", "rst" or "client".
    ``pre_stop``: seconds that a pod serves on after its deletion (``None``: ``--ipvs-pre-stop``),
    and ``grace`` those after which it is killed. ``load_balancer``: the address to ask a load
    balancer for, or "auto" for any.
    ``host_port``: a port of its node leads to each pod too, see `host_port`. All of it lives in an
    `OwnNamespace`.
    """

    def __init__(
        self,
        cluster: ClusterLike,
        *,
        replicas: int = 3,
        affinity: bool | int = False,
        node_port: bool = False,
        image: str | None = None,
        ending: str = "fin",
        pre_stop: float | None = None,
        grace: int | None = None,
        env: Mapping[str, str] | None = None,
        load_balancer: str | None = None,
        host_port: bool = False,
        timeout: float = 180.0,
        progress: Say = silent,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas is {replicas}, expected 1 or more")
        if ending not in ("fin", "rst", "client"):
            raise ValueError(f"ending is {ending!r}, expected fin, rst or client")
        self._cluster = cluster
        self._api: ApiLike = cluster.api
        self.say = progress
        if pre_stop is None:
            pre_stop = cluster.settings.pre_stop
        self.grace = grace if grace is not None else math.ceil(pre_stop) + 20
        # Below the node ports, and one of many: two pods of a node can't have the same.
        self.host_port = 20000 + secrets.randbelow(9000) if host_port else None
        self._timeout = timeout
        self._balanced = bool(load_balancer)
        # Whoever does not know it can't make our pods connect to others.
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._made: Target | None = None
        self._own = OwnNamespace(self._api)
        self.namespace = self._own.name
        self.service = NAME
        self.pause: Callable[[float], None] = self._pause
        self._manifests = manifests(
            namespace=self.namespace,
            replicas=replicas,
            affinity=affinity,
            node_port=node_port,
            image=image or cluster.settings.image,
            ending=ending,
            pre_stop=pre_stop,
            grace=self.grace,
            env={"CALL_TOKEN": self._token, **(env or {})},
            load_balancer=load_balancer,
            host_port=self.host_port,
        )

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def __str__(self) -> str:
        return self.target

    @property
    def target(self) -> str:
        """ "namespace/deployment", as `Rollout` takes it."""
        return f"{self.namespace}/{NAME}"

    @property
    def address(self) -> str:
        """The Service's cluster IP."""
        return self._ready().address

    @property
    def port(self) -> int:
        """The Service's port."""
        return self._ready().address_port

    @property
    def node_port(self) -> int | None:
        """The Service's node port, if it has one."""
        return self._ready().port.node_port

    @property
    def balancer(self) -> str:
        """The address that a load balancer gave the Service, "" without one."""
        return self._ready().balancer

    def pods(self) -> list[PodPlace]:
        """The ready pods that stay, by name."""
        found = [
            PodPlace(
                name=str(pod["metadata"]["name"]),
                address=str(pod["status"]["podIP"]),
                node=str(pod["spec"].get("nodeName", "")),
                host=str(pod["status"].get("hostIP", "")),
            )
            for pod in self._ready().pods(self._api)
            if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
        ]
        return sorted(found)

    def call(self, *targets: str) -> str:
        """The path that makes a pod connect to "ADDRESS:PORT" and answer with who answered there.

        Several targets are connected from one source port.
        """
        return f"/call/{self._token}/{','.join(targets)}"

    def _ready(self) -> Target:
        if self._made is None:
            raise RuntimeError("the workload has no address before create()")
        return self._made

    def create(self) -> Workload:
        """Make everything and wait until all pods are ready; nothing is left if that fails."""
        if not self._cluster.settings.allow_disruption:
            raise DisruptionNotAllowed("a throw-away workload")
        remove_stale(self._api, self.say, self.pause)
        self.say(f"making namespace {self.namespace} with a Deployment and a Service")
        try:
            self._own.create()
            for path, body in self._manifests:
                self._api.create(path, body)
            target = self._find()
            wait_complete(self._api, target, timeout=self._timeout, say=self.say, pause=self.pause)
            if self._balanced:
                target = self._await_balancer()
            wait_programmed(
                self._cluster,
                target,
                timeout=self._cluster.settings.converge_timeout,
                say=self.say,
                pause=self.pause,
            )
            self._made = target
        except BaseException:
            self.remove()
            raise
        return self

    def _find(self) -> Target:
        return find_target(self._api, self.target, service=NAME)

    def _await_balancer(self) -> Target:
        """The target with its load balancer's address, or without one if none comes in time."""
        self.say(f"{self.target}: waiting for the address of a load balancer")
        deadline = time.monotonic() + self._timeout
        while not (target := self._find()).balancer and time.monotonic() < deadline:
            self.pause(POLL_SECONDS)
        return target

    def remove(self) -> None:
        """Delete the namespace with all that is in it. Safe to call twice."""
        self._stop.set()
        if self._own.exists:
            self.say(f"removing namespace {self.namespace}")
        self._own.remove()

    def __enter__(self) -> Workload:
        return self.create()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def remove_stale(
    api: ApiLike, say: Say = silent, pause: Callable[[float], None] = time.sleep
) -> list[str]:
    """Remove namespaces of ours whose run has died: their lease was not renewed in time.

    By our clock, and then while we watch them for as long: clocks of two machines may differ.
    """
    found: dict[str, str] = {}
    label = f"app.kubernetes.io/managed-by={MANAGED_BY}"
    for namespace in list(api.items("/api/v1/namespaces", labelSelector=label)):
        name = str(namespace["metadata"]["name"])
        # A label alone is too little to delete somebody's namespace by.
        if not name.startswith(PREFIX) or namespace["metadata"].get("deletionTimestamp"):
            continue
        created = str(namespace["metadata"].get("creationTimestamp", ""))
        renewed = _renewed(api, name)
        if age_of(renewed or created) > (LEASE_SECONDS if renewed else ORPHAN_SECONDS):
            found[name] = renewed
    # One without a lease has no owner that could renew it, and its age is the server's.
    if leased := [name for name, renewed in found.items() if renewed]:
        say(f"watching for {LEASE_SECONDS} s whether {', '.join(leased)} is in use by another run")
        for _ in range(math.ceil(LEASE_SECONDS / WATCH_SECONDS)):
            pause(WATCH_SECONDS)
            found = {name: old for name, old in found.items() if _renewed(api, name) == old}
            if not any(found.values()):
                break
    for name in found:
        say(f"removing namespace {name}, left behind by a run that died")
        delete_namespace(api, name)
    return list(found)


def _renewed(api: ApiLike, namespace: str) -> str:
    """When its owner renewed its lease, as text; "" without a lease."""
    try:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
        return str((api.get(path).get("spec") or {}).get("renewTime") or "")
    except Exception as error:
        if getattr(error, "status", None) != 404:
            raise
        return ""
