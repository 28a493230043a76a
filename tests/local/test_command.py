"""The command ``galvatron`` as its users meet it: real processes, tiny models."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from command import GALVATRON, galvatron
from galvatron_operator.commands import telling_what_ctrl_c_does
from galvatron_planner.plan import Plan
from galvatron_planner.units import GIB

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def write_job(folder: Path, *, name: str = "tiny", steps: int = 12, memory: str = "64Mi", **spec: object) -> Path:
    """Write a GalvatronJob that two processes train in seconds."""
    body = {
        "apiVersion": "galvatron.io/v1alpha1",
        "kind": "GalvatronJob",
        "metadata": {"name": name},
        "spec": {
            "model": {
                "family": "gpt",
                "hiddenSize": 32,
                "numLayers": 2,
                "numAttentionHeads": 4,
                "sequenceLength": 32,
            },
            "budget": {"gpus": 2, "gpusPerNode": 1, "resourceName": "cpu", "memoryPerGPU": memory},
            "training": {
                "globalBatchSize": {"value": 8},
                "steps": steps,
                "precision": "FP32",
                "optimizer": {"learningRate": "1e-2"},
                "dataset": {"source": "PythonDocs"},
            },
            **spec,
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def wait_until(claim: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.2)


def processes_mentioning(text: str) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if text in line and " Z" not in line]


def losses_in(log: Path) -> list[float]:
    """Read the losses that a log has kept: the terminal polls, and may see nothing but the last step of a short run."""
    return [float(loss) for loss in re.findall(r'"loss": ([\d.]+)', log.read_text())]


def test_a_typo_is_answered_with_the_field_that_was_meant(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    job.write_text(job.read_text().replace("hiddenSize", "hidenSize"))
    answer = galvatron("validate", job, folder=tmp_path)
    assert answer.returncode == 1
    assert "spec.model.hidenSize" in answer.stderr
    assert "hiddenSize" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [("model: [", "is no YAML"), ("just text", "holds no object"), ("apiVersion: v1\nkind: Pod\n", "apiVersion")],
)
def test_a_file_that_is_no_job_is_refused_in_words(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    answer = galvatron("validate", path, folder=tmp_path)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "what to do:" in answer.stderr


@pytest.mark.parametrize("command", ["run", "regret"])
@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("dataset", {"source": "Tokens", "path": "missing.npy"}),
        ("initialWeights", {"path": "missing"}),
    ],
)
def test_files_that_are_missing_are_told_before_anything_is_measured(
    tmp_path: Path, command: str, field: str, settings: dict[str, str]
) -> None:
    training = {"globalBatchSize": {"value": 8}, "steps": 1, field: settings}
    answer = galvatron(command, write_job(tmp_path, training=training), "--directory", "run", folder=tmp_path)
    assert answer.returncode == 1
    assert f"spec.training.{field}.path is {settings['path']}" in answer.stderr
    assert not (tmp_path / "run").exists()


OWN_MODEL = {"own": {"function": "convolutions:layers"}, "sequenceLength": 32, "vocabularySize": 256}


def test_layers_of_ones_own_are_described_for_a_cluster(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "own-model" / "convolutions.py", tmp_path)
    answer = galvatron("describe", write_job(tmp_path, model=OWN_MODEL), folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    body = yaml.safe_load(answer.stdout)
    assert [one["count"] for one in body["spec"]["model"]["own"]["layers"]] == [1, 6, 1]
    described = tmp_path / "described.yaml"
    described.write_text(answer.stdout)
    assert galvatron("validate", described, folder=tmp_path).returncode == 0


def test_a_function_that_is_not_there_is_told_with_the_places_where_it_was_looked_for(tmp_path: Path) -> None:
    answer = galvatron("run", write_job(tmp_path, model=OWN_MODEL), folder=tmp_path)
    assert answer.returncode == 1
    assert "spec.model.own.function: cannot import convolutions:layers: No module named 'convolutions'" in answer.stderr
    assert str(tmp_path) in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_layers_of_ones_own_are_profiled_planned_and_trained(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(EXAMPLES / "own-model" / "convolutions.py", tmp_path / "models")
    job = write_job(tmp_path / "models", model=OWN_MODEL, steps=6)
    answer = galvatron("run", job, "--directory", "run", "--port", "0", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "convolutions:layers with" in answer.stdout
    assert "step 6, loss" in answer.stdout
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()).model.num_layers == 8


@pytest.mark.slow
def test_a_job_trains_on_token_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    np.save(tmp_path / "tokens/a.npy", np.arange(4000, dtype=np.uint16) % 50)
    training = {
        "globalBatchSize": {"value": 8},
        "steps": 20,
        "precision": "FP32",
        "optimizer": {"learningRate": "1e-2"},
        "dataset": {"source": "Tokens", "path": "tokens"},
    }
    job = write_job(tmp_path, training=training)
    answer = galvatron("run", job, "--directory", "run", "--port", "0", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    losses = losses_in(tmp_path / "run" / "train.log")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid_and_renders(tmp_path: Path, example: Path) -> None:
    valid = galvatron("validate", example, folder=tmp_path)
    assert valid.returncode == 0, valid.stderr
    rendered = galvatron("render", example, "--image", "runtime:test", folder=tmp_path)
    assert rendered.returncode == 0, rendered.stderr
    assert {item["kind"] for item in yaml.safe_load_all(rendered.stdout)} == {"ConfigMap", "Service", "Job"}


@pytest.mark.slow
def test_a_job_that_is_never_measured_is_planned_for_devices_that_are_not_here(tmp_path: Path) -> None:
    job = write_job(
        tmp_path,
        memory="40Gi",
        budget={"gpus": 4, "gpusPerNode": 2, "memoryPerGPU": "40Gi"},
        profiling={"policy": "Never", "device": "a100-40gb", "linkBetweenNodes": "ethernet-25g"},
    )
    answer = galvatron("plan", job, "--directory", "run", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "estimates from data sheets, not measured: 2 x 2 a100-40gb" in answer.stdout
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()).cluster.num_nodes == 2
    explained = galvatron("explain", "run", folder=tmp_path)
    assert "estimates from data sheets, not measured" in explained.stdout


@pytest.mark.slow
def test_memory_that_is_kept_free_is_no_plans(tmp_path: Path) -> None:
    def planned(percent: int, memory: str) -> subprocess.CompletedProcess[str]:
        budget = {"gpus": 4, "gpusPerNode": 2, "memoryPerGPU": memory, "memoryReservePercent": percent}
        job = write_job(tmp_path, budget=budget, profiling={"policy": "Never", "device": "a100-40gb"})
        return galvatron("plan", job, "--directory", f"run-{percent}", folder=tmp_path)

    answer = planned(20, "40Gi")
    assert answer.returncode == 0, answer.stderr
    assert Plan.from_json((tmp_path / "run-20" / "plan.json").read_text()).cluster.device_memory_bytes == 32 * GIB
    refused = planned(90, "1Mi")
    assert refused.returncode == 1
    assert "(90 % of spec.budget.memoryPerGPU stay free: memoryReservePercent)" in " ".join(refused.stderr.split())


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = galvatron("run", write_job(tmp_path), "--port", str(port), folder=tmp_path)
    assert answer.returncode == 1
    assert f"port {port}" in answer.stderr
    assert not (tmp_path / "galvatron-runs" / "tiny" / "profile").exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_goes_from_yaml_to_a_trained_model_and_can_be_explained(tmp_path: Path) -> None:
    job = write_job(tmp_path, steps=30)
    answer = galvatron("run", job, "--port", "0", "--directory", "out", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr + (tmp_path / "out" / "train.log").read_text()[-3000:]
    assert "Predicted and measured" in answer.stdout
    assert re.search(r"[\d.]+ -> [\d.]+", answer.stdout)
    losses = losses_in(tmp_path / "out" / "train.log")
    assert losses[-1] < losses[0] - 0.5
    assert {"profile.json", "plan.json", "report.json"} <= {path.name for path in (tmp_path / "out").iterdir()}

    explained = galvatron("explain", "out", folder=tmp_path)
    assert explained.returncode == 0, explained.stderr
    again = galvatron("plan", job, "--port", "0", "--directory", "out", folder=tmp_path)
    assert "measured before" in again.stdout
    rendered = galvatron("render", job, "--plan", "out/plan.json", folder=tmp_path)
    assert "StatefulSet" in rendered.stdout, rendered.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_the_next_one_ends_as_usual(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), telling_what_ctrl_c_does():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert "stopping, after a last training checkpoint" in capfd.readouterr().err


@pytest.mark.distributed
@pytest.mark.slow
def test_ctrl_c_saves_stops_everything_and_the_next_run_goes_on(tmp_path: Path) -> None:
    checkpoint = {"volume": {"claimName": "unused-locally"}, "periodSteps": 1000}
    job = write_job(tmp_path, steps=100_000, checkpoint=checkpoint)
    command = [*GALVATRON, "run", str(job), "--port", "0", "--directory", "out"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    log = tmp_path / "out" / "train.log"
    wait_until(lambda: log.exists() and "step finished" in log.read_text(), seconds=300)

    second = galvatron("run", job, "--port", "0", "--directory", "out", folder=tmp_path)
    assert second.returncode == 1
    assert "another run" in second.stderr

    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    said = (tmp_path / "output").read_text()
    assert said.index("stopping, after a last training checkpoint") < said.index("run the same command again to go on")
    assert not processes_mentioning(str(tmp_path))
    saved = sorted((tmp_path / "out" / "checkpoints").rglob("step-*"))
    assert saved


@pytest.mark.distributed
@pytest.mark.slow
def test_regret_runs_the_chosen_plan_and_others_and_leaves_tables_and_a_picture(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    options = ("--plans", "2", "--rounds", "1", "--steps", "3", "--port", "0", "--directory", tmp_path / "run")
    result = galvatron("regret", job, *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"regret: \d+\.\d% \(95 % confidence", result.stdout)
    assert "chosen: pp" in result.stdout
    lines = (tmp_path / "run" / "regret.csv").read_text().splitlines()
    assert len(lines) == 1 + 2
    assert (tmp_path / "run" / "regret.svg").read_text().startswith("<svg")
    assert "| chosen |" in (tmp_path / "run" / "regret.md").read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_budget_that_is_too_small_names_the_memory_that_would_do(tmp_path: Path) -> None:
    answer = galvatron("plan", write_job(tmp_path, memory="1Mi"), "--port", "0", folder=tmp_path)
    assert answer.returncode == 1
    assert re.search(r"\d+ ?Mi", answer.stderr)
    assert "Traceback" not in answer.stderr
