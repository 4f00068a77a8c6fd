"""What lies beneath an object's URL: scale, eviction, binding, token, finalize; and reviews."""

from __future__ import annotations

import time
from typing import Any

from pytest_ipvs.lab.api import errors
from pytest_ipvs.lab.api.auth import Attributes, Authenticator, Authorizer, User
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.options import DeleteOptions, WriteOptions, delete_options
from pytest_ipvs.lab.api.resources import Resources, now
from pytest_ipvs.lab.api.selectors import selector_text

Json = dict[str, Any]

_ZONES = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")


def scale_of(object_: Json) -> Json:
    """The ``Scale`` of a Deployment, ReplicaSet or StatefulSet."""
    source = object_["metadata"]
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    scale: Json = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: source[name] for name in names if name in source},
        "spec": {},
        "status": {"replicas": (object_.get("status") or {}).get("replicas", 0)},
    }
    if replicas := object_["spec"].get("replicas", 0):
        scale["spec"]["replicas"] = replicas
    if selector := selector_text(object_["spec"].get("selector")):
        scale["status"]["selector"] = selector
    return scale


def with_scale(object_: Json, scale: Json) -> Json:
    """The object (ours to change) as a written ``Scale`` wants it."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise errors.bad_request(
            'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal '
            "spec.replicas into Go struct field of type int32"
        )
    object_["spec"]["replicas"] = replicas
    version = (scale.get("metadata") or {}).get("resourceVersion")
    if version:
        object_["metadata"]["resourceVersion"] = version
    return object_


def _success(code: int = 201) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": code,
    }


def evict(
    resources: Resources, kind: Kind, namespace: str, name: str, body: Json, options: WriteOptions
) -> Json:
    """Delete a pod on behalf of an eviction, with the delete options that it carries.

    Disruption budgets are not among the kinds served, so none can refuse.
    """
    wanted: DeleteOptions = delete_options(
        {"dryRun": "All"} if options.dry_run else {}, body.get("deleteOptions") or {}
    )
    resources.delete(kind, namespace, name, wanted)
    return _success()


def bind(
    resources: Resources, kind: Kind, namespace: str, name: str, body: Json, options: WriteOptions
) -> Json:
    """Give a pod its node, once: what the scheduler does."""
    target = (body.get("target") or {}).get("name")
    if not target:
        raise errors.bad_request("binding: target.name: Required value")
    if (body.get("target") or {}).get("kind", "Node") not in {"Node", ""}:
        raise errors.bad_request("binding: target.kind: must be Node")
    with resources.store.lock:
        pod = resources.get(kind, namespace, name)
        if pod["metadata"].get("deletionTimestamp"):
            raise errors.ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on pods/binding "{name}": pod '
                f"{name} is being deleted, cannot be assigned to a host",
                {"name": name},
            )
        assigned = pod["spec"].get("nodeName")
        if assigned:
            raise errors.ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on pods/binding "{name}": pod '
                f'{name} is already assigned to node "{assigned}"',
                {"name": name, "kind": "pods/binding"},
            )
        node = resources.store.get("nodes", "", target) or {"metadata": {}}

        def assign(copy: Json) -> None:
            copy["spec"]["nodeName"] = target
            conditions = copy.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [item for item in conditions if item["type"] != "PodScheduled"]
            conditions.append(
                {
                    "type": "PodScheduled",
                    "status": "True",
                    "lastProbeTime": None,
                    "lastTransitionTime": now(),
                }
            )
            if resources.minor >= 35:
                # Pods inherit where their node stands (admission plugin PodTopologyLabels).
                zones = {
                    key: value
                    for key, value in (node["metadata"].get("labels") or {}).items()
                    if key in _ZONES
                }
                if zones:
                    copy["metadata"]["labels"] = {**(copy["metadata"].get("labels") or {}), **zones}

        if not options.dry_run:
            resources.store.update(kind.qualified, namespace, name, assign)
    return _success()


def finalize(
    resources: Resources, kind: Kind, name: str, body: Json, options: WriteOptions
) -> Json:
    """Replace a namespace's spec.finalizers; without any, a terminating one is gone."""
    wanted = (body.get("spec") or {}).get("finalizers") or []
    with resources.store.lock:
        old = resources.get(kind, "", name)
        metadata = {**old["metadata"]}
        sent = (body.get("metadata") or {}).get("resourceVersion")
        if sent:
            metadata["resourceVersion"] = sent
        new = {**old, "metadata": metadata, "spec": {**(old.get("spec") or {})}}
        if wanted:
            new["spec"]["finalizers"] = wanted
        else:
            new["spec"].pop("finalizers", None)
        return resources.update(kind, "", name, new, options, subresource="finalize")[0]


def issue_token(
    resources: Resources, tokens: Authenticator, kind: Kind, namespace: str, name: str, body: Json
) -> Json:
    """Answer a TokenRequest for a service account."""
    account = resources.get(kind, namespace, name)
    spec = body.get("spec") or {}
    seconds = spec.get("expirationSeconds") or 3600
    if not isinstance(seconds, int) or seconds < 600:
        cause = errors.FieldError(
            type="FieldValueInvalid",
            field="spec.expirationSeconds",
            value=seconds,
            detail="may not specify a duration less than 10 minutes",
        )
        request = Kind(
            group="authentication.k8s.io",
            version="v1",
            kind="TokenRequest",
            plural="tokenrequests",
            singular="tokenrequest",
        )
        raise errors.invalid(request, "", [cause], minor=resources.minor)
    audiences = spec.get("audiences") or ["https://kubernetes.default.svc.cluster.local"]
    metadata: Json = {"creationTimestamp": None}
    if resources.minor >= 22:
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": account["metadata"]["uid"],
            "creationTimestamp": now(),
        }
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": metadata,
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": spec.get("boundObjectRef"),
        },
        "status": {
            "token": tokens.issue(account, audiences, seconds),
            "expirationTimestamp": time.strftime(
                "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds)
            ),
        },
    }


def review(
    kind: Kind,
    body: Json,
    user: User,
    *,
    authenticator: Authenticator,
    authorizer: Authorizer,
    minor: int,
    namespace: str = "",
) -> Json:
    """Answer a question about who somebody is or what they may do."""
    spec = body.get("spec") or {}
    answer: Json = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}}
    if minor < 34:
        # Servers before 1.34 print the unset time.
        answer["metadata"] = {"creationTimestamp": None}
    if kind.kind == "SelfSubjectReview":
        answer["metadata"] = {"creationTimestamp": now()}
        answer["status"] = {"userInfo": _user_info(user)}
        return answer
    answer["spec"] = spec
    if kind.kind == "TokenReview":
        found = authenticator.by_token(str(spec.get("token", "")))
        if found is None:
            answer["status"] = {"user": {}, "error": "invalid bearer token"}
        else:
            answer["status"] = {"authenticated": True, "user": _user_info(found)}
        return answer
    if kind.kind == "SelfSubjectRulesReview":
        rules = list(authorizer.rules(user, spec.get("namespace", "")))
        everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
        if "system:masters" in user.groups:
            rules = [everything, {"verbs": ["*"], "nonResourceURLs": ["*"]}]
        answer["status"] = {
            "resourceRules": [rule for rule in rules if "resources" in rule],
            "nonResourceRules": [rule for rule in rules if "nonResourceURLs" in rule],
            "incomplete": False,
        }
        return answer
    who = user
    if kind.kind in {"SubjectAccessReview", "LocalSubjectAccessReview"}:
        who = User(name=str(spec.get("user", "")), groups=tuple(spec.get("groups") or ()))
    answer["status"] = {"allowed": authorizer.allows(who, _attributes(spec, namespace))}
    return answer


def _attributes(spec: Json, namespace: str) -> Attributes:
    path = spec.get("nonResourceAttributes")
    if path:
        return Attributes(verb=path.get("verb", ""), path=path.get("path") or "/")
    wanted = spec.get("resourceAttributes") or {}
    return Attributes(
        verb=wanted.get("verb", ""),
        group=wanted.get("group", ""),
        resource=wanted.get("resource", ""),
        subresource=wanted.get("subresource", ""),
        namespace=wanted.get("namespace") or namespace,
        name=wanted.get("name", ""),
    )


def _user_info(user: User) -> Json:
    info: Json = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    return info | {"groups": list(user.groups)}
