"""The life of one pod on the kubelet stand-in's node, from its binding to its deletion."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from pytest_ipvs.lab import host_ports
from pytest_ipvs.lab.blackout import RESTARTED_AT
from pytest_ipvs.lab.client import PODS, ApiError, Object
from pytest_ipvs.lab.controllers_replicaset import is_terminating
from pytest_ipvs.lab.informers import timestamp
from pytest_ipvs.lab.kubelet_pod import (
    SERVER_PATH,
    PodSpecError,
    Status,
    command,
    container_of,
    environment,
    files,
    server_source,
)
from pytest_ipvs.lab.kubelet_probe import Probe, run_handler, sleep_of
from pytest_ipvs.lab.machine import LabError

if TYPE_CHECKING:
    from pytest_ipvs.lab.kubelet import Kubelet

log = logging.getLogger(__name__)

MIN_GRACE = 2.0
IDLE = 3600.0
ENDING_FILE = "/opt/lab/ending"
"""Where a server that is started while a fault changes endings reads its ending."""
FIRST_BACKOFF = 10.0
MAX_BACKOFF = 300.0
CRASH_AFTER = 4.0


class PodWorker:
    """Runs one pod from its binding to its deletion."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self._kubelet = kubelet
        self._pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.name: str = pod["metadata"]["name"]
        self.namespace: str = pod["metadata"]["namespace"]
        self._wake = threading.Condition()
        self._gone = False
        self._stopping = False
        self._abandoned = False
        self._exit: int | None = None
        self._kick = False
        self._address: str | None = None
        self._created = False
        self._running = False
        self._ready = False
        self._started_at = ""
        self._status = Status(pod, kubelet.host)
        self._ending_lock = threading.Lock()
        self._reporting = threading.Lock()
        self._ending_now: str | None = None
        self._ending_by_file = False
        self._ending_own = "fin"
        self._crashed = False
        self._crash_at = math.inf
        self._readiness: Probe | None = None
        self._liveness: Probe | None = None
        self._startup: Probe | None = None
        self._thread = threading.Thread(target=self._run, name=f"pod-{self.name}", daemon=True)

    # Called by others

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def update(self, pod: Object, *, gone: bool) -> None:
        """The API has news of the pod."""
        with self._wake:
            self._pod = pod
            self._gone = self._gone or gone
            self._wake.notify_all()

    def exited(self, code: int) -> None:
        """The pod's process ended."""
        with self._wake:
            self._exit = code
            self._wake.notify_all()

    def abandon(self) -> None:
        """Leave the pod alone: the lab is going down."""
        with self._wake:
            self._abandoned = True
            self._wake.notify_all()

    @property
    def runs_server(self) -> bool:
        """Whether the pod's program is the server that knows SIGUSR1 and SIGUSR2."""
        container = self._pod["spec"]["containers"][0]
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        return not container.get("command") or any("server.py" in word for word in words)

    @property
    def is_running(self) -> bool:
        """Whether the pod's process runs."""
        return self._running

    def follow_ending(self) -> None:
        """Tell a ready server how the node's behaviour wants connections to end."""
        with self._ending_lock:
            wanted = self._kubelet.behaviour.ending
            if not (self.runs_server and self._running and self._ready):
                # A server that is just starting might not have its signal handlers yet.
                return
            if wanted == self._ending_now:
                return
            if self._ending_by_file:
                script = 'printf %s "$1" > "$2"'
                text = wanted or self._ending_own
                argv = ["sh", "-c", script, "ending", text, ENDING_FILE]
                self._kubelet.machine.call("pod_exec", uid=self.uid, argv=argv)
                self.signal("HUP")
            else:
                self.signal("USR1" if wanted == "rst" else "USR2")
            self._ending_now = wanted

    def signal(self, name: str) -> None:
        """Send a signal to the pod's process."""
        self._kubelet.machine.call("pod_signal", uid=self.uid, signal=name)

    def report_readiness(self) -> None:
        """Tell the API again: what hides the readiness of pods has begun or ended."""
        if self._running and self._ready:
            self._report_running()

    # The worker's own thread

    def _run(self) -> None:
        try:
            self._live()
        except LabError as error:
            if not self._abandoned:
                log.warning("pod %s: %s", self.name, error)
        except Exception:
            log.exception("pod %s", self.name)
        finally:
            if not self._abandoned:
                self._release()
            self._kubelet.forget(self.uid)

    def _live(self) -> None:
        restarts_at = 0.0
        self._report("Pending", _waiting("ContainerCreating"), sandbox=False)
        while not (self._ending or self._abandoned):
            due = not self._running and time.monotonic() >= restarts_at
            if due and not self._launch():
                restarts_at = time.monotonic() + FIRST_BACKOFF
                continue
            if self._running:
                self._wait(min(self._probes_due(), self._crash_at))
                self._probe()
                self._crash_if_due()
            else:
                self._wait(restarts_at)
            code = self._take_exit()
            if code is not None:
                backoff = self._after_exit(code)
                if backoff is None:
                    self._rest()
                    break
                restarts_at = time.monotonic() + backoff
        if not self._abandoned:
            self._terminate()

    @property
    def _ending(self) -> bool:
        return self._gone or is_terminating(self._pod)

    def _wait(self, until: float) -> None:
        """Sleep until the moment, or until there are news."""
        with self._wake:
            # The pod's deletion is news until it has begun here, also if it came before the wait:
            # nobody tells it twice.
            self._wake.wait_for(
                lambda: (
                    self._exit is not None
                    or self._gone
                    or self._abandoned
                    or (self._ending and not self._stopping)
                ),
                max(0.0, until - time.monotonic()),
            )

    def _take_exit(self) -> int | None:
        with self._wake:
            code, self._exit = self._exit, None
        return code

    def _launch(self) -> bool:
        kubelet = self._kubelet
        try:
            container = container_of(self._pod)
            if self._address is None:
                self._address = kubelet.addresses.take()
                self._status.address(self._address)
            pod = dict(self._pod)
            pod["status"] = {
                **pod.get("status", {}),
                "podIP": self._address,
                "hostIP": kubelet.host,
            }
            env = environment(pod, container, kubelet.sources, {})
            late = kubelet.behaviour.listens_late if self._restarted_at else 0.0
            if late and self.runs_server:
                env["LISTEN_DELAY"] = f"{late:g}"
            words = command(pod, container, env)
            content = files(pod, container, kubelet.sources)
            # Read once: a fault may be put in or cleared at this moment.
            ending = kubelet.behaviour.ending
            if ending and self.runs_server:
                env["ENDING_FILE"] = ENDING_FILE
                content[ENDING_FILE] = ending
            self._ending_now = ending
            self._ending_by_file = ending is not None
            self._ending_own = env.get("ENDING", "fin")
            if SERVER_PATH in words:
                content[SERVER_PATH] = server_source()
            self._created = True
            kubelet.machine.call(
                "pod_create",
                60,
                uid=self.uid,
                node=kubelet.node,
                name=self.name,
                address=self._address,
                command=words,
                env=env,
                files=content,
                hostname=pod["spec"].get("hostname") or self.name,
                workdir=container.get("workingDir") or "/",
            )
            host_ports.change(kubelet.machine, kubelet.node, container, self._address, "-A")
        except (PodSpecError, LabError, ApiError) as error:
            if self._abandoned:
                return False
            reason = getattr(error, "reason", None) or "CreateContainerError"
            self._report("Pending", _waiting(str(reason), str(error)), sandbox=False)
            self._tell("Failed", f"Error: {error}", warning=True)
            self._remove()
            return False
        self._running = True
        self._started_at = timestamp()
        spec = container
        self._readiness = None if late else self._make_probe(spec, "readinessProbe")
        self._liveness = self._make_probe(spec, "livenessProbe")
        self._startup = self._make_probe(spec, "startupProbe")
        self._ready = self._readiness is None and self._startup is None
        self._report_running()
        self._tell("Started", f"Started container {container['name']}")
        return True

    def _make_probe(self, container: Object, key: str) -> Probe | None:
        spec = container.get(key)
        if not spec:
            return None
        return Probe(self._kubelet.machine, self.uid, container, spec)

    def _active_probes(self) -> list[Probe]:
        if self._startup is not None and not self._startup.passing:
            return [self._startup]
        probes = [self._readiness]
        if not self._ending:
            probes.append(self._liveness)
        return [probe for probe in probes if probe is not None]

    def _probes_due(self) -> float:
        return min((probe.due for probe in self._active_probes()), default=time.monotonic() + IDLE)

    def _probe(self) -> None:
        now = time.monotonic()
        for probe in self._active_probes():
            if probe.due > now or self._exit is not None:
                continue
            if not probe.ask():
                continue
            if probe is self._readiness:
                if probe.passing:
                    self._ready = True
                    self.follow_ending()
                    self._entered_service()
                else:
                    self._ready = False
                    self._tell("Unhealthy", f"Readiness probe failed: {probe.detail}", warning=True)
                self._report_running()
            elif probe is self._startup and probe.passing:
                if self._readiness is None:
                    self._ready = True
                    self._report_running()
            elif not probe.passing:
                self._tell("Unhealthy", f"Probe failed: {probe.detail}", warning=True)
                self.signal("KILL")

    @property
    def _restarted_at(self) -> str:
        """When the rollout was asked for that this pod belongs to; "" for a pod of no restart."""
        return str((self._pod["metadata"].get("annotations") or {}).get(RESTARTED_AT) or "")

    def _entered_service(self) -> None:
        """What faults do with a restarted pod that has become ready."""
        behaviour = self._kubelet.behaviour
        if not self._restarted_at or not self.runs_server:
            return
        if behaviour.blackout is not None:
            behaviour.blackout.became_ready(self.namespace, self._restarted_at)
        if behaviour.crash_lag and not self._crashed:
            self._crash_at = time.monotonic() + CRASH_AFTER

    def _crash_if_due(self) -> None:
        if time.monotonic() >= self._crash_at and self._running:
            self._crash_at = math.inf
            self._crashed = True
            self.signal("KILL")

    def _after_exit(self, code: int) -> float | None:
        """Seconds until the restart; ``None`` when the container stays down."""
        if self._crashed:
            self._pause(self._kubelet.behaviour.crash_lag)
        self._running = self._ready = False
        state = self._terminated(code)
        policy = self._pod["spec"].get("restartPolicy", "Always")
        if policy == "Never" or (policy == "OnFailure" and code == 0):
            self._report("Succeeded" if code == 0 else "Failed", state, sandbox=False)
            return None
        self._status.last_state = state
        self._status.restarts += 1
        if self._status.restarts == 1:
            self._report("Running", state)
            return 0.0
        backoff: float = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** (self._status.restarts - 2))
        message = f"back-off {backoff:.0f}s restarting failed container"
        self._report("Running", _waiting("CrashLoopBackOff", message))
        self._tell("BackOff", "Back-off restarting failed container", warning=True)
        return backoff

    def _rest(self) -> None:
        """The pod is finished: free its address, then wait for its deletion."""
        self._release()
        while not (self._ending or self._abandoned):
            self._wait(time.monotonic() + IDLE)

    def _terminate(self) -> None:
        self._stopping = True
        kubelet = self._kubelet
        early = kubelet.behaviour.dies_early
        grace = float(self._pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        if self._gone:
            grace = 0.0
        code = 0
        if self._running:
            self._tell("Killing", "Stopping container")
            deadline = time.monotonic() + grace
            if early or self._gone:
                self.signal("KILL")
                self._release()
                code = 137
                if early:
                    self._pause(kubelet.behaviour.report_delay)
            else:
                code = self._stop_process(deadline)
            self._running = self._ready = False
            phase = "Succeeded" if code == 0 else "Failed"
            if not self._gone:
                self._report(phase, self._terminated(code), sandbox=not early)
        self._release()
        if not self._gone:
            namespace = self._pod["metadata"]["namespace"]
            kubelet.cluster.api.delete(PODS, namespace, self.name, uid=self.uid, grace=0)

    def _stop_process(self, deadline: float) -> int:
        """preStop, SIGTERM, SIGKILL; the exit code."""
        container = self._pod["spec"]["containers"][0]
        handler = (container.get("lifecycle") or {}).get("preStop")
        code: int | None = None
        if handler and deadline > time.monotonic():
            seconds = sleep_of(handler)
            if seconds is not None:
                code = self._serve_until(min(deadline, time.monotonic() + seconds))
            else:
                left = max(1.0, deadline - time.monotonic())
                failure = run_handler(self._kubelet.machine, self.uid, container, handler, left)
                if failure:
                    self._tell("FailedPreStopHook", f"PreStopHook failed: {failure}", warning=True)
                code = self._take_exit()
        if code is None:
            # However long preStop took, the process gets a moment after SIGTERM.
            deadline = max(deadline, time.monotonic() + MIN_GRACE)
            self.signal("TERM")
            code = self._serve_until(deadline)
        if code is None:
            self.signal("KILL")
            code = self._serve_until(time.monotonic() + 10)
        return 137 if code is None else code

    def _serve_until(self, deadline: float) -> int | None:
        """Go on probing until the deadline or the process's end; its exit code, if it ended."""
        while not self._abandoned:
            self._wait_probing(deadline)
            code = self._take_exit()
            if code is not None:
                return code
            # A deletion can be cut short: --force, or a shorter grace period.
            if self._gone or time.monotonic() >= deadline:
                return None
        return None

    def _wait_probing(self, deadline: float) -> None:
        self._wait(min(deadline, self._probes_due()))
        if self._exit is None and time.monotonic() < deadline:
            self._probe()

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (self._gone or self._abandoned):
            with self._wake:
                self._wake.wait(deadline - time.monotonic())

    def _release(self) -> None:
        """Remove the namespace and the address, if there are any."""
        self._remove()
        if self._address is not None:
            self._kubelet.addresses.give_back(self._address)
            self._address = None

    def _remove(self) -> None:
        if self._created:
            self._created = False
            kubelet, container = self._kubelet, self._pod["spec"]["containers"][0]
            if self._address is not None:
                host_ports.change(kubelet.machine, kubelet.node, container, self._address, "-D")
            if self._pod["spec"].get("restartPolicy", "Always") != "Always":
                # The log of a pod that has run to its end can be read until the pod is deleted.
                kubelet.keep_log(self.uid)
            kubelet.machine.call("pod_delete", uid=self.uid)

    def _terminated(self, code: int) -> Object:
        return {
            "terminated": {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": self._started_at or timestamp(),
                "finishedAt": timestamp(),
                "containerID": f"lab://{self.uid}",
            }
        }

    def _report_running(self) -> None:
        self._report("Running", {"running": {"startedAt": self._started_at}})

    def _report(self, phase: str, state: Object, *, sandbox: bool = True) -> None:
        # One at a time: what another thread reports must not be overtaken by what was true before.
        with self._reporting:
            blackout = self._kubelet.behaviour.blackout
            hidden = blackout is not None and blackout.hides(self.namespace)
            ready = self._ready and not hidden
            status = self._status.whole(phase, state, ready=ready, sandbox=sandbox)
            body = {"metadata": {"uid": self.uid}, "status": status}
            for attempt in range(5):
                try:
                    self._kubelet.cluster.patch(PODS, self._pod, body, "status")
                    return
                except ApiError as error:
                    if error.status == 404:
                        return
                    if error.status != 409 or attempt == 4:
                        raise

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        if self._abandoned:
            return
        self._kubelet.cluster.event(
            self._pod,
            kind="Pod",
            reason=reason,
            message=message,
            source="kubelet",
            warning=warning,
        )


def _waiting(reason: str, message: str = "") -> Object:
    inner = {"reason": reason}
    if message:
        inner["message"] = message
    return {"waiting": inner}
