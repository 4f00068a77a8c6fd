"""What can't work ends with one sentence and exit code 4, before any test is collected."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

Run = Callable[..., pytest.RunResult]

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: staging
clusters: [{name: c, cluster: {server: "https://127.0.0.1:PORT"}}]
users: [{name: u, user: {token: secret-token}}]
contexts: [{name: staging, context: {cluster: c, user: u}}]
"""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of ours on which nobody listens: bound, so that nobody else gets it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def kubeconfig(pytester: pytest.Pytester, closed_port: int) -> str:
    path = pytester.path / "kubeconfig"
    path.write_text(KUBECONFIG.replace("PORT", str(closed_port)))
    return str(path)


def refused(result: pytest.RunResult, sentence: str) -> None:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line.strip()]
    assert len(errors) == 1
    assert errors[0].startswith("ERROR: ")
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    assert "secret-token" not in text


@pytest.mark.parametrize("mode", [(), ("-p", "no:cacheprovider", "--collect-only")])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--ipvs-kubeconfig", "/no/such/file"), "*/no/such/file*"),
        (("--ipvs-kubeconfig", "KUBECONFIG", "--ipvs-context", "nowhere"), "*nowhere*staging*"),
        (
            ("--ipvs-kubeconfig", "KUBECONFIG", "--ipvs-connect", "ssh://root@{nmae}"),
            "*--ipvs-connect*nmae*",
        ),
        (("--ipvs-kubeconfig", "KUBECONFIG", "--ipvs-connect", "shh://{name}"), "*shh://*"),
        (
            ("--ipvs-kubeconfig", "KUBECONFIG", "--ipvs-connect", "ssh://a:secret-token@{name}:x"),
            "--ipvs-connect is 'ssh://a:…@{name}:x', expected a port from 1 to 65535 after *",
        ),
        (("--ipvs-kubeconfig", "KUBECONFIG"), "*127.0.0.1*"),
        (("--ipvs-jobs", "many"), "--ipvs-jobs is 'many', expected a whole number *"),
        (("--ipvs-lab", "--ipvs-context", "x"), "*contradict each other*"),
        (("--ipvs-lab-fault", "x"), "--ipvs-lab-fault needs --ipvs-lab*"),
        (("--ipvs-policy", "/no/such/policy"), "policy file /no/such/policy can't be read: *"),
    ],
)
def test_bad_setting(
    pytester: pytest.Pytester,
    kubeconfig: str,
    options: tuple[str, ...],
    sentence: str,
    mode: tuple[str, ...],
) -> None:
    pytester.makepyfile("def test_it(ipvs_node): pass")
    given = [option.replace("KUBECONFIG", kubeconfig) for option in options]
    refused(pytester.runpytest_inprocess(*given, *mode), sentence)


def test_bad_setting_in_the_environment(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_IPVS_RATE", "fast")
    refused(pytester.runpytest_inprocess(), "PYTEST_IPVS_RATE is 'fast', expected a number *")


def test_bad_setting_in_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nipvs_rate = fast\n")
    refused(pytester.runpytest_inprocess(), "ini key ipvs_rate is 'fast', expected a number *")


def test_missing_permission(cluster_run: Run) -> None:
    sentence = "the user staging may not list nodes (403 Forbidden)"
    result = cluster_run("def test_it(ipvs_node): pass", world=f"broken={sentence!r}")
    refused(result, "the user staging may not list nodes (403 Forbidden)")


def test_broken_api_in_the_middle_is_one_sentence(cluster_run: Run) -> None:
    result = cluster_run(
        "def test_it(ipvs_check): ipvs_check('TB-01')",
        conftest="""
from pytest_ipvs.cluster.errors import ClusterError

def observe(self, **_):
    raise ClusterError("the API server went away")

FakeCluster.observe = observe
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the API server went away"])
    assert "checker.py" not in result.stdout.str()


def test_list_checks(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--ipvs-list-checks")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SY-01  fail  *", "KP-01  fail  kube-proxy runs in IPVS mode*"])


def test_explain(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--ipvs-explain", "kp-01")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["KP-01: kube-proxy runs in IPVS mode on every node", "severity *"])
    refused(
        pytester.runpytest_inprocess("--ipvs-explain", "XX-1"),
        "--ipvs-explain is 'XX-1', expected one of SY-01, *",
    )
