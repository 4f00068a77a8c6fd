"""The lab: a one-machine cluster whose data plane is a real kernel's IPVS.

Belongs here: the virtual machine or namespaces, the embedded API, the stand-ins for controllers,
kubelet and kube-proxy, the faults. Standard library only: parts of it run inside the lab's nodes.
Does not belong here: anything of the engine but ``pytest_ipvs.ipvs``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipvs.lab.launch import LabHandle as LabHandle
    from pytest_ipvs.lab.launch import start as start
    from pytest_ipvs.lab.machine import LabError as LabError

__all__ = ["LabError", "LabHandle", "start"]


def __getattr__(name: str) -> object:
    # Late: the lab's hand is of this package too, and must start fast inside the guest.
    if name == "LabError":
        from pytest_ipvs.lab.machine import LabError

        return LabError
    if name in ("LabHandle", "start"):
        from pytest_ipvs.lab import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
