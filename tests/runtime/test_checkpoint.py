"""Training checkpoints of one process; several processes and other plans are in test_train.py."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

import builders
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.own import OwnLayer, OwnModel, data_of
from galvatron_planner.plan import Plan
from galvatron_planner.training import AdamW, SyntheticData, TrainingCheckpoints, TrainingSpec
from galvatron_runtime.checkpoint import (
    CheckpointStore,
    CheckpointUnusable,
    ForeignCheckpoint,
    TrainingState,
    check_model,
    complete_steps,
)
from galvatron_runtime.claims import StaleAttempt
from galvatron_runtime.saving import Saver


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
    in_background: bool = False,
    attempt: int = 0,
    run: str = "",
    owner: str = "",
    spec: ModelSpec | None = None,
    precision: Precision = Precision.FP32,
) -> CheckpointStore:
    settings = TrainingCheckpoints(
        directory=str(directory),
        period_steps=10,
        keep_last=keep_last,
        resume=resume,
        owner=owner,
        in_background=in_background,
    )
    training = TrainingSpec(
        steps=25,
        optimizer=AdamW(learning_rate=0.1),
        gradient_clip_norm=0,
        seed=1,
        data=SyntheticData(),
        checkpoints=settings,
    )
    return CheckpointStore(settings, builders.plan("dp4", spec=spec, precision=precision), training, attempt, run)


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


def test_what_is_saved_in_the_background_is_what_was_there_when_it_began(tmp_path: Path) -> None:
    learned = state(steps=2)
    expected = learned.tensors()["model.layers.0.weight"].clone()
    saver = Saver(store(tmp_path, in_background=True), torch.device("cpu"))
    assert saver.step_finished(learned, 9, is_last=False) is None
    assert saver.step_finished(learned, 10, is_last=False) is None
    learn(learned)
    saved = saver.wait()
    assert saved is not None
    assert saved.step == 10
    assert saver.wait() is None
    again = state()
    store(tmp_path).load(again, 10)
    assert torch.equal(again.tensors()["model.layers.0.weight"], expected)


def test_a_checkpoint_in_the_background_is_told_of_in_the_step_after_it_is_complete(tmp_path: Path) -> None:
    learned, saver = state(steps=1), Saver(store(tmp_path, in_background=True), torch.device("cpu"))
    saver.step_finished(learned, 10, is_last=False)
    deadline = time.monotonic() + 60
    while (saved := saver.step_finished(learned, 11, is_last=False)) is None:
        assert time.monotonic() < deadline
    assert saved.step == 10
    assert complete_steps(tmp_path) == (10,)
    saver.step_finished(learned, 20, is_last=False)
    before = saver.step_finished(learned, 24, is_last=True)
    assert before is not None
    assert before.step == 20
    saver.wait()
    assert sorted(complete_steps(tmp_path)) == [20, 24]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def save_at_once(saver: Saver, learned: TrainingState, step: int) -> None:
    saver.step_finished(learned, step, is_last=False)
    saver.wait()


@pytest.mark.parametrize("mode", ["Sync", "Async"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(small_disk: Path, mode: str) -> None:
    saver = Saver(store(small_disk, in_background=mode == "Async"), torch.device("cpu"))
    save_at_once(saver, state(steps=1), 10)
    weight = nn.Parameter(torch.zeros(40_000))
    large = TrainingState({"layers.0.weight": weight}, torch.optim.AdamW([weight], fused=True))
    with pytest.raises(CheckpointUnusable, match=r"(?i)step 20 cannot be written .*no space left") as caught:
        save_at_once(saver, large, 20)
    assert "room for 3 checkpoints" in caught.value.remedy
    assert {path.name for path in small_disk.iterdir()} == {"step-00000010"}


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


def test_what_an_earlier_attempt_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000010.attempt-0").mkdir()
    store(tmp_path, attempt=1).newest_step()
    assert [path.name for path in tmp_path.iterdir()] == [".claim-1-of-"]


@pytest.mark.parametrize("successor", [("job", 2, "c"), ("another job", 1, "c"), ("job", 1, "b")])
def test_an_attempt_that_was_given_up_completes_no_checkpoint(tmp_path: Path, successor: tuple[str, int, str]) -> None:
    given_up = store(tmp_path, owner="job", attempt=1, run="a")
    given_up.newest_step()
    given_up.save(state(steps=1), 10)
    owner, attempt, run = successor
    with given_up.writing(state(), 20):
        assert store(tmp_path, owner=owner, attempt=attempt, run=run).newest_step() == 10
    with pytest.raises(StaleAttempt, match="another attempt has claimed it"):
        given_up.complete(20)
    with pytest.raises(StaleAttempt):
        given_up.save(state(steps=1), 30)
    assert complete_steps(tmp_path) == (10,)
    # Its successor has swept already.
    assert not list(tmp_path.glob(".step-*"))


def test_an_attempt_that_comes_late_leaves_its_successor_alone(tmp_path: Path) -> None:
    successor = store(tmp_path, owner="job", attempt=2)
    successor.newest_step()
    with pytest.raises(StaleAttempt):
        store(tmp_path, owner="job", attempt=1).newest_step()
    successor.save(state(steps=1), 10)
    assert complete_steps(tmp_path) == (10,)


@pytest.mark.parametrize("moment", range(8))
def test_at_whatever_moment_a_directory_is_claimed_both_agree_on_its_newest_checkpoint(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, successor = store(tmp_path, owner="job", attempt=1), store(tmp_path, owner="job", attempt=2)
    given_up.newest_step()
    seen: list[int] = []
    moments = iter(range(100))

    def meddling(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not seen and next(moments) == moment:
                seen.append(0)
                seen[0] = successor.newest_step()
            return original(*arguments, **options)

        return call

    for name in ("mkdir", "iterdir", "rename"):
        monkeypatch.setattr(Path, name, meddling(getattr(Path, name)))
    with suppress(StaleAttempt):
        given_up.save(state(steps=1), 10)
    assert seen == [max(complete_steps(tmp_path), default=0)]


def test_data_go_on_where_they_were_whatever_the_size_of_a_batch(tmp_path: Path) -> None:
    batch_size = store(tmp_path).plan.global_batch_size
    store(tmp_path).save(state(steps=1), 10)
    assert store(tmp_path).sample_offset(10) == 0
    larger = replace(store(tmp_path), plan=builders.plan("dp4", global_batch_size=2 * batch_size))
    offset = larger.sample_offset(10)
    assert offset + 10 * 2 * batch_size == 10 * batch_size
    larger.save(replace(state(steps=1), sample_offset=offset), 15)
    assert store(tmp_path).sample_offset(15) + 15 * batch_size == 10 * batch_size + 5 * 2 * batch_size


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


def test_a_checkpoint_from_before_there_were_tied_tables_is_of_another_model(tmp_path: Path) -> None:
    saved = store(tmp_path)
    saved.save(state(), 10)
    path = tmp_path / "step-00000010" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["model"]["tie_word_embeddings"]
    path.write_text(json.dumps(plan))
    with pytest.raises(ForeignCheckpoint, match="tie_word_embeddings False instead of True"):
        store(tmp_path).load(state(), 10)


def test_layers_of_ones_own_and_a_family_are_different_models(tmp_path: Path) -> None:
    store(tmp_path).save(state(), 10)
    path = tmp_path / "step-00000010" / "plan.json"
    saved = Plan.from_json(path.read_text())
    layer = OwnLayer(
        function="a:b", index=0, digest="", inputs=(), outputs=(), parameters=(), forward_flops=0, kept_elements=0
    )
    first, last = data_of(sequence_length=4, vocabulary_size=8, image_size=0)
    middle = layer.model_copy(update={"inputs": ((4,),), "outputs": ((4,),)})
    layers = (
        layer.model_copy(update={"outputs": ((4,),), "data": first}),
        *(middle, middle),
        layer.model_copy(update={"inputs": ((4,),), "data": last}),
    )
    own = OwnModel(layers=layers, sequence_length=4, vocabulary_size=8)
    path.write_text(saved.model_copy(update={"model": own}).to_json())
    with pytest.raises(ForeignCheckpoint, match=r"family own instead of gpt.*layers of other code or shapes"):
        check_model(tmp_path / "step-00000010", saved.model, saved.precision)


def test_a_new_job_that_must_not_resume_refuses_a_directory_in_use(tmp_path: Path) -> None:
    store(tmp_path).save(state(steps=1), 10)
    for owner in ("", "another"):
        with pytest.raises(CheckpointUnusable, match="resume is Never"):
            store(tmp_path, resume=False, owner=owner, attempt=1).newest_step()


def test_a_later_attempt_goes_on_from_its_own_checkpoints_even_if_it_must_not_resume_others(tmp_path: Path) -> None:
    store(tmp_path, resume=False, owner="job", attempt=1).save(state(steps=1), 10)

    assert store(tmp_path, resume=False, owner="job", attempt=2).newest_step() == 10
    with pytest.raises(CheckpointUnusable, match="resume is Never"):
        store(tmp_path, resume=False, owner="its successor", attempt=1).newest_step()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointUnusable, match=r"step 10 cannot be written to .*file"):
        store(tmp_path / "file").save(state(steps=1), 10)


def resume(where: CheckpointStore) -> None:
    where.sample_offset(10)
    where.load(state(), 10)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "plan.json", "position.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "gone"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, damage: str) -> None:
    store(tmp_path).save(state(steps=1), 10)
    file = tmp_path / "step-00000010" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(CheckpointUnusable, match="step-00000010 cannot be read") as caught:
        resume(store(tmp_path))
    assert "delete this checkpoint" in caught.value.remedy
