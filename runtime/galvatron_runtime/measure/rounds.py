"""Robust durations: interleaved rounds of blocks of passes, medians, and a refusal of what is noise.

A block is several passes without a pause, long enough that the ends, where ranks wait for each other or still share
cores with fewer others, matter little. A round runs one block of every trial, so that a disturbance of the machine
touches all trials a little instead of one a lot; rounds go on until every median is certain enough or time is up.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from galvatron_planner.errors import GalvatronError
from galvatron_runtime.measure.bench import Bench

log = logging.getLogger(__name__)

BLOCK_SECONDS = 0.02
"""Shortest block: several time slices of the CPU scheduler (3 ms), and 100 launches of a small GPU kernel."""
MAX_PASSES = 100
MIN_ROUNDS = 3
MAX_ROUNDS = 25
ENOUGH_CERTAINTY = 0.03
"""A trial is repeated no more when its median is not more uncertain than this, relative to itself."""
MOST_UNCERTAINTY = 0.5
"""A trial is repeated beyond the budget while it is more uncertain than this, and in the end refused."""
NEGLIGIBLE_SHARE = 0.05
"""Share of the longest duration whose uncertainty cannot sway a plan; below it, timer and scheduler make much noise."""
OVERTIME_SECONDS = 120.0
"""How long beyond the budget trials are repeated that would otherwise be refused."""


class NoisyMeasurement(GalvatronError):
    """Repeated measurements disagree so much that no plan could rest on them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Something to time on all ranks at once.

    Attributes:
        name: for people.
        run: runs a block of that many passes and returns this rank's seconds in each part of it.
    """

    name: str
    run: Callable[[int], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Timing:
    """What one pass of a trial takes.

    Attributes:
        parts: seconds of each part of it.
        uncertainty: standard error of their sum, relative to it.
    """

    parts: tuple[float, ...]
    uncertainty: float


def time_trials(trials: Sequence[Trial], *, bench: Bench, budget_seconds: float, activity: str) -> tuple[Timing, ...]:
    """Time one pass of every trial.

    Args:
        trials: the same ones, in the same order, on all ranks.
        bench: where.
        budget_seconds: when to stop repeating, unless the least number of rounds takes longer.
        activity: what people are told is going on.

    Returns:
        Per trial the seconds of each part of one pass, and how certain they are: the median over rounds of a block's
        duration on the slowest rank, per pass. The slowest, because a step ends when its last rank ends; over a block,
        the luck of one pass on one rank averages out.

    Raises:
        NoisyMeasurement: when medians stay too uncertain, or are not finite.
    """
    if not trials:
        return ()
    started = time.monotonic()
    rounds = _Rounds(trials, bench)
    upcoming = list(range(len(trials)))
    while upcoming:
        rounds.run(upcoming)
        bench.report(activity, rounds.num_rounds, MAX_ROUNDS)
        (elapsed,) = bench.slowest([time.monotonic() - started])
        upcoming = _still_uncertain(rounds, overtime_seconds=elapsed - budget_seconds)
    rounds.check()
    log.info(
        "measured",
        extra={
            "activity": activity,
            "num_trials": len(trials),
            "num_rounds": rounds.num_rounds,
            "uncertainty": round(max(rounds.uncertainties()), 3),
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return rounds.timings()


def _still_uncertain(rounds: "_Rounds", *, overtime_seconds: float) -> list[int]:
    """Choose what the next round repeats; the same on all ranks, because they agree on every duration."""
    if rounds.num_rounds < MIN_ROUNDS:
        return list(range(len(rounds.parts)))
    if rounds.num_rounds >= MAX_ROUNDS or overtime_seconds > OVERTIME_SECONDS:
        return []
    most = ENOUGH_CERTAINTY if overtime_seconds <= 0 else MOST_UNCERTAINTY
    return [i for i, uncertainty in enumerate(rounds.uncertainties()) if uncertainty > most]


class _Rounds:
    """The rounds so far; it has state because trials are calibrated once and measured many times.

    Attributes:
        parts: per trial, and per round in which it ran, the seconds of each part of one pass.
        num_rounds: rounds so far.
    """

    def __init__(self, trials: Sequence[Trial], bench: Bench) -> None:
        self._trials = trials
        self._bench = bench
        self._passes = self._calibrate()
        self.parts: list[list[tuple[float, ...]]] = [[] for _ in trials]
        self.num_rounds = 0

    def _calibrate(self) -> list[int]:
        """Warm every trial up, and choose how many passes make a block of it."""
        longest = self._run_once(self._trials)
        # The first pass loads and allocates; where that may have been most of it, a second one tells the duration.
        short = [i for i, seconds in enumerate(longest) if seconds < BLOCK_SECONDS]
        for i, seconds in zip(short, self._run_once([self._trials[i] for i in short]), strict=True):
            longest[i] = seconds
        return [min(MAX_PASSES, math.ceil(BLOCK_SECONDS / max(seconds, 1e-9))) for seconds in longest]

    def _run_once(self, trials: Sequence[Trial]) -> list[float]:
        seconds = []
        for trial in trials:
            self._bench.line_up()
            seconds.append(sum(trial.run(1)))
        return self._bench.slowest(seconds)

    def run(self, chosen: Sequence[int]) -> None:
        """Run one block of the chosen trials and agree on its durations."""
        mine = []
        for i in chosen:
            self._bench.line_up()
            mine.append([part / self._passes[i] for part in self._trials[i].run(self._passes[i])])
        totals = self._bench.slowest([sum(parts) for parts in mine])
        means = iter(self._bench.mean([part for parts in mine for part in parts]))
        for i, parts, total in zip(chosen, mine, totals, strict=True):
            mean = [next(means) for _ in parts]
            # Ranks agree on how a pass divides; only its length is the slowest rank's.
            scale = total / sum(mean) if sum(mean) > 0 else 0.0
            self.parts[i].append(tuple(part * scale for part in mean))
        self.num_rounds += 1

    def timings(self) -> tuple[Timing, ...]:
        """Median over the rounds, per trial and part."""
        return tuple(_timing(blocks) for blocks in self.parts)

    def uncertainties(self) -> list[float]:
        """Relative standard error of every trial's median; short durations count as a share of the longest."""
        durations = [[sum(parts) for parts in blocks] for blocks in self.parts]
        floor = NEGLIGIBLE_SHARE * max(statistics.median(one) for one in durations)
        return [uncertainty(one) / max(floor, statistics.median(one), 1e-9) for one in durations]

    def check(self) -> None:
        """Refuse what is not finite or too uncertain."""
        for i, relative in enumerate(self.uncertainties()):
            seconds = statistics.median(sum(parts) for parts in self.parts[i])
            # Negated, so that a duration that is not a number is refused too.
            if not (relative <= MOST_UNCERTAINTY and math.isfinite(seconds)):
                raise NoisyMeasurement(
                    f"{self._trials[i].name} took {seconds:.3g} s, give or take {relative:.0%},"
                    f" over {len(self.parts[i])} rounds",
                    remedy="measure again while nothing else runs on these devices",
                )


def _timing(blocks: Sequence[tuple[float, ...]]) -> Timing:
    durations = [sum(parts) for parts in blocks]
    return Timing(
        parts=tuple(statistics.median(part) for part in zip(*blocks, strict=True)),
        uncertainty=uncertainty(durations) / max(statistics.median(durations), 1e-9),
    )


def uncertainty(durations: Sequence[float]) -> float:
    """Estimate the standard error of the median of ``durations``, in seconds.

    For a normal distribution the standard deviation is 1.48 median absolute deviations, and the standard error of a
    median is 1.25 standard deviations over the square root of the number of samples.
    """
    middle = statistics.median(durations)
    deviation = statistics.median(abs(duration - middle) for duration in durations)
    return 1.25 * 1.48 * deviation / math.sqrt(len(durations))


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """Return the non-decreasing sequence nearest to ``values`` (least squares).

    More work never takes less time, so that a fall between two sizes is noise. Pool adjacent violators: neighbours in
    the wrong order share their mean (Ayer et al. 1955).
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, num_before = pools.pop()
            mean = (before * num_before + mean * count) / (num_before + count)
            count += num_before
        pools.append((mean, count))
    return tuple(mean for mean, count in pools for _ in range(count))
