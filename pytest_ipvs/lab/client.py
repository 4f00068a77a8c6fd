"""A small API client: standard library only, JSON over HTTP, connections kept alive.

The stand-ins are clients of the API like the real components: they list, watch and write over HTTP,
so that the API they talk to can be the embedded one or a real one.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the API: its group-version path prefix, its plural and its scope."""

    prefix: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` that objects of this resource carry: "v1", "apps/v1"."""
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """The URL path of the collection, of one object, or of one of its subresources."""
        parts = [self.prefix]
        if namespace and self.namespaced:
            parts += ["namespaces", urllib.parse.quote(namespace)]
        parts.append(self.plural)
        if name:
            parts.append(urllib.parse.quote(name))
        if sub:
            parts.append(sub)
        return "/".join(parts)


PODS = Resource("/api/v1", "pods", "Pod")
SERVICES = Resource("/api/v1", "services", "Service")
ENDPOINTS = Resource("/api/v1", "endpoints", "Endpoints")
SLICES = Resource("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
SLICES_V1BETA1 = Resource("/apis/discovery.k8s.io/v1beta1", "endpointslices", "EndpointSlice")
NODES = Resource("/api/v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("/api/v1", "namespaces", "Namespace", namespaced=False)
CONFIG_MAPS = Resource("/api/v1", "configmaps", "ConfigMap")
SECRETS = Resource("/api/v1", "secrets", "Secret")
SERVICE_ACCOUNTS = Resource("/api/v1", "serviceaccounts", "ServiceAccount")
EVENTS = Resource("/api/v1", "events", "Event")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases", "Lease")
DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", "Deployment")
REPLICA_SETS = Resource("/apis/apps/v1", "replicasets", "ReplicaSet")
JOBS = Resource("/apis/batch/v1", "jobs", "Job")


class ApiError(Exception):
    """The API answered with a failure: ``status`` is the HTTP code, ``reason`` the Status's."""

    def __init__(self, status: int, reason: str, message: str, path: str) -> None:
        super().__init__(f"{path}: {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.path = path


class ApiClient:
    """Reads and writes one API server at ``url`` with a bearer token.

    Safe for use by many threads. Close it in the end.
    """

    def __init__(self, url: str, token: str, context: ssl.SSLContext | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"API address {url!r} is not of the form http(s)://HOST:PORT")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._context = context
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    def _connect(self, timeout: float | None) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to use, and whether it is a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
        return self._connect(30), True

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all idle connections; requests under way close theirs when they end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object | None = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """One request; the JSON answer, or :class:`ApiError`."""
        target = path + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = dict(self._headers)
        if data is not None:
            headers["Content-Type"] = content_type
        while True:
            connection, fresh = self._take()
            try:
                connection.request(method, target, body=data, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
                break
            except BaseException as error:
                connection.close()
                # A kept-alive connection may have been closed by the server meanwhile.
                if fresh or not isinstance(error, http.client.HTTPException | OSError):
                    raise
        if answer.will_close:
            connection.close()
        else:
            self._give_back(connection)
        try:
            result: Object = json.loads(text) if text else {}
        except ValueError:
            result = {"message": text.decode(errors="replace")}
        if answer.status >= 400:
            raise ApiError(
                answer.status, result.get("reason", ""), result.get("message", ""), target
            )
        return result

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """One object, or ``None`` when there is none."""
        try:
            return self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list_all(
        self, resource: Resource, namespace: str | None = None, **query: str
    ) -> tuple[list[Object], str]:
        """All objects and the list's resource version; kind and apiVersion are filled in."""
        items: list[Object] = []
        more: dict[str, str] = dict(query)
        while True:
            answer = self.request("GET", resource.path(namespace), query=more)
            for item in answer.get("items") or []:
                item.setdefault("kind", resource.kind)
                item.setdefault("apiVersion", resource.api_version)
                items.append(item)
            token = answer["metadata"].get("continue")
            if not token:
                return items, answer["metadata"]["resourceVersion"]
            more["continue"] = token

    def create(self, resource: Resource, body: Object) -> Object:
        """Create ``body`` in the namespace of its metadata."""
        namespace = body.get("metadata", {}).get("namespace")
        whole = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return self.request("POST", resource.path(namespace), whole)

    def update(self, resource: Resource, body: Object, sub: str = "") -> Object:
        """Replace an object (or its subresource ``sub``); 409 if its resourceVersion is old."""
        meta = body["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"], sub)
        return self.request("PUT", path, body)

    def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: object,
        *,
        sub: str = "",
        content_type: str = MERGE,
    ) -> Object:
        """Patch an object (or its subresource ``sub``), by JSON merge patch unless told."""
        path = resource.path(namespace, name, sub)
        return self.request("PATCH", path, body, content_type=content_type)

    def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace: int | None = None,
        propagation: str = "Background",
    ) -> Object | None:
        """Delete an object; its last state, or ``None`` when it was gone already."""
        options: Object = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": propagation,
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            return self.request("DELETE", resource.path(namespace, name), options)
        except ApiError as error:
            if error.status == 404 or (uid and error.status == 409):
                return None
            raise

    def watch(
        self, resource: Resource, resource_version: str, stop: Stopper, **query: str
    ) -> Iterator[tuple[str, Object]]:
        """Events ``(type, object)`` of all namespaces from ``resource_version`` on.

        Ends when the server ends the watch or ``stop`` is set. An ERROR event raises
        :class:`ApiError` (410 "Expired": list again).
        """
        parameters = {
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "600",
            **query,
        }
        target = resource.path() + "?" + urllib.parse.urlencode(parameters)
        connection = self._connect(None)
        try:
            connection.request("GET", target, headers=self._headers)
            stop.attach(connection)
            answer = connection.getresponse()
            if answer.status >= 400:
                status = json.loads(answer.read() or b"{}")
                raise ApiError(
                    answer.status, status.get("reason", ""), status.get("message", ""), target
                )
            for line in answer:
                if not line.strip():
                    continue
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 500),
                        status.get("reason", ""),
                        status.get("message", ""),
                        target,
                    )
                yield event["type"], event["object"]
        finally:
            stop.detach(connection)
            connection.close()


class Stopper:
    """Ends watches from another thread: shuts their sockets down."""

    def __init__(self) -> None:
        self._connections: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def attach(self, connection: http.client.HTTPConnection) -> None:
        """Let :meth:`stop` end this connection."""
        with self._lock:
            self._connections.append(connection)
        if self.stopped.is_set():
            _shut(connection)

    def detach(self, connection: http.client.HTTPConnection) -> None:
        """Forget this connection."""
        with self._lock:
            if connection in self._connections:
                self._connections.remove(connection)

    def stop(self) -> None:
        """End all watches that run and those to come."""
        self.stopped.set()
        with self._lock:
            for connection in self._connections:
                _shut(connection)


def _shut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
