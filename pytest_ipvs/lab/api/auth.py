"""Who sends a request (bearer tokens) and whether they may (RBAC objects of the store).

Members of system:masters may do everything, as in a real cluster. Everyone else needs a Role or
ClusterRole bound to their name, group or service account.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.lab.api import errors
from pytest_ipvs.lab.api.store import Store

Json = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
MASTERS = "system:masters"
# What a cluster lets everybody see (ClusterRole system:public-info-viewer).
_PUBLIC_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")
# What it lets everybody see who has proved who they are (ClusterRole system:discovery).
_DISCOVERY_PATHS = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who sends a request: name, uid and groups."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()


ANONYMOUS = User(name="system:anonymous", groups=("system:unauthenticated",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What somebody wants to do: a verb on a resource, or on a ``path`` that is none."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        """Resource and subresource as rules write them ("pods/log")."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Authenticator:
    """Bearer tokens: those given at the start, and those of service accounts.

    Service-account tokens are JSON web tokens signed with a secret of this run, so that they need
    no table; they end at their time and with their account.
    """

    def __init__(self, store: Store, users: Mapping[str, User]) -> None:
        self._store = store
        self._users = dict(users)
        self._secret = secrets.token_bytes(32)

    def identify(self, authorization: str | None) -> User:
        """The user behind an Authorization header; 401 ``ApiError`` if it is not valid."""
        if not authorization:
            return ANONYMOUS
        scheme, _, credentials = authorization.partition(" ")
        credentials = credentials.strip()
        if scheme.lower() == "basic":
            # The password of any user name may be a token: for clients that know no other way.
            try:
                decoded = base64.b64decode(credentials, validate=True).decode()
            except (ValueError, UnicodeDecodeError):
                raise errors.unauthorized() from None
            credentials = decoded.partition(":")[2]
        elif scheme.lower() != "bearer":
            return ANONYMOUS
        user = self.by_token(credentials)
        if user is None:
            raise errors.unauthorized()
        return user

    def by_token(self, token: str) -> User | None:
        """The user of a token; ``None`` if it is unknown, expired or its account is gone."""
        for known, user in self._users.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return user
        claims = self._claims(token)
        if claims is None or claims["exp"] < time.time():
            return None
        account = claims["kubernetes.io"]["serviceaccount"]
        namespace = claims["kubernetes.io"]["namespace"]
        found = self._store.get("serviceaccounts", namespace, account["name"])
        if found is None or found["metadata"]["uid"] != account["uid"]:
            return None
        return service_account(namespace, account["name"], account["uid"])

    def issue(self, account: Json, audiences: Iterable[str], seconds: int) -> str:
        """A new token of a service account that is valid for ``seconds``."""
        metadata = account["metadata"]
        issued = int(time.time())
        claims = {
            "aud": list(audiences),
            "exp": issued + seconds,
            "iat": issued,
            "iss": "https://kubernetes.default.svc.cluster.local",
            "jti": secrets.token_hex(8),
            "kubernetes.io": {
                "namespace": metadata["namespace"],
                "serviceaccount": {"name": metadata["name"], "uid": metadata["uid"]},
            },
            "sub": f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}",
        }
        signed = ".".join(_encode(json.dumps(part).encode()) for part in ({"alg": "HS256"}, claims))
        return f"{signed}.{self._signature(signed)}"

    def _signature(self, signed: str) -> str:
        return _encode(hmac.digest(self._secret, signed.encode(), hashlib.sha256))

    def _claims(self, token: str) -> Json | None:
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(signed).encode(), signature.encode()):
            return None
        payload = signed.partition(".")[2]
        claims: Json = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def service_account(namespace: str, name: str, uid: str) -> User:
    """The user that a service account is."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return User(
        name=f"system:serviceaccount:{namespace}:{name}",
        uid=uid,
        groups=(*groups, "system:authenticated"),
    )


class Authorizer:
    """RBAC over the Role, ClusterRole and binding objects of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allows(self, user: User, wanted: Attributes) -> bool:
        """Whether the user may do that."""
        if MASTERS in user.groups:
            return True
        if wanted.path:
            return self._path_allowed(user, wanted)
        if self._basic(user, wanted):
            return True
        return any(_rule_allows(rule, wanted) for rule in self.rules(user, wanted.namespace))

    def _path_allowed(self, user: User, wanted: Attributes) -> bool:
        if wanted.verb in {"get", "head"}:
            if any(_path_matches(path, wanted.path) for path in _PUBLIC_PATHS):
                return True
            known = "system:authenticated" in user.groups
            if known and any(_path_matches(path, wanted.path) for path in _DISCOVERY_PATHS):
                return True
        return any(
            _member(wanted.verb, rule.get("verbs"))
            and any(_path_matches(path, wanted.path) for path in rule.get("nonResourceURLs") or [])
            for rule in self.rules(user, "")
        )

    def _basic(self, user: User, wanted: Attributes) -> bool:
        """ClusterRole system:basic-user: everybody may ask about themselves."""
        return (
            "system:authenticated" in user.groups
            and wanted.verb == "create"
            and wanted.resource
            in {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}
        )

    def rules(self, user: User, namespace: str) -> Iterator[Json]:
        """All rules that the user's bindings give cluster-wide and in ``namespace``."""
        for binding in self._store.select(f"clusterrolebindings.{_RBAC}"):
            yield from self._bound(binding, user)
        if namespace:
            for binding in self._store.select(f"rolebindings.{_RBAC}", namespace):
                yield from self._bound(binding, user)

    def _bound(self, binding: Json, user: User) -> Iterator[Json]:
        namespace = binding["metadata"].get("namespace", "")
        subjects = binding.get("subjects") or []
        if not any(_is_subject(subject, user, namespace) for subject in subjects):
            return
        reference = binding["roleRef"]
        if reference["kind"] == "Role":
            role = self._store.get(f"roles.{_RBAC}", namespace, reference["name"])
        else:
            role = self._store.get(f"clusterroles.{_RBAC}", "", reference["name"])
        yield from (role or {}).get("rules") or []


def _is_subject(subject: Json, user: User, namespace: str) -> bool:
    match subject.get("kind"):
        case "User":
            return bool(subject.get("name") == user.name)
        case "Group":
            return subject.get("name") in user.groups
        case "ServiceAccount":
            where = subject.get("namespace") or namespace
            return f"system:serviceaccount:{where}:{subject.get('name')}" == user.name
        case _:
            return False


def _member(word: str, words: list[str] | None) -> bool:
    return "*" in (words or []) or word in (words or [])


def _rule_allows(rule: Json, wanted: Attributes) -> bool:
    names = rule.get("resourceNames") or []
    resources = rule.get("resources") or []
    return (
        _member(wanted.verb, rule.get("verbs"))
        and _member(wanted.group, rule.get("apiGroups"))
        and (
            _member(wanted.full_resource, resources)
            or bool(wanted.subresource and f"*/{wanted.subresource}" in resources)
        )
        and (not names or wanted.name in names)
    )


def _path_matches(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern
