"""Who owns which field: ``metadata.managedFields``, and server-side apply on top of it.

Fields are handled as sets of paths, such as ``("f:spec", "f:replicas")``, and only turned into
the nested ``fieldsV1`` where an object is written. Which lists are maps, sets or atomic follows
the ``listType`` markers of the API types, for the kinds served.
"""

from __future__ import annotations

import json
from typing import Any

from pytest_ipvs.lab.api.errors import ApiError, bad_request
from pytest_ipvs.lab.api.store import clone

Json = dict[str, Any]
Path = tuple[str, ...]

_MISSING = object()
_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "secrets": ("name",),
    "conditions": ("type",),
    "addresses": ("type",),
    "ownerReferences": ("uid",),
    "podIPs": ("ip",),
    "hostIPs": ("ip",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_SETS = frozenset({"finalizers", "podCIDRs"})
_ATOMIC_MAPS = frozenset(
    {
        "selector",
        "nodeSelector",
        "fieldRef",
        "secretKeyRef",
        "configMapKeyRef",
        "labelSelector",
        "roleRef",
        "targetRef",
        "involvedObject",
    }
)
_UNTRACKED = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    }
)


def _keys(name: str, items: list[Any]) -> tuple[str, ...] | None:
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    if name == "ports":
        if all("containerPort" in item for item in items):
            return ("containerPort", "protocol")
        # EndpointSlices' ports are atomic; they carry no targetPort.
        return ("port", "protocol") if any("targetPort" in item for item in items) else None
    keys = _LIST_KEYS.get(name)
    return keys if keys and all(keys[0] in item for item in items) else None


def _item_name(item: Json, keys: tuple[str, ...]) -> str:
    values = {key: item.get(key, "TCP" if key == "protocol" else None) for key in keys}
    return "k:" + json.dumps(values, separators=(",", ":"))


def leaves(object_: Json) -> dict[Path, Any]:
    """Every field of an object that can be owned, with its value."""
    found: dict[Path, Any] = {}
    for key, value in object_.items():
        if key == "metadata":
            for name, item in value.items():
                if name not in _UNTRACKED:
                    _collect(name, item, ("f:metadata", f"f:{name}"), found)
        elif key not in {"apiVersion", "kind"} and not (key == "status" and not value):
            _collect(key, value, (f"f:{key}",), found)
    return found


def _collect(name: str, value: Any, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, dict) and value and name not in _ATOMIC_MAPS:
        for key, item in value.items():
            _collect(key, item, (*path, f"f:{key}"), found)
    elif isinstance(value, list) and (keys := _keys(name, value)) is not None:
        for item in value:
            here = (*path, _item_name(item, keys))
            found[(*here, ".")] = True
            for key, field in item.items():
                _collect(key, field, (*here, f"f:{key}"), found)
    elif isinstance(value, list) and name in _SETS:
        for item in value:
            found[(*path, "v:" + json.dumps(item))] = True
    elif value is not None:
        found[path] = value


def _to_tree(paths: set[Path]) -> Json:
    tree: Json = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    return tree


def _to_paths(tree: Json, prefix: Path = ()) -> set[Path]:
    if not tree:
        return {prefix} if prefix else set()
    found: set[Path] = set()
    for part, below in tree.items():
        found |= _to_paths(below, (*prefix, part))
    return found


class _Owner:
    """One entry of managedFields."""

    __slots__ = ("entry", "paths")

    def __init__(self, entry: Json, paths: set[Path]) -> None:
        self.entry = entry
        self.paths = paths

    @property
    def key(self) -> tuple[str, str, str]:
        entry = self.entry
        return entry["manager"], entry["operation"], entry.get("subresource", "")

    @property
    def shown(self) -> str:
        text = json.dumps(self.entry["manager"])
        if self.entry.get("subresource"):
            text += f" with subresource {json.dumps(self.entry['subresource'])}"
        if self.entry["operation"] == "Update":
            text += f" using {self.entry['apiVersion']}"
        return text


def _owners(metadata: Json) -> list[_Owner]:
    return [
        _Owner(entry, _to_paths(entry.get("fieldsV1") or {}))
        for entry in metadata.get("managedFields") or []
    ]


def _find(owners: list[_Owner], entry: Json) -> _Owner:
    wanted = _Owner(entry, set())
    for owner in owners:
        if owner.key == wanted.key:
            return owner
    owners.append(wanted)
    return wanted


def _write(metadata: Json, owners: list[_Owner]) -> None:
    entries = [
        {
            **{key: value for key, value in owner.entry.items() if key != "subresource"},
            "fieldsType": "FieldsV1",
            "fieldsV1": _to_tree(owner.paths),
            **(
                {"subresource": owner.entry["subresource"]}
                if owner.entry.get("subresource")
                else {}
            ),
        }
        for owner in owners
        if owner.paths
    ]
    if entries:
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)


def _entry(manager: str, operation: str, api_version: str, time: str, subresource: str) -> Json:
    entry = {
        "manager": manager,
        "operation": operation,
        "apiVersion": api_version,
        "time": time,
    }
    if subresource:
        entry["subresource"] = subresource
    return entry


def record_update(
    new: Json, old: Json | None, *, manager: str, time: str, subresource: str = ""
) -> None:
    """Note in ``new`` that ``manager`` wrote what differs from ``old``."""
    metadata = new["metadata"]
    if old is not None:
        inherited = old["metadata"].get("managedFields")
        # A client that clears the list starts it anew; any other list is not its to write.
        if metadata.get("managedFields") != [{}] and inherited is not None:
            metadata["managedFields"] = inherited
        elif metadata.get("managedFields") == [{}]:
            metadata.pop("managedFields")
            return
    else:
        metadata.pop("managedFields", None)
    before = {} if old is None else leaves(old)
    after = leaves(new)
    changed = {path for path, value in after.items() if before.get(path, _MISSING) != value}
    gone = before.keys() - after.keys()
    if not changed and not gone:
        return
    owners = _owners(metadata)
    mine = _find(owners, _entry(manager, "Update", new["apiVersion"], time, subresource))
    for owner in owners:
        owner.paths -= gone
        if owner is not mine:
            owner.paths -= changed
    mine.paths |= changed
    mine.entry = {**mine.entry, "time": time, "apiVersion": new["apiVersion"]}
    _write(metadata, owners)


def apply(
    live: Json | None, applied: Json, *, manager: str, time: str, force: bool, subresource: str = ""
) -> Json:
    """Server-side apply: the object that ``applied`` makes of ``live``.

    Raises a 409 ``ApiError`` naming every field that another manager set to another value, unless
    ``force``.
    """
    if (applied.get("metadata") or {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    wanted = leaves(applied)
    current = {} if live is None else leaves(live)
    result: Json = clone(applied) if live is None else _merge("", clone(live), applied)
    owners = [] if live is None else _owners(live["metadata"])
    mine = _find(owners, _entry(manager, "Apply", applied["apiVersion"], time, subresource))
    conflicts: list[tuple[_Owner, Path]] = []
    for owner in owners:
        if owner is mine:
            continue
        for path in sorted(owner.paths & wanted.keys()):
            if current.get(path, _MISSING) != wanted[path]:
                conflicts.append((owner, path))
    if conflicts and not force and not _upgrades(live, manager, {path for _, path in conflicts}):
        raise _conflict(conflicts)
    for owner, path in conflicts:
        owner.paths.discard(path)
    others: set[Path] = set().union(*(owner.paths for owner in owners if owner is not mine))
    _remove_all(result, mine.paths - wanted.keys() - others, others)
    unchanged = mine.paths == wanted.keys()
    mine.paths = set(wanted)
    if not unchanged or any(current.get(path) != value for path, value in wanted.items()):
        mine.entry = {**mine.entry, "time": time, "apiVersion": applied["apiVersion"]}
    _write(result["metadata"], owners)
    return result


def _upgrades(live: Json | None, manager: str, conflicts: set[Path]) -> bool:
    """Whether kubectl only takes over what it applied itself before, on the client's side."""
    annotations = ((live or {}).get("metadata") or {}).get("annotations") or {}
    last = annotations.get("kubectl.kubernetes.io/last-applied-configuration")
    if manager != "kubectl" or not last:
        return False
    try:
        return conflicts <= leaves(json.loads(last)).keys()
    except (ValueError, AttributeError):
        return False


def _merge(name: str, live: Any, applied: Any) -> Any:
    if isinstance(live, dict) and isinstance(applied, dict) and name not in _ATOMIC_MAPS:
        for key, value in applied.items():
            live[key] = _merge(key, live[key], value) if key in live else clone(value)
        return live
    if isinstance(live, list) and isinstance(applied, list):
        keys = _keys(name, [*live, *applied])
        if keys is not None:
            names = [_item_name(item, keys) for item in live]
            for item in applied:
                if (here := _item_name(item, keys)) in names:
                    index = names.index(here)
                    live[index] = _merge("", live[index], item)
                else:
                    live.append(clone(item))
            return live
        if name in _SETS:
            return live + [item for item in applied if item not in live]
    return clone(applied)


def _remove_all(object_: Json, gone: set[Path], kept: set[Path]) -> None:
    """Remove fields that nobody owns any more; an item of a list goes or stays as a whole."""
    prefixes = {path[:length] for path in kept for length in range(1, len(path))}
    items = {path[:-1] for path in gone if path[-1] == "." and path[:-1] not in prefixes}
    for item in sorted(items, reverse=True):
        _remove(object_, (*item, "."))
    for path in sorted(gone, reverse=True):
        inside = any(path[:length] in items for length in range(1, len(path)))
        # What names an item stays as long as the item.
        names = (
            len(path) > 1 and path[-2].startswith("k:") and path[-1][2:] in json.loads(path[-2][2:])
        )
        if path[-1] != "." and not inside and not names:
            _remove(object_, path)


def _remove(object_: Json, path: Path) -> None:
    """Remove the field at ``path``, and maps that become empty by it."""
    trail: list[tuple[Any, Any]] = []
    node: Any = object_
    for part in path:
        if part == ".":
            break
        if part.startswith("f:"):
            key: Any = part[2:]
            if not isinstance(node, dict) or key not in node:
                return
        elif isinstance(node, list):
            if part.startswith("k:"):
                wanted = json.loads(part[2:])
                found = (
                    index
                    for index, item in enumerate(node)
                    if _item_name(item, tuple(wanted)) == part
                )
            else:
                value = json.loads(part[2:])
                found = (index for index, item in enumerate(node) if item == value)
            key = next(found, None)
            if key is None:
                return
        else:
            return
        trail.append((node, key))
        node = node[key]
    parent, key = trail.pop()
    del parent[key]
    while trail and not parent and len(trail) > 1:
        parent, key = trail.pop()
        del parent[key]


def _conflict(conflicts: list[tuple[_Owner, Path]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {owner.shown}",
            "field": _shown_path(path),
        }
        for owner, path in conflicts
    ]
    count = len(conflicts)
    by_owner: dict[str, list[str]] = {}
    for owner, path in conflicts:
        by_owner.setdefault(owner.shown, []).append(_shown_path(path))
    texts = []
    for owner_text, fields in by_owner.items():
        if len(fields) == 1:
            texts.append(f"conflict with {owner_text}: {fields[0]}")
        else:
            listed = "".join(f"\n- {field}" for field in fields)
            texts.append(f"conflicts with {owner_text}:{listed}")
    plural = "" if count == 1 else "s"
    message = f"Apply failed with {count} conflict{plural}: " + "\n".join(texts)
    return ApiError(409, "Conflict", message, {"causes": causes})


def _shown_path(path: Path) -> str:
    text = ""
    for part in path:
        if part.startswith("f:"):
            text += "." + part[2:]
        elif part.startswith("k:"):
            pairs = json.loads(part[2:]).items()
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in pairs) + "]"
        elif part.startswith("v:"):
            text += f"[={part[2:]}]"
    return text
