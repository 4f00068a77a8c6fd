"""What can be chosen about a lab."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """One lab's choices.

    ``backend``: "auto", "vm" or "namespace". ``kernel``: a series such as "6.1", for virtual
    machines. ``processors``: how many a virtual machine has; a second one lets a client keep its
    pace while nodes work, and makes everything else dearer by a quarter. ``version``: the
    Kubernetes that API and stand-ins claim to be. ``sweep_period`` in seconds: how often drained
    real servers are looked at; kube-proxy's own is 60. ``programs``: of this host, to have on
    nodes and clients too, besides those that the lab needs.
    """

    name: str = "default"
    backend: str = "auto"
    kernel: str | None = None
    processors: int = 2
    nodes: int = 3
    version: str = "1.36.2"
    sweep_period: float = 5.0
    programs: tuple[str, ...] = ()
