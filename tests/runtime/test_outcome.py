"""Which of the words that ranks leave behind is the reason of a failure."""

import pytest

from galvatron_planner.units import GIB
from galvatron_planner.worker import ExitClass, Progress, WorkerFailure
from galvatron_runtime.cgroups import MemoryKills
from galvatron_runtime.outcome import pod_failure, pod_progress
from galvatron_runtime.reports import MESSAGE_LIMIT, RankReport, shorten
from rank_reports import report


def failure(reason: ExitClass, *, rank: int, time: float, message: str = "why") -> WorkerFailure:
    return WorkerFailure(reason=reason, message=message, rank=rank, exit_code=1, time=time)


def running(*ranks: int) -> tuple[RankReport, ...]:
    progress = Progress(activity="training", step=1, total_steps=9)
    return tuple(RankReport(attempt=0, rank=rank, local_rank=rank, progress=progress) for rank in ranks)


def merge(
    *failures: WorkerFailure, stopped: bool = False, ranks: tuple[int, ...] = (), killed: MemoryKills | None = None
) -> WorkerFailure:
    return pod_failure(failures, reported=running(*ranks), exit_code=1, stopped=stopped, killed=killed, now=100.0)


A_KILL = MemoryKills(1, GIB)


def test_the_earliest_failure_is_the_cause() -> None:
    late, early = failure(ExitClass.USER_ERROR, rank=0, time=2.0), failure(ExitClass.DATA_ERROR, rank=1, time=1.0)
    assert merge(late, early) == early


def test_a_lost_connection_is_never_the_cause_of_another_failure() -> None:
    lost, cause = failure(ExitClass.COMMUNICATION, rank=0, time=1.0), failure(ExitClass.USER_ERROR, rank=1, time=2.0)
    assert merge(lost, cause) == cause


def test_a_rank_that_vanished_is_named_by_its_peers_failure() -> None:
    merged = merge(failure(ExitClass.COMMUNICATION, rank=0, time=1.0), ranks=(0, 1))
    assert merged.reason is ExitClass.COMMUNICATION
    assert "ranks [1] vanished" in merged.message


def test_a_long_message_still_has_room_for_the_ranks_that_vanished() -> None:
    lost = failure(ExitClass.COMMUNICATION, rank=0, time=1.0, message="x" * MESSAGE_LIMIT)
    assert "ranks [1] vanished" in merge(lost, ranks=(0, 1)).message


def test_the_memory_of_the_rank_that_failed_is_what_it_said_last_unless_it_says_so_itself() -> None:
    reported = (report(0, peak_bytes=5), report(1, peak_bytes=7))
    silent = failure(ExitClass.OUT_OF_DEVICE_MEMORY, rank=5, time=1.0)
    for said, expected in ((silent, 7), (silent.model_copy(update={"peak_bytes": 9}), 9)):
        merged = pod_failure([said], reported=reported, exit_code=1, stopped=False, killed=None, now=100.0)
        assert merged.peak_bytes == expected
    assert merge(silent).peak_bytes is None


def test_silence_is_an_unknown_failure() -> None:
    assert merge().reason is ExitClass.UNKNOWN


def test_silence_after_a_kill_for_memory_is_that() -> None:
    merged = merge(killed=A_KILL, ranks=(0, 1))
    assert (merged.reason, merged.rank, merged.exit_code, merged.time) == (ExitClass.OUT_OF_HOST_MEMORY, None, 137, 100)
    assert merged.message == (
        "ranks [0, 1] vanished without a word: the kernel killed a process for lack of host memory;"
        " the limit is 1 GiB; raise spec.runtime.resources.limits.memory"
    )


@pytest.mark.parametrize("echo", [ExitClass.COMMUNICATION, ExitClass.STALLED])
def test_what_peers_see_of_a_kill_for_memory_is_that(echo: ExitClass) -> None:
    merged = merge(failure(echo, rank=0, time=1.0, message="x" * MESSAGE_LIMIT), killed=A_KILL, ranks=(0, 1))
    assert (merged.reason, merged.rank, merged.time) == (ExitClass.OUT_OF_HOST_MEMORY, 1, 1.0)
    assert "x\nranks [1] vanished" in merged.message


def test_a_rank_that_says_why_it_failed_is_believed_whatever_else_was_killed() -> None:
    cause = failure(ExitClass.DATA_ERROR, rank=0, time=1.0)
    assert merge(cause, killed=A_KILL, ranks=(0, 1)) == cause


def test_a_kill_while_stopping_is_no_failure_of_its_own() -> None:
    assert merge(killed=A_KILL, stopped=True).reason is ExitClass.PREEMPTED


def test_without_a_limit_it_is_the_machine_that_has_too_little_memory() -> None:
    message = merge(killed=MemoryKills(2, None)).message
    assert message.startswith("the kernel killed 2 processes for lack of host memory; the machine has no more")


def test_connections_lost_while_stopping_are_no_failure_of_their_own() -> None:
    assert merge(failure(ExitClass.COMMUNICATION, rank=0, time=1.0), stopped=True).reason is ExitClass.PREEMPTED


def test_a_failure_before_the_request_to_stop_stays_the_cause() -> None:
    cause = failure(ExitClass.DATA_ERROR, rank=0, time=1.0)
    assert merge(cause, stopped=True) == cause


def test_of_a_long_message_the_end_is_kept() -> None:
    text = shorten("x" * 5000 + "the cause")
    assert len(text) == MESSAGE_LIMIT
    assert text.endswith("the cause")


def test_a_pod_without_reports_has_no_progress() -> None:
    assert pod_progress(()) is None
