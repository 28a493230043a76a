"""Training checkpoints: weights and optimizer state by parameter name, so that a checkpoint outlives its plan.

torch.distributed.checkpoint stores every tensor once, whole or in shards, whatever the layout of the ranks that save
it, and cuts it anew for the ranks that load it. A checkpoint is a directory ``step-00000100`` that also holds the plan
and the training specification. It is written under another name that belongs to the attempt and renamed last: what has
its name is complete (``.metadata`` exists), and an attempt that was given up can complete no more (``claims.py``).
Of the data it knows how many samples came before, since steps may change their size.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from galvatron_planner.documents import Document
from galvatron_planner.errors import GalvatronError, InvalidDocument
from galvatron_planner.model import Model, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.training import TrainingCheckpoints, TrainingSpec
from galvatron_runtime.claims import Claim, StaleAttempt, suffix_of

log = logging.getLogger(__name__)

POSITION_FILE = "position.json"
PLAN_FILE = "plan.json"
TRAINING_FILE = "training.json"
_COMPLETE_NAME = re.compile(r"^step-(\d{8,})$")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class ForeignCheckpoint(GalvatronError):
    """A training checkpoint of another model or number format."""


class CheckpointUnusable(GalvatronError):
    """A training checkpoint that cannot be written or read."""


class Position(Document):
    """How much of the data came before a checkpoint, and whose it is."""

    schema_tag: Literal["galvatron/position/v1"] = Field(default="galvatron/position/v1", alias="schema")
    step: PositiveInt
    samples: PositiveInt
    owner: str = ""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a checkpoint saves of one rank.

    Attributes:
        parameters: by global, plan-independent name; DTensors where a layer is split, else plain tensors that are
            equal on all ranks of their layer.
        optimizer: the AdamW that owns them.
        sample_offset: see ``galvatron_runtime.data.TokenSamples``.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    sample_offset: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor: ``model.<parameter>``, ``optim.<parameter>.exp_avg`` and ``.exp_avg_sq``.

        Moments are made (as zeros) where the optimizer has not made a step yet.
        """
        named = {f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            for moment in _MOMENTS:
                if moment not in moments:
                    moments[moment] = torch.zeros_like(parameter.detach())
                named[f"optim.{name}.{moment}"] = moments[moment]
        return named

    def set_step(self, step: int) -> None:
        """Tell the optimizer how many steps it has made; it is the same for all parameters."""
        for parameter in self.parameters.values():
            # FP32 on the parameter's device, as the fused AdamW makes it.
            count = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
            self.optimizer.state[parameter]["step"] = count


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The training checkpoints of one job, as one attempt sees them; its methods are called by all ranks together.

    Attributes:
        settings: where they are, and how many are kept.
        plan: of this attempt.
        training: of the job.
        attempt: number of this attempt.
        run: hexadecimal name of this run of the attempt, the same on all ranks.
    """

    settings: TrainingCheckpoints
    plan: Plan
    training: TrainingSpec
    attempt: int
    run: str = ""

    @property
    def directory(self) -> Path:
        """Where they are kept."""
        return Path(self.settings.directory)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after ``step``: every period, and at the end."""
        return step % self.settings.period_steps == 0 or step == self.training.steps

    def newest_step(self) -> int:
        """Claim the directory, and tell the step of its newest complete checkpoint, 0 for none.

        Rank 0 does both, so that all ranks agree.

        Raises:
            CheckpointUnusable: when the directory cannot be written, or holds what this job must not go on from.
            StaleAttempt: when a later attempt of this job has claimed it.
        """
        newest = [0]
        if dist.get_rank() == 0:
            try:
                self._claim.take()
            except OSError as error:
                raise self._unwritable("training checkpoints", error) from error
            newest = [max(complete_steps(self.directory), default=0)]
        dist.broadcast_object_list(newest, src=0)
        if newest[0] and not self.settings.resume and not self._is_own(newest[0]):
            raise not_resumed(self.directory, newest[0])
        return newest[0]

    def _is_own(self, step: int) -> bool:
        owner = self.settings.owner
        return bool(owner) and self._position(step).owner == owner

    def save(self, state: TrainingState, step: int) -> None:
        """Write the checkpoint of ``step``, then drop the oldest ones.

        Raises:
            CheckpointUnusable: when it cannot be written.
        """
        with self.writing(state, step) as path:
            state_dict_saver.save(dict(state.tensors()), checkpoint_id=path)
            self.complete(step)

    @contextmanager
    def writing(self, state: TrainingState, step: int) -> Iterator[Path]:
        """Make the directory in which the checkpoint of ``step`` is written, on all ranks.

        Raises:
            CheckpointUnusable: when writing fails.
        """
        try:
            if dist.get_rank() == 0:
                samples = state.sample_offset + step * self.plan.global_batch_size
                position = Position(step=step, samples=samples, owner=self.settings.owner)
                self._prepare(step, position)
            dist.barrier()
            yield self._partial(step)
        except (OSError, CheckpointException) as error:
            self._check_claim(step)
            raise self.failure(step, error) from error

    def complete(self, step: int) -> None:
        """Give what is written its name, then drop the oldest ones; rank 0 alone, which knows that all have written."""
        if dist.get_rank() != 0:
            return
        self._check_claim(step)
        complete = self.directory / checkpoint_name(step)
        _remove(complete)
        try:
            self._partial(step).rename(complete)
        except FileNotFoundError:
            # Whoever has claimed the directory since has swept it away.
            self._check_claim(step)
            raise
        for old in sorted(complete_steps(self.directory))[: -self.settings.keep_last]:
            _remove(self.directory / checkpoint_name(old))

    def failure(self, step: int, error: BaseException) -> CheckpointUnusable:
        """Say why the checkpoint of ``step`` cannot be written, and free what it took: earlier ones stay."""
        if dist.get_rank() == 0:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        return self._unwritable(f"training checkpoint of step {step}", error)

    def _unwritable(self, what: str, error: BaseException) -> CheckpointUnusable:
        return CheckpointUnusable(
            f"{what} cannot be written to {self.directory}: {_first_line(error)}",
            remedy="make the directory writable for every rank, with room for"
            f" {self.settings.keep_last + 1} checkpoints",
        )

    @property
    def _claim(self) -> Claim:
        return Claim(self.directory, self.settings.owner, self.attempt, self.run)

    def _check_claim(self, step: int) -> None:
        """Make sure of the claim; without it remove what was written since its successor has swept: nobody else would.

        Raises:
            StaleAttempt: when somebody else has claimed the directory.
        """
        try:
            self._claim.check()
        except StaleAttempt:
            shutil.rmtree(self._partial(step), ignore_errors=True)
            raise

    def _partial(self, step: int) -> Path:
        return self.directory / f".{checkpoint_name(step)}.attempt-{self.attempt}{suffix_of(self.run)}"

    def load(self, state: TrainingState, step: int) -> None:
        """Put the saved values of ``step`` in the place of the present ones, whatever plan they were saved under.

        Raises:
            ForeignCheckpoint: when it belongs to another model.
            CheckpointUnusable: when it cannot be read.
        """
        path = self.directory / checkpoint_name(step)
        with self._reading(path):
            check_model(path, self.plan.model, self.plan.precision)
            state_dict_loader.load(dict(state.tensors()), checkpoint_id=path)
        state.set_step(step)

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, CheckpointException, InvalidDocument) as error:
            raise _unreadable(path, error) from error

    def sample_offset(self, step: int) -> int:
        """Tell by how many samples the data before ``step`` differ from as many batches of this plan.

        Raises:
            CheckpointUnusable: when the checkpoint cannot be read.
        """
        return self._position(step).samples - step * self.plan.global_batch_size

    def _position(self, step: int) -> Position:
        path = self.directory / checkpoint_name(step)
        with self._reading(path):
            return Position.from_json((path / POSITION_FILE).read_text())

    def _prepare(self, step: int, position: Position) -> None:
        """Make a directory with the documents; only then look for the claim, as its taker looks for directories."""
        partial = self._partial(step)
        partial.mkdir(parents=True)
        self._check_claim(step)
        (partial / POSITION_FILE).write_text(position.to_json())
        (partial / PLAN_FILE).write_text(self.plan.to_json())
        (partial / TRAINING_FILE).write_text(self.training.to_json())


def checkpoint_name(step: int) -> str:
    """Name of a step's directory; sorts by step."""
    return f"step-{step:08d}"


def complete_steps(directory: Path) -> tuple[int, ...]:
    """List the steps whose checkpoints are complete; none where the directory does not exist."""
    if not directory.is_dir():
        return ()
    matches = (_COMPLETE_NAME.match(path.name) for path in directory.iterdir() if (path / ".metadata").exists())
    return tuple(int(match[1]) for match in matches if match)


def not_resumed(directory: Path, step: int) -> CheckpointUnusable:
    """Say that a job that is to start anew finds what it must not overwrite."""
    return CheckpointUnusable(
        f"{directory} already holds a training checkpoint of step {step}, and spec.checkpoint.resume is Never",
        remedy="empty the directory, name another one, or set resume to Latest",
    )


def check_model(path: Path, model: Model, precision: Precision) -> None:
    """Refuse a checkpoint whose tensors have other shapes or number formats than the model.

    Raises:
        ForeignCheckpoint: with what differs.
    """
    try:
        saved = Plan.from_json((path / PLAN_FILE).read_text())
    except (OSError, InvalidDocument) as error:
        raise _unreadable(path, error) from error
    here = model.model_dump() | {"parameter_bytes": precision.parameter_bytes}
    there = saved.model.model_dump() | {"parameter_bytes": saved.precision.parameter_bytes}
    if "tie_word_embeddings" not in saved.model.model_fields_set and "tie_word_embeddings" in there:
        # Written before there were tied ones.
        there["tie_word_embeddings"] = False
    differing = [field for field in {**here, **there} if here.get(field) != there.get(field)]
    differences = [
        "layers of other code or shapes"
        if field == "layers"
        else f"{field} {there.get(field)} instead of {here.get(field)}"
        for field in differing
    ]
    if differences:
        raise ForeignCheckpoint(
            f"training checkpoint {path} is of another model: {', '.join(differences)}",
            remedy="use another directory for this model (spec.checkpoint.directory), or empty this one to start anew",
        )


def _unreadable(path: Path, error: OSError | CheckpointException | InvalidDocument) -> CheckpointUnusable:
    return CheckpointUnusable(
        f"training checkpoint {path} cannot be read: {_first_line(error)}",
        remedy="let every rank read the directory, or delete this checkpoint to go on from an older one",
    )


def _remove(path: Path) -> None:
    """Delete a checkpoint, its mark first: a half-deleted one must not be taken for a whole one."""
    if path.exists():
        (path / ".metadata").unlink(missing_ok=True)
        shutil.rmtree(path)


def _first_line(error: BaseException) -> str:
    """What went wrong, of the failing rank's own error where torch wraps it."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        # All that torch.save says when a file ends early.
        return f"rank {rank}: {'no space left on the volume' if 'unexpected pos' in str(cause) else reason}"
    return str(error)
