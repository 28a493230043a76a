"""The rules of docs/architecture.md that a reader cannot see from one file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from galvatron_operator import cli
from galvatron_planner.whatif import ALGORITHMS

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "operator" / "galvatron_planner",
    ROOT / "operator" / "galvatron_operator",
    ROOT / "runtime" / "galvatron_runtime",
)
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
ALLOWED_AT_THE_TOP = {"operator", "runtime", "crds", "charts", "tests", "docs"}

REFUSE_HEAVY_IMPORTS = """
import importlib.abc, importlib, pkgutil, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "kopf", "kubernetes", "yaml", "prometheus_client"}:
            raise ImportError(f"the planner must not import {name}")
sys.meta_path.insert(0, Refuse())
import galvatron_planner
for module in pkgutil.walk_packages(galvatron_planner.__path__, "galvatron_planner."):
    importlib.import_module(module.name)
"""


def test_the_planner_imports_without_torch_and_kubernetes() -> None:
    subprocess.run([sys.executable, "-c", REFUSE_HEAVY_IMPORTS], check=True, timeout=60)


HELP = """
import sys
from galvatron_operator import cli
try:
    cli.app(["--help"])
except SystemExit:
    print(*sys.modules, sep="\\n")
"""


def test_help_is_answered_without_what_takes_long_to_import() -> None:
    said = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True).stdout
    modules = {line.partition(".")[0] for line in said.splitlines()}
    assert "galvatron_operator" in modules
    slow = {"torch", "numpy", "pydantic", "yaml", "kopf", "kubernetes", "aiohttp", "prometheus_client", "pyarrow"}
    assert not modules & slow


def test_the_algorithms_that_help_names_are_those_that_search() -> None:
    assert ", ".join(ALGORITHMS) == cli.ALGORITHM_NAMES


def test_the_folder_operator_cannot_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "runtime" / "__init__.py").exists()


def test_no_module_is_named_after_the_standard_library() -> None:
    names = {path.stem for path in MODULES} - {"__init__", "__main__"}
    assert not names & set(sys.stdlib_module_names)


def test_no_other_source_folder_stands_at_the_top() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    folders = {line.split("/")[0] for line in listing.splitlines() if "/" in line}
    assert {folder for folder in folders if not folder.startswith(".")} <= ALLOWED_AT_THE_TOP


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_its_role(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module's docstring says its role"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_eighty_lines(path: Path) -> None:
    functions = (
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    too_long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > 80]
    assert not too_long
