"""The machine as namespaces of this kernel, for root on a kernel with IPVS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest_ipvs
from pytest_ipvs.lab.install import missing_packages, which
from pytest_ipvs.lab.machine import LabError, Progress
from pytest_ipvs.lab.machine_rpc import Child, MachineBase

__all__ = ["NamespaceMachine", "obstacle"]

_MODULES = "ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_sh ip_vs_mh veth bridge dummy nf_conntrack"


def obstacle() -> str | None:
    """Why nodes can't be namespaces of this kernel, in one clause; None if they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    modprobe = which("modprobe")
    if modprobe:
        subprocess.run([modprobe, "-q", "-a", *_MODULES.split()], capture_output=True, check=False)
    if not Path("/proc/net/ip_vs").exists():
        return f"kernel {os.uname().release} has no ip_vs, and modprobe could not load it"
    return None


class NamespaceMachine(MachineBase):
    """See :class:`~pytest_ipvs.lab.machine.Machine`."""

    kind = "namespace"

    def __init__(self, directory: Path, *, progress: Progress | None = None) -> None:
        super().__init__(directory, progress)
        self._child: Child | None = None

    def start(self) -> None:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        reason = obstacle()
        if reason is not None:
            raise LabError(f"the lab can't use namespaces here: {reason}")
        missing = missing_packages(machine=False)
        if missing:
            raise LabError(
                f"the lab needs the packages {' '.join(missing)}: run"
                " `python -m pytest_ipvs.lab install`"
            )
        self._progress("making namespaces of this kernel")
        ours, theirs = socket.socketpair()
        package = Path(pytest_ipvs.__file__).parent.parent
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(package)}
        number = theirs.fileno()
        argv = [sys.executable, "-S", "-m", "pytest_ipvs.lab.hand", "--namespaces", str(number)]
        log = self.directory / "console.log"
        try:
            with theirs:
                self._child = Child(argv, log=log, pass_fds=(number,), env=env)
            self._attach(ours)
            while not self._ready.wait(0.05):
                if self._gone.is_set() or self._child.ended.is_set():
                    lines = log.read_text(errors="replace").strip().splitlines()
                    said = lines[-1] if lines else "it said nothing"
                    raise LabError(f"the lab's hand ended at its start: {said}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        if self._child is not None:
            self._child.end()
            self._child = None
        self._detach()
        self._gone.set()
