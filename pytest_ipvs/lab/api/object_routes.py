"""Requests to resources: collections, objects, watches, subresources and reviews."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_ipvs.lab.api import bodies, errors, listing, subresources, tables
from pytest_ipvs.lab.api.auth import Authenticator, Authorizer, User
from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.kinds import Kind, Subresource
from pytest_ipvs.lab.api.messages import Request, Response, json_response, text_response
from pytest_ipvs.lab.api.options import WriteOptions, delete_options, write_options
from pytest_ipvs.lab.api.patch import json_patch, merge_patch, strategic_merge_patch
from pytest_ipvs.lab.api.resources import Resources
from pytest_ipvs.lab.api.schema import drop_unknown_fields
from pytest_ipvs.lab.api.target import VERBS, Target
from pytest_ipvs.lab.api.watch import stream

Json = dict[str, Any]
LogReader = Callable[[Json, Mapping[str, str]], str]

_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_merge_patch,
}
FOLLOW_SECONDS = 0.3
_APPLY = "application/apply-patch+yaml"


class ObjectRoutes:
    """Answers requests whose path names a resource, once rights are settled.

    ``on_namespace`` is called with the name of each new namespace; ``log_reader`` gives a pod's
    log for pods/log.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        authenticator: Authenticator,
        authorizer: Authorizer,
        on_namespace: Callable[[str], None],
        log_reader: LogReader | None = None,
    ) -> None:
        self._resources = resources
        self._registry = resources.registry
        self._minor = resources.minor
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._on_namespace = on_namespace
        self._log_reader = log_reader

    def answer(self, request: Request, user: User, kind: Kind, target: Target) -> Response:
        """The answer; raises ``ApiError``."""
        if target.subresource:
            sub = kind.subresource(target.subresource)
            if sub is None:
                raise errors.no_such_resource()
            return self._subresource(request, user, kind, target, sub)
        if not kind.stored:
            return self._unstored(request, user, kind, target)
        if target.name:
            return self._object(request, kind, target)
        return self._collection(request, kind, target)

    def _collection(self, request: Request, kind: Kind, target: Target) -> Response:
        if kind.namespaced and target.namespace is None and request.method not in {"GET", "HEAD"}:
            raise errors.method_not_allowed()
        match request.method:
            case "GET" | "HEAD":
                form = tables.Form.of(request, minor=self._minor)
                if listing.wants_watch(request.query):
                    return self._watch(request, kind, target, form)
                answer = listing.answer(
                    self._resources.store, kind, target.namespace, request.query
                )
                return json_response(form.of_list(kind, answer))
            case "POST":
                options = self._options(request)
                body = bodies.decode(request, kind_name=kind.kind)
                bodies.check_kind(body, kind)
                warnings = self._unknown(kind, body, options)
                new = self._resources.create(kind, target.namespace or "", body, options)
                self._created(kind, new, options)
                return self._one(request, kind, new, 201, warnings)
            case "DELETE" if "deletecollection" in kind.verbs:
                return self._delete_collection(request, kind, target)
            case _:
                raise errors.method_not_allowed()

    def _object(self, request: Request, kind: Kind, target: Target) -> Response:
        namespace, name = target.namespace or "", target.name
        if kind.namespaced and target.namespace is None:
            raise errors.no_such_resource()
        match request.method:
            case "GET" | "HEAD":
                if listing.wants_watch(request.query):
                    form = tables.Form.of(request, minor=self._minor)
                    return self._watch(request, kind, target, form)
                form = tables.Form.of(request, minor=self._minor)
                return json_response(
                    form.of_object(kind, self._resources.get(kind, namespace, name))
                )
            case "PUT":
                return self._put(request, kind, target)
            case "PATCH":
                return self._patch(request, kind, target)
            case "DELETE":
                options = delete_options(request.query, self._delete_body(request))
                gone, finished = self._resources.delete(kind, namespace, name, options)
                if not finished or kind.answers_object:
                    return self._one(request, kind, gone)
                return json_response(_deleted(kind, gone))
            case _:
                raise errors.method_not_allowed()

    def _options(self, request: Request) -> WriteOptions:
        agent = request.headers.get("user-agent", "")
        return write_options(request.query, agent, minor=self._minor)

    def _unknown(self, kind: Kind, body: Json, options: WriteOptions) -> dict[str, str]:
        """Drop fields that the kind does not have: with warnings, or 400 when strict."""
        unknown = [f'unknown field "{path}"' for path in drop_unknown_fields(kind, body)]
        if not unknown or options.validation == "Ignore":
            return {}
        if options.validation == "Strict":
            raise errors.bad_request(
                f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                f"strict decoding error: {', '.join(unknown)}"
            )
        texts = (text.replace('"', '\\"') for text in unknown)
        return {"Warning": ", ".join(f'299 - "{text}"' for text in texts)}

    def _one(
        self,
        request: Request,
        kind: Kind,
        object_: Json,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        form = tables.Form.of(request, minor=self._minor)
        return json_response(form.of_object(kind, object_), status, headers)

    def _put(self, request: Request, kind: Kind, target: Target, subresource: str = "") -> Response:
        options = self._options(request)
        body = bodies.decode(request, kind_name=kind.kind)
        bodies.check_kind(body, kind)
        warnings = self._unknown(kind, body, options)
        new, created = self._resources.update(
            kind, target.namespace or "", target.name, body, options, subresource=subresource
        )
        return self._one(request, kind, new, 201 if created else 200, warnings)

    def _patch(
        self, request: Request, kind: Kind, target: Target, subresource: str = ""
    ) -> Response:
        options = self._options(request)
        namespace, name = target.namespace or "", target.name
        if request.content_type == _APPLY:
            if "fieldManager" not in request.query:
                raise ApiError(
                    422,
                    "Invalid",
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: '
                    "Required value: is required for apply patch",
                    {},
                )
            body = bodies.decode(request, kind_name=kind.kind)
            bodies.check_kind(body, kind)
            warnings = self._unknown(kind, body, options)
            new, created = self._resources.apply(
                kind, namespace, name, body, options, subresource=subresource
            )
            if created:
                self._created(kind, new, options)
            return self._one(request, kind, new, 201 if created else 200, warnings)
        warnings = {}

        def change(old: Json) -> Json:
            patched = self._patched(request, old)
            bodies.check_kind(patched, kind)
            warnings.update(self._unknown(kind, patched, options))
            return patched

        new = self._resources.patch(kind, namespace, name, change, options, subresource=subresource)
        return self._one(request, kind, new, headers=warnings)

    def _patched(self, request: Request, old: Json) -> Json:
        apply = _PATCHES.get(request.content_type)
        if apply is None:
            raise errors.unsupported_media_type()
        try:
            patch = json.loads(request.body)
        except ValueError as error:
            raise errors.bad_request(f"error decoding patch: {error}") from None
        patched = apply(old, patch)
        if not isinstance(patched, dict):
            raise errors.bad_request("error decoding patch: the result is not an object")
        return patched

    def _created(self, kind: Kind, new: Json, options: WriteOptions) -> None:
        if kind.qualified == "namespaces" and not options.dry_run:
            self._on_namespace(new["metadata"]["name"])

    def _delete_body(self, request: Request) -> Json:
        if not request.body:
            return {}
        return bodies.decode(request, kind_name="DeleteOptions")

    def _delete_collection(self, request: Request, kind: Kind, target: Target) -> Response:
        options = delete_options(request.query, self._delete_body(request))
        store = self._resources.store
        with store.lock:
            found = listing.answer(store, kind, target.namespace, request.query)
            for item in found["items"]:
                metadata = item["metadata"]
                self._resources.delete(
                    kind, metadata.get("namespace", ""), metadata["name"], options
                )
        form = tables.Form.of(request, minor=self._minor)
        return json_response(form.of_list(kind, found))

    def _watch(self, request: Request, kind: Kind, target: Target, form: tables.Form) -> Response:
        wanted = listing.watch_request(
            self._resources.store,
            kind,
            target.namespace,
            target.name,
            request.query,
            minor=self._minor,
        )

        def lines() -> Iterator[bytes]:
            first = True
            for event in stream(self._resources.store, wanted, request.gone):
                text = event.text
                if not form.plain and event.type != "ERROR":
                    shown = form.of_event(kind, event.object, first=first)
                    first = first and event.type == "BOOKMARK"
                    text = json.dumps(shown, separators=(",", ":"))
                elif text is None:
                    text = json.dumps(event.object, separators=(",", ":"))
                yield f'{{"type":"{event.type}","object":{text}}}\n'.encode()

        return Response(stream=lines())

    # Subresources and reviews

    def _subresource(
        self, request: Request, user: User, kind: Kind, target: Target, sub: Subresource
    ) -> Response:
        namespace, name, method = target.namespace or "", target.name, request.method
        if VERBS.get(method) not in sub.verbs:
            raise errors.method_not_allowed()
        resources, options = self._resources, self._options(request)
        if method in {"GET", "HEAD"}:
            found = resources.get(kind, namespace, name)
            if sub.name == "scale":
                return json_response(subresources.scale_of(found))
            if sub.name == "log" and request.query.get("follow") in ("true", "1"):
                return Response(
                    stream=self._follow_log(request, kind, found),
                    content_type="text/plain; charset=utf-8",
                )
            if sub.name == "log":
                text = self._log_reader(found, request.query) if self._log_reader else ""
                return text_response(text)
            return self._one(request, kind, found)
        if sub.name == "status":
            if method == "PUT":
                return self._put(request, kind, target, "status")
            return self._patch(request, kind, target, "status")
        if sub.name == "scale":
            return self._write_scale(request, kind, target, options)
        body = bodies.decode(request, kind_name=sub.kind)
        version = f"{sub.group}/{sub.version}" if sub.version else kind.api_version
        # Old clients evict under policy/v1beta1; the server reads both.
        if sub.name != "eviction":
            bodies.check_kind(body, kind, kind_name=sub.kind, api_version=version)
        match sub.name:
            case "eviction":
                answer = subresources.evict(resources, kind, namespace, name, body, options)
            case "binding":
                answer = subresources.bind(resources, kind, namespace, name, body, options)
            case "finalize":
                return json_response(subresources.finalize(resources, kind, name, body, options))
            case _:
                answer = subresources.issue_token(
                    resources, self._authenticator, kind, namespace, name, body
                )
        return json_response(answer, 201)

    def _follow_log(self, request: Request, kind: Kind, pod: Json) -> Iterator[bytes]:
        """The log as it grows, until the pod's container has ended or the client left."""
        namespace, name, uid = (pod["metadata"][key] for key in ("namespace", "name", "uid"))
        told = 0
        while not request.gone():
            try:
                pod = self._resources.get(kind, namespace, name)
                ended = pod["metadata"]["uid"] != uid
            except ApiError:
                ended = True
            ended = ended or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
            text = self._log_reader(pod, request.query).encode() if self._log_reader else b""
            if len(text) > told:
                yield text[told:]
                told = len(text)
            if ended:
                return
            time.sleep(FOLLOW_SECONDS)

    def _write_scale(
        self, request: Request, kind: Kind, target: Target, options: WriteOptions
    ) -> Response:
        if request.method == "PUT":
            scale = bodies.decode(request, kind_name="Scale")

            def change(old: Json) -> Json:
                return subresources.with_scale(old, scale)
        else:

            def change(old: Json) -> Json:
                patched = self._patched(request, subresources.scale_of(old))
                return subresources.with_scale(old, patched)

        new = self._resources.patch(kind, target.namespace or "", target.name, change, options)
        return json_response(subresources.scale_of(new))

    def _unstored(self, request: Request, user: User, kind: Kind, target: Target) -> Response:
        if request.method != "POST" or target.name:
            raise errors.method_not_allowed()
        body = bodies.decode(request, kind_name=kind.kind)
        bodies.check_kind(body, kind)
        if kind.kind == "Binding":
            pods = self._registry.by_plural("pods")
            name = str((body.get("metadata") or {}).get("name", ""))
            answer = subresources.bind(
                self._resources, pods, target.namespace or "", name, body, self._options(request)
            )
            return json_response(answer, 201)
        answer = subresources.review(
            kind,
            body,
            user,
            authenticator=self._authenticator,
            authorizer=self._authorizer,
            minor=self._minor,
            namespace=target.namespace or "",
        )
        return json_response(answer, 201)


def _deleted(kind: Kind, object_: Json) -> Json:
    details: Json = {"name": object_["metadata"]["name"]}
    if kind.group:
        details["group"] = kind.group
    details |= {"kind": kind.plural, "uid": object_["metadata"]["uid"]}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }
