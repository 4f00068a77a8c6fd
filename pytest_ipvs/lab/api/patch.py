"""The three patches that carry no owner: JSON patch, merge patch, strategic merge patch.

Merge keys are those of the API types (``patchMergeKey`` in ``k8s.io/api``), for the kinds served.
"""

from __future__ import annotations

from typing import Any

from pytest_ipvs.lab.api.errors import bad_request, rejected_patch
from pytest_ipvs.lab.api.store import clone

Json = dict[str, Any]

# Lists of objects that are merged item by item, by the field that identifies an item. All other
# lists are replaced as a whole.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "secrets": "name",
    "hostAliases": "ip",
    "podIPs": "ip",
    "hostIPs": "ip",
    "conditions": "type",
    "addresses": "type",
    "ownerReferences": "uid",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "ephemeralContainerStatuses": "name",
}
# Lists of plain values that are merged as sets.
_MERGED_SETS = frozenset({"finalizers", "podCIDRs"})


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902 on a copy of ``document``; raises a 422 ``ApiError`` if it does not apply."""
    if not isinstance(operations, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of "
            "type jsonpatch.Patch"
        )
    root: Any = {"": clone(document)}
    for operation in operations:
        try:
            _apply_operation(root, operation)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise rejected_patch() from None
    return root[""]


def _walk(root: Any, pointer: str) -> tuple[Any, str | int]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    if parts[0]:
        raise ValueError(pointer)
    target: Any = root
    for part in parts[:-1]:
        target = target[_index(target, part)]
    return target, _index(target, parts[-1], end=True)


def _index(target: Any, part: str, *, end: bool = False) -> str | int:
    if not isinstance(target, list):
        return part
    if part == "-" and end:
        return len(target)
    position = int(part)
    if position < 0:
        raise IndexError(part)
    return position


def _apply_operation(root: Any, operation: Json) -> None:
    kind, path = operation["op"], operation["path"]
    target, key = _walk(root, path)
    if kind in {"move", "copy"}:
        source, source_key = _walk(root, operation["from"])
        value = clone(source[source_key])
        if kind == "move":
            del source[source_key]
            target, key = _walk(root, path)
    elif kind in {"add", "replace", "test"}:
        value = clone(operation["value"])
    if kind == "remove":
        del target[key]
    elif kind == "test":
        if target[key] != value:
            raise ValueError(path)
    elif kind == "replace":
        _ = target[key]
        target[key] = value
    elif kind in {"add", "move", "copy"}:
        if isinstance(target, list):
            if not isinstance(key, int) or key > len(target):
                raise IndexError(path)
            target.insert(key, value)
        else:
            target[key] = value
    else:
        raise ValueError(kind)


def merge_patch(document: Any, patch: Any) -> Any:
    """RFC 7386 on a copy of ``document``."""
    if not isinstance(patch, dict):
        return clone(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_merge_patch(document: Any, patch: Any) -> Json:
    """A strategic merge patch on a copy of ``document``, with the ``$patch`` directives."""
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: expected an object")
    result: Json = _merge_map(document if isinstance(document, dict) else {}, patch)
    return result


def _merge_map(document: Json, patch: Json) -> Json:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: clone(value) for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    retained = patch.get("$retainKeys")
    result = dict(document)
    if retained is not None:
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [item for item in result.get(name) or [] if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        order = patch.get(f"$setElementOrder/{key}")
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = _merge_map(old if isinstance(old, dict) else {}, value)
        elif isinstance(value, list):
            result[key] = _merge_list(key, result.get(key), value, order)
        else:
            result[key] = value
    for key, value in patch.items():
        if key.startswith("$setElementOrder/"):
            name = key.partition("/")[2]
            if name not in patch and isinstance(result.get(name), list):
                result[name] = _ordered(name, result[name], value)
    return result


def merge_key(name: str, items: list[Any]) -> str | None:
    """The field that identifies an item of the list called ``name``; ``None`` for atomic lists."""
    if name == "ports":
        # The same name twice: containers' ports are known by containerPort, Services' by port.
        return "containerPort" if any("containerPort" in item for item in items) else "port"
    return _MERGE_KEYS.get(name)


def _merge_list(name: str, old: Any, patch: list[Any], order: Any) -> list[Any]:
    old_items: list[Any] = list(old) if isinstance(old, list) else []
    if not all(isinstance(item, dict) for item in [*old_items, *patch]):
        if name in _MERGED_SETS:
            merged = old_items + [item for item in patch if item not in old_items]
            return _ordered(name, merged, order) if order else merged
        return clone(patch)  # type: ignore[no-any-return]
    key = merge_key(name, [*old_items, *patch])
    replaced = any(item.get("$patch") == "replace" for item in patch)
    if key is None or replaced:
        return [clone(item) for item in patch if "$patch" not in item or len(item) > 1]
    result = old_items
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        index = next((i for i, other in enumerate(result) if other.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [other for other in result if other.get(key) != item[key]]
        elif index is None:
            result.append(_merge_map({}, item))
        else:
            result[index] = _merge_map(result[index], item)
    return _ordered(name, result, order) if order else result


def _ordered(name: str, items: list[Any], order: list[Any]) -> list[Any]:
    """Items named in ``order`` come in that order; the others keep their places after them."""
    if not items:
        return items
    if isinstance(items[0], dict):
        key = merge_key(name, items)
        wanted = [entry.get(key) for entry in order]
        ranks = {value: rank for rank, value in enumerate(wanted)}
        return sorted(items, key=lambda item: ranks.get(item.get(key), len(ranks)))
    ranks = {value: rank for rank, value in enumerate(order)}
    return sorted(items, key=lambda item: ranks.get(item, len(ranks)))
