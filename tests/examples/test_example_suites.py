"""Every example collects, tells its story, and uses nothing but the public surface."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_ipvs import assertions, hookspecs, plugin

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
SUITES = ROOT / "example_suites"
MODULES = sorted(SUITES.glob("*/test_*.py"))
FOLDERS = sorted(path for path in SUITES.iterdir() if path.is_dir() and path.name[0] not in "._")
PUBLIC_MODULES = {"pytest", "pytest_ipvs.assertions"}
PYTEST_FIXTURES = {"request", "tmp_path", "subtests", "record_property", "monkeypatch"}


def public_fixtures() -> set[str]:
    """Fixtures of the plugin whose name does not start with an underscore."""
    return {name for name in vars(plugin) if name.startswith("ipvs_")}


def names(module: Path) -> tuple[ast.Module, list[ast.FunctionDef]]:
    """A module's tree, and its test functions."""
    tree = ast.parse(module.read_text(encoding="utf-8"), str(module))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return tree, [function for function in functions if function.name.startswith("test_")]


def imported(tree: ast.Module) -> set[str]:
    """Every module that a tree imports from, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "examples are copied, so they can't import relatively"
            found.add(node.module or "")
    return found


def own_fixtures(folder: Path) -> set[str]:
    """Fixtures that a folder's conftest.py defines."""
    conftest = folder / "conftest.py"
    if not conftest.exists():
        return set()
    tree = ast.parse(conftest.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_promised_folders_are_there() -> None:
    assert {folder.name for folder in FOLDERS} == {
        "one_second_connects",
        "persistence_after_release",
        "rolling_update_502",
        "short_connections",
        "team_assertions",
        "uneven_load_after_scale_up",
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_folder_has_one_module_of_its_name_and_a_readme(folder: Path) -> None:
    assert [path.name for path in folder.glob("test_*.py")] == [f"test_{folder.name}.py"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    for title in ("## Run it", "## What a failure looks like"):
        assert title in text
    if folder.name != "team_assertions":
        for title in ("## The story", "## Where the source document"):
            assert title in text
    assert "--ipvs-lab-fault" in text


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_modules_import_only_what_is_public(module: Path) -> None:
    tree, _ = names(module)
    ours_or_not = {name for name in imported(tree) if name.partition(".")[0] == "pytest_ipvs"}
    assert ours_or_not <= PUBLIC_MODULES
    rest = {name.partition(".")[0] for name in imported(tree)} - {"pytest", "pytest_ipvs"}
    assert rest <= sys.stdlib_module_names
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pytest_ipvs.assertions":
            assert {alias.name for alias in node.names} <= set(assertions.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_tests_ask_only_for_public_fixtures(module: Path) -> None:
    known = public_fixtures() | PYTEST_FIXTURES | own_fixtures(module.parent)
    _, functions = names(module)
    assert functions
    for function in functions:
        assert {argument.arg for argument in function.args.args} <= known, function.name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_marks_exist(module: Path) -> None:
    registered = {line.partition("(")[0].partition(":")[0] for line in plugin.MARKERS}
    text = module.read_text(encoding="utf-8")
    assert set(re.findall(r"pytest\.mark\.(ipvs_\w+)", text)) <= registered


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_whoever_makes_a_workload_says_that_it_is_disruptive(module: Path) -> None:
    _, functions = names(module)
    for function in functions:
        arguments = {argument.arg for argument in function.args.args}
        marked = any("ipvs_disruptive" in ast.unparse(mark) for mark in function.decorator_list)
        assert marked == bool(arguments & {"ipvs_workload", "ipvs_rollout"}), function.name


@pytest.mark.parametrize("conftest", sorted(SUITES.rglob("conftest.py")), ids=str)
def test_hooks_of_the_examples_exist_with_their_arguments(conftest: Path) -> None:
    tree = ast.parse(conftest.read_text(encoding="utf-8"))
    hooks = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("pytest_ipvs_")
    ]
    for hook in hooks:
        code = getattr(hookspecs, hook.name).__code__
        allowed = set(code.co_varnames[: code.co_argcount])
        assert {argument.arg for argument in hook.args.args} <= allowed


def test_all_examples_collect_together_without_a_cluster() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", SUITES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for module in MODULES:
        _, functions = names(module)
        for function in functions:
            assert f"{module.name}::{function.name}" in done.stdout
