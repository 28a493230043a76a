"""Training: documents 3 and 4 in, training checkpoints and reports out. The loop is :func:`train`, top to bottom.

    torchrun ... -m galvatron_runtime.train --plan plan.json --training training.json

The last step of the line *job -> profile -> plan -> training*. Every rank runs this module. It ends with code 0 when
all steps are done, with 75 when it was asked to stop, and with 1 when it failed, or with the code by which a
user's layer ended it; all but the first leave a word in the run directory, because torchrun passes no exit code on.
"""

import argparse
import logging
import math
import os
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from galvatron_planner.cluster import DeviceKind
from galvatron_planner.errors import GalvatronError, InvalidDocument
from galvatron_planner.own import OwnModel
from galvatron_planner.plan import Plan
from galvatron_planner.training import TrainingSpec
from galvatron_planner.worker import ExitClass
from galvatron_runtime.apply import ParallelModel, apply
from galvatron_runtime.checkpoint import CheckpointStore, TrainingState
from galvatron_runtime.data import open_samples
from galvatron_runtime.failures import PREEMPTED_CODE, fail, leave
from galvatron_runtime.journal import StepJournal
from galvatron_runtime.logs import configure_rank_logging
from galvatron_runtime.memory import idle_meter
from galvatron_runtime.mesh import finish, start_process_groups
from galvatron_runtime.model import parameter_dtype
from galvatron_runtime.optimizer import make_optimizer, set_learning_rate
from galvatron_runtime.pretrained import PretrainedValues, open_weights
from galvatron_runtime.processes import die_with_parent
from galvatron_runtime.reports import RUN_DIRECTORY_VARIABLE, attempt, report_failure, run_directory
from galvatron_runtime.saving import Saver
from galvatron_runtime.stalls import StallWatch
from galvatron_runtime.tracing import StepTracer

log = logging.getLogger(__name__)

COLLECTIVES_SECONDS = 60.0
"""How much longer than the deadline a collective waits."""


class NotLaunched(GalvatronError):
    """The process lacks what its launcher should have given it."""


class TrainingDiverged(GalvatronError):
    """Loss or gradients are no numbers any more."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How training ended, if it did not fail.

    Attributes:
        step: finished steps of the job.
        is_complete: whether those are all; if not, it was asked to stop.
        is_saved: whether a training checkpoint of that step exists.
    """

    step: int
    is_complete: bool
    is_saved: bool


def train(plan: Plan, training: TrainingSpec, *, directory: Path, stop: "StopRequest") -> Ending:
    """Train under a plan until all steps are done or any rank is asked to stop.

    Args:
        plan: how the model is split; the same on every rank.
        training: what is to be done, whatever the plan.
        directory: this node's run directory.
        stop: whether this rank is asked to stop.
    """
    # What can be refused is refused here, before processes wait for each other.
    device = find_device(plan)
    samples = open_samples(
        training.data, model=plan.model, seed=training.seed, batch_size=plan.global_batch_size, directory=directory
    )
    pretrained = open_pretrained(plan, training, device)
    meter = idle_meter(device)
    # What waits for a rank that does not come is ended by the watch, which knows more than the collective.
    deadline_seconds = training.progress_deadline_seconds
    start_process_groups(plan.cluster.device_kind, timeout_seconds=deadline_seconds + COLLECTIVES_SECONDS)
    watch = StallWatch(deadline_seconds)
    meter.reset_peak()
    store = open_store(plan, training)
    saved_step = store.newest_step() if store else 0
    model = apply(plan, seed=training.seed, device=device, pretrained=None if saved_step else pretrained)
    optimizer = make_optimizer(model.trained_parameters.values(), training.optimizer)
    journal = StepJournal(plan, stage_index=model.stage_index, total_steps=training.steps, meter=meter)
    offset = store.sample_offset(saved_step) if store and saved_step else 0
    samples, state = samples.moved(offset), TrainingState(model.trained_parameters, optimizer, offset)
    saver = Saver(store, device)
    tracer = StepTracer(directory, rank=dist.get_rank(), stage_index=model.stage_index, device=device)

    step = resume(store, state, journal, saved_step)
    model.tied.spread_values()
    while step < training.steps:
        watch.moved(f"training step {step + 1}")
        started = time.perf_counter()
        set_learning_rate(optimizer, training.optimizer, step)
        outcome = model.run_step(partial(samples.samples, step))
        gradient_norm = clip_gradients(model, training.gradient_clip_norm)
        check_finite(outcome.loss, gradient_norm, step=step)
        model.update(optimizer)
        step += 1
        # Agreed in every step, because what is asked reaches the ranks of one pod only. Also waits for the device.
        is_stopping, traced_steps = agree(device, stop.is_requested, tracer.requested_steps())
        journal.step_finished(step, outcome, gradient_norm=gradient_norm, seconds=time.perf_counter() - started)
        tracer.step_finished(agreed_steps=traced_steps)
        watch.moved(f"saving after step {step}")
        journal.checkpoint_saved(saver.step_finished(state, step, is_last=is_stopping))
        if is_stopping:
            break
    watch.moved("waiting for the last training checkpoint")
    journal.checkpoint_saved(saver.wait())
    watch.end()
    tracer.stop()
    return Ending(step, is_complete=step >= training.steps, is_saved=store is not None)


def find_device(plan: Plan) -> torch.device:
    """This process's device, as the plan expects it.

    Raises:
        InvalidPlan: when the run has another number of devices than the plan.
        NotLaunched: when this process has no device of the plan's kind.
    """
    plan.check_world(int(os.environ["WORLD_SIZE"]))
    if plan.cluster.device_kind is DeviceKind.CPU:
        return torch.device("cpu")
    local_rank, num_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= num_devices:
        raise NotLaunched(
            f"local rank {local_rank} has no GPU: this node shows {num_devices} to the process",
            remedy="request as many GPUs per node as the plan has devices per node, and check the driver",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def open_pretrained(plan: Plan, training: TrainingSpec, device: torch.device) -> PretrainedValues | None:
    """Find the weights to start from, if training does not start from drawn ones."""
    if training.initial_weights is None or isinstance(plan.model, OwnModel):
        return None
    dtype = parameter_dtype(plan.precision)
    return open_weights(Path(training.initial_weights), plan.model, dtype=dtype, device=device)


def clip_gradients(model: ParallelModel, max_norm: float) -> float | None:
    """Clip to ``max_norm``, 0 for never; the norm before, if it had to be computed."""
    return model.clip_gradients(max_norm) if max_norm > 0 else None


def check_finite(loss: float, gradient_norm: float | None, *, step: int) -> None:
    """Refuse to make a step after which no weight would be a number.

    Raises:
        TrainingDiverged: on all ranks alike, because loss and norm are equal on all of them.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm or 0.0):
        return
    raise TrainingDiverged(
        f"step {step + 1} has loss {loss} and gradient norm {gradient_norm}",
        remedy="lower the learning rate, warm up over more steps, or clip gradients; the newest training checkpoint"
        " is from before",
    )


def open_store(plan: Plan, training: TrainingSpec) -> CheckpointStore | None:
    """The job's training checkpoints, if it keeps any."""
    if training.checkpoints is None:
        return None
    # Drawn, because two pods of one ordinal know nothing that would tell them apart.
    run = [secrets.token_hex(4)]
    dist.broadcast_object_list(run, src=0)
    return CheckpointStore(training.checkpoints, plan, training, attempt(), run[0])


def resume(store: CheckpointStore | None, state: TrainingState, journal: StepJournal, step: int) -> int:
    """Go on from the training checkpoint of ``step``, 0 for none; the number of steps it has made."""
    if store and step:
        store.load(state, step)
        journal.resumed(step)
    return step


class StopRequest:
    """Whether this rank got SIGTERM; it has state because a signal handler can only leave a mark."""

    def __init__(self) -> None:
        self.is_requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_requested = True


def agree(device: torch.device, is_stopping: bool, traced_steps: int) -> tuple[bool, int]:  # noqa: FBT001 -- a sum of both
    """Agree with all ranks whether to stop after this step, and how many steps to record: what anyone was asked for."""
    wishes = torch.tensor([float(is_stopping), float(traced_steps)], device=device)
    dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
    stopping, steps = wishes.tolist()
    return bool(stopping), int(steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank; never returns."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="galvatron_runtime.train", description="Train under a plan.")
    parser.add_argument("--plan", type=Path, required=True, help="document 3")
    parser.add_argument("--training", type=Path, required=True, help="document 4")
    options = parser.parse_args(arguments)
    stop = StopRequest()
    try:
        ending = run(options.plan, options.training, stop)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the rim of the process: classified, logged and reported
        leave(fail(error))
    else:
        end(ending)


def run(plan_path: Path, training_path: Path, stop: StopRequest) -> Ending:
    """Read the documents and train."""
    rank = int(os.environ["RANK"])
    configure_rank_logging(rank=rank, stage=0)
    plan = Plan.from_json(read_document(plan_path))
    training = TrainingSpec.from_json(read_document(training_path))
    configure_rank_logging(rank=rank, stage=rank // plan.devices_per_stage)
    directory = run_directory()
    if directory is None:
        raise NotLaunched(
            f"the environment has no {RUN_DIRECTORY_VARIABLE}",
            remedy="start training through galvatron_runtime.supervisor, or name an empty directory there",
        )
    log.info("training starts", extra={"plan": plan.summary, "steps": training.steps, "attempt": attempt()})
    return train(plan, training, directory=directory, stop=stop)


def read_document(path: Path) -> str:
    """Read a document's text.

    Raises:
        InvalidDocument: when there is none.
    """
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidDocument(f"cannot read {path}: {error.strerror}", remedy="mount or write the document") from error


def end(ending: Ending) -> None:
    """Leave the process as its ending asks for, all ranks together."""
    if ending.is_complete:
        log.info("training complete", extra={"step": ending.step})
        finish()
    saved = "a training checkpoint was saved" if ending.is_saved else "nothing was saved, as no directory is set for it"
    report_failure(
        ExitClass.PREEMPTED, f"stopped on request after step {ending.step}; {saved}", exit_code=PREEMPTED_CODE
    )
    log.warning("training stopped on request", extra={"step": ending.step, "is_saved": ending.is_saved})
    dist.barrier()
    dist.destroy_process_group()
    leave(PREEMPTED_CODE)


if __name__ == "__main__":
    main()
