"""Small questions about whole objects: are they the same, what of them is wanted state."""

from __future__ import annotations

from typing import Any

from pytest_ipvs.lab.api.kinds import Kind

Json = dict[str, Any]


def take_over(new: Json, old: Json, name: str) -> None:
    """Make a field of ``new`` what it is in ``old``, absent included."""
    if name in old:
        new[name] = old[name]
    else:
        new.pop(name, None)


def wanted_state(object_: Json) -> Json:
    """What ``generation`` counts changes of: everything but status and metadata."""
    skipped = {"metadata", "status", "kind", "apiVersion"}
    return {key: value for key, value in object_.items() if key not in skipped}


def same(new: Json, old: Json) -> bool:
    """Whether a write changes nothing, the time of the last write aside."""

    def bare(object_: Json) -> Json:
        metadata = dict(object_["metadata"])
        metadata["managedFields"] = [
            {key: value for key, value in entry.items() if key != "time"}
            for entry in metadata.get("managedFields") or []
        ]
        metadata.pop("resourceVersion", None)
        return {**object_, "metadata": metadata}

    return bare(new) == bare(old)


_METADATA_ORDER = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
)


def ordered(kind: Kind, object_: Json) -> Json:
    """The object with its fields in the order of a real server's answers, for readers' eyes."""
    metadata = object_["metadata"]
    metadata.setdefault("resourceVersion", "")
    ordered = {name: metadata[name] for name in _METADATA_ORDER if name in metadata}
    if not ordered["resourceVersion"]:
        del ordered["resourceVersion"]
    rest = {
        key: value
        for key, value in object_.items()
        if key not in {"kind", "apiVersion", "metadata", "status"}
    }
    result = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": ordered, **rest}
    if "status" in object_:
        result["status"] = object_["status"]
    return result
