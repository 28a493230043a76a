"""The documentation makes a site, and its menu and its lists leave nothing out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from architecture import commands, values
from architecture.reference import ROOT

DECISIONS = ROOT / "docs" / "adr"


def test_the_commands_are_documented_as_they_are() -> None:
    assert commands.DOCUMENT.read_text() == commands.commands(), "run `make reference`"


def test_the_values_of_the_chart_are_documented_as_they_are() -> None:
    assert values.DOCUMENT.read_text() == values.values(), "run `make reference`"


def test_every_decision_is_listed_by_its_title() -> None:
    rows = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", (DECISIONS / "README.md").read_text(), flags=re.MULTILINE)
    records = sorted(DECISIONS.glob("0*.md"))
    titles = [path.read_text().partition("\n")[0] for path in records]
    assert [name for _, _, name in rows] == [path.name for path in records]
    assert [f"# {number}. {title}" for number, title, _ in rows] == titles


def build(source: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", ROOT / "docs")
    return subprocess.run([*command, source, target], capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_or_a_page_out_of_the_menu(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "docs" / "concepts.html").is_file()
