"""The resolver: precedence, conversion, and sentences that name where a bad value came from."""

import json
import pickle
import subprocess
import sys

import pytest

from pytest_ipvs.settings import OPTIONS, Settings, SettingsError, policy_path, resolve


def test_each_source_overrides_the_next_one():
    section = {"jobs": 5}
    ini = {"ipvs_jobs": "4"}
    env = {"PYTEST_IPVS_JOBS": "3"}
    cli = {"ipvs_jobs": "2"}
    assert resolve({}, {}, {}, {}).jobs == 8
    assert resolve({}, {}, {}, section).jobs == 5
    assert resolve({}, {}, ini, section).jobs == 4
    assert resolve({}, env, ini, section).jobs == 3
    assert resolve(cli, env, ini, section).jobs == 2


def test_origin_names_the_source():
    settings = resolve(
        {"ipvs_jobs": "2"},
        {"PYTEST_IPVS_RATE": "30"},
        {"ipvs_timeout": "7"},
        {"drain-budget": 100},
    )
    assert settings.origin("jobs") == "--ipvs-jobs"
    assert settings.origin("rate") == "PYTEST_IPVS_RATE"
    assert settings.origin("timeout") == "ini key ipvs_timeout"
    assert settings.origin("drain-budget") == "ipvs.yaml: settings.drain-budget"
    assert settings.origin("image") == "the default of --ipvs-image"


def test_a_false_in_the_environment_overrides_a_true_below():
    assert resolve({}, {"PYTEST_IPVS_STRICT": "off"}, {"ipvs_strict": "on"}, {}).strict is False


def test_empty_variables_and_keys_are_not_given():
    settings = resolve({}, {"PYTEST_IPVS_JOBS": ""}, {"ipvs_nodes": [], "ipvs_jobs": ""}, {})
    assert settings.jobs == 8
    assert settings.nodes == ()


def test_lists_come_from_repeated_options_commas_and_lines():
    assert resolve({"ipvs_nodes": ["a,b", "c"]}, {}, {}, {}).nodes == ("a", "b", "c")
    assert resolve({}, {"PYTEST_IPVS_NODES": "a, b"}, {}, {}).nodes == ("a", "b")
    assert resolve({}, {}, {"ipvs_checks": ["SY-*", "TB-01"]}, {}).checks == ("SY-*", "TB-01")


@pytest.mark.parametrize(
    ("cli", "sentence"),
    [
        (
            {"ipvs_jobs": "0"},
            "--ipvs-jobs is '0', expected a whole number of at least 1",
        ),
        ({"ipvs_jobs": "x"}, "--ipvs-jobs is 'x', expected a whole number of at least 1"),
        ({"ipvs_timeout": "0"}, "--ipvs-timeout is '0', expected a number of seconds above 0"),
        ({"ipvs_rate": "nan"}, "--ipvs-rate is 'nan', expected a number above 0"),
        (
            {"ipvs_settle": "-1"},
            "--ipvs-settle is '-1', expected a number of seconds of at least 0",
        ),
        (
            {"ipvs_pre_stop": "soon"},
            "--ipvs-pre-stop is 'soon', expected a number of seconds of at least 0",
        ),
        ({"ipvs_context": " "}, "--ipvs-context is ' ', expected some text"),
        (
            {"ipvs_client": "pod"},
            (
                "--ipvs-client is 'pod', expected local, node, node:NAME, job, job:N or "
                "a testinfra URI"
            ),
        ),
        (
            {"ipvs_lab_backend": "docker"},
            "--ipvs-lab-backend is 'docker', expected one of auto, vm, namespace",
        ),
        ({"ipvs_nodes": [","]}, "--ipvs-nodes is [','], expected at least one word"),
        (
            {"ipvs_lab": True, "ipvs_context": "x"},
            "--ipvs-lab and --ipvs-context contradict each other, expected only one of them",
        ),
        (
            {"ipvs_lab_fault": ["x"]},
            "--ipvs-lab-fault needs --ipvs-lab, which is not given",
        ),
    ],
)
def test_bad_values_are_one_sentence(cli, sentence):
    with pytest.raises(SettingsError) as error:
        resolve(cli, {}, {}, {})
    assert str(error.value) == sentence


def test_bad_policy_sections_are_one_sentence():
    with pytest.raises(SettingsError, match=r"^my\.yaml: settings\.job is not a setting, expected"):
        resolve({}, {}, {}, {"job": 1}, policy_name="my.yaml")
    with pytest.raises(
        SettingsError, match=r"^ipvs\.yaml: settings\.jobs is True, expected a whole"
    ):
        resolve({}, {}, {}, {"jobs": True})
    with pytest.raises(SettingsError, match=r"^ipvs\.yaml: settings is \[\], expected a mapping"):
        resolve({}, {}, {}, [])  # type: ignore[arg-type]


def test_a_phase_may_last_zero_seconds():
    assert resolve({"ipvs_settle": "0", "ipvs_baseline": "0"}, {}, {}, {}).settle == 0


def test_settings_are_frozen_and_survive_pickle_and_json():
    settings = resolve({"ipvs_nodes": ["a", "b"]}, {}, {}, {})
    with pytest.raises(AttributeError, match="frozen"):
        settings.jobs = 3
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert Settings(json.loads(json.dumps(settings.values()))) == settings
    assert hash(settings) == hash(resolve({"ipvs_nodes": ["a,b"]}, {}, {}, {}))


def test_replaced_remembers_its_origin():
    settings = resolve({}, {}, {}, {}).replaced("the lab", connect="ssh://root@{name}")
    assert settings.connect == "ssh://root@{name}"
    assert settings.origin("connect") == "the lab"
    with pytest.raises(TypeError, match="no such setting: konnect"):
        settings.replaced("x", konnect="y")


def test_only_a_named_cluster_makes_the_plugin_active():
    assert not resolve({"ipvs_jobs": "2"}, {}, {}, {}).active
    for given in ({"ipvs_context": "x"}, {"ipvs_lab": True}, {"ipvs_connect": "local://"}):
        assert resolve(given, {}, {}, {}).active


def test_policy_path_follows_the_same_order():
    env = {"PYTEST_IPVS_POLICY": "b.yaml"}
    assert policy_path({"ipvs_policy": "a.yaml"}, env, {}) == "a.yaml"
    assert policy_path({}, env, {"ipvs_policy": "c.yaml"}) == "b.yaml"
    assert policy_path({}, {}, {}) is None


def test_the_table_of_options_is_consistent():
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)
    for option in OPTIONS:
        assert option.help[0].isupper()
        assert not option.help.endswith(".")
        assert option.attribute in Settings.__annotations__
        assert option.addoption()["dest"] == option.ini == option.addini()["name"]
        # argparse formats help with %.
        assert option.help_text % {} == option.help_text.replace("%%", "%")


def test_importing_settings_imports_nothing_heavy():
    code = (
        "import sys; import pytest_ipvs.settings; "
        "print([m for m in ('yaml','kubernetes','testinfra','dataclasses') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
