"""The embedded API server as a whole: its objects, its users, its port and its kubeconfig."""

from __future__ import annotations

import base64
import contextlib
import secrets
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ipvs.lab.api.auth import MASTERS, Authenticator, Authorizer, User
from pytest_ipvs.lab.api.bootstrap import first_objects, namespace_objects
from pytest_ipvs.lab.api.certificates import ServerCertificate, make_certificate
from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.http import HttpServer
from pytest_ipvs.lab.api.kinds import registry
from pytest_ipvs.lab.api.object_routes import LogReader
from pytest_ipvs.lab.api.options import WriteOptions
from pytest_ipvs.lab.api.resources import Resources
from pytest_ipvs.lab.api.routes import Routes
from pytest_ipvs.lab.api.store import Store

if TYPE_CHECKING:
    import ssl

Json = dict[str, Any]


class Server:
    """A stand-in for kube-apiserver in this process.

    ``version``: which Kubernetes it speaks like ("1.36.2", "1.20.2"). ``token``: the bearer token
    of the cluster's administrator; a random one if left out. ``users``: more tokens and whom they
    stand for. ``service_cidr``: the range of cluster IPs. ``port`` 0 takes a free port.
    ``log_reader`` gives a pod's log from the pod and the query of pods/log. ``window``: how many
    changes per resource are kept for watches that start in the past.
    """

    def __init__(
        self,
        version: str = "1.36.2",
        token: str = "",
        service_cidr: str = "10.96.0.0/16",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        users: Mapping[str, User] | None = None,
        log_reader: LogReader | None = None,
        window: int = 1024,
    ) -> None:
        self.version = version
        self.token = token or secrets.token_urlsafe(32)
        self.store = Store(window=window)
        self.registry = registry(version)
        self.resources = Resources(self.store, self.registry, service_cidr=service_cidr)
        administrator = User(name="admin", groups=(MASTERS, "system:authenticated"))
        self._authenticator = Authenticator(
            self.store, {self.token: administrator, **(users or {})}
        )
        self._routes = Routes(
            self.resources,
            version=version,
            authenticator=self._authenticator,
            authorizer=Authorizer(self.store),
            on_namespace=self._complete_namespace,
            log_reader=log_reader,
        )
        self._wanted_address = (host, port)
        self._http: HttpServer | None = None
        self._tls_lock = threading.Lock()
        self._certificate: ServerCertificate | None = None
        self._context: ssl.SSLContext | None = None
        for kind, object_ in first_objects(self.registry):
            self._create(kind, object_)

    def start(self) -> tuple[str, int]:
        """Open the port and begin to answer; answers host and port."""
        host, port = self._wanted_address
        self._http = HttpServer(self._routes.handle, host, port, self._tls)
        self._routes.address = "{}:{}".format(*self._http.address)
        self._http.start()
        return self._http.address

    def stop(self) -> None:
        """End all watches and connections and close the port. May be called twice."""
        self.store.close()
        if self._http is not None:
            self._http.stop()
            self._http = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; raises ``RuntimeError`` before ``start``."""
        if self._http is None:
            raise RuntimeError("the embedded API is not started: call start() first")
        return self._http.address

    @property
    def url(self) -> str:
        """The address for clients on this machine that need no TLS ("http://127.0.0.1:34567")."""
        return "http://{}:{}".format(*self.address)

    def kubeconfig(self, token: str = "", *, name: str = "pytest-ipvs-lab") -> str:
        """A kubeconfig file's text for the administrator, or for the user of ``token``.

        It says https, for kubectl sends no token over plain http; without the ssl module it says
        http, which is enough for the Python client.
        """
        host, port = self.address
        certificate = self._server_certificate()
        lines = ["apiVersion: v1", "kind: Config", "clusters:", f"- name: {name}", "  cluster:"]
        if certificate is None:
            lines.append(f"    server: http://{host}:{port}")
        else:
            data = base64.b64encode(certificate.authority.encode()).decode()
            lines.append(f"    server: https://{host}:{port}")
            lines.append(f"    certificate-authority-data: {data}")
        lines += [
            "users:",
            f"- name: {name}",
            "  user:",
            f"    token: {token or self.token}",
            "contexts:",
            f"- name: {name}",
            "  context:",
            f"    cluster: {name}",
            f"    user: {name}",
            f"current-context: {name}",
            "",
        ]
        return "\n".join(lines)

    def _complete_namespace(self, namespace: str) -> None:
        certificate = self._server_certificate()
        authority = certificate.authority if certificate else ""
        for kind, object_ in namespace_objects(self.registry, namespace, authority):
            self._create(kind, object_)

    def _create(self, plural: str, object_: Json) -> None:
        kind = next(kind for kind in self.registry.kinds if kind.qualified == plural)
        options = WriteOptions(manager="kube-apiserver")
        namespace = object_["metadata"].get("namespace", "")
        with contextlib.suppress(ApiError):
            self.resources.create(kind, namespace, object_, options)
        if plural == "namespaces":
            self._complete_namespace(object_["metadata"]["name"])

    def _server_certificate(self) -> ServerCertificate | None:
        with self._tls_lock:
            if self._certificate is None:
                try:
                    import ssl
                except ImportError:
                    return None
                del ssl
                self._certificate = make_certificate(self._wanted_address[0])
            return self._certificate

    def _tls(self) -> ssl.SSLContext | None:
        certificate = self._server_certificate()
        if certificate is None:
            return None
        import ssl

        with self._tls_lock:
            if self._context is None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                # The ssl module reads certificates from files only.
                with tempfile.TemporaryDirectory(prefix="pytest-ipvs-api-") as directory:
                    path = Path(directory) / "server.pem"
                    path.touch(mode=0o600)
                    path.write_text(certificate.certificate + certificate.key)
                    context.load_cert_chain(path)
                self._context = context
            return self._context
