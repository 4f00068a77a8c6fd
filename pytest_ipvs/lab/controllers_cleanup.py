"""Stand-ins for the namespace controller and the garbage collector."""

from __future__ import annotations

import logging
from functools import partial

from pytest_ipvs.lab.client import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINTS,
    JOBS,
    NAMESPACES,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    SLICES,
    ApiError,
    Object,
    Resource,
)
from pytest_ipvs.lab.controllers_replicaset import is_terminating
from pytest_ipvs.lab.informers import Cluster, Controller

log = logging.getLogger(__name__)

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
OWNED: tuple[Resource, ...] = (PODS, REPLICA_SETS, DEPLOYMENTS, JOBS, ENDPOINTS, SERVICES)


class NamespaceController(Controller):
    """Gives new namespaces their defaults and empties those that are being deleted."""

    name = "namespace-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.namespaces = cluster.informer(NAMESPACES)
        self.namespaces.on_event(self._on_namespace)

    def _on_namespace(self, kind: str, item: Object) -> None:
        if kind != "DELETED":
            self.enqueue("", item["metadata"]["name"])

    def sync(self, namespace: str, name: str) -> None:
        item = self.namespaces.get("", name)
        if item is None:
            return
        if not is_terminating(item):
            self._defaults(name)
            return
        if self._empty(name):
            spec: Object = {"finalizers": []}
            path = NAMESPACES.path(None, name, "finalize")
            try:
                self.cluster.api.request("PUT", path, {**item, "spec": spec})
            except ApiError as error:
                if error.status != 404:
                    raise
        else:
            self.enqueue(namespace, name, 0.3)

    def _defaults(self, name: str) -> None:
        for resource, own in (
            (SERVICE_ACCOUNTS, "default"),
            (CONFIG_MAPS, "kube-root-ca.crt"),
        ):
            if self.cluster.api.get(resource, name, own) is None:
                try:
                    self.cluster.create(resource, {"metadata": {"name": own, "namespace": name}})
                except ApiError as error:
                    if error.status != 409:
                        raise

    def _empty(self, name: str) -> bool:
        """Delete what is left; whether nothing was left."""
        left = 0
        for resource in self._resources():
            for item in self.cluster.api.list_all(resource, name)[0]:
                left += 1
                if not is_terminating(item):
                    self.cluster.delete(resource, item)
        return left == 0

    def _resources(self) -> list[Resource]:
        """All namespaced resources that can be listed and deleted, from discovery."""
        found: list[Resource] = []
        groups = self.cluster.api.request("GET", "/apis").get("groups") or []
        prefixes = ["/api/v1"]
        prefixes += [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups]
        for prefix in prefixes:
            for entry in self.cluster.api.request("GET", prefix).get("resources") or []:
                if not entry["namespaced"] or "/" in entry["name"]:
                    continue
                if {"list", "delete"} <= set(entry["verbs"]):
                    found.append(Resource(prefix, entry["name"], entry["kind"]))
        return found


class GarbageCollector(Controller):
    """Deletes objects whose owners are gone; ends foreground and orphaning deletions.

    Keys are (plural, "namespace/name") of objects to look at.
    """

    name = "garbage-collector"

    def __init__(self, cluster: Cluster, slices: Resource = SLICES) -> None:
        super().__init__(cluster)
        owned = (*OWNED, slices)
        self.resources = {resource.plural: resource for resource in owned}
        self.informers = {resource: cluster.informer(resource) for resource in owned}
        for resource, informer in self.informers.items():
            informer.on_event(partial(self._on_event, resource))

    def _look(self, resource: Resource, item: Object, after: float = 0.0) -> None:
        meta = item["metadata"]
        self.enqueue(resource.plural, f"{meta.get('namespace', '')}/{meta['name']}", after)

    def _on_event(self, resource: Resource, kind: str, item: Object) -> None:
        if kind == "DELETED":
            for other, dependent in self._dependents(item):
                self._look(other, dependent)
            for reference in item["metadata"].get("ownerReferences") or []:
                # An owner in foreground deletion may have waited for this one.
                for other in self.resources.values():
                    if other.kind == reference["kind"]:
                        namespace = item["metadata"].get("namespace", "")
                        self.enqueue(other.plural, f"{namespace}/{reference['name']}")
        elif kind == "ADDED" or is_terminating(item):
            self._look(resource, item)

    def _dependents(self, owner: Object) -> list[tuple[Resource, Object]]:
        uid = owner["metadata"]["uid"]
        return [
            (resource, item)
            for resource, informer in self.informers.items()
            for item in informer.items(owner["metadata"].get("namespace"))
            if any(r["uid"] == uid for r in item["metadata"].get("ownerReferences") or [])
        ]

    def sync(self, namespace: str, name: str) -> None:
        plural, path = namespace, name
        resource = self.resources[plural]
        namespace, _, name = path.partition("/")
        item = self.informers[resource].get(namespace, name)
        if item is None:
            return
        if is_terminating(item):
            self._finish(resource, item)
            return
        references = item["metadata"].get("ownerReferences") or []
        if not references:
            return
        alive = []
        propagation = "Background"
        for reference in references:
            owner = self._owner(namespace, reference)
            if owner is None:
                continue
            waiting = owner["metadata"].get("finalizers") or []
            if is_terminating(owner) and FOREGROUND in waiting:
                propagation = "Foreground"
                continue
            alive.append(reference)
        if not alive:
            self.cluster.delete(resource, item, propagation=propagation)
        elif len(alive) < len(references):
            self.cluster.patch(resource, item, {"metadata": {"ownerReferences": alive}})

    def _owner(self, namespace: str, reference: Object) -> Object | None:
        """The owner as the API has it now; ``None`` when it (this very one) is gone."""
        resource = _resource_of(reference)
        if resource is None:
            # A kind that we don't know can't be judged: its dependents stay.
            return {"metadata": {}}
        owner = self.cluster.api.get(
            resource, namespace if resource.namespaced else None, reference["name"]
        )
        if owner is None or owner["metadata"]["uid"] != reference["uid"]:
            return None
        return owner

    def _finish(self, resource: Resource, item: Object) -> None:
        finalizers = item["metadata"].get("finalizers") or []
        if ORPHAN in finalizers:
            uid = item["metadata"]["uid"]
            for other, dependent in self._dependents(item):
                kept = [
                    r for r in dependent["metadata"].get("ownerReferences") or [] if r["uid"] != uid
                ]
                self.cluster.patch(other, dependent, {"metadata": {"ownerReferences": kept}})
            self._drop(resource, item, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = self._dependents(item)
            for other, dependent in blocking:
                if not is_terminating(dependent):
                    self._look(other, dependent)
            if not blocking:
                self._drop(resource, item, FOREGROUND)

    def _drop(self, resource: Resource, item: Object, finalizer: str) -> None:
        kept = [f for f in item["metadata"].get("finalizers") or [] if f != finalizer]
        self.cluster.patch(resource, item, {"metadata": {"finalizers": kept}})


_KNOWN: tuple[Resource, ...] = (*OWNED, CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS)


def _resource_of(reference: Object) -> Resource | None:
    group = reference["apiVersion"].rpartition("/")[0]
    for resource in _KNOWN:
        if resource.kind == reference["kind"]:
            own = resource.api_version.rpartition("/")[0]
            if own == group:
                return resource
    return None
