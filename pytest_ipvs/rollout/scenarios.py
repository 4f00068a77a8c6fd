"""The scripted disruptions of a run: what each changes, and what it waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from pytest_ipvs.rollout import disrupt, drain, proxies
from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.lease import DisruptionLease
from pytest_ipvs.rollout.protocols import ClusterLike, Say
from pytest_ipvs.rollout.recorder import Recorder
from pytest_ipvs.rollout.target import Target
from pytest_ipvs.traffic.namespace import PREFIX
from pytest_ipvs.traffic.results import Results

_STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)
"""Set where the `at_once` that a disruption belongs to was interrupted; one for each thread."""


class Scenarios:
    """The part of a run that changes the cluster; `Rollout` is the rest.

    Each method is a phase of the run and returns when the change is complete.
    """

    _cluster: ClusterLike
    _say: Say
    _timeout: float
    _stack: ExitStack
    _client_node: str | None
    _recorder: Recorder | None
    _alongside: tuple[Scenarios, ...] = ()
    _released: str = ""
    _unfinished: list[str]
    """Disruptions that have begun and are not complete."""
    _doubts: list[str]
    """Why a disruption that is complete proves nothing."""
    _lease: DisruptionLease | None = None
    pause: Callable[[float], None]

    @property
    def target(self) -> Target:
        """The Deployment and its Service."""
        raise NotImplementedError

    @property
    def results(self) -> Results:
        """What the clients saw up to now."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Whether the run has not begun or has ended."""
        raise NotImplementedError

    @property
    def entry_nodes(self) -> tuple[str, ...]:
        """Nodes whose tables carry the traffic, that with most clients first; () if unknown."""
        return (self._client_node,) if self._client_node else ()

    @property
    def client_nodes(self) -> frozenset[str]:
        """Nodes with a client of this run."""
        return frozenset(self.entry_nodes)

    @property
    def client_pod_nodes(self) -> frozenset[str]:
        """Nodes with a client that is a pod, and would be evicted."""
        return frozenset()

    def alongside(self, *others: Scenarios) -> None:
        """Let other runs know of this one's disruptions, which concern their pods too.

        Each of them gets the phases, and the disruption is complete when all targets are at rest.
        """
        self._alongside = others

    def restart(self) -> None:
        """Restart all pods, as ``kubectl rollout restart`` does, and wait until it is complete."""
        api, target = self._cluster.api, self.target
        self._disrupt("restart", lambda: disrupt.restart(api, target), gone=self._uids())

    def scale(self, replicas: int) -> None:
        """Change the number of replicas and wait until it is reached."""
        if replicas < 0:
            raise ValueError(f"scale to {replicas}, expected 0 or more replicas")
        api, target = self._cluster.api, self.target
        self._disrupt(f"scale to {replicas}", lambda: disrupt.scale(api, target, replicas))

    def delete_pods(self, count: int = 1, *, names: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Delete pods, those that answered most, or those named; wait for their replacements."""
        pods = self._uids()
        if unknown := sorted(set(names) - set(pods.values())):
            raise RolloutError(f"{self.target} has no pod {unknown[0]!r}")
        if not names:
            if not 0 < count <= len(pods):
                raise ValueError(f"delete {count} pods, expected 1 to {len(pods)}")
            names = tuple(self._busiest(pods)[:count])
        api, target = self._cluster.api, self.target
        gone = {uid: name for uid, name in pods.items() if name in names}
        what = f"delete {', '.join(names)}"
        self._disrupt(what, lambda: disrupt.delete_pods(api, target, names), gone=gone)
        return names

    def endpoint_leaves(self) -> str:
        """Take one pod out of the Service while it lives on, and return its name.

        The pod that answered most loses the labels that select it. Its old connections' entries
        keep its real servers at weight 0, and it still answers with its name: so the answers tell
        what the kernel does with re-used tuples. Only for a throw-away workload, whose namespace
        takes the pod along; it is deleted when the run ends.
        """
        target, api = self.target, self._cluster.api
        if not target.namespace.startswith(PREFIX):
            raise RolloutError(
                f"endpoint_leaves() would leave a pod of {target} without an owner, expected a "
                "throw-away workload"
            )
        pods = self._uids()
        name = self._busiest(pods)[0]
        uid = next(uid for uid, found in pods.items() if found == name)
        path = f"{target.pods_path}/{name}"

        def change() -> None:
            assert self._recorder is not None
            self._recorder.release(uid)
            self._stack.callback(self._delete_quietly, path)
            self._released = name
            api.patch(path, {"metadata": {"labels": dict.fromkeys(target.service.selector)}})

        self._disrupt(f"{name} leaves the Service and lives on", change)
        return name

    def drain(self, node: str | None = None) -> str:
        """Cordon a node and evict its pods, wait until all is at rest, uncordon; the node's name.

        Without ``node`` one is chosen that has pods of the target, is no client's, and loses
        nothing by it. PodDisruptionBudgets are honoured. Raises `NotPossibleHere` without such a
        node, and `RolloutError` where another run is disrupting the cluster, or where the node has
        a pod that is a client. If we die, the next run that disrupts the cluster uncordons the
        node.
        """
        api, target = self._cluster.api, self.target
        runs = (self, *self._alongside)
        hosts = {
            str((pod.get("spec") or {}).get("nodeName")) for r in runs for pod in r.target.pods(api)
        }
        names = [found.name for found in self._cluster.nodes]
        if node is None:
            hosts = hosts.difference(*(run.client_nodes for run in runs))
            node = drain.choose_node(api, names, hosts, "")
        elif node not in names:
            raise RolloutError(f"node {node!r} is not selected, expected one of {', '.join(names)}")
        elif any(node in run.client_pod_nodes for run in runs):
            raise RolloutError(
                f"node {node} can't be drained without evicting a client, expected a run that was "
                f"opened with avoid=[{node!r}]"
            )
        elif blocked := drain.blockers(drain.pods_on(api, node)):
            raise RolloutError(f"node {node} can't be drained without loss: {blocked[0]}")
        what = f"drain {node}"
        chosen = node
        with self._alone(what) as lease:

            def change() -> None:
                drain.cordon(api, chosen, lease.holder)
                drain.evict(api, chosen, timeout=self._timeout, say=self._say, pause=self._breathe)

            gone = {
                str(pod["metadata"]["uid"]): str(pod["metadata"]["name"])
                for pod in target.pods(api)
                if (pod.get("spec") or {}).get("nodeName") == chosen
            }
            try:
                self._disrupt(what, change, gone=gone)
            finally:
                if drain.is_ours(chosen):
                    self._say(f"uncordoning node {chosen}")
                    drain.release(api, chosen, lease.holder, self._say, self.pause)
        return chosen

    def restart_kube_proxy(self, node: str | None = None) -> str:
        """Restart kube-proxy on a node (default: one whose tables carry the traffic).

        That is the client's, or the one with most client pods, or the one whose address is used.
        Raises `NotPossibleHere` where kube-proxy is no pod of a DaemonSet, and `RolloutError`
        where that node is not known and where another run is disrupting the cluster. Returns the
        node's name.
        """
        api = self._cluster.api
        names = [found.name for found in self._cluster.nodes]
        if node is not None and node not in names:
            raise RolloutError(f"node {node!r} is not selected, expected one of {', '.join(names)}")
        chosen = node or self._entry_node(names)
        pod = proxies.find_proxy_pod(api, chosen)
        what = f"restart kube-proxy on {chosen}"
        with self._alone(what):
            self._disrupt(
                what,
                lambda: proxies.restart_proxy(
                    api, chosen, pod, timeout=self._timeout, say=self._say, pause=self._breathe
                ),
            )
        return chosen

    def _entry_node(self, names: list[str]) -> str:
        for node in self.entry_nodes:
            if node in names:
                return node
        # Where it can be restarted nowhere, no node's name would help.
        proxies.find_proxy_pod(self._cluster.api, names[0])
        known = ", ".join(self.entry_nodes)
        why = f"{known} is not selected" if known else "no node is known to carry the traffic"
        raise RolloutError(
            f"restart_kube_proxy() needs node=, since {why}: expected one of {', '.join(names)}"
        )

    @contextmanager
    def _alone(self, what: str) -> Iterator[DisruptionLease]:
        """Hold the cluster's Lease. Where it is lost meanwhile, the disruption proves nothing."""
        lease = DisruptionLease(self._cluster.api, what, self._say, pause=self._breathe)
        try:
            with lease:
                self._lease = lease
                yield lease
        finally:
            self._lease = None
            if lease.lost:
                for run in (self, *self._alongside):
                    run._doubts.append(lease.lost)

    def _go_on(self) -> None:
        """Raises where the disruption must change nothing more."""
        stop = _STOP.get()
        if stop is not None and stop.is_set():
            raise RolloutError("the disruption was given up, since at_once() was interrupted")
        if self._lease is not None and self._lease.lost:
            raise RolloutError(self._lease.lost)

    def _breathe(self, seconds: float) -> None:
        """The pause between two looks of a disruption."""
        self._go_on()
        self.pause(seconds)
        self._go_on()

    def disrupt(self, name: str, change: Callable[[], object]) -> None:
        """Run a change of your own as a phase, then wait until the Deployment is at rest."""
        self._disrupt(name, change)

    def _disrupt(
        self, name: str, change: Callable[[], object], *, gone: Mapping[str, str] | None = None
    ) -> None:
        runs = (self, *self._alongside)
        for run in runs:
            if run.over:
                raise RolloutError("a disruption belongs inside the with block of its run")
            self._say(f"{run.target}: {name}")
            recorder = run._recorder
            assert recorder is not None
            # Who was there before must be known to the record before anything changes.
            recorder.read_api()
            recorder.begin(name)
            run._unfinished.append(name)
        self._go_on()
        change()
        for run in runs:
            disrupt.wait_complete(
                self._cluster.api,
                run.target,
                timeout=self._timeout,
                gone=tuple(gone or ()) if run is self else (),
                say=self._say,
                pause=self._breathe,
            )
        for run in runs:
            assert run._recorder is not None
            run._recorder.read_api()
            run._recorder.begin("settle")
            run._unfinished.remove(name)

    def _uids(self) -> dict[str, str]:
        return {
            str(pod["metadata"]["uid"]): str(pod["metadata"]["name"])
            for pod in self.target.pods(self._cluster.api)
            if not pod["metadata"].get("deletionTimestamp")
        }

    def _busiest(self, pods: Mapping[str, str]) -> list[str]:
        answers = self.results.pods
        return sorted(pods.values(), key=lambda name: (-answers[name], name))

    def _delete_quietly(self, path: str) -> None:
        try:
            self._cluster.api.delete(path)
        except Exception as error:  # its namespace goes too
            if getattr(error, "status", None) != 404:
                self._say(f"{path} was not deleted: {error}")


def at_once(*changes: Callable[[], object]) -> None:
    """Disrupt several runs at the same time: ``at_once(one.restart, two.restart)``.

    Returns when all are complete; raises what the first of them raised. Ctrl-C makes the
    disruptions of runs end at their next step, and is raised when they have ended; a change of
    your own is waited for. A second Ctrl-C does not wait.
    """
    errors: list[BaseException] = []
    # One inside another ends with it.
    stop = _STOP.get() or threading.Event()

    def body(change: Callable[[], object], ended: threading.Event) -> None:
        _STOP.set(stop)
        try:
            if not stop.is_set():
                change()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threads = {
        threading.Thread(target=body, args=(change, ended), daemon=True): ended
        for change, ended in ((change, threading.Event()) for change in changes)
    }
    try:
        for thread in threads:
            thread.start()
        _wait(threads.values())
    except BaseException:
        # The caller's with blocks end next: nothing may be disrupted after them.
        stop.set()
        _wait([ended for thread, ended in threads.items() if thread.ident is not None])
        raise
    if errors:
        raise errors[0]


def _wait(ends: Iterable[threading.Event]) -> None:
    # Not by join(): a thread whose join() was interrupted counts as ended before Python 3.13.
    for ended in ends:
        ended.wait()
