"""From settings to an authenticated kubernetes client, or one sentence why there is none.

The file is checked here before the kubernetes package reads it: that package's messages quote
whole entries, tokens included.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What the kubeconfig has for one context: its names, and the bodies of its entries."""

    context: str
    cluster: Mapping[str, Any]
    user: str | None
    credentials: Mapping[str, Any]


def connect(settings: Settings) -> Access:
    """Make a client for the cluster that the settings name. Sends nothing to it."""
    from kubernetes.client import Configuration

    # Not Configuration(): old releases replace it by a factory that copies a global default.
    configuration = type.__call__(Configuration)
    if settings.in_cluster:
        context, proxy_key = "in-cluster", None
        _load_in_cluster(configuration, settings.origin("in_cluster"))
    else:
        context, proxy_key = _load_file(configuration, settings)
    # Lists, several watches and writes run at the same time, each on its own connection.
    configuration.connection_pool_maxsize = 32
    return Access(
        client=_client(configuration, context, proxy_key),
        server=_without_user(configuration.host),
        context=context,
    )


def _client(configuration: Any, context: str, proxy_key: str | None) -> Any:
    from kubernetes.client import ApiClient

    try:
        return ApiClient(configuration)
    except Exception as error:
        proxy = getattr(configuration, "proxy", None)
        if not proxy:
            # Only the kind: what the package says may quote an entry.
            raise ClusterError(
                f"no client can be made for context {context!r} ({type(error).__name__})"
            ) from None
        told = f"{proxy_key or _proxy_variable(proxy)} is {_without_user(str(proxy))!r}"
        # SOCKS alone needs a package more; its lack is a warning first, and those may be errors.
        if isinstance(error, (ImportError, Warning)):
            raise ClusterError(f"{told}, which needs the package PySocks") from None
        raise ClusterError(
            f"{told}, expected a URL such as http://proxy.example.com:3128"
        ) from None


def _proxy_variable(proxy: object) -> str:
    """The variable of the environment that has this proxy."""
    names = (name for name, value in os.environ.items() if value == proxy)
    return next((name for name in names if name.lower().endswith("_proxy")), "the proxy")


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


def _load_file(configuration: Any, settings: Settings) -> tuple[str, str | None]:
    """The context, and how to name its ``proxy-url`` where it has one."""
    from kubernetes import config

    loader: Any = config
    paths, told = _paths(settings)
    documents = [_read(path, told) for path in paths]
    shown = os.pathsep.join(paths)
    chosen = _check(documents, shown, settings)
    context = chosen.context
    try:
        with _overheard() as logged:
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
    plugin = chosen.credentials.get("exec")
    if plugin is not None and not _has_credentials(configuration):
        command = plugin.get("command") if isinstance(plugin, dict) else None
        raise ClusterError(
            f"kubeconfig {shown}: the exec command {command!r} of user {chosen.user!r} gave no "
            f"credentials: {_why_no_credentials(logged)}, expected a token or a client certificate"
        )
    return context, (
        f"kubeconfig {shown}: proxy-url of context {context!r}"
        if "proxy-url" in chosen.cluster
        else None
    )


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What this thread logs meanwhile.

    The kubernetes package only logs that a credential plugin failed, and goes on as anonymous.
    """
    told: list[str] = []
    thread = threading.get_ident()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                told.append(record.getMessage())

    # At the root: the package logs there, and would print the plugin's words without a handler.
    ear, root = Ear(), logging.getLogger()
    root.addHandler(ear)
    try:
        yield told
    finally:
        root.removeHandler(ear)


def _has_credentials(configuration: Any) -> bool:
    tokens = (str(value).removeprefix("Bearer ") for value in configuration.api_key.values())
    # A plugin may answer with a token that is empty or null.
    return bool(configuration.cert_file) or any(token not in ("", "None") for token in tokens)


_PLUGIN_FAILURES = (
    (r"exec: process returned (-?\d+)", "it ended with status {}"),
    (r"exec: failed to decode process output", "its answer is no JSON"),
    (r"exec: malformed request\. missing key '(\w+)'", "its entry has no {}"),
    (r"exec: malformed response\. missing key '(\w+)'", "its answer has no {}"),
    (r"exec: plugin api version", "its answer has another apiVersion than its entry"),
    (r"exec: missing clientKeyData", "its answer has a certificate without a key"),
    (r"exec: missing token", "its answer has neither"),
)


def _why_no_credentials(logged: list[str]) -> str:
    """Why a plugin failed, in our words: its own may hold a secret."""
    for text in logged:
        if found := re.match(r"\[Errno (\d+)\]", text):
            return os.strerror(int(found.group(1)))
        for pattern, words in _PLUGIN_FAILURES:
            if found := re.match(pattern, text):
                return words.format(*found.groups())
    return "its answer can't be used"


def _paths(settings: Settings) -> tuple[list[str], str]:
    """The files to read, and the words before a path in a sentence about one of them."""
    if settings.kubeconfig is not None:
        given, origin = settings.kubeconfig, settings.origin("kubeconfig")
    elif os.environ.get("KUBECONFIG"):
        given, origin = os.environ["KUBECONFIG"], "KUBECONFIG"
    else:
        given, origin = "~/.kube/config", "no kubeconfig is given, and its default place"
    paths = [os.path.expanduser(part) for part in given.split(os.pathsep) if part]  # noqa: PTH111
    several = len(paths) > 1
    told = f"{origin} {'has' if several else 'is'}"
    # Like kubectl: of several files, those that don't exist are left out.
    existing = [path for path in paths if _exists(path, told)] if several else paths
    if not existing:
        raise ClusterError(f"{origin} is {given!r}, expected a kubeconfig file")
    return existing, told


def _exists(path: str, told: str) -> bool:
    # Not Path.exists(): a closed folder on the way makes it raise or deny, by version of Python.
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise _unreadable(path, told, error) from None
    return True


def _unreadable(path: str, told: str, error: OSError) -> ClusterError:
    return ClusterError(
        f"{told} {path!r}, which can't be read: {error.strerror}, expected a kubeconfig file that "
        "this user may read"
    )


def _read(path: str, told: str) -> Mapping[str, Any]:
    if not _exists(path, told):
        raise ClusterError(f"{told} {path!r}, which does not exist")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, told, error) from None
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


def _check(documents: list[Mapping[str, Any]], shown: str, settings: Settings) -> _Chosen:
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
    user, users = body.get("user"), _entries(documents, "users", "user")
    if user is not None and (not isinstance(user, str) or user not in users):
        raise ClusterError(f"{where} names the user {user!r}, which is not there")
    credentials = users.get(user) if user is not None else None
    return _Chosen(
        context=context,
        cluster=cluster,
        user=user,
        credentials=credentials if isinstance(credentials, dict) else {},
    )


def _harmless(text: str) -> str:
    """The first words of a message of the kubernetes package, without quoted entries."""
    if "{" in text or "\n" in text or len(text) > 200:
        return "an entry is incomplete"
    return text


def _without_user(url: str) -> str:
    # What should be a URL may lack its scheme, and its user and password are secret all the same.
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|", url)
    begin = scheme.group() if scheme is not None else ""
    return f"{begin}{url[len(begin) :].rpartition('@')[2]}"
