"""Probes and lifecycle handlers of the kubelet stand-in."""

from __future__ import annotations

import time

from pytest_ipvs.lab.client import Object
from pytest_ipvs.lab.kubelet_pod import PodSpecError, port_number
from pytest_ipvs.lab.machine import LabError, Machine

EAGER = 0.5


class Probe:
    """One probe of one container: when it is due, and what its thresholds make of its answers.

    Until its first success it is asked every half second, if its period is longer, so that a
    rollout in the lab need not wait for a period of ten.
    """

    def __init__(self, machine: Machine, uid: str, container: Object, spec: Object) -> None:
        self._machine = machine
        self._uid = uid
        self._container = container
        self._spec = spec
        self._period = float(spec.get("periodSeconds") or 10)
        self._timeout = float(spec.get("timeoutSeconds") or 1)
        self._streak = 0
        self._last: bool | None = None
        self._succeeded = False
        self.passing: bool | None = None
        """``None`` until a threshold was reached."""
        self.detail = ""
        self.due = time.monotonic() + float(spec.get("initialDelaySeconds") or 0)

    def ask(self) -> bool:
        """Ask once; whether :attr:`passing` changed."""
        ok = self._ask()
        self._succeeded = self._succeeded or ok
        self.due = time.monotonic() + (
            self._period if self._succeeded else min(self._period, EAGER)
        )
        self._streak = self._streak + 1 if ok == self._last else 1
        self._last = ok
        threshold = int(self._spec.get("successThreshold" if ok else "failureThreshold") or 0)
        if self._streak < (threshold or (1 if ok else 3)) or self.passing == ok:
            return False
        self.passing = ok
        return True

    def _ask(self) -> bool:
        try:
            if "exec" in self._spec:
                answer = self._machine.call(
                    "pod_exec",
                    self._timeout,
                    uid=self._uid,
                    argv=self._spec["exec"]["command"],
                )
                self.detail = (answer["out"] + answer["err"]).strip()
                return bool(answer["rc"] == 0)
            kind = "http" if "httpGet" in self._spec else "tcp"
            where = self._spec.get("httpGet") or self._spec.get("tcpSocket")
            if where is None:
                self.detail = "the lab knows httpGet, tcpSocket and exec probes only"
                return False
            answer = self._machine.call(
                "pod_probe",
                self._timeout,
                uid=self._uid,
                kind=kind,
                port=port_number(self._container, where["port"]),
                path=where.get("path") or "/",
            )
            self.detail = str(answer.get("detail", ""))
            return bool(answer["ok"])
        except (LabError, PodSpecError) as error:
            self.detail = str(error)
            return False


def sleep_of(handler: Object) -> float | None:
    """The seconds of a preStop that only sleeps; ``None`` if it does something else.

    A sleep is kept by our own clock: the effect is the same, and the slow guest starts no process.
    """
    if "sleep" in handler:
        return float(handler["sleep"]["seconds"])
    words = handler.get("exec", {}).get("command") or []
    if len(words) == 3 and words[0] in ("sh", "/bin/sh", "bash") and words[1] == "-c":
        words = words[2].split()
    if len(words) == 2 and words[0] in ("sleep", "/bin/sleep"):
        try:
            return float(words[1].removesuffix("s"))
        except ValueError:
            return None
    return None


def run_handler(
    machine: Machine, uid: str, container: Object, handler: Object, timeout: float
) -> str | None:
    """Run a preStop or postStart handler that is not a mere sleep; ``None`` or why it failed."""
    try:
        if "exec" in handler:
            answer = machine.call("pod_exec", timeout, uid=uid, argv=handler["exec"]["command"])
            return None if answer["rc"] == 0 else f"exit status {answer['rc']}"
        if "httpGet" in handler:
            where = handler["httpGet"]
            answer = machine.call(
                "pod_probe",
                timeout,
                uid=uid,
                kind="http",
                port=port_number(container, where["port"]),
                path=where.get("path") or "/",
            )
            return None if answer["ok"] else str(answer.get("detail"))
        return "the lab knows exec, httpGet and sleep handlers only"
    except (LabError, PodSpecError) as error:
        return str(error)
