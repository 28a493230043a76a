"""Why a supervised command ended as it did: pure decisions over what its ranks left behind."""

from collections.abc import Sequence

from galvatron_planner.units import format_bytes
from galvatron_planner.worker import ExitClass, Progress, WorkerFailure
from galvatron_runtime.cgroups import MemoryKills
from galvatron_runtime.reports import RankReport, shorten

_ECHOES = {ExitClass.STALLED: 1, ExitClass.COMMUNICATION: 2}
"""What may only follow from the failure of another rank, in the order in which it is believed."""

_KILLED_CODE = 137
"""Of a process that the kernel killed: 128 and the number of SIGKILL."""

_STALL_ADVICE = (
    "the stacks of all threads stand in the ranks' logs; where a step, loading or saving may take longer, raise"
    " spec.failurePolicy.progressDeadlineSeconds"
)


def pod_progress(reports: Sequence[RankReport]) -> Progress | None:
    """How far a pod has come: its first rank's words, with the memory of its fullest device."""
    if not reports:
        return None
    peaks = [report.training.peak_bytes for report in reports if report.training]
    return reports[0].progress.model_copy(update={"peak_bytes": max(peaks)} if peaks else {})


def pod_failure(
    failures: Sequence[WorkerFailure],
    *,
    reported: Sequence[RankReport],
    exit_code: int,
    stopped: bool,
    killed: MemoryKills | None,
    now: float,
) -> WorkerFailure:
    """Merge what ranks said into the reason of a failed command.

    The earliest word is the cause. Lost connections come after everything else, and stalls before these: they are what
    the peers of a rank see that failed, or that was killed and could say nothing. If the kernel killed something for
    lack of memory and there are only such words or none, it is that.

    Args:
        failures: last words of the ranks of this pod.
        reported: newest reports of the ranks of this pod.
        exit_code: of the command, not 0.
        stopped: whether the supervisor was asked to stop it.
        killed: what the kernel took from this pod meanwhile, None for nothing.
        now: seconds since the epoch, at which the command ended.
    """
    by_time = sorted(failures, key=lambda failure: (_ECHOES.get(failure.reason, 0), failure.time))
    has_no_cause = not by_time or by_time[0].reason in _ECHOES
    if stopped and has_no_cause:
        message = "stopped on request before the ranks could agree to save their work"
        return WorkerFailure(reason=ExitClass.PREEMPTED, message=message, exit_code=exit_code, time=now)
    silent = sorted({report.rank for report in reported} - {failure.rank for failure in failures})
    if killed is not None and has_no_cause:
        return _out_of_host_memory(by_time, silent=silent, killed=killed, now=now)
    if not by_time:
        return WorkerFailure(reason=ExitClass.UNKNOWN, message=_silence(exit_code), exit_code=exit_code, time=now)
    cause = by_time[0]
    if cause.reason is ExitClass.STALLED:
        return cause.model_copy(update={"message": shorten(_stalled(failures, silent))})
    if cause.peak_bytes is None:
        cause = cause.model_copy(update={"peak_bytes": _peak_bytes(cause.rank, reported)})
    if cause.reason is not ExitClass.COMMUNICATION or not silent:
        return cause
    vanished = f"ranks {silent} vanished without a word: killed, for instance for lack of host memory"
    return cause.model_copy(update={"message": shorten(f"{cause.message}\n{vanished}")})


def _out_of_host_memory(
    echoes: Sequence[WorkerFailure], *, silent: list[int], killed: MemoryKills, now: float
) -> WorkerFailure:
    """Put what the kernel did behind the first of the words that it led to: of long messages the end is kept."""
    processes = "a process" if killed.num_processes == 1 else f"{killed.num_processes} processes"
    what = f"the kernel killed {processes} for lack of host memory"
    if silent:
        what = f"ranks {silent} vanished without a word: {what}"
    if killed.limit_bytes is None:
        # Without a limit of its own the pod is no larger than its node, and no limit makes it larger.
        remedy = "the machine has no more; ask for a larger one by spec.runtime.resources.requests.memory"
    else:
        remedy = f"the limit is {format_bytes(killed.limit_bytes)}; raise spec.runtime.resources.limits.memory"
    return WorkerFailure(
        reason=ExitClass.OUT_OF_HOST_MEMORY,
        message=shorten("\n".join([*(echo.message for echo in echoes[:1]), f"{what}; {remedy}"])),
        # Its peers may have been stopped before they could say anything either.
        rank=silent[0] if len(silent) == 1 else None,
        exit_code=_KILLED_CODE,
        time=min((echo.time for echo in echoes), default=now),
    )


def _peak_bytes(rank: int | None, reported: Sequence[RankReport]) -> int | None:
    """Look up what a rank said of its memory after its last step."""
    return next((one.training.peak_bytes for one in reported if one.rank == rank and one.training is not None), None)


def _stalled(failures: Sequence[WorkerFailure], silent: list[int]) -> str:
    """Say where every rank stood, those together that stood at one place."""
    places: dict[str, list[int | None]] = {}
    for failure in failures:
        if failure.reason is ExitClass.STALLED:
            places.setdefault(failure.message, []).append(failure.rank)
    lines = [f"ranks {ranks}: {message}" for message, ranks in sorted(places.items(), key=lambda one: len(one[1]))]
    if silent:
        lines.insert(0, f"ranks {silent} say nothing: stopped, or stuck where Python cannot answer")
    return "\n".join([*lines, _STALL_ADVICE])


def lost_attempt(*, now: float) -> WorkerFailure:
    """The failure of an attempt whose supervisor itself was killed; it must not start the same attempt twice."""
    return WorkerFailure(
        reason=ExitClass.UNKNOWN,
        message="the supervisor of this attempt was killed before it could say anything, usually with its whole"
        " container for lack of host memory; a new attempt may start, this one must not start again",
        exit_code=137,
        time=now,
    )


def _silence(exit_code: int) -> str:
    return (
        f"the command ended with code {exit_code} and no rank said why: it failed before it could start, or it was"
        " killed (for instance for lack of host memory); its log has the rest"
    )
