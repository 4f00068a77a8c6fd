"""An API server in a dictionary, for what a whole cluster shares: nodes, pods, the Lease."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from pytest_ipvs.rollout import lease as lease_module
from pytest_ipvs.rollout.lease import DisruptionLease

LEASE = f"{lease_module.PATH}/{lease_module.NAME}"
NAMESPACE = f"/api/v1/namespaces/{lease_module.NAMESPACE}"


class StatusError(Exception):
    """An answer of the API that is no success."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or str(status))
        self.status = status


class FakeApi:
    """Objects by path; refusals as the test says."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, list[StatusError]] = {}
        self.calls: list[tuple[str, str]] = []
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.versions = itertools.count(1)

    def _call(self, verb: str, path: str) -> None:
        self.calls.append((verb, path))
        if waiting := self.refusals.get(f"{verb} {path}"):
            raise waiting.pop(0)

    def get(self, path: str, **_: Any) -> dict[str, Any]:
        self._call("GET", path)
        if path not in self.objects:
            raise StatusError(404)
        return copy.deepcopy(self.objects[path])

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        self._call("LIST", path)
        for place, item in list(self.objects.items()):
            under = place.rpartition("/")[0]
            everywhere = path == "/api/v1/pods" and "/pods/" in place
            node = (item.get("spec") or {}).get("nodeName")
            if not everywhere and under != path:
                continue
            if query.get("fieldSelector") not in (None, f"spec.nodeName={node}"):
                continue
            labels = item["metadata"].get("labels") or {}
            if "labelSelector" in query:
                key, _, value = query["labelSelector"].partition("=")
                if labels.get(key) != value:
                    continue
            yield item

    def create(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        if path.endswith("/eviction"):
            self._call("POST", path)
            self.objects.pop(path.removesuffix("/eviction"), None)
            return {}
        place = f"{path}/{body['metadata']['name']}"
        self._call("POST", place)
        if place in self.objects:
            raise StatusError(409)
        return self._store(place, body)

    def replace(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self._call("PUT", path)
        self._is(path, body["metadata"])
        return self._store(path, body)

    def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self._call("PATCH", path)
        self._is(path, body.get("metadata") or {})
        item = self.objects[path]
        for part, values in body.items():
            for key, value in values.items():
                if isinstance(value, dict):
                    known = item[part].setdefault(key, {})
                    known.update(value)
                    item[part][key] = {k: v for k, v in known.items() if v is not None}
                elif value is None:
                    item[part].pop(key, None)
                else:
                    item[part][key] = value
        return self._store(path, item)

    def delete(self, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        self._call("DELETE", path)
        self._is(path, (body or {}).get("preconditions") or {})
        if self.objects.pop(path, None) is None:
            raise StatusError(404)
        return {}

    def _is(self, path: str, marks: Any) -> None:
        """409 where another object, or another state of it, was meant."""
        found = self.objects.get(path, {}).get("metadata") or {}
        for name in ("uid", "resourceVersion"):
            if found and marks.get(name, found.get(name)) != found.get(name):
                raise StatusError(409)

    def _store(self, path: str, body: Any) -> dict[str, Any]:
        # In place: tests keep an object and look at it later.
        item = self.objects.setdefault(path, {})
        uid = (item.get("metadata") or {}).get("uid") or f"uid-{next(self.versions)}"
        item.update(copy.deepcopy(body))
        item["metadata"] |= {"uid": uid, "resourceVersion": str(next(self.versions))}
        return copy.deepcopy(item)

    def taken_over(self, holder: str) -> None:
        """Another run has the Lease now."""
        spec = {**self.objects[LEASE]["spec"], "holderIdentity": holder}
        self._store(LEASE, {**self.objects[LEASE], "spec": spec})

    def put_node(self, name: str, **spec: Any) -> None:
        """A node."""
        self.objects[f"/api/v1/nodes/{name}"] = {"metadata": {"name": name}, "spec": spec}

    def put_pod(self, name: str, node: str, owner: str = "ReplicaSet", **change: Any) -> None:
        """A pod of namespace "shop", or of the one given."""
        namespace = change.pop("namespace", "shop")
        owners = [{"kind": owner, "name": "o", "controller": True}] if owner else []
        metadata = {"name": name, "namespace": namespace, "uid": change.pop("uid", name)}
        metadata |= {"ownerReferences": owners, **change.pop("metadata", {})}
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.objects[f"/api/v1/namespaces/{namespace}/pods/{name}"] = {
            "metadata": metadata,
            "spec": {"nodeName": node, **change},
            "status": ready,
        }

    def lease(self) -> DisruptionLease:
        """A run that wants to drain."""
        return DisruptionLease(self, "drain node-2", self.said.append, pause=self.pauses.append)
