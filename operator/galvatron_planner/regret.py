"""How good a choice among plans was, once they have been run: regret, rank correlation and errors of prediction.

Plans of different batch sizes are compared by seconds per sample. Rounds are measured interleaved, so that what
disturbs a machine for a while disturbs all plans of a round alike; intervals come from drawing rounds anew.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.charts import Dot, scatter_chart
from galvatron_planner.plan import Plan
from galvatron_planner.units import format_bytes, format_seconds

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan and what it took.

    Attributes:
        name: why it was run.
        plan: with its prediction.
        step_seconds: measured, one number a round; none where it failed.
        peak_bytes: measured on the fullest device, one number a round.
        failure: why it ended early, empty when it did not.
    """

    name: str
    plan: Plan
    step_seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    failure: str = ""

    @property
    def seconds_per_sample(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.step_seconds)) / self.plan.global_batch_size

    @property
    def predicted_seconds_per_sample(self) -> float:
        """What the plan expects."""
        return 1 / self.plan.estimate.samples_per_second

    @property
    def time_ratio(self) -> float:
        """Measured over predicted seconds."""
        return self.seconds_per_sample / self.predicted_seconds_per_sample

    @property
    def memory_ratio(self) -> float:
        """Measured over predicted peak memory."""
        return float(np.median(self.peak_bytes)) / self.plan.estimate.peak_bytes


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of predictions, as shares of what was predicted."""

    mean: float
    p95: float
    worst: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Errors":
        """Sum up ratios of measured to predicted, at least one."""
        errors = np.abs(np.asarray(ratios) - 1)
        return cls(float(errors.mean()), float(np.quantile(errors, 0.95)), float(errors.max()))

    def __str__(self) -> str:
        return f"mean {self.mean:.1%}, 95 % of plans within {self.p95:.1%}, worst {self.worst:.1%}"


@dataclass(frozen=True, slots=True)
class Regret:
    """What the choice cost.

    Attributes:
        chosen: the plan that was chosen.
        fastest: the plan that was the fastest as measured.
        share: how much longer the chosen one takes for a sample; 0 when it is the fastest.
        low, high: where the share lies with 95 % confidence.
        rank_correlation: Kendall's tau of predicted and measured seconds, 1 when they order all plans alike; None where
            fewer than two plans were measured.
    """

    chosen: Trial
    fastest: Trial
    share: float
    low: float
    high: float
    rank_correlation: float | None

    def __str__(self) -> str:
        interval = f"{self.low:.1%} to {self.high:.1%}"
        return f"{self.share:.1%} (95 % confidence: {interval}): {self.chosen.name} against {self.fastest.name}"


def regret(trials: Sequence[Trial], *, seed: int = 0) -> Regret:
    """Compare the first trial, the chosen plan, with the fastest of all that were measured.

    Which plan is the fastest is decided anew for every resample, so the interval counts that the fastest of several
    noisy plans looks faster than it is.

    Args:
        trials: the chosen plan first; all of equally many rounds but those that failed.
        seed: of the resamples.

    Raises:
        ValueError: when the chosen plan was not measured.
    """
    measured = [trial for trial in trials if trial.step_seconds]
    if not measured or measured[0] is not trials[0]:
        raise ValueError("the chosen plan was not measured")
    seconds = np.array([np.array(trial.step_seconds) / trial.plan.global_batch_size for trial in measured])
    num_rounds = seconds.shape[1]
    draws = np.random.default_rng(seed).integers(num_rounds, size=(NUM_RESAMPLES, num_rounds))
    shares = _share(np.median(seconds[:, draws], axis=2))
    tail = (1 - CONFIDENCE) / 2
    middle = np.median(seconds, axis=1)
    return Regret(
        chosen=measured[0],
        fastest=measured[int(middle.argmin())],
        share=float(_share(middle)),
        low=float(np.quantile(shares, tail)),
        high=float(np.quantile(shares, 1 - tail)),
        rank_correlation=kendall_tau([one.predicted_seconds_per_sample for one in measured], list(middle)),
    )


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Correlate two orders: pairs ordered alike less pairs ordered otherwise, tau-b where there are ties.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33(3), 1945.
    """
    signs = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in combinations(zip(one, other, strict=True), 2)]
    weight = (sum(abs(a) for a, _ in signs) * sum(abs(b) for _, b in signs)) ** 0.5
    return float(sum(a * b for a, b in signs) / weight) if weight else None


def _share(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tell how much longer the first of the plans takes than the fastest; plans along axis 0."""
    return np.asarray(seconds[0] / seconds.min(axis=0) - 1)


COLUMNS = ("plan", "step", "spread", "predicted", "time ratio", "peak", "memory ratio")


def rows(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """Write trials under :data:`COLUMNS`, the fastest first and failed ones last; ratios are to predictions."""
    ranked = sorted(trials, key=lambda one: one.seconds_per_sample if one.step_seconds else float("inf"))
    return [_row(trial) for trial in ranked]


def _row(trial: Trial) -> tuple[str, ...]:
    predicted = format_seconds(trial.plan.estimate.step_seconds)
    if not trial.step_seconds:
        return (trial.name, "failed", "-", predicted, "-", "-", "-")
    middle = float(np.median(trial.step_seconds))
    spread = (max(trial.step_seconds) - min(trial.step_seconds)) / 2 / middle
    return (
        trial.name,
        format_seconds(middle),
        f"+-{spread:.0%}",
        predicted,
        f"{trial.time_ratio:.2f}",
        format_bytes(float(np.median(trial.peak_bytes))),
        f"{trial.memory_ratio:.2f}",
    )


def legend(trials: Sequence[Trial]) -> list[str]:
    """Say which plan stands behind a name, and why it failed, a line each."""
    return [f"{one.name}: {one.plan.summary}" + (f" ({one.failure})" if one.failure else "") for one in trials]


def as_markdown(title: str, trials: Sequence[Trial], found: Regret) -> str:
    """Write everything for people."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *rows(trials)]
    said = [f"- {line}" for line in (f"Regret: {found}.", *findings(trials, found))]
    plans = [f"- `{line}`" for line in legend(trials)]
    return "\n".join([f"# {title}", "", *said, "", *(f"| {' | '.join(row)} |" for row in table), "", *plans, ""])


def findings(trials: Sequence[Trial], found: Regret) -> list[str]:
    """Say how predictions and measurements agree, a line each."""
    measured = [trial for trial in trials if trial.step_seconds]
    tau = "-" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
    return [
        f"Rank correlation of predicted and measured times (Kendall's tau): {tau}.",
        f"Error of step times: {Errors.of([one.time_ratio for one in measured])}.",
        f"Error of peak memory: {Errors.of([one.memory_ratio for one in measured])}.",
    ]


def as_csv(trials: Sequence[Trial]) -> str:
    """Write every round of every trial, in seconds and bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("name", "plan", "round", "predicted_seconds", "measured_seconds", "predicted_bytes", "measured_bytes")
    )
    for trial in trials:
        for index, pair in enumerate(zip(trial.step_seconds, trial.peak_bytes, strict=True)):
            estimate = trial.plan.estimate
            writer.writerow(
                (trial.name, trial.plan.summary, index, estimate.step_seconds, pair[0], estimate.peak_bytes, pair[1])
            )
    return text.getvalue()


def as_chart(title: str, trials: Sequence[Trial]) -> str:
    """Draw measured over predicted step times; on the diagonal they agree. The chosen plan, the first, stands out."""
    dots = [
        Dot(trial.name, trial.plan.estimate.step_seconds, float(np.median(trial.step_seconds)), is_wide=index == 0)
        for index, trial in enumerate(trials)
        if trial.step_seconds
    ]
    return scatter_chart(title, dots, x_title="predicted step, seconds", y_title="measured step, seconds")
