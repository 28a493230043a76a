"""Training as pods do it: supervisor, torchrun, two ranks; interrupted, resumed, killed."""

import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

import builders
from galvatron_planner.model import Precision
from galvatron_planner.plan import Plan
from galvatron_planner.training import AdamW, DataSource, SyntheticData, TextFiles, TrainingCheckpoints, TrainingSpec
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState
from galvatron_planner.workload import num_parameters
from galvatron_runtime.describe import describe
from galvatron_runtime.processes import descendants
from galvatron_runtime.reports import write_atomically
from supervision import Supervised, is_alive, torchrun, wait_until

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).parents[1]
STEPS = 100
PERIOD = 50


def two_device_plan(*stages: str) -> Plan:
    """FP64, so that other orders of summation do not show."""
    return builders.plan(
        *stages, on=builders.cluster(2), global_batch_size=4, num_micro_batches=2, precision=Precision.FP64
    )


PLAN = two_device_plan("dp2 fsdp2-ckpt tp2 dp2")
OTHER_PLAN = two_device_plan("single single", "single-ckpt single")


def training(
    checkpoints: Path | None, *, steps: int = STEPS, data: DataSource | None = None, in_background: bool = False
) -> TrainingSpec:
    settings = (
        TrainingCheckpoints(directory=str(checkpoints), period_steps=PERIOD, in_background=in_background)
        if checkpoints
        else None
    )
    return TrainingSpec(
        steps=steps,
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=20),
        gradient_clip_norm=1.0,
        seed=7,
        data=data or SyntheticData(),
        checkpoints=settings,
    )


def supervised(directory: Path, plan: Plan, what: TrainingSpec, *options: str, attempt: int | Path = 0) -> Supervised:
    directory.mkdir(exist_ok=True)
    (directory / "plan.json").write_text(plan.to_json())
    (directory / "training.json").write_text(what.to_json())
    documents = ("--plan", str(directory / "plan.json"), "--training", str(directory / "training.json"))
    command = torchrun(plan.cluster.num_devices, "-m", "galvatron_runtime.train", *documents)
    return Supervised(command, directory, *options, attempt=attempt)


def failure_of(run: Supervised) -> WorkerFailure:
    failure = run.wait_for_end().failure
    assert failure is not None
    return failure


def final_loss(run: Supervised) -> float:
    status = run.wait_for_end()
    assert status.failure is None
    assert status.progress is not None
    assert (status.progress.step, status.progress.last_checkpoint_step) == (STEPS, STEPS)
    assert status.progress.loss is not None
    return status.progress.loss


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Path]:
    """Final loss of a run without interruption, and its checkpoints of steps 50 and 100."""
    directory = tmp_path_factory.mktemp("unbroken")
    with supervised(directory, PLAN, training(directory / "checkpoints")) as run:
        return final_loss(run), directory / "checkpoints"


def test_a_run_that_was_stopped_saves_and_goes_on_as_if_nothing_had_been(
    unbroken: tuple[float, Path], tmp_path: Path
) -> None:
    what = training(tmp_path / "checkpoints")
    with supervised(tmp_path, PLAN, what) as run:
        run.wait_for_first_step()
        run.stop()
        assert run.wait_for_exit() == 75
        stopped = run.result()
    assert stopped.failure is not None
    assert stopped.failure.reason is ExitClass.PREEMPTED
    assert stopped.progress is not None
    assert 1 <= stopped.progress.last_checkpoint_step < STEPS
    with supervised(tmp_path, PLAN, what, attempt=1) as run:
        assert final_loss(run) == unbroken[0]


def test_checkpoints_in_the_background_change_nothing(unbroken: tuple[float, Path], tmp_path: Path) -> None:
    what = training(tmp_path / "checkpoints", in_background=True)
    with supervised(tmp_path, PLAN, what) as run:
        run.wait_for_first_step()
        run.stop()
        assert run.wait_for_exit() == 75
    with supervised(tmp_path, OTHER_PLAN, what, attempt=1) as run:
        assert final_loss(run) == pytest.approx(unbroken[0], rel=1e-9)


def test_a_checkpoint_is_resumed_under_another_plan(unbroken: tuple[float, Path], tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(unbroken[1] / f"step-{PERIOD:08d}", checkpoints / f"step-{PERIOD:08d}")
    with supervised(tmp_path, OTHER_PLAN, training(checkpoints)) as run:
        assert final_loss(run) == pytest.approx(unbroken[0], rel=1e-9)


def test_a_checkpoint_holds_every_tensor_once(unbroken: tuple[float, Path]) -> None:
    files = (unbroken[1] / f"step-{STEPS:08d}").glob("*.distcp")
    # Weights and two moments in FP64; replicated layers are stored by one of their ranks.
    expected = 3 * 8 * sum(num_parameters(layer) for layer in PLAN.layers)
    assert sum(file.stat().st_size for file in files) < 1.5 * expected


def test_a_run_without_a_checkpoint_directory_just_stops(tmp_path: Path) -> None:
    with supervised(tmp_path, PLAN, training(None, steps=10**6)) as run:
        run.wait_for_first_step()
        run.stop()
        assert run.wait_for_exit() == 75
        failure = run.result().failure
    assert failure is not None
    assert "nothing was saved" in failure.message


def test_a_killed_rank_fails_the_run_and_is_named_and_nothing_survives(tmp_path: Path) -> None:
    with supervised(tmp_path, PLAN, training(None, steps=10**6)) as run:
        run.wait_for_first_step()
        wait_until(lambda: len(list((tmp_path / "reports").glob("rank-*.json"))) == 2, what="both ranks report")
        ranks = rank_processes(run)
        os.kill(ranks[1], signal.SIGKILL)
        failure = failure_of(run)
    assert failure.reason is ExitClass.COMMUNICATION
    assert "ranks [1] vanished" in failure.message
    assert not [process for process in ranks.values() if is_alive(process)]


@pytest.mark.parametrize(("code", "reason"), [(65, ExitClass.DATA_ERROR), (42, ExitClass.USER_ERROR)])
def test_the_code_of_a_layer_that_ends_its_rank_arrives(
    code: int, reason: ExitClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = describe("runtime.own_layers:leaving", sequence_length=1, vocabulary_size=10, image_size=8)
    plan = builders.plan("single single", "single", spec=spec, on=builders.cluster(2), precision=Precision.FP64)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("EXIT_CODE", str(code))
    with supervised(tmp_path, plan, training(None)) as run:
        failure = failure_of(run)
    assert (failure.rank, failure.exit_code, failure.reason) == (1, code, reason)
    assert f"SystemExit: {code}" in failure.message


def test_a_rank_that_finds_no_memory_tells_how_much_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = describe("runtime.own_layers:hungry", sequence_length=1, vocabulary_size=10, image_size=8)
    plan = builders.plan("single single", "single", spec=spec, on=builders.cluster(2), precision=Precision.FP64)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))
    with supervised(tmp_path, plan, training(None)) as run:
        failure = failure_of(run)
    assert (failure.rank, failure.reason) == (1, ExitClass.OUT_OF_DEVICE_MEMORY)
    assert failure.peak_bytes is not None
    assert 0 < failure.peak_bytes < 1 << 30


def test_a_supervisor_that_stays_trains_on_at_the_same_port_after_a_rank_was_killed(tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    attempt.write_text("1")
    with supervised(tmp_path, PLAN, training(None, steps=10**6), attempt=attempt) as run:
        run.wait_for_first_step()
        before = set(descendants(run.process))
        os.kill(rank_processes(run)[1], signal.SIGKILL)
        run.wait_for_attempt(1, WorkerState.FAILED)
        write_atomically(attempt, "2")
        run.wait_for_attempt(2, WorkerState.RUNNING)
        run.wait_for_first_step()
        # Agent, fork server and ranks: whatever serves the second attempt knows nothing of the first.
        assert not before & set(descendants(run.process))
        assert run.status().attempt == 2


def test_the_next_attempt_is_trained_by_the_spare_that_was_kept_for_it(tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    attempt.write_text("1")
    with supervised(tmp_path, PLAN, training(None, steps=10**6), "--keep-spare", attempt=attempt) as run:
        run.wait_for_first_step()
        wait_until(lambda: len(spares(run)) > 0, what="a spare is kept")
        spare = spares(run)[0]
        os.kill(rank_processes(run)[1], signal.SIGKILL)
        run.wait_for_attempt(1, WorkerState.FAILED)
        write_atomically(attempt, "2")
        run.wait_for_attempt(2, WorkerState.RUNNING)
        run.wait_for_first_step()
        assert set(rank_processes(run).values()) <= set(descendants(spare))
        assert run.status().attempt == 2


def spares(run: Supervised) -> list[int]:
    """Processes below a supervisor that were started to wait; the first is the agent."""
    found = []
    for process in descendants(run.process):
        with suppress(OSError):
            if b"GALVATRON_SPARE=1" in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
    return found


def test_a_stalled_run_ends_and_every_rank_says_where_it_stands(tmp_path: Path) -> None:
    what = training(None, steps=10**6).model_copy(update={"progress_deadline_seconds": 5})
    with supervised(tmp_path, PLAN, what) as run:
        run.wait_for_first_step()
        wait_until(lambda: len(list((tmp_path / "reports").glob("rank-*.json"))) == 2, what="both ranks report")
        os.kill(rank_processes(run)[1], signal.SIGSTOP)
        failure = failure_of(run)
    assert failure.reason is ExitClass.STALLED
    assert "ranks [1] say nothing" in failure.message
    assert re.search(r"ranks \[0\]: nothing moved for 5 s while training step \d+, in \w+ \(", failure.message)


def test_a_killed_supervisor_leaves_no_rank_behind(tmp_path: Path) -> None:
    with supervised(tmp_path, PLAN, training(None, steps=10**6)) as run:
        run.wait_for_first_step()
        ranks = rank_processes(run)
        assert sorted(ranks) == [0, 1]
        run.kill()
        wait_until(lambda: not any(is_alive(process) for process in ranks.values()), what="all ranks are gone")


def test_missing_data_is_a_data_error_before_anything_starts(tmp_path: Path) -> None:
    what = training(None, data=TextFiles(path=str(tmp_path / "missing")))
    plan = builders.plan("single", on=builders.cluster(1), spec=builders.model(vocabulary_size=256))
    with supervised(tmp_path, plan, what) as run:
        failure = failure_of(run)
    assert failure.reason is ExitClass.DATA_ERROR
    assert "neither a file nor a directory" in failure.message


def test_training_metrics_are_scraped_while_it_runs(tmp_path: Path) -> None:
    with supervised(tmp_path, OTHER_PLAN, training(None, steps=10**6)) as run:
        wait_until(lambda: b'bubble_ratio{local_rank="1",stage="1"}' in run.get("/metrics")[1], what="rank 1 reports")
        lines = run.get("/metrics")[1].decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["galvatron_train_tokens_per_second"]) > 0
    assert float(values['galvatron_train_memory_peak_bytes{local_rank="0",stage="0"}']) > 0
    assert float(values["galvatron_train_predicted_step_seconds"]) == PLAN.estimate.step_seconds
    steps = float(values["galvatron_train_steps_total"])
    assert float(values["galvatron_train_step_seconds_count"]) == steps > 0


def rank_processes(run: Supervised) -> dict[int, int]:
    """Processes of the ranks of a run by rank: of what its supervisor started, and of nothing else."""
    names = {process: Path(f"/proc/{process}/comm").read_text().strip() for process in descendants(run.process)}
    return {int(name.removeprefix("rank-")): process for process, name in names.items() if name.startswith("rank-")}
