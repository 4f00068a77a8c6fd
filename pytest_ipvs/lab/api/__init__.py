"""The lab's embedded Kubernetes API: real enough for the official clients and for kubectl.

Belongs here: the store, discovery, routes, watches, selectors, patches, tables, defaults and
validation, users and rights. Standard library only; its answers have the status codes and shapes
of recorded ones. Does not belong here: controllers, kubelets and proxies, which are its clients.
"""

from pytest_ipvs.lab.api.auth import User
from pytest_ipvs.lab.api.server import Server
from pytest_ipvs.lab.api.store import Store

__all__ = ["Server", "Store", "User"]
