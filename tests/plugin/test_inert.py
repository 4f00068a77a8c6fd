"""Without a setting that names a cluster the plugin does nothing, and costs nothing."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.system

HEAVY = ("kubernetes", "testinfra", "yaml", "requests", "pytest_ipvs.cluster", "pytest_ipvs.active")


def test_no_heavy_import(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a user has it: found by its entry point.
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.delenv("PYTEST_PLUGINS")
    # testinfra's own pytest plugin imports testinfra, with or without ours.
    pytester.makepyfile(
        test_it=f"""
        import json, sys

        def test_it():
            found = [name for name in {HEAVY!r} if name in sys.modules]
            open("found.json", "w").write(json.dumps(found))
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest11.testinfra")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["plugins: *ipvs-*"])
    assert json.loads((pytester.path / "found.json").read_text()) == []


@pytest.mark.parametrize("option", ["--help", "--markers", "--fixtures"])
def test_information_reaches_no_cluster(pytester: pytest.Pytester, option: str) -> None:
    result = pytester.runpytest_inprocess(option, "--ipvs-kubeconfig", "/no/such/file")
    assert result.ret == 0


def test_help_and_markers_name_everything(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess("--help").stdout.fnmatch_lines(
        ["*--ipvs-kubeconfig*", "*--ipvs-lab-fault*", "*ipvs_connect *"]
    )
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.ipvs_nodes(*", "@pytest.mark.ipvs_requires(*", "@pytest.mark.ipvs_check(*"]
    )


FIXTURES = (
    "ipvs_cluster ipvs_api ipvs_policy ipvs_node ipvs_nodes ipvs_check ipvs_rollout ipvs_traffic"
)


@pytest.mark.parametrize("fixture", [*FIXTURES.split(), "ipvs_workload"])
def test_fixture_without_cluster_is_an_error(pytester: pytest.Pytester, fixture: str) -> None:
    pytester.makepyfile(f"def test_it({fixture}): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*needs a cluster: give --ipvs-kubeconfig, --ipvs-context, --ipvs-in-cluster or *"]
    )
    assert "plugin.py" not in result.stdout.str()


@pytest.mark.parametrize("marker", ["ipvs_sysctl({'a.b': 1})", "ipvs_requires(mode='ipvs')"])
def test_marker_without_cluster_is_an_error(pytester: pytest.Pytester, marker: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass")
    pytester.runpytest_inprocess().assert_outcomes(errors=1)


def test_disruptive_test_without_cluster_is_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.ipvs_disruptive\ndef test_it(): pass")
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs --ipvs-allow-disruption*"])


def test_setting_without_cluster_stays_inert(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nipvs_jobs = 4\n")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("ipvs: *")


def test_public_names_are_there_on_first_use() -> None:
    import pytest_ipvs

    for name in pytest_ipvs.__all__:
        assert getattr(pytest_ipvs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pytest_ipvs.nonsense
