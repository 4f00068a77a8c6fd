"""The page on options says what `settings.OPTIONS` says, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_ipvs import plugin
from pytest_ipvs.settings import OPTIONS, Option

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(--ipvs-[a-z-]+)` \| `ipvs_.*\|$", re.MULTILINE)
ALONE = re.compile(r"^\| `(--ipvs-[a-z-]+)(?: \w+)?` \| (?!`)", re.MULTILINE)


def row(option: Option) -> str:
    """The line that the page must have for one option."""
    if option.kind == "flag":
        default = "off"
    elif option.default in (None, ()):
        default = "none"
    else:
        shown = option.default
        default = f"`{shown:g}`" if isinstance(shown, float) else f"`{shown}`"
    meaning = option.help + (f" ({', '.join(option.choices)})" if option.choices else "")
    cells = (f"`{option.flag}`", f"`{option.ini}`", f"`{option.environment}`", default, meaning)
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_has_its_row(option: Option) -> None:
    rows = {match[1]: match[0] for match in ROW.finditer(PAGE)}
    assert rows.get(option.flag) == row(option)


def test_no_row_is_about_an_option_that_does_not_exist() -> None:
    named = [match[1] for match in ROW.finditer(PAGE)]
    assert sorted(named) == sorted(option.flag for option in OPTIONS)


def test_options_of_the_command_line_only_have_their_rows() -> None:
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    known = {name for option in parser.getgroup("ipvs").options for name in option.names()}
    assert sorted(ALONE.findall(PAGE)) == sorted(known - {option.flag for option in OPTIONS})
