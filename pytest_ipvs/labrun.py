"""From the lab's options to a running lab, and from its handle to the settings that reach it.

The only place of the engine that imports the lab: see docs/decisions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.settings import Settings

REACHED_BY = ("kubeconfig", "ssh_config", "connect")
SETTLE = 20.0
"""Seconds of traffic after a disruption: the lab sweeps drained servers every 5 s, not every 60."""


class LabUseError(Exception):
    """The lab can't be started or used; one sentence."""


@dataclass(slots=True, kw_only=True)
class RunningLab:
    """A lab in use by this run; ``owned`` tells whether this run started it."""

    handle: Any
    owned: bool
    faults: bool = False

    def close(self) -> None:
        """Take down what this run started; take out what it put in."""
        if self.owned:
            self.handle.down()
        elif self.faults:
            self.handle.clear()


def start_lab(
    settings: Settings, progress: Callable[[str], None]
) -> tuple[Settings, RunningLab | None]:
    """Start the lab that the settings ask for, or join the one that is up under that name.

    Returns the settings that reach it. Raises `LabUseError`.
    """
    if not settings.lab:
        return settings, None
    from pytest_ipvs.lab import LabError, start

    try:
        handle = start(
            name=settings.lab_name,
            kernel=settings.lab_kernel,
            backend=settings.lab_backend,
            owner_pid=os.getpid(),
            progress=progress,
        )
    except LabError as error:
        raise LabUseError(str(error)) from None
    running = RunningLab(handle=handle, owned=handle.owned)
    try:
        for fault in settings.lab_fault:
            name, _, node = fault.partition("@")
            progress(f"lab: putting in the fault {fault}")
            running.faults = True
            try:
                handle.fault(name, node or None)
            except LabError as error:
                where = settings.origin("lab_fault")
                raise LabUseError(f"{where} is {fault!r}: {error}") from None
    except BaseException:
        running.close()
        raise
    suited: dict[str, str | float] = {name: str(getattr(handle, name)) for name in REACHED_BY}
    # What the user chose stays: the lab's own is only the better default.
    for name, value in (("client", str(handle.client)), ("settle", SETTLE)):
        if settings.origin(name).startswith("the default"):
            suited[name] = value
    return settings.replaced("the lab", **suited), running
