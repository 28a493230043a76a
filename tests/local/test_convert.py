"""``galvatron convert``: files of Hetu-Galvatron in, ours out, and back."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from galvatron_operator.cli import app as galvatron
from galvatron_operator.convert import app
from galvatron_operator.foreign import UnreadableFile
from galvatron_planner.errors import InvalidInput, MissingMeasurement
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import Profile, ProfileSource

FOLDER = Path(__file__).parents[1] / "planner" / "hetu_galvatron"
THEIRS = FOLDER / "galvatron_config_llama-7b_1nodes_8gpus_per_node_36GB_bf16.json"
LLAMA = ("--model", "llama2-7b", "--cluster", "8xh100")


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_their_plan_becomes_ours_and_theirs_again(tmp_path: Path) -> None:
    ours, again = tmp_path / "plan.json", tmp_path / "galvatron.json"
    read = convert("plan", THEIRS, *LLAMA, "--output", ours)
    assert read.exit_code == 0
    assert "fits" in read.stdout
    assert convert("plan", ours, "--output", again).exit_code == 0
    before, after = json.loads(THEIRS.read_text()), json.loads(again.read_text())
    assert {key: after[key] for key in before} == before


def test_their_profile_becomes_ours_and_prices_their_plan(tmp_path: Path) -> None:
    profile, plan = tmp_path / "profile.json", tmp_path / "plan.json"
    assert convert("profile", FOLDER, *LLAMA, "--output", profile).exit_code == 0
    imported = Profile.from_json(profile.read_text())
    assert (imported.source, imported.device_name) == (ProfileSource.IMPORTED, "h100")
    read = convert("plan", THEIRS, *LLAMA, "--profile", profile, "--output", plan)
    assert read.exit_code == 0
    # 64 samples through 32 blocks, forward and twice that backward, at 3.7 ms a sample and more, over 8 devices.
    assert Plan.from_json(plan.read_text()).estimate.step_seconds > 64 * 32 * 3 * 3.7e-3 / 8


@pytest.mark.slow
def test_the_planner_searches_on_their_measurements(tmp_path: Path) -> None:
    profile, folder = tmp_path / "profile.json", tmp_path / "answers"
    assert convert("profile", FOLDER, *LLAMA, "--max-tensor-degree", "4", "--output", profile).exit_code == 0
    asked = [*LLAMA, "--batch", 64, "--algorithm", "GalvatronBMW", "--profile", profile, "--output", folder]
    answer = CliRunner().invoke(galvatron, ["plan", *map(str, asked)])
    assert "measurements of another system: h100" in answer.stdout
    (plan,) = folder.glob("plans/*/plan.json")
    strategies = [s for stage in Plan.from_json(plan.read_text()).stages for s in stage.layers]
    assert max(strategy.tensor_degree for strategy in strategies) <= 4


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (("plan", THEIRS), InvalidInput, "add --model and --cluster"),
        (("plan", FOLDER / "none.json", *LLAMA), UnreadableFile, "cannot read"),
        (("plan", FOLDER / "README.md", *LLAMA), UnreadableFile, "cannot read"),
        (("profile", FOLDER.parent, *LLAMA), UnreadableFile, r"one computation_profiling_bf16_\*.json"),
        (("profile", FOLDER, *LLAMA, "--precision", "FP32"), UnreadableFile, "computation_profiling_fp32"),
        (("profile", FOLDER, "--model", "llama2-7b", "--cluster", "4xh100"), UnreadableFile, "1nodes_4gpus_per_node"),
        (("profile", FOLDER, *LLAMA, "--sequence-length", "2048"), MissingMeasurement, "only sequences of 4096"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, arguments: tuple[str | Path, ...], error: type[Exception], named: str
) -> None:
    result = convert(*arguments, "--output", tmp_path / "out.json")
    assert result.exception is not None
    with pytest.raises(error, match=named):
        raise result.exception


def test_an_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    result = convert("plan", THEIRS, *LLAMA, "--output", tmp_path / "no" / "folder.json")
    assert isinstance(result.exception, UnreadableFile)
