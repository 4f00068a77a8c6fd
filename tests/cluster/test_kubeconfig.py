"""Kubeconfigs that can't be used: one sentence each, and never a secret."""

import base64
import os
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
