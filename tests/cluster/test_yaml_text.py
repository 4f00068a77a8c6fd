"""YAML that others wrote, read with and without libyaml."""

from __future__ import annotations

import pytest
import yaml

from pytest_ipvs.cluster.yaml_text import YamlError, read_yaml


@pytest.fixture(params=["libyaml", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("this PyYAML was built without libyaml")


@pytest.mark.usefixtures("_parser")
def test_a_document_is_plain_values() -> None:
    text = "a: [1, 'x', null, true]\nb: {c: 1.5, d: ~}\ne: |\n  two\n  lines\n"
    assert read_yaml(text) == {
        "a": [1, "x", None, True],
        "b": {"c": 1.5, "d": None},
        "e": "two\nlines\n",
    }
    assert read_yaml("") is None


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: c: d\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("!!python/object/apply:os.system [x]", 1),
        ("a: 2026-99-99", None),
        ("a: \0", None),
    ],
)
def test_what_is_no_yaml_says_where(text: str, line: int | None) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert caught.value.line == line
    assert str(caught.value)


@pytest.mark.usefixtures("_parser")
def test_what_is_nested_too_deeply_is_no_yaml() -> None:
    with pytest.raises(YamlError):
        read_yaml("[" * 500)
