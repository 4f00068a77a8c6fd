"""Create, read, update, patch and delete with the rules that hold for every kind.

Uses the store for keeping, ``defaults`` and ``validation`` for what is special to a kind, and
``managed`` for field owners. Knows nothing of HTTP, users or rights.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytest_ipvs.lab.api import errors, managed
from pytest_ipvs.lab.api.defaults import apply_defaults, initial_status
from pytest_ipvs.lab.api.errors import FieldError
from pytest_ipvs.lab.api.kinds import Kind, Registry
from pytest_ipvs.lab.api.options import DeleteOptions, WriteOptions
from pytest_ipvs.lab.api.services import ServiceAllocator
from pytest_ipvs.lab.api.shapes import ordered, same, take_over, wanted_state
from pytest_ipvs.lab.api.store import Store, clone
from pytest_ipvs.lab.api.validation import validate, validate_update

Json = dict[str, Any]

# The alphabet of generated names: no vowels, so no words; no characters that look alike.
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
# Kinds whose PUT must say which version it is based on.
_CONDITIONAL_UPDATE = frozenset({"leases.coordination.k8s.io"})
_CREATE_ON_UPDATE = frozenset({"leases.coordination.k8s.io", "endpoints", "events"})
_KEPT_EVENTS = 2000
_PROPAGATION_FINALIZERS = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}


def now(offset: float = 0.0) -> str:
    """The time, ``offset`` seconds from now, as the API writes it: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset))


class Resources:
    """All objects of one server, with the API's rules about changing them.

    ``service_cidr``: the range of cluster IPs ("10.96.0.0/16").
    """

    def __init__(self, store: Store, registry: Registry, *, service_cidr: str) -> None:
        self.store = store
        self.registry = registry
        self.minor = registry.minor
        self._allocator = ServiceAllocator(service_cidr, minor=registry.minor)

    # Reading

    def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """The object; raises a 404 ``ApiError`` if there is none. Not to be changed."""
        found = self.store.get(kind.qualified, namespace, name)
        if found is None:
            raise errors.not_found(kind, name)
        return found

    # Creating

    def create(self, kind: Kind, namespace: str, body: Json, options: WriteOptions) -> Json:
        """Store a new object; answers it complete."""
        new: Json = clone(body)
        with self._understood(kind), self.store.lock:
            metadata = self._metadata(kind, new, namespace)
            if metadata.pop("resourceVersion", ""):
                message = "resourceVersion should not be set on objects to be created"
                raise errors.ApiError(500, "", message)
            if not metadata.get("name"):
                self._generate_name(kind, metadata)
            if kind.namespaced:
                self._open_namespace(kind, namespace, metadata["name"])
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = now()
            for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
                metadata.pop(name, None)
            metadata.pop("generation", None)
            if kind.generation:
                metadata["generation"] = 1
            self._complete(kind, new)
            initial_status(kind, new)
            if self.store.get(kind.qualified, namespace, metadata["name"]) is not None:
                raise errors.already_exists(kind, metadata["name"])
            causes = validate(kind, new, minor=self.minor)
            self._check(kind, new, causes)
            if kind.qualified == "services":
                self._allocate(kind, new, None)
            # An object made by server-side apply brings its owners along.
            if not any(
                entry.get("operation") == "Apply" for entry in metadata.get("managedFields") or []
            ):
                managed.record_update(new, None, manager=options.manager, time=now())
            new = ordered(kind, new)
            if options.dry_run:
                return new
            if kind.qualified == "events":
                self._forget_old_events()
            return self.store.put(kind.qualified, new)

    def _forget_old_events(self) -> None:
        """Events are kept for a while only: an hour on a real server, the newest ones here."""
        events = self.store.select("events")
        if len(events) >= _KEPT_EVENTS:
            events.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
            for event in events[: _KEPT_EVENTS // 10]:
                self.store.remove("events", event)

    def _metadata(self, kind: Kind, new: Json, namespace: str) -> Json:
        metadata = new.get("metadata")
        if not isinstance(metadata, dict):
            metadata = new["metadata"] = {}
        if kind.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                if metadata["namespace"]:
                    raise errors.bad_request(
                        "the namespace of the provided object does not match the namespace "
                        "sent on the request"
                    )
                metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)
        return metadata

    def _generate_name(self, kind: Kind, metadata: Json) -> None:
        prefix = metadata.get("generateName")
        if not prefix:
            cause = FieldError(
                type="FieldValueRequired",
                field="metadata.name",
                detail="name or generateName is required",
            )
            raise errors.invalid(kind, "", [cause], minor=self.minor)
        metadata["name"] = prefix[:58] + "".join(random.choices(_SUFFIX, k=5))

    def _open_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        found = self.store.get("namespaces", "", namespace)
        if found is None:
            raise errors.not_found(self.registry.by_plural("namespaces"), namespace)
        if found["metadata"].get("deletionTimestamp"):
            message = (
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated"
            )
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            raise errors.forbidden(kind, name, message, causes=[cause])

    def _complete(self, kind: Kind, new: Json) -> None:
        if kind.has_status and new.get("spec") is None:
            new["spec"] = {}
        apply_defaults(kind, new, minor=self.minor)

    def _check(self, kind: Kind, new: Json, causes: list[FieldError]) -> None:
        if causes:
            raise errors.invalid(kind, new["metadata"]["name"], causes, minor=self.minor)

    def _allocate(self, kind: Kind, new: Json, old: Json | None) -> None:
        uid = new["metadata"]["uid"]
        others = [
            service
            for service in self.store.select("services")
            if service["metadata"]["uid"] != uid
        ]
        self._check(kind, new, self._allocator.allocate(new, old, others))

    @contextmanager
    def _understood(self, kind: Kind) -> Iterator[None]:
        """Turn trips over values of a wrong type into the API's 400."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            message = (
                f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                f"json: cannot unmarshal a value of an unexpected type ({error})"
            )
            raise errors.bad_request(message) from error

    # Updating

    def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Json,
        options: WriteOptions,
        *,
        subresource: str = "",
    ) -> tuple[Json, bool]:
        """Replace an object, or its status; answers it and whether it was created by that."""
        with self.store.lock:
            old = self.store.get(kind.qualified, namespace, name)
            sent = body.get("metadata") or {}
            if sent.get("name", name) != name:
                raise errors.bad_request(
                    f"the name of the object ({sent['name']}) does not match the name on the "
                    f"URL ({name})"
                )
            if old is None:
                if kind.qualified in _CREATE_ON_UPDATE and not subresource:
                    if sent.get("resourceVersion"):
                        raise errors.not_found(kind, name)
                    return self.create(kind, namespace, body, options), True
                raise errors.not_found(kind, name)
            if kind.qualified in _CONDITIONAL_UPDATE and not sent.get("resourceVersion"):
                cause = FieldError(
                    type="FieldValueInvalid",
                    field="metadata.resourceVersion",
                    value=0,
                    detail="must be specified for an update",
                )
                raise errors.invalid(kind, name, [cause], minor=self.minor)
            return self._replace(kind, old, clone(body), options, subresource), False

    def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Json], Json],
        options: WriteOptions,
        *,
        subresource: str = "",
    ) -> Json:
        """Replace an object by ``change`` of a copy of it."""
        with self.store.lock:
            old = self.get(kind, namespace, name)
            with self._understood(kind):
                new = change(clone(old))
            return self._replace(kind, old, new, options, subresource)

    def apply(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Json,
        options: WriteOptions,
        *,
        subresource: str = "",
    ) -> tuple[Json, bool]:
        """Server-side apply; answers the object and whether it was created by that."""
        with self._understood(kind), self.store.lock:
            metadata = body.setdefault("metadata", {})
            if metadata.setdefault("name", name) != name:
                raise errors.bad_request(
                    f"the name of the object ({metadata['name']}) does not match the name on "
                    f"the URL ({name})"
                )
            self._metadata(kind, body, namespace)
            wanted = metadata.pop("resourceVersion", "")
            old = self.store.get(kind.qualified, namespace, name)
            if old is None and subresource:
                raise errors.not_found(kind, name)
            if wanted and (old is None or old["metadata"]["resourceVersion"] != wanted):
                raise errors.modified(kind, name)
            new = managed.apply(
                old,
                body,
                manager=options.manager,
                time=now(),
                force=options.force,
                subresource=subresource,
            )
            if old is None:
                return self.create(kind, namespace, new, options), True
            return self._replace(kind, old, new, options, subresource, applied=True), False

    def _replace(
        self,
        kind: Kind,
        old: Json,
        new: Json,
        options: WriteOptions,
        subresource: str,
        *,
        applied: bool = False,
    ) -> Json:
        """Store ``new`` (ours to change) in place of ``old``, if the rules allow it."""
        name = old["metadata"]["name"]
        with self._understood(kind):
            self._metadata(kind, new, old["metadata"].get("namespace", ""))
            metadata = new["metadata"]
            based_on = metadata.get("resourceVersion")
            if based_on and based_on != old["metadata"]["resourceVersion"]:
                raise errors.modified(kind, name)
            if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise errors.precondition_failed(
                    kind, name, "UID", metadata["uid"], old["metadata"]["uid"]
                )
            self._keep_system_fields(metadata, old["metadata"])
            new["kind"], new["apiVersion"] = kind.kind, kind.api_version
            if subresource == "status":
                self._status_only(new, old)
            elif kind.has_status:
                take_over(new, old, "status")
            if kind.qualified == "namespaces" and subresource != "finalize":
                finalizers = (old.get("spec") or {}).get("finalizers")
                new.setdefault("spec", {})["finalizers"] = finalizers or []
            self._complete(kind, new)
            if kind.generation and not subresource and wanted_state(new) != wanted_state(old):
                metadata["generation"] = old["metadata"].get("generation", 0) + 1
            if kind.qualified == "services":
                # Before validation: an update may leave out what was allocated.
                self._allocate(kind, new, old)
            self._check(kind, new, validate_update(kind, new, old, minor=self.minor))
        if not applied:
            managed.record_update(
                new, old, manager=options.manager, time=now(), subresource=subresource
            )
        if same(new, old):
            return old
        new = ordered(kind, new)
        if options.dry_run:
            return new
        if metadata.get("deletionTimestamp") and self._finished(kind, new):
            return self.store.remove(kind.qualified, new)
        return self.store.put(kind.qualified, new)

    def _keep_system_fields(self, metadata: Json, old: Json) -> None:
        for name in (
            "name",
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generateName",
            "resourceVersion",
        ):
            take_over(metadata, old, name)
        metadata.pop("selfLink", None)
        if old.get("deletionTimestamp") and metadata.get("finalizers"):
            # Nothing may newly delay a deletion that has begun.
            had = old.get("finalizers") or []
            metadata["finalizers"] = [item for item in metadata["finalizers"] if item in had]
        for name in ("labels", "annotations", "finalizers", "ownerReferences"):
            if not metadata.get(name) and metadata.get(name) != old.get(name):
                metadata.pop(name, None)

    def _status_only(self, new: Json, old: Json) -> None:
        for name in set(new) | set(old):
            if name not in {"status", "metadata"}:
                take_over(new, old, name)
        for name in ("labels", "finalizers", "ownerReferences"):
            take_over(new["metadata"], old["metadata"], name)

    def _finished(self, kind: Kind, object_: Json) -> bool:
        """Whether nothing holds back the removal of an object that is being deleted."""
        metadata = object_["metadata"]
        if metadata.get("finalizers"):
            return False
        if kind.qualified == "namespaces":
            return not (object_.get("spec") or {}).get("finalizers")
        # A pod waits for its kubelet's last word, a delete with grace 0.
        return not metadata.get("deletionGracePeriodSeconds")

    # Deleting

    def delete(
        self, kind: Kind, namespace: str, name: str, options: DeleteOptions
    ) -> tuple[Json, bool]:
        """Delete, or begin to; answers the last state and whether the object is gone."""
        with self.store.lock:
            old = self.get(kind, namespace, name)
            metadata = old["metadata"]
            if options.uid and options.uid != metadata["uid"]:
                raise errors.precondition_failed(kind, name, "UID", options.uid, metadata["uid"])
            wanted, found = options.resource_version, metadata["resourceVersion"]
            if wanted and wanted != found:
                raise errors.precondition_failed(kind, name, "ResourceVersion", wanted, found)
            if kind.qualified == "namespaces" and name in _PROTECTED_NAMESPACES:
                raise errors.forbidden(kind, name, "this namespace may not be deleted")
            new: Json = clone(old)
            grace = self._grace(kind, old, options)
            self._propagate(new["metadata"], options.propagation)
            self._mark_deleted(kind, new, old, grace)
            if self._finished(kind, new):
                # The last state that clients see is without the marks of a deletion at once.
                last = old if "deletionTimestamp" not in metadata else new
                if options.dry_run:
                    return last, True
                return self.store.remove(kind.qualified, last), True
            if same(new, old):
                return old, False
            new = ordered(kind, new)
            return (new if options.dry_run else self.store.put(kind.qualified, new)), False

    def _grace(self, kind: Kind, old: Json, options: DeleteOptions) -> int | None:
        """Seconds until the removal; ``None`` where the kind knows no grace."""
        if kind.qualified != "pods":
            return None
        spec, phase = old["spec"], (old.get("status") or {}).get("phase")
        grace = options.grace
        if grace is None:
            grace = spec.get("terminationGracePeriodSeconds", 30)
        if not spec.get("nodeName") or phase in {"Succeeded", "Failed"}:
            # No kubelet runs it, so none has to stop it.
            grace = 0
        return max(grace, 0)

    def _propagate(self, metadata: Json, propagation: str) -> None:
        """Leave the garbage collector its order in the finalizers, as a real server does."""
        if not propagation:
            return
        finalizers = [
            item
            for item in metadata.get("finalizers") or []
            if item not in _PROPAGATION_FINALIZERS.values()
        ]
        if propagation in _PROPAGATION_FINALIZERS:
            finalizers.append(_PROPAGATION_FINALIZERS[propagation])
        if finalizers:
            metadata["finalizers"] = finalizers
        else:
            metadata.pop("finalizers", None)

    def _mark_deleted(self, kind: Kind, new: Json, old: Json, grace: int | None) -> None:
        metadata = new["metadata"]
        begun = "deletionTimestamp" in metadata
        if begun:
            left = metadata.get("deletionGracePeriodSeconds")
            if grace is None or left is None or grace >= left:
                return
        if kind.qualified == "namespaces":
            metadata["deletionTimestamp"] = now()
            new.setdefault("status", {})["phase"] = "Terminating"
            return
        metadata["deletionTimestamp"] = now(grace or 0)
        metadata["deletionGracePeriodSeconds"] = grace or 0
        if metadata.get("generation"):
            metadata["generation"] += 1
