"""Kubeconfigs that can't be used: one sentence each, and never a secret."""

import base64
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import yaml

from pytest_ipvs.cluster.errors import ClusterError
from pytest_ipvs.cluster.kubeconfig import connect
from pytest_ipvs.settings import resolve

SECRET = "eyJhbGciOi-do-not-print"


def good():
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "u", "user": {"token": SECRET}}],
        "contexts": [
            {"name": "a", "context": {"cluster": "c", "user": "u"}},
            {"name": "b", "context": {"cluster": "gone", "user": "u"}},
            {"name": "d", "context": {"cluster": "c", "user": "gone"}},
        ],
    }


@pytest.fixture
def write(tmp_path):
    def write(document, name="config"):
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return str(path)

    return write


def settings(path=None, context=None, **more):
    return resolve({"ipvs_kubeconfig": path, "ipvs_context": context, **more}, {}, {}, {})


def test_a_good_one(write):
    access = connect(settings(write(good())))
    assert (access.server, access.context) == ("https://127.0.0.1:6443", "a")
    access.client.close()


def test_the_context_is_chosen_by_name(write):
    document = good()
    document["contexts"].append({"name": "e", "context": {"cluster": "e", "user": "u"}})
    document["clusters"].append({"name": "e", "cluster": {"server": "https://user:pw@other:1"}})
    access = connect(settings(write(document), "e"))
    assert (access.server, access.context) == ("https://other:1", "e")
    access.client.close()


def change(**values):
    return good() | values


@pytest.mark.parametrize(
    ("document", "context", "sentence"),
    [
        ("a: 1\nb: c: d", None, "kubeconfig PATH is not YAML (line 2)"),
        ("a: 2026-99-99", None, "kubeconfig PATH is not YAML"),
        ("- x", None, "kubeconfig PATH is not a kubeconfig, expected clusters and contexts"),
        ("", None, "kubeconfig PATH is not a kubeconfig, expected clusters and contexts"),
        (
            change(**{"current-context": ""}),
            None,
            "kubeconfig PATH has no current-context, expected --ipvs-context with one of a, b, d",
        ),
        (
            good(),
            "x",
            "--ipvs-context is 'x', which is not in kubeconfig PATH, expected one of a, b, d",
        ),
        (
            change(**{"current-context": "x"}),
            None,
            "current-context is 'x', which is not in kubeconfig PATH, expected one of a, b, d",
        ),
        (good(), "b", "kubeconfig PATH: context 'b' names the cluster 'gone', which is not there"),
        (good(), "d", "kubeconfig PATH: context 'd' names the user 'gone', which is not there"),
        (
            change(clusters=[{"name": "c", "cluster": {"server": "10.0.0.1"}}]),
            None,
            (
                "kubeconfig PATH: context 'a' has the server '10.0.0.1', expected a URL that "
                "begins with https://"
            ),
        ),
        (
            change(users=[{"name": "u", "user": {"client-certificate": "/no/such.crt"}}]),
            None,
            "kubeconfig PATH: context 'a' can't be used: File does not exist: /no/such.crt",
        ),
        (
            change(users=[{"name": "u", "user": {"client-certificate-data": "abcde"}}]),
            None,
            "kubeconfig PATH: the entries of context 'a' can't be read (Error)",
        ),
    ],
)
def test_bad_ones_are_one_sentence(write, document, context, sentence):
    path = write(document)
    with pytest.raises(ClusterError) as error:
        connect(settings(path, context))
    assert str(error.value) == sentence.replace("PATH", path)
    assert SECRET not in str(error.value)


def test_missing_and_unreadable_files(tmp_path, write):
    with pytest.raises(ClusterError) as error:
        connect(settings(str(tmp_path / "none")))
    assert str(error.value) == f"--ipvs-kubeconfig is '{tmp_path}/none', which does not exist"
    with pytest.raises(ClusterError, match="can't be read: Is a directory"):
        connect(settings(str(tmp_path)))
    (tmp_path / "latin").write_bytes(b"a: \xff")
    with pytest.raises(ClusterError, match="is not UTF-8 text"):
        connect(settings(str(tmp_path / "latin")))


@pytest.fixture
def closed(monkeypatch):
    """Close a folder, for root too, which the permissions of files do not stop."""

    def close(folder):
        stat = Path.stat

        def refuse(self, **options):
            if folder in self.parents:
                raise PermissionError(13, "Permission denied", str(self))
            return stat(self, **options)

        monkeypatch.setattr(Path, "stat", refuse)

    return close


@pytest.mark.parametrize("where", ["option", "variable", "one of several", "default"])
def test_a_file_in_a_closed_folder_is_one_sentence(write, closed, monkeypatch, tmp_path, where):
    path = tmp_path / "home" / ".kube" / "config"
    closed(tmp_path / "home")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = {"option": str(path)}.get(where)
    if where == "variable":
        monkeypatch.setenv("KUBECONFIG", str(path))
    elif where == "one of several":
        monkeypatch.setenv("KUBECONFIG", f"{write(good())}{os.pathsep}{path}")
    with pytest.raises(ClusterError) as error:
        connect(settings(given))
    begin = {
        "option": "--ipvs-kubeconfig is",
        "variable": "KUBECONFIG is",
        "one of several": "KUBECONFIG has",
        "default": "no kubeconfig is given, and its default place is",
    }[where]
    assert str(error.value) == (
        f"{begin} '{path}', which can't be read: Permission denied, expected a kubeconfig file "
        "that this user may read"
    )


def test_a_file_that_may_not_be_opened_is_one_sentence(write, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    path = write(good())
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        ClusterError, match=r"^--ipvs-kubeconfig is .*: Permission denied, expected"
    ):
        connect(settings(path))


PROXY = "expected a URL such as http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("proxy.corp:3128", "proxy.corp:3128"),
        (f"user:{SECRET}@proxy.corp:3128", "proxy.corp:3128"),
        (f"ftp://user:{SECRET}@proxy.corp", "ftp://proxy.corp"),
        ("http://proxy.corp:many", "http://proxy.corp:many"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "kubeconfig"])
def test_a_proxy_that_is_no_url_is_one_sentence(write, monkeypatch, value, shown, place):
    document = good()
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if place == "environment":
        monkeypatch.setenv("HTTPS_PROXY", value)
    else:
        document["clusters"][0]["cluster"]["proxy-url"] = value
    path = write(document)
    with pytest.raises(ClusterError) as error:
        connect(settings(path))
    key = {
        "environment": "HTTPS_PROXY",
        "kubeconfig": f"kubeconfig {path}: proxy-url of context 'a'",
    }[place]
    assert str(error.value) == f"{key} is '{shown}', {PROXY}"


def test_a_proxy_of_socks_needs_its_package(write, monkeypatch):
    # As without PySocks, whether it is installed or not.
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks", raising=False)
    document = good()
    document["clusters"][0]["cluster"]["proxy-url"] = "socks5://127.0.0.1:1080"
    with pytest.raises(ClusterError, match=r"'socks5://127.0.0.1:1080', which needs .* PySocks$"):
        connect(settings(write(document)))


def test_a_client_that_cannot_be_made_is_one_sentence(write, monkeypatch):
    def broken(*_):
        raise RuntimeError(SECRET)

    monkeypatch.setattr("kubernetes.client.ApiClient", broken)
    with pytest.raises(ClusterError) as error:
        connect(settings(write(good())))
    assert str(error.value) == "no client can be made for context 'a' (RuntimeError)"


def plugin(command, *arguments, **more):
    entry = {"apiVersion": "client.authentication.k8s.io/v1", "command": command}
    entry |= {"args": list(arguments), "interactiveMode": "Never"}
    return change(users=[{"name": "u", "user": {"exec": entry, **more}}])


def answering(status):
    """A plugin that answers with this status."""
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": status,
    }
    return plugin("echo", json.dumps(answer))


@pytest.mark.parametrize(
    ("document", "command", "why"),
    [
        (plugin("no-such-plugin"), "no-such-plugin", "No such file or directory"),
        (plugin("false"), "false", "it ended with status 1"),
        (plugin("sh", "-c", f"echo {SECRET} >&2; exit 3"), "sh", "it ended with status 3"),
        (plugin("echo", SECRET), "echo", "its answer is no JSON"),
        (plugin("echo", "{}"), "echo", "its answer has no apiVersion"),
        (
            plugin("echo", '{"apiVersion": "v9", "kind": "x", "status": {}}'),
            "echo",
            "its answer has another apiVersion than its entry",
        ),
        (answering({}), "echo", "its answer has neither"),
        (answering({"token": ""}), "echo", "its answer can't be used"),
        (answering({"token": None}), "echo", "its answer can't be used"),
        (answering(None), "echo", "its answer can't be used"),
        (
            answering({"clientCertificateData": SECRET}),
            "echo",
            "its answer has a certificate without a key",
        ),
        (
            change(users=[{"name": "u", "user": {"exec": {"command": "x"}}}]),
            "x",
            "its entry has no",
        ),
        (change(users=[{"name": "u", "user": {"exec": "aws"}}]), None, "its entry has no command"),
    ],
)
def test_a_credential_plugin_that_fails_is_one_sentence(write, capfd, document, command, why):
    path = write(document)
    with pytest.raises(ClusterError) as error:
        connect(settings(path))
    sentence = str(error.value)
    assert sentence.startswith(
        f"kubeconfig {path}: the exec command {command!r} of user 'u' gave no credentials: {why}"
    )
    assert sentence.endswith(", expected a token or a client certificate")
    assert SECRET not in sentence + "".join(capfd.readouterr())


def test_a_credential_plugin_that_works(write):
    encoded = base64.b64encode(b"certificate").decode()
    others = (
        answering({"token": SECRET}),
        answering({"clientCertificateData": "certificate", "clientKeyData": "key"}),
        # What the user has besides is as good.
        plugin("false", token=SECRET),
        plugin("false", **{"client-certificate-data": encoded, "client-key-data": encoded}),
        plugin("false", username="u", password=SECRET),
        change(users=[{"name": "u", "user": {"exec": None}}]),
    )
    handlers = list(logging.getLogger().handlers)
    for document in others:
        connect(settings(write(document))).client.close()
    assert logging.getLogger().handlers == handlers


def test_several_files_as_kubectl_takes_them(write, monkeypatch, tmp_path):
    first = {"contexts": [{"name": "z", "context": {"cluster": "c", "user": "u"}}]}
    paths = [write(first, "one"), str(tmp_path / "missing"), write(good(), "two")]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(paths))
    access = connect(settings(context="z"))
    assert access.server == "https://127.0.0.1:6443"
    access.client.close()


def test_no_token_leaks_from_an_incomplete_entry(write):
    document = good()
    document["users"].append({"user": {"token": SECRET}})
    document["contexts"][0]["context"]["user"] = "u"
    try:
        connect(settings(write(document))).client.close()
    except ClusterError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert SECRET not in sentence


def test_in_cluster_without_a_pod(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError) as error:
        connect(resolve({"ipvs_in_cluster": True}, {}, {}, {}))
    assert str(error.value).startswith(
        "--ipvs-in-cluster is given, but this is no pod with a service account: "
    )


def test_the_user_s_file_is_never_written(write):
    encoded = base64.b64encode(b"certificate").decode()
    document = good()
    document["users"][0]["user"] = {"client-certificate-data": encoded, "client-key-data": encoded}
    path = write(document)
    before = Path(path).read_text()
    connect(settings(path)).client.close()
    assert Path(path).read_text() == before
