"""What the server tells of itself: version, groups, resources, and the least of OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_ipvs.lab.api.kinds import Kind, Registry

Json = dict[str, Any]


def version(text: str, minor: int) -> Json:
    """The answer of /version for a server of version ``text`` ("1.36.2")."""
    answer: Json = {"major": "1", "minor": str(minor)}
    if minor >= 33:
        answer |= {
            "emulationMajor": "1",
            "emulationMinor": str(minor),
            "minCompatibilityMajor": "1",
            "minCompatibilityMinor": str(minor - 1),
        }
    full = text.removeprefix("v")
    if full.count(".") < 2:
        full += ".0"
    return answer | {
        "gitVersion": f"v{full}",
        # Nobody built this server from a commit: it is pytest-ipvs's stand-in.
        "gitCommit": "0" * 40,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (pytest-ipvs lab)",
        "compiler": "none",
        "platform": "linux/amd64",
    }


def core_versions(address: str) -> Json:
    """The answer of /api; ``address`` is host:port."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def _group(name: str, versions: Iterable[str]) -> Json:
    listed = [{"groupVersion": f"{name}/{item}", "version": item} for item in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def groups(registry: Registry) -> Json:
    """The answer of /apis."""
    listed = [_group(name, versions) for name, versions in registry.groups.items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def group(registry: Registry, name: str) -> Json:
    """The answer of /apis/NAME."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, registry.groups[name])}


def resources(registry: Registry, group_name: str, version_name: str) -> Json:
    """The answer of /api/v1 or /apis/GROUP/VERSION."""
    listed: list[Json] = []
    for kind in registry.of(group_name, version_name):
        entry: Json = {
            "name": kind.plural,
            # Old servers leave the singular to the client.
            "singularName": kind.singular if registry.minor >= 27 else "",
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        listed.append(entry)
        for sub in kind.subresources:
            below: Json = {
                "name": f"{kind.plural}/{sub.name}",
                "singularName": "",
                "namespaced": kind.namespaced,
            }
            if sub.version:
                below |= {"group": sub.group, "version": sub.version}
            listed.append(below | {"kind": sub.kind, "verbs": list(sub.verbs)})
    answer: Json = {"kind": "APIResourceList"}
    if group_name:
        answer["apiVersion"] = "v1"
    full = f"{group_name}/{version_name}" if group_name else version_name
    return answer | {"groupVersion": full, "resources": listed}


def aggregated(registry: Registry, *, core: bool, api_version: str) -> Json:
    """The aggregated answer of /api (``core``) or /apis, as ``apidiscovery.k8s.io`` writes it."""
    items: list[Json] = []
    for name, versions in registry.groups.items():
        if (name == "") is not core:
            continue
        listed = [
            {
                "version": item,
                "resources": [_aggregated_kind(kind) for kind in registry.of(name, item)],
                "freshness": "Current",
            }
            for item in versions
        ]
        items.append({"metadata": {"name": name} if name else {}, "versions": listed})
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": api_version,
        "metadata": {},
        "items": items,
    }


def _aggregated_kind(kind: Kind) -> Json:
    entry: Json = {
        "resource": kind.plural,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    if kind.subresources:
        entry["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": list(sub.verbs),
            }
            for sub in kind.subresources
        ]
    return entry


def openapi_root(registry: Registry) -> Json:
    """The answer of /openapi/v3."""
    paths = {}
    for name, versions in registry.groups.items():
        for item in versions:
            path = f"apis/{name}/{item}" if name else f"api/{item}"
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash=0"}
    return {"paths": paths}


def openapi_document(registry: Registry, group_name: str, version_name: str) -> Json:
    """The OpenAPI v3 document of one group version, without schemas.

    It says what kubectl asks of it: that PATCH validates fields and knows dry runs. It does not
    offer strategic merge patches there, since kubectl would then look for the types' schemas;
    without it kubectl uses its own.
    """
    prefix = f"/apis/{group_name}" if group_name else "/api"
    paths: Json = {}
    for kind in registry.of(group_name, version_name):
        if "patch" not in kind.verbs:
            continue
        scope = "/namespaces/{namespace}" if kind.namespaced else ""
        names = ("dryRun", "fieldManager", "fieldValidation", "force")
        paths[f"{prefix}/{version_name}{scope}/{kind.plural}/{{name}}"] = {
            "patch": {
                "parameters": [
                    {"name": name, "in": "query", "schema": {"type": "string"}} for name in names
                ],
                "requestBody": {"content": {"application/apply-patch+yaml": {"schema": {}}}},
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": {
                    "group": group_name,
                    "version": version_name,
                    "kind": kind.kind,
                },
            }
        }
    info = {"title": "Kubernetes", "version": f"v1.{registry.minor}.0"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
