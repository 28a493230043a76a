"""What a rank remembers of its steps: durations and totals, for the log and for the supervisor.

It is told what happened and tells others; it decides nothing, and training would be the same without it.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

from galvatron_planner.plan import Plan
from galvatron_planner.units import format_bytes
from galvatron_planner.worker import Progress
from galvatron_planner.workload import forward_flops
from galvatron_runtime import mesh
from galvatron_runtime.apply import StepOutcome
from galvatron_runtime.memory import MemoryMeter
from galvatron_runtime.reports import Durations, TrainingFigures, report
from galvatron_runtime.saving import Saved

log = logging.getLogger(__name__)

RECENT_STEPS = 20
REPORT_INTERVAL_SECONDS = 0.5
LOG_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LastStep:
    """What is reported of the newest step."""

    step: int
    outcome: StepOutcome
    gradient_norm: float | None
    ended_at: float


class StepJournal:
    """The steps of this attempt, as one rank sees them.

    It has state because rates are over several steps. Short steps are not all written: a report is a file.
    """

    def __init__(self, plan: Plan, *, stage_index: int, total_steps: int, meter: MemoryMeter) -> None:
        self._plan = plan
        self._stage_index = stage_index
        self._total_steps = total_steps
        self._meter = meter
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)
        self._num_steps = 0
        self._is_over_budget = False
        self._busy_seconds = self._wait_seconds = 0.0
        self._checkpoint_step = 0
        self._step_durations = self._checkpoint_durations = Durations()
        self._last: LastStep | None = None
        self._reported_at = self._logged_at = float("-inf")

    def resumed(self, step: int) -> None:
        """Remember that training goes on from a checkpoint."""
        self._checkpoint_step = step
        log.info("resumed from training checkpoint", extra={"step": step})

    def checkpoint_saved(self, saved: Saved | None) -> None:
        """Remember a training checkpoint, and report it at once: operators wait for it when they stop a job."""
        if saved is None:
            return
        self._checkpoint_step = saved.step
        self._checkpoint_durations = self._checkpoint_durations.with_one(saved.seconds)
        self._report_now()
        log.info("training checkpoint saved", extra={"step": saved.step, "seconds": round(saved.seconds, 3)})

    def step_finished(self, step: int, outcome: StepOutcome, *, gradient_norm: float | None, seconds: float) -> None:
        """Record one step; ``step`` counts from 1 at the start of the job, ``seconds`` is its whole duration."""
        self._durations.append(seconds)
        self._step_durations = self._step_durations.with_one(seconds)
        self._num_steps += 1
        self._busy_seconds += outcome.busy_seconds
        self._wait_seconds += outcome.wait_seconds
        self._last = LastStep(step, outcome, gradient_norm, ended_at=time.time())
        now = time.monotonic()
        is_end = self._num_steps == 1 or step == self._total_steps
        if is_end or now - self._reported_at >= REPORT_INTERVAL_SECONDS:
            self._reported_at = now
            self._report_now()
        if is_end or now - self._logged_at >= LOG_INTERVAL_SECONDS:
            self._logged_at = now
            log.info("step finished", extra={"step": step, "loss": outcome.loss, "seconds": round(seconds, 4)})

    def _check_memory(self, peak: int) -> None:
        """Warn once of a device that holds more than it was given."""
        budget = self._plan.cluster.device_memory_bytes
        if peak <= budget or self._is_over_budget:
            return
        self._is_over_budget = True
        expected = self._plan.estimate.stage_peak_bytes[self._stage_index]
        log.warning(
            "memory budget exceeded: lower spec.budget.memoryPerGPU by the difference to the prediction, if others need"
            " the rest of the device",
            extra={
                "peak": format_bytes(peak),
                "budget": format_bytes(budget),
                "predicted": format_bytes(expected),
            },
        )

    def _report_now(self) -> None:
        if self._last is not None:
            peak = self._meter.peak_bytes()
            self._check_memory(peak)
            report(self._progress(self._last, peak), self._figures(self._last, peak))

    def _progress(self, last: LastStep, peak: int) -> Progress:
        samples_per_second = len(self._durations) * self._plan.global_batch_size / sum(self._durations)
        return Progress(
            activity="training",
            step=last.step,
            total_steps=self._total_steps,
            loss=last.outcome.loss,
            step_seconds=median(self._durations),
            samples_per_second=samples_per_second,
            tokens_per_second=samples_per_second * self._plan.model.sequence_length,
            peak_bytes=peak,
            last_checkpoint_step=self._checkpoint_step,
        )

    def _figures(self, last: LastStep, peak: int) -> TrainingFigures:
        samples = self._num_steps * self._plan.global_batch_size
        return TrainingFigures(
            stage=self._stage_index,
            device_name=mesh.device_name(self._meter.device),
            num_devices=self._plan.cluster.num_devices,
            steps=self._num_steps,
            samples=samples,
            tokens=samples * self._plan.model.sequence_length,
            last_step_timestamp_seconds=last.ended_at,
            gradient_norm=last.gradient_norm,
            bubble_ratio=bubble_ratio(last.outcome),
            busy_seconds=self._busy_seconds,
            wait_seconds=self._wait_seconds,
            model_flops_per_sample=sample_flops(self._plan),
            peak_bytes=peak,
            predicted_step_seconds=self._plan.estimate.step_seconds,
            predicted_peak_bytes=self._plan.estimate.stage_peak_bytes[self._stage_index],
            step_durations=self._step_durations,
            checkpoint_durations=self._checkpoint_durations,
        )


def bubble_ratio(outcome: StepOutcome) -> float:
    """Share of a step's passes in which a device waits for neighbouring stages."""
    passes_seconds = outcome.busy_seconds + outcome.wait_seconds
    return outcome.wait_seconds / passes_seconds if passes_seconds else 0.0


def sample_flops(plan: Plan) -> int:
    """FLOPs of one sample's forward and backward pass; the latter costs twice the former, recomputation not counted."""
    return 3 * sum(forward_flops(layer) for layer in plan.layers)
