"""The catalogue as text, as JSON and as pages."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.report import catalogue

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = tuple(str(DOCS / name) for name in ("checks.md", "policy.md"))


def test_the_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--check", *PAGES]) == 0, capsys.readouterr().err


def test_a_page_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checks.md"
    old = Path(PAGES[0]).read_text(encoding="utf-8")
    path.write_text(old.replace("| SY-02 |", "| SY-99 |"), encoding="utf-8")
    assert catalogue.main(["--check", str(path)]) == 1
    assert "is out of date, write it with python -m pytest_ipvs" in capsys.readouterr().err
    assert catalogue.main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == old


def test_a_group_without_a_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = replace(CATALOGUE["SY-02"], id="XX-01", group="XX")
    monkeypatch.setattr(catalogue, "CATALOGUE", MappingProxyType({**CATALOGUE, "XX-01": new}))
    assert catalogue.main(["--check", PAGES[0]]) == 1
    assert "the page has no region of XX, expected <!-- checks: XX -->" in capsys.readouterr().err


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.show(None, "json")
    told = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in told] == list(CATALOGUE)
    assert all(one["text"] and one["needs"] and one["source"] for one in told)


def test_one_check_as_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.show("sy-01", "json")
    told = json.loads(capsys.readouterr().out)
    check = CATALOGUE["SY-01"]
    assert told["needs"] == sorted(check.needs)
    catalogue.show("SY-01", "text")
    text = capsys.readouterr().out
    for part in (check.id, check.title, check.permission, check.source, *check.needs):
        assert part in text
    assert re.search(r"^severity +fail$", text, re.MULTILINE)


def test_another_format_is_refused(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--ipvs-list-checks", "--ipvs-format", "xml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--ipvs-format is 'xml', expected text or json*"])
