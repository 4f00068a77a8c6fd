"""Which kinds the embedded API serves, under which names, with which subresources and verbs.

Names, short names, categories and verbs are those that Kubernetes 1.36.2 and 1.20.2 tell in
their discovery answers; the choice of kinds is ours: what a lab with Services, Deployments and
kube-proxy needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_CRUD = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_STATUS = ("get", "patch", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subresource:
    """One subresource of a kind: its name, what it carries and its verbs.

    ``group`` and ``version`` are empty where they are those of the parent.
    """

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of object at one group and version.

    ``generation``: metadata.generation counts changes of the wanted state. ``answers_object``: a
    finished DELETE answers the object instead of a ``Status``. ``stored``: false for reviews,
    which are answered and forgotten.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    verbs: tuple[str, ...] = _CRUD
    generation: bool = False
    answers_object: bool = False
    stored: bool = True

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` of its objects ("v1", "apps/v1")."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """How messages name the resource ("pods", "deployments.apps")."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def has_status(self) -> bool:
        """Whether status is written through its own subresource."""
        return any(sub.name == "status" for sub in self.subresources)

    def subresource(self, name: str) -> Subresource | None:
        """The subresource of that name, if the kind has it."""
        return next((sub for sub in self.subresources if sub.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The kinds of one server version, in discovery's order.

    ``minor`` is the minor version (36 for 1.36.2). ``groups`` maps a group to its versions, the
    preferred first.
    """

    minor: int
    kinds: tuple[Kind, ...]
    groups: dict[str, tuple[str, ...]]
    _index: dict[tuple[str, str, str], Kind] = field(default_factory=dict, repr=False)

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind behind a URL's group, version and plural."""
        return self._index.get((group, version, plural))

    def of(self, group: str, version: str) -> Iterator[Kind]:
        """All kinds of one group version."""
        return (kind for kind in self.kinds if (kind.group, kind.version) == (group, version))

    def by_plural(self, plural: str, group: str = "") -> Kind:
        """The served kind of that plural; raises ``KeyError`` with the name if there is none."""
        for kind in self.kinds:
            if kind.plural == plural and kind.group == group:
                return kind
        raise KeyError(f"{plural}.{group}" if group else plural)


def _status(kind: str) -> Subresource:
    return Subresource(name="status", kind=kind, verbs=_STATUS)


_SCALE = Subresource(name="scale", kind="Scale", verbs=_STATUS, group="autoscaling", version="v1")


def _core(minor: int) -> list[Kind]:
    policy = "v1" if minor >= 22 else "v1beta1"
    pod_subresources = [
        Subresource(name="binding", kind="Binding", verbs=("create",)),
        Subresource(
            name="eviction", kind="Eviction", verbs=("create",), group="policy", version=policy
        ),
        Subresource(name="log", kind="Pod", verbs=("get",)),
        _status("Pod"),
    ]
    namespace_verbs = tuple(verb for verb in _CRUD if verb != "deletecollection")
    return [
        Kind(
            group="",
            version="v1",
            kind="Binding",
            plural="bindings",
            singular="binding",
            verbs=("create",),
            stored=False,
        ),
        Kind(
            group="",
            version="v1",
            kind="ConfigMap",
            plural="configmaps",
            singular="configmap",
            short_names=("cm",),
        ),
        Kind(
            group="",
            version="v1",
            kind="Endpoints",
            plural="endpoints",
            singular="endpoints",
            short_names=("ep",),
        ),
        Kind(
            group="",
            version="v1",
            kind="Event",
            plural="events",
            singular="event",
            short_names=("ev",),
        ),
        Kind(
            group="",
            version="v1",
            kind="Namespace",
            plural="namespaces",
            singular="namespace",
            namespaced=False,
            short_names=("ns",),
            verbs=namespace_verbs,
            subresources=(
                Subresource(name="finalize", kind="Namespace", verbs=("update",)),
                _status("Namespace"),
            ),
        ),
        Kind(
            group="",
            version="v1",
            kind="Node",
            plural="nodes",
            singular="node",
            namespaced=False,
            short_names=("no",),
            subresources=(_status("Node"),),
        ),
        Kind(
            group="",
            version="v1",
            kind="Pod",
            plural="pods",
            singular="pod",
            short_names=("po",),
            categories=("all",),
            subresources=tuple(pod_subresources),
            # Pods count their generation since 1.33 (alpha), on by default since 1.34.
            generation=minor >= 34,
            answers_object=True,
        ),
        Kind(
            group="",
            version="v1",
            kind="Secret",
            plural="secrets",
            singular="secret",
        ),
        Kind(
            group="",
            version="v1",
            kind="ServiceAccount",
            plural="serviceaccounts",
            singular="serviceaccount",
            short_names=("sa",),
            answers_object=True,
            subresources=(
                Subresource(
                    name="token",
                    kind="TokenRequest",
                    verbs=("create",),
                    group="authentication.k8s.io",
                    version="v1",
                ),
            ),
        ),
        Kind(
            group="",
            version="v1",
            kind="Service",
            plural="services",
            singular="service",
            short_names=("svc",),
            categories=("all",),
            subresources=(_status("Service"),),
            verbs=_CRUD if minor >= 23 else namespace_verbs,
            answers_object=minor >= 23,
        ),
    ]


def _apps() -> list[Kind]:
    kinds = [
        Kind(
            group="apps",
            version="v1",
            kind="ControllerRevision",
            plural="controllerrevisions",
            singular="controllerrevision",
        )
    ]
    for kind, short, scale in (
        ("DaemonSet", "ds", False),
        ("Deployment", "deploy", True),
        ("ReplicaSet", "rs", True),
        ("StatefulSet", "sts", True),
    ):
        subresources = ((_SCALE,) if scale else ()) + (_status(kind),)
        kinds.append(
            Kind(
                group="apps",
                version="v1",
                kind=kind,
                plural=kind.lower() + "s",
                singular=kind.lower(),
                short_names=(short,),
                categories=("all",),
                subresources=subresources,
                generation=True,
            )
        )
    return kinds


def _reviews(minor: int) -> list[Kind]:
    group = "authentication.k8s.io"
    review = Kind(
        group=group,
        version="v1",
        kind="TokenReview",
        plural="tokenreviews",
        singular="tokenreview",
        namespaced=False,
        verbs=("create",),
        stored=False,
    )
    kinds = [review]
    if minor >= 28:
        kinds.append(
            replace(
                review,
                kind="SelfSubjectReview",
                plural="selfsubjectreviews",
                singular="selfsubjectreview",
            )
        )
    for kind, namespaced in (
        ("LocalSubjectAccessReview", True),
        ("SelfSubjectAccessReview", False),
        ("SelfSubjectRulesReview", False),
        ("SubjectAccessReview", False),
    ):
        kinds.append(
            replace(
                review,
                group="authorization.k8s.io",
                kind=kind,
                plural=kind.lower() + "s",
                singular=kind.lower(),
                namespaced=namespaced,
            )
        )
    return kinds


def _others(minor: int) -> list[Kind]:
    kinds = [
        Kind(
            group="batch",
            version="v1",
            kind="Job",
            plural="jobs",
            singular="job",
            categories=("all",),
            subresources=(_status("Job"),),
            generation=True,
        ),
        Kind(
            group="coordination.k8s.io",
            version="v1",
            kind="Lease",
            plural="leases",
            singular="lease",
        ),
        Kind(
            group="discovery.k8s.io",
            version="v1" if minor >= 21 else "v1beta1",
            kind="EndpointSlice",
            plural="endpointslices",
            singular="endpointslice",
            generation=True,
        ),
    ]
    for kind, namespaced in (
        ("ClusterRoleBinding", False),
        ("ClusterRole", False),
        ("RoleBinding", True),
        ("Role", True),
    ):
        kinds.append(
            Kind(
                group="rbac.authorization.k8s.io",
                version="v1",
                kind=kind,
                plural=kind.lower() + "s",
                singular=kind.lower(),
                namespaced=namespaced,
            )
        )
    return kinds


def registry(version: str) -> Registry:
    """The kinds that a server of this version ("1.36.2", "v1.20") serves here.

    Raises ``ValueError`` when the version is not written as numbers with dots.
    """
    parts = version.removeprefix("v").split(".")
    if len(parts) < 2 or parts[0] != "1" or not parts[1].isdigit():
        raise ValueError(f"version {version!r}: expected a Kubernetes version such as 1.36.2")
    minor = int(parts[1])
    kinds = tuple(_core(minor) + _apps() + _reviews(minor) + _others(minor))
    groups: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        if kind.version not in groups.get(kind.group, ()):
            groups[kind.group] = (*groups.get(kind.group, ()), kind.version)
    # Evictions are found through this group, though it has no resource of its own here.
    groups["policy"] = ("v1" if minor >= 22 else "v1beta1",)
    index = {(kind.group, kind.version, kind.plural): kind for kind in kinds}
    return Registry(minor=minor, kinds=kinds, groups=groups, _index=index)
