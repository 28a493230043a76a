"""Training checkpoints of one process; several processes and other plans are in test_train.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

import builders
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.training import AdamW, SyntheticData, TrainingCheckpoints, TrainingSpec
from galvatron_runtime.checkpoint import (
    CheckpointStore,
    CheckpointUnusable,
    ForeignCheckpoint,
    TrainingState,
    complete_steps,
)


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def store(
    directory: Path,
    *,
    keep_last: int = 2,
    resume: bool = True,
    attempt: int = 0,
    spec: ModelSpec | None = None,
    precision: Precision = Precision.FP32,
) -> CheckpointStore:
    settings = TrainingCheckpoints(directory=str(directory), period_steps=10, keep_last=keep_last, resume=resume)
    training = TrainingSpec(
        steps=25,
        optimizer=AdamW(learning_rate=0.1),
        gradient_clip_norm=0,
        seed=1,
        data=SyntheticData(),
        checkpoints=settings,
    )
    return CheckpointStore(settings, builders.plan("dp4", spec=spec, precision=precision), training, attempt)


def state(*, steps: int = 0) -> TrainingState:
    """A tiny model that has learned for some steps."""
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    learned = TrainingState({"layers.0.weight": weight}, optimizer)
    for _ in range(steps):
        learn(learned)
    return learned


def learn(learned: TrainingState) -> torch.Tensor:
    (weight,) = learned.parameters.values()
    weight.grad = weight.detach().square()
    learned.optimizer.step()
    return weight.detach().clone()


def test_training_goes_on_exactly_where_it_was_saved(tmp_path: Path) -> None:
    unbroken = state(steps=3)
    store(tmp_path).save(unbroken, 3)
    resumed = state()
    store(tmp_path, attempt=1).load(resumed, 3)
    assert torch.equal(learn(resumed), learn(unbroken))


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert store(tmp_path / "missing").newest_step() == 0
    for step in (10, 20):
        store(tmp_path).save(state(steps=1), step)
    (tmp_path / "step-00000030").mkdir()  # no .metadata
    assert store(tmp_path).newest_step() == 20


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        store(tmp_path, keep_last=2).save(state(steps=1), step)
    assert sorted(complete_steps(tmp_path)) == [20, 30]


def test_what_an_earlier_attempt_left_unfinished_is_removed_and_a_later_one_is_left_alone(tmp_path: Path) -> None:
    for attempt in (0, 2):
        (tmp_path / f".step-00000010.attempt-{attempt}").mkdir()
    store(tmp_path, attempt=1).save(state(steps=1), 10)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000010", ".step-00000010.attempt-2"}


def test_plan_and_training_stand_beside_the_tensors(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    assert json.loads((tmp_path / "step-00000010" / "plan.json").read_text())["schema"] == "galvatron/plan/v1"
    assert json.loads((tmp_path / "step-00000010" / "training.json").read_text())["steps"] == 25


def test_a_checkpoint_is_due_every_period_and_at_the_end(tmp_path: Path) -> None:
    assert [step for step in range(1, 26) if store(tmp_path).is_due(step)] == [10, 20, 25]


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    with pytest.raises(ForeignCheckpoint, match="hidden_size 32 instead of 64"):
        store(tmp_path, spec=builders.model(hidden_size=64)).load(state(), 10)


def test_a_checkpoint_in_another_number_format_is_refused(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    with pytest.raises(ForeignCheckpoint, match="parameter_bytes 4 instead of 8"):
        store(tmp_path, precision=Precision.FP64).load(state(), 10)


def test_a_new_job_that_must_not_resume_refuses_a_directory_in_use(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    with pytest.raises(CheckpointUnusable, match="resume is false"):
        store(tmp_path, resume=False).newest_step()


def test_a_later_attempt_goes_on_from_its_own_checkpoints_even_if_it_must_not_resume_others(tmp_path: Path) -> None:
    store(tmp_path, resume=False).save(state(steps=1), 10)
    assert store(tmp_path, resume=False, attempt=1).newest_step() == 10


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointUnusable, match=r"step 10 cannot be written to .*file"):
        store(tmp_path / "file").save(state(steps=1), 10)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    for file in (tmp_path / "step-00000010").glob("*.distcp"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointUnusable, match="step-00000010 cannot be read"):
        store(tmp_path).load(state(), 10)
