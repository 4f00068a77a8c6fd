"""What the documents tell a reader to type exists: options, commands, faults, paths and links."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from pytest_ipvs import assertions, hookspecs, plugin
from pytest_ipvs.checks import CATALOGUE
from pytest_ipvs.lab.__main__ import parser
from pytest_ipvs.lab.faults import FAULTS
from pytest_ipvs.policy import Policy, load_policy
from pytest_ipvs.settings import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "example_suites/**/*.md")
    for path in ROOT.glob(pattern)
)
# Options that are no settings: they do one thing and end.
PRINTING = {"--ipvs-list-checks", "--ipvs-explain", "--ipvs-format", "--ipvs-policy-init"}
OF_PYTEST = {"--pyargs", "--collect-only", "-m", "-n", "-k", "-p"}


def identify(path: Path) -> str:
    """A document's path in the repository, as the id of a test."""
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """A document's text."""
    return path.read_text(encoding="utf-8")


def commands(path: Path) -> list[str]:
    """Lines that a reader types: indented by four spaces, outside of fenced blocks."""
    found = []
    fenced = False
    for line in text_of(path).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"    (?!\s)[\w./]", line):
            found.append(line.strip())
    return found


COMMANDS = [(path, command) for path in DOCUMENTS for command in commands(path)]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=identify)
each_command = pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[f"{identify(p)}-{i}" for i, (p, _) in enumerate(COMMANDS)]
)


@each_document
def test_options_and_variables_exist(path: Path) -> None:
    flags = {option.flag for option in OPTIONS} | PRINTING
    assert set(re.findall(r"--ipvs-[a-z][a-z-]*[a-z]", text_of(path))) <= flags
    variables = {option.environment for option in OPTIONS} | {"PYTEST_IPVS_LAB_DIR"}
    assert set(re.findall(r"PYTEST_IPVS_[A-Z_]*[A-Z]", text_of(path))) <= variables
    keys = {option.ini for option in OPTIONS}
    assert set(re.findall(r"^(ipvs_\w+) = ", text_of(path), re.MULTILINE)) <= keys


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(path)):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@each_command
def test_tox_environments_exist(path: Path, command: str) -> None:
    environments = set(re.findall(r"^\[testenv:(\w+)\]", text_of(ROOT / "tox.ini"), re.MULTILINE))
    assert set(re.findall(r"tox run -e (\w+)", command)) <= environments


PYTEST_COMMANDS = {c for _, c in COMMANDS if Path(c.partition(" ")[0]).name == "pytest"}


@pytest.mark.parametrize("command", sorted(PYTEST_COMMANDS))
def test_pytest_commands_name_what_exists(command: str) -> None:
    words = shlex.split(command)
    settings = {option.flag: option for option in OPTIONS}
    expects_value = False
    for word in words[1:]:
        if expects_value:
            expects_value = False
        elif word in settings:
            expects_value = settings[word].kind != "flag"
        elif word in PRINTING:
            expects_value = word in ("--ipvs-explain", "--ipvs-format")
        elif word.startswith("-"):
            assert word in OF_PYTEST, word
            expects_value = word in ("-m", "-n", "-k", "-p")
        elif word == "pytest_ipvs.conformance":
            assert (ROOT / "pytest_ipvs" / "conformance").is_dir()
        elif word != "...":
            assert (ROOT / word).exists(), word


def faults_in(command: str) -> list[str]:
    """Names of the faults that a command puts in."""
    found = re.findall(r"--ipvs-lab-fault (\S+)|pytest_ipvs\.lab fault (\S+)", command)
    given = [option or command_line for option, command_line in found]
    return [name.partition("@")[0] for names in given for name in names.split(",")]


@each_command
def test_faults_exist(path: Path, command: str) -> None:
    assert set(faults_in(command)) <= set(known_faults())


def known_faults() -> list[str]:
    """Names of the lab's faults."""
    return list(FAULTS)


def table_keys(path: Path, heading: str) -> list[str]:
    """First cells of the first table below a heading, without backticks."""
    _, _, rest = text_of(path).partition(f"\n{heading}\n")
    rows = re.search(r"(?:^\|.*\|\n)+", rest, re.MULTILINE)
    assert rows, f"{path} has no table below {heading!r}"
    return [row.split("|")[1].strip().strip("`") for row in rows[0].splitlines()[2:]]


def test_the_page_on_the_lab_lists_every_fault_with_its_checks() -> None:
    page = ROOT / "docs" / "lab.md"
    assert sorted(table_keys(page, "## Faults")) == sorted(known_faults())
    for name, where, trips in re.findall(
        r"^\| `(\w+)` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", text_of(page), re.MULTILINE
    ):
        fault = FAULTS[name]
        assert (where == "all nodes") == fault.everywhere, name
        assert tuple(re.findall(r"[A-Z]{2}-\d\d", trips)) == fault.checks, name


def test_the_page_on_the_lab_lists_every_command() -> None:
    listed = {
        cell.split()[0] for cell in table_keys(ROOT / "docs" / "lab.md", "By hand, to keep it:")
    }
    assert listed == lab_commands()


@each_command
def test_lab_commands_exist(path: Path, command: str) -> None:
    assert set(re.findall(r"-m pytest_ipvs\.lab (\w+)", command)) <= lab_commands()


@cache
def lab_commands() -> set[str]:
    """Commands of ``python -m pytest_ipvs.lab``, those for itself left out."""
    (commands,) = (
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return {name for name in commands.choices if not name.startswith("_")}


def test_the_page_on_checks_lists_the_catalogue() -> None:
    page = text_of(ROOT / "docs" / "checks.md")
    assert sorted(re.findall(r"^\| ([A-Z]{2}-\d\d) \|", page, re.MULTILINE)) == sorted(CATALOGUE)


def test_the_page_on_writing_tests_has_the_public_surface() -> None:
    page = text_of(ROOT / "docs" / "writing-tests.md")
    assert set(table_keys(ROOT / "docs" / "writing-tests.md", "## Fixtures")) == {
        name for name in vars(plugin) if name.startswith("ipvs_")
    }
    markers = {line.partition("(")[0].partition(":")[0] for line in plugin.MARKERS}
    assert set(re.findall(r"^\| `(ipvs_\w+)(?:\(.*\))?` \|", page, re.MULTILINE)) >= markers
    documented = set(re.findall(r"^\| `(assert_\w+)\(", page, re.MULTILINE))
    assert documented == {name for name in assertions.__all__ if name.startswith("assert_")}
    hooks = {name for name in vars(hookspecs) if name.startswith("pytest_ipvs_")}
    assert set(re.findall(r"^\| `(pytest_ipvs_\w+)\(", page, re.MULTILINE)) == hooks


def test_the_policy_of_the_documentation_can_be_loaded(tmp_path: Path) -> None:
    page = ROOT / "docs" / "policy.md"
    block = re.search(r"```yaml\n(.*?)```", text_of(page), re.DOTALL)
    assert block
    file = tmp_path / "ipvs.yaml"
    file.write_text(block[1], encoding="utf-8")
    policy = load_policy(file)
    general = Policy()
    keys = table_keys(page, "## Keys")
    assert re.findall(r"^(\w+):", block[1], re.MULTILINE) == keys
    for key in ("drain_budget", "converge_budget", "min_reused_tuples", "min_new_pod_share"):
        assert getattr(policy, key) == getattr(general, key)
    for row in re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d.]+) \|", text_of(page), re.MULTILINE):
        assert getattr(general, row[0]) == float(row[1])


@pytest.mark.parametrize("file", sorted(ROOT.glob("example_suites/**/*.yaml")), ids=identify)
def test_policies_of_the_examples_can_be_loaded(file: Path) -> None:
    assert load_policy(file).path


def test_ci_finds_the_test_command_in_the_readme() -> None:
    lines = re.findall(r"^    (.*tox run)$", text_of(ROOT / "README.md"), re.MULTILINE)
    assert lines == [
        "python3 -m venv .venv && .venv/bin/pip install --quiet tox && .venv/bin/tox run"
    ]
