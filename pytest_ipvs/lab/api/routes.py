"""From a request to an answer: who asks, for what, may they; paths that are no resource."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from pytest_ipvs.lab.api import discovery, errors, listing, openapi_v2
from pytest_ipvs.lab.api.auth import Attributes, Authenticator, Authorizer, User, service_account
from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.messages import Request, Response, json_response, text_response
from pytest_ipvs.lab.api.object_routes import LogReader, ObjectRoutes
from pytest_ipvs.lab.api.resources import Resources
from pytest_ipvs.lab.api.target import VERBS, Target, parse_target


class Routes:
    """Answers every request of one server.

    ``address`` is host:port for /api; ``log_reader`` gives a pod's log for pods/log.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        version: str,
        authenticator: Authenticator,
        authorizer: Authorizer,
        on_namespace: Callable[[str], None],
        log_reader: LogReader | None = None,
    ) -> None:
        self.address = ""
        self._registry = resources.registry
        self._minor = resources.minor
        self._version = version
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._objects = ObjectRoutes(
            resources,
            authenticator=authenticator,
            authorizer=authorizer,
            on_namespace=on_namespace,
            log_reader=log_reader,
        )

    def handle(self, request: Request) -> Response:
        """The answer to one request; failures become ``Status`` answers."""
        try:
            return self._handle(request)
        except ApiError as error:
            return json_response(error.body, error.status, error.headers)
        except Exception as error:  # the server must outlive any one request
            traceback.print_exc(file=sys.stderr)
            failure = errors.internal(f"{type(error).__name__}: {error}")
            return json_response(failure.body, failure.status)

    def _handle(self, request: Request) -> Response:
        user = self._impersonated(
            request, self._authenticator.identify(request.headers.get("authorization"))
        )
        target = parse_target(request.path)
        if target is None:
            return self._other(request, user)
        if target.group not in self._registry.groups:
            self._authorize(user, self._attributes(request, target))
            return text_response("404 page not found\n", 404)
        self._authorize(user, self._attributes(request, target))
        kind = self._registry.find(target.group, target.version, target.plural)
        if kind is None or (kind.namespaced is False and target.namespace is not None):
            raise errors.no_such_resource()
        return self._objects.answer(request, user, kind, target)

    # Rights

    def _impersonated(self, request: Request, user: User) -> User:
        """The user as whom the request wants to act, if it may: kubectl's --as and --as-group."""
        name = request.headers.get("impersonate-user", "")
        if not name:
            return user
        self._authorize(user, Attributes(verb="impersonate", resource="users", name=name))
        groups = [item.strip() for item in request.headers.get("impersonate-group", "").split(",")]
        for group in filter(None, groups):
            self._authorize(user, Attributes(verb="impersonate", resource="groups", name=group))
        if name.startswith("system:serviceaccount:") and name.count(":") == 3:
            _, _, namespace, account = name.split(":")
            return service_account(namespace, account, "")
        return User(name=name, groups=(*filter(None, groups), "system:authenticated"))

    def _attributes(self, request: Request, target: Target) -> Attributes:
        verb = VERBS.get(request.method, request.method.lower())
        if not target.name:
            if verb == "get":
                verb = "watch" if listing.wants_watch(request.query) else "list"
            elif verb == "delete":
                verb = "deletecollection"
        namespace = target.namespace or ""
        if target.plural == "namespaces" and not target.group:
            namespace = target.name
        return Attributes(
            verb=verb,
            group=target.group,
            resource=target.plural,
            namespace=namespace,
            subresource=target.subresource,
            name=target.name,
        )

    def _authorize(self, user: User, wanted: Attributes) -> None:
        if self._authorizer.allows(user, wanted):
            return
        if wanted.path:
            raise errors.forbidden_path(user.name, wanted.verb, wanted.path)
        scope = (
            f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
        )
        group = wanted.group
        kind = Kind(group=group, version="", kind="", plural=wanted.resource, singular="")
        message = (
            f'User "{user.name}" cannot {wanted.verb} resource "{wanted.full_resource}" in API '
            f'group "{group}" {scope}'
        )
        raise errors.forbidden(kind, wanted.name, message)

    # Everything that is no resource

    def _other(self, request: Request, user: User) -> Response:
        path = "/" + request.path.strip("/")
        verb = VERBS.get(request.method, request.method.lower())
        self._authorize(user, Attributes(verb=verb, path=request.path))
        answer = self._information(request, path)
        if answer is None:
            group = path.split("/")[2] if path.startswith("/apis/") else ""
            if path.count("/") >= 3 and group in self._registry.groups:
                raise errors.no_such_resource()
            if path == "/":
                return json_response({"paths": ["/api", "/apis", "/healthz", "/version"]})
            return text_response("404 page not found\n", 404)
        if request.method not in {"GET", "HEAD"}:
            raise errors.method_not_allowed()
        return answer

    def _information(self, request: Request, path: str) -> Response | None:
        registry = self._registry
        match path.strip("/").split("/"):
            case ["version"]:
                return json_response(discovery.version(self._version, self._minor))
            case ["healthz" | "livez" | "readyz" as check]:
                if "verbose" in request.query:
                    return text_response(f"[+]ping ok\n{check} check passed\n")
                return text_response("ok")
            case ["api" | "apis" as root]:
                kind = self._aggregated_version(request)
                if kind:
                    body = discovery.aggregated(
                        registry, core=root == "api", api_version=f"apidiscovery.k8s.io/{kind}"
                    )
                    media_type = (
                        f"application/json;g=apidiscovery.k8s.io;v={kind};as=APIGroupDiscoveryList"
                    )
                    return json_response(body, content_type=media_type)
                if root == "api":
                    return json_response(discovery.core_versions(self.address))
                return json_response(discovery.groups(registry))
            case ["api", "v1"]:
                return json_response(discovery.resources(registry, "", "v1"))
            case ["apis", group] if group and group in registry.groups:
                return json_response(discovery.group(registry, group))
            case ["apis", group, version] if version in registry.groups.get(group, ()):
                return json_response(discovery.resources(registry, group, version))
            case ["openapi", "v2"]:
                return Response(
                    body=openapi_v2.document(registry), content_type=openapi_v2.MEDIA_TYPE
                )
            case ["openapi", "v3"] if self._minor >= 27:
                return json_response(discovery.openapi_root(registry))
            case ["openapi", "v3", "api", "v1"] if self._minor >= 27:
                return json_response(discovery.openapi_document(registry, "", "v1"))
            case ["openapi", "v3", "apis", group, version] if (
                self._minor >= 27 and version in registry.groups.get(group, ())
            ):
                return json_response(discovery.openapi_document(registry, group, version))
            case _:
                return None

    def _aggregated_version(self, request: Request) -> str:
        if self._minor < 27:
            return ""
        for media in request.accepts:
            if media.get("as") == "APIGroupDiscoveryList":
                version = media.get("v", "")
                if version == "v2beta1" or (version == "v2" and self._minor >= 30):
                    return version
        return ""
