"""Ways to get a job wrong: each is refused in words that name place and remedy, before anything is started."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import builders
from galvatron_operator import jobfiles
from galvatron_operator.api import parse
from galvatron_operator.rundirectory import DirectoryInUse, RunDirectory, stored
from galvatron_operator.supervised import WorkerFailed, ask, check_port, free_port, supervise
from galvatron_operator.terminal import PhaseView
from galvatron_planner.errors import InvalidDocument, InvalidInput
from galvatron_planner.plan import Plan
from galvatron_planner.training import AdamW, DataSource, TextFiles, TokenFiles, TrainingCheckpoints, TrainingSpec
from galvatron_planner.worker import Progress
from galvatron_runtime import inspection
from galvatron_runtime.blocks.own import UnusableModel, call
from galvatron_runtime.export import NotExportable, find_checkpoint

JOB = """\
apiVersion: galvatron.io/v1alpha1
kind: GalvatronJob
metadata: {name: tiny}
spec:
  model: {family: gpt, hiddenSize: 32, numLayers: 2, numAttentionHeads: 4, sequenceLength: 32}
  budget: {gpus: 2, gpusPerNode: 2, resourceName: cpu, memoryPerGPU: 64Mi}
  training:
    globalBatchSize: {value: 8}
    steps: 12
    optimizer: {learningRate: "1e-2"}
    dataset: {source: PythonDocs}
"""
GPT_2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 256}
MODEL = parse(yaml.safe_load(JOB)).model


@pytest.mark.parametrize(
    ("before", "after", "problem", "remedy"),
    [
        ("family: gpt", "family: gptt", "spec.model.family is 'gptt'", "docs/reference.md"),
        ("hiddenSize", "hidenSize", "spec.model.hidenSize is no field", "write hiddenSize"),
        ("hiddenSize: 32, ", "", "spec.model.hiddenSize is missing for the family gpt", "add it"),
        ("gpus: 2,", "gpus: two,", "spec.budget.gpus is 'two'", "docs/reference.md"),
        ("gpus: 2,", "gpus: 3,", "spec.budget.gpus is 3, no power of two", "use 2 or 4"),
        ("Heads: 4", "Heads: 5", "spec.model.hiddenSize is 32, which is not divisible by 5", "multiple"),
        ("64Mi", "64MB", "spec.budget.memoryPerGPU is '64MB': it should be an amount of memory", "docs/reference.md"),
        ('"1e-2"', "0.01", "learningRate is a number, and should be a text", 'write "0.01"'),
        ("family: gpt,", "preset: gpt-5, ", "spec.model.hiddenSize is given beside preset", "leave it out"),
        (
            "PythonDocs",
            "Text, path: /a.txt",
            "spec.training.dataset.path is '/a.txt': it should be a relative",
            "docs/",
        ),
        ("steps: 12", "steps: 12\n    steps: 13", "line 10, column 5: steps is written twice", "correct"),
        ("steps: 12", "steps: [12", "line 10, column 14: expected ',' or ']'", "correct"),
        ("    steps: 12", "\tsteps: 12", "line 9, column 1: found character '\\t'", "correct"),
        (JOB, "", "is empty", "docs/examples/quickstart.yaml"),
        (JOB, "- a\n- b\n", "holds no object but a list", "docs/examples/quickstart.yaml"),
        (JOB, f"{JOB}---\n{JOB}", "line 12, column 1: found another document", "correct"),
    ],
)
def test_a_wrong_job_is_refused_with_the_place_and_the_remedy(
    tmp_path: Path, before: str, after: str, problem: str, remedy: str
) -> None:
    path = tmp_path / "job.yaml"
    assert before in JOB
    path.write_text(JOB.replace(before, after))
    with pytest.raises(InvalidInput) as refused:
        jobfiles.load(path)
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy
    assert "\n" not in refused.value.problem


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is no text"):
        jobfiles.load(tmp_path / "job.yaml")


def test_more_processes_than_there_is_memory_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.replace("gpus: 2, gpusPerNode: 2", "gpus: 4096, gpusPerNode: 2"))
    with pytest.raises(InvalidInput, match=r"spec.budget.gpus is 4096: .* 560 GiB"):
        jobfiles.check_memory(jobfiles.load(path))


def test_a_module_with_a_mistake_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "misspelt.py").write_text("def layers(:\n")
    (tmp_path / "failing.py").write_text("\nsizes = [1][2]\n")
    with pytest.raises(UnusableModel, match=r"importing misspelt fails: SyntaxError: .*misspelt.py, line 1"):
        call("misspelt:layers")
    with pytest.raises(UnusableModel, match=r"importing failing fails: IndexError: .*failing.py, line 2"):
        call("failing:layers")


def test_a_port_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--port is 70000"):
        check_port(70000)


def empty(folder: Path) -> DataSource:
    (folder / "a.txt").touch()
    return TextFiles(path=str(folder / "a.txt"))


def nothing(folder: Path) -> DataSource:
    return TextFiles(path=str(folder))


def broken_tokenizer(folder: Path) -> DataSource:
    (folder / "a.txt").write_text("some text")
    (folder / "tokenizer.json").write_text("{}")
    return TextFiles(path=str(folder / "a.txt"), tokenizer=str(folder / "tokenizer.json"))


def tokens(values: np.ndarray[Any, Any]) -> Callable[[Path], DataSource]:
    def write(folder: Path) -> DataSource:
        np.save(folder / "a.npy", values)
        return TokenFiles(path=str(folder / "a.npy"))

    return write


def no_array(folder: Path) -> DataSource:
    (folder / "a.npy").write_text("words")
    return TokenFiles(path=str(folder / "a.npy"))


def inspected(folder: Path, data: DataSource, **changes: Any) -> int:
    """Look at a job's files as ``galvatron run`` does."""
    training = TrainingSpec(
        steps=1, optimizer=AdamW(learning_rate=0.1), gradient_clip_norm=0.0, seed=0, data=data, **changes
    )
    (folder / "training.json").write_text(training.to_json())
    (folder / "model.json").write_text(MODEL.model_dump_json())
    files = {name: str(folder / f"{name}.json") for name in ("training", "model")}
    options = ["--training", files["training"], "--model", files["model"], "--precision", "FP32"]
    return inspection.main([*options, "--directory", str(folder / "made")])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (empty, "a.txt' has at most 0 tokens in a file, a sample needs 33"),
        (nothing, "has no *.txt or *.md files"),
        (broken_tokenizer, "tokenizer.json"),
        (no_array, "cannot read tokens from"),
        (tokens(np.zeros(0, np.uint16)), "has at most 0 tokens"),
        (tokens(np.full(100, 256)), "has token 256 at position 0, the model knows 0 to 255"),
        (tokens(np.zeros(100)), "holds float64"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], DataSource], problem: str
) -> None:
    assert inspected(tmp_path, make(tmp_path)) == 1
    said = capsys.readouterr().err
    assert problem in said
    assert "what to do: " in said


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "config.json is no JSON"),
        (json.dumps({"model_type": "mamba"}), "mamba"),
        (json.dumps(GPT_2), "hidden_size 64 instead of 32"),
    ],
)
def test_weights_of_another_model_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, problem: str
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(config)
    data = tokens(np.zeros(100, np.uint16))(tmp_path)
    assert inspected(tmp_path, data, initial_weights=str(weights)) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({}, "is of another model: "), ({"resume": False}, "already holds a training checkpoint of step 10")],
)
def test_training_checkpoints_that_cannot_be_gone_on_from_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], problem: str
) -> None:
    saved = tmp_path / "checkpoints" / "step-00000010"
    saved.mkdir(parents=True)
    (saved / ".metadata").touch()
    (saved / "plan.json").write_text(builders.plan("dp4").to_json())
    kept = TrainingCheckpoints(directory=str(saved.parent), period_steps=10, **settings)
    assert inspected(tmp_path, tokens(np.zeros(100, np.uint16))(tmp_path), checkpoints=kept) == 1
    assert problem in capsys.readouterr().err


def test_more_gpus_than_this_machine_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspection.main(["--gpus", "1024"]) == 1
    assert "spec.budget.gpus is 1024, and torch sees" in capsys.readouterr().err


def test_a_failure_that_nobody_expects_is_told_with_what_the_command_said() -> None:
    with pytest.raises(InvalidInput, match=r"(?s)failed with exit code 2.*unrecognized arguments: --no-such-option"):
        ask("json.tool", ["--no-such-option"])


def test_processes_that_end_on_a_full_disk_are_told_in_a_word(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"there is no space left in .*make room"):
        supervise(
            ["sh", "-c", "echo 'OSError: [Errno 28] No space left on device'; exit 1"],
            environment={},
            port=free_port(),
            result=tmp_path / "result.json",
            log=tmp_path / "train.log",
            on_status=lambda _: None,
        )


def test_a_log_file_shows_the_first_of_many_steps() -> None:
    console = Console(file=StringIO(), width=200)
    view = PhaseView(console)
    with view.showing():
        view.start("train", "starting 2 processes")
        for step in (1, 2, 3):
            view.progress(Progress(activity="training", step=step, total_steps=1000, loss=2.5))
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines()[1:] == ["  1/1000 loss 2.500"]


def test_a_damaged_document_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InvalidDocument, match=r"plan.json is damaged.*delete it"):
        stored(tmp_path / "plan.json", Plan)


def test_a_run_without_training_checkpoints_is_told_what_saves_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "plan.json").touch()
    with pytest.raises(NotExportable, match=r"saved no training checkpoint; add spec\.checkpoint"):
        find_checkpoint(tmp_path)
    with pytest.raises(NotExportable, match="there is no directory"):
        find_checkpoint(tmp_path / "nothing")


def test_a_directory_belongs_to_one_job(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path / "run")
    for _ in range(2):
        with files.locked("mine"):
            pass
    with pytest.raises(DirectoryInUse, match="is the directory of job mine, and this is other"), files.locked("other"):
        pass


def test_what_was_made_of_the_data_outlives_a_run(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    made, report = tmp_path / "train" / "data" / "a.npy", tmp_path / "train" / "reports" / "0.json"
    for path in (made, report):
        path.parent.mkdir(parents=True)
        path.touch()
    files.clear("train")
    assert made.exists()
    assert not report.parent.exists()
