"""A kubeconfig or a proxy that can't be used ends a run with one sentence and exit code 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: staging
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"MORE}}]
users: [{name: u, user: USER}]
contexts: [{name: staging, context: {cluster: c, user: u}}]
"""
TOKEN = "{token: secret-token}"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def refused(pytester: pytest.Pytester, sentence: str, user: str = TOKEN, more: str = "") -> None:
    pytester.makepyfile("def test_it(ipvs_node): pass")
    path = pytester.path / "kubeconfig"
    path.write_text(KUBECONFIG.replace("MORE", more).replace("USER", user))
    result = pytester.runpytest_inprocess("--ipvs-kubeconfig", str(path))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line.strip()]
    assert errors == [f"ERROR: {sentence.replace('PATH', str(path))}"]
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "secret" not in text


def test_closed_folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def closed(self: Path, **options: Any) -> Any:
        if self.name == "kubeconfig":
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", closed)
    refused(
        pytester,
        "--ipvs-kubeconfig is 'PATH', which can't be read: Permission denied, expected a "
        "kubeconfig file that this user may read",
    )


def test_proxy_without_scheme(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "me:secret@proxy.corp:3128")
    refused(
        pytester,
        "HTTPS_PROXY is 'proxy.corp:3128', expected a URL such as http://proxy.example.com:3128",
    )


def test_proxy_url_without_scheme(pytester: pytest.Pytester) -> None:
    refused(
        pytester,
        "kubeconfig PATH: proxy-url of context 'staging' is 'nonsense', expected a URL such as "
        "http://proxy.example.com:3128",
        more=", proxy-url: nonsense",
    )


def test_credential_plugin_that_fails(pytester: pytest.Pytester) -> None:
    refused(
        pytester,
        "kubeconfig PATH: the exec command 'sh' of user 'u' gave no credentials: it ended with "
        "status 2, expected a token or a client certificate",
        user="{exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, "
        "args: [-c, 'echo secret >&2; exit 2']}}",
    )
