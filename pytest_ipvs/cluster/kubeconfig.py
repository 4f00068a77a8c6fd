"""From settings to an authenticated kubernetes client, or one sentence why there is none.

The file is checked here before the kubernetes package reads it: that package's messages quote
whole entries, tokens included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ipvs.cluster.errors import ClusterError
from pytest_ipvs.cluster.yaml_text import YamlError, read_yaml

if TYPE_CHECKING:
    from pytest_ipvs.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An authenticated client. ``server`` is the URL without credentials, ``context`` the name."""

    client: Any
    server: str
    context: str


def connect(settings: Settings) -> Access:
    """Make a client for the cluster that the settings name. Sends nothing to it."""
    from kubernetes.client import ApiClient, Configuration

    # Not Configuration(): old releases replace it by a factory that copies a global default.
    configuration = type.__call__(Configuration)
    if settings.in_cluster:
        context = "in-cluster"
        _load_in_cluster(configuration, settings.origin("in_cluster"))
    else:
        context = _load_file(configuration, settings)
    # Lists, several watches and writes run at the same time, each on its own connection.
    configuration.connection_pool_maxsize = 32
    return Access(
        client=ApiClient(configuration), server=_without_user(configuration.host), context=context
    )


def _load_in_cluster(configuration: Any, origin: str) -> None:
    from kubernetes import config

    # The package tells no types for it.
    loader: Any = config
    try:
        loader.load_incluster_config(client_configuration=configuration)
    except (loader.ConfigException, OSError) as error:
        raise ClusterError(
            f"{origin} is given, but this is no pod with a service account: {error}"
        ) from None


def _load_file(configuration: Any, settings: Settings) -> str:
    from kubernetes import config

    loader: Any = config
    paths, origin = _paths(settings)
    documents = [_read(path, origin) for path in paths]
    shown = os.pathsep.join(paths)
    context = _check(documents, shown, settings)
    try:
        loader.load_kube_config(
            config_file=shown,
            context=context,
            client_configuration=configuration,
            # A test run has no business writing refreshed tokens to the user's file.
            persist_config=False,
        )
    except loader.ConfigException as error:
        raise ClusterError(
            f"kubeconfig {shown}: context {context!r} can't be used: {_harmless(str(error))}"
        ) from None
    except OSError as error:
        raise ClusterError(
            f"kubeconfig {shown}: context {context!r} needs {error.filename}, "
            f"which can't be read: {error.strerror}"
        ) from None
    except Exception as error:
        # Only the kind: the text may quote what it could not parse, such as a key.
        raise ClusterError(
            f"kubeconfig {shown}: the entries of context {context!r} can't be read "
            f"({type(error).__name__})"
        ) from None
    return context


def _paths(settings: Settings) -> tuple[list[str], str]:
    if settings.kubeconfig is not None:
        given, origin = settings.kubeconfig, settings.origin("kubeconfig")
    elif os.environ.get("KUBECONFIG"):
        given, origin = os.environ["KUBECONFIG"], "KUBECONFIG"
    else:
        given, origin = "~/.kube/config", "no kubeconfig is given, and its default place"
    paths = [os.path.expanduser(part) for part in given.split(os.pathsep) if part]  # noqa: PTH111
    # Like kubectl: of several files, those that don't exist are left out.
    existing = [path for path in paths if Path(path).exists()] if len(paths) > 1 else paths
    if not existing:
        raise ClusterError(f"{origin} is {given!r}, expected a kubeconfig file")
    return existing, origin


def _read(path: str, origin: str) -> Mapping[str, Any]:
    if not Path(path).exists():
        raise ClusterError(f"{origin} is {path!r}, which does not exist")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"kubeconfig {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClusterError(f"kubeconfig {path} is not UTF-8 text") from None
    try:
        document = read_yaml(text)
    except YamlError as error:
        where = f" (line {error.line})" if error.line else ""
        raise ClusterError(f"kubeconfig {path} is not YAML{where}") from None
    if not isinstance(document, dict):
        raise ClusterError(f"kubeconfig {path} is not a kubeconfig, expected clusters and contexts")
    return document


def _entries(documents: list[Mapping[str, Any]], section: str, kind: str) -> dict[str, Any]:
    """Name to body of one section; of equal names the first file's wins, as with kubectl."""
    found: dict[str, Any] = {}
    for document in documents:
        entries = document.get(section) or []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                found.setdefault(entry["name"], entry.get(kind))
    return found


def _check(documents: list[Mapping[str, Any]], shown: str, settings: Settings) -> str:
    contexts = _entries(documents, "contexts", "context")
    names = ", ".join(sorted(contexts)) or "none"
    context = settings.context
    if context is None:
        current = [d["current-context"] for d in documents if d.get("current-context")]
        if not current:
            raise ClusterError(
                f"kubeconfig {shown} has no current-context, expected --ipvs-context "
                f"with one of {names}"
            )
        context, origin = str(current[0]), "current-context"
    else:
        origin = settings.origin("context")
    if context not in contexts:
        raise ClusterError(
            f"{origin} is {context!r}, which is not in kubeconfig {shown}, expected one of {names}"
        )
    body = contexts[context] if isinstance(contexts[context], dict) else {}
    clusters = _entries(documents, "clusters", "cluster")
    cluster = clusters.get(str(body.get("cluster")))
    where = f"kubeconfig {shown}: context {context!r}"
    if not isinstance(cluster, dict):
        raise ClusterError(f"{where} names the cluster {body.get('cluster')!r}, which is not there")
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        raise ClusterError(
            f"{where} has the server {server!r}, expected a URL that begins with https://"
        )
    user = body.get("user")
    if user is not None and user not in _entries(documents, "users", "user"):
        raise ClusterError(f"{where} names the user {user!r}, which is not there")
    return context


def _harmless(text: str) -> str:
    """The first words of a message of the kubernetes package, without quoted entries."""
    if "{" in text or "\n" in text or len(text) > 200:
        return "an entry is incomplete"
    return text


def _without_user(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
