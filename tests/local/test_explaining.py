import json
import subprocess
import sys
from pathlib import Path

import pytest

import builders
from galvatron_planner.search.optimizer import search
from galvatron_planner.units import MIB

SPEC = builders.model(hidden_size=256, num_layers=6, num_heads=8, sequence_length=128, vocabulary_size=256)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    problem = builders.problem(SPEC, builders.cluster(4, device_memory_bytes=30 * MIB), batch=8)
    found = search(problem)
    folder = tmp_path / "run"
    folder.mkdir()
    documents = {"plan": found.plan, "report": found.report, "profile": problem.profile}
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(document.to_json())
    return folder


def explained(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "galvatron_operator.cli", "explain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_planned_run_is_explained_and_drawn(run_directory: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "out.html", tmp_path / "out.json"
    answer = explained(run_directory, "--timeline", page, "--trace", trace)
    assert answer.returncode == 0, answer.stderr
    for section in ("Where the time of stage", "What fills stage", "Simpler ways", "Other budgets"):
        assert section in answer.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(trace.read_text())["traceEvents"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out.html", "out.json"}


@pytest.mark.slow
def test_without_a_profile_there_is_text_but_no_picture(run_directory: Path, tmp_path: Path) -> None:
    (run_directory / "profile.json").unlink()
    assert "Simpler ways" in explained(run_directory).stdout
    refused = explained(run_directory, "--timeline", tmp_path / "out.html")
    assert refused.returncode == 1
    assert "no profile.json" in refused.stderr


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_refused_with_a_remedy(run_directory: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "out.html", tmp_path / "run"):
        refused = explained(run_directory, "--timeline", path)
        assert refused.returncode == 1
        assert "cannot write" in refused.stderr
        assert "what to do:" in refused.stderr
    assert not list(tmp_path.rglob("*.partial"))
