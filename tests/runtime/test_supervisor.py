"""The supervisor around commands that are quick to start; training under it is in test_train.py."""

import os
import signal
import sys
from pathlib import Path

import pytest

from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState, WorkerStatus
from galvatron_runtime.attempts import newest_attempt
from galvatron_runtime.metrics import METRICS
from galvatron_runtime.reports import write_atomically
from galvatron_runtime.supervisor import TERMINATION_LOG_BYTES, termination_message
from supervision import Supervised, free_port, is_alive, wait_until

SLEEP = "import time; time.sleep(600)"
REPORT_AND_SLEEP = f"""
from galvatron_runtime.reports import report_progress
report_progress("measuring layers", step=3, total_steps=12)
{SLEEP}
"""


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def process_in(file: Path) -> int:
    """The process that a command wrote down."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what=f"{file.name} is written")
    return int(file.read_text())


def test_a_termination_message_fits_however_its_text_is_encoded() -> None:
    failure = WorkerFailure(reason=ExitClass.USER_ERROR, message="\U0001f525\n" * 1024, rank=3, exit_code=1, time=1.0)
    status = WorkerStatus(attempt=0, node_rank=0, state=WorkerState.FAILED, failure=failure)

    text = termination_message(status)

    assert len(text) <= TERMINATION_LOG_BYTES
    assert WorkerStatus.from_json(text).failure is not None


@pytest.mark.distributed
def test_a_finished_command_leaves_a_parked_supervisor_and_a_result(tmp_path: Path) -> None:
    with Supervised(python("pass"), tmp_path, "--termination-log", str(tmp_path / "termination")) as pod:
        assert pod.wait_for_end().state is WorkerState.SUCCEEDED
        assert (pod.get("/livez")[0], pod.get("/readyz")[0]) == (200, 503)
        assert pod.result() == pod.status()
        assert WorkerStatus.from_json((tmp_path / "termination").read_text()) == pod.status()
        pod.stop()
        assert pod.wait_for_exit() == 0


@pytest.mark.distributed
def test_a_supervisor_that_is_not_to_park_exits_with_the_codes_of_its_command(tmp_path: Path) -> None:
    with Supervised(python("raise SystemExit(3)"), tmp_path, "--when-finished", "exit") as pod:
        assert pod.wait_for_exit() == 3
        failure = pod.result().failure
        assert failure is not None
        assert failure.reason is ExitClass.UNKNOWN


@pytest.mark.distributed
def test_a_command_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    with Supervised(("/no/such/command",), tmp_path) as pod:
        failure = pod.wait_for_end().failure
        assert failure is not None
        assert "cannot start /no/such/command" in failure.message


@pytest.mark.distributed
def test_measurements_are_progress_and_make_a_pod_ready(tmp_path: Path) -> None:
    with Supervised(python(REPORT_AND_SLEEP), tmp_path) as pod:
        pod.wait_for_first_step()
        progress = pod.status().progress
        assert progress is not None
        assert (progress.activity, progress.step, progress.total_steps) == ("measuring layers", 3, 12)


@pytest.mark.distributed
def test_a_result_is_handed_out_as_soon_as_it_exists(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("left by an earlier attempt")
    with Supervised(python(SLEEP), tmp_path) as pod:
        wait_until(lambda: pod.status().state is WorkerState.RUNNING, what="the command runs")
        assert pod.get("/v1/result")[0] == 404
        (tmp_path / "result.json").write_text("{}")
        assert pod.get("/v1/result") == (200, b"{}")


@pytest.mark.distributed
def test_every_metric_of_the_table_is_exported(tmp_path: Path) -> None:
    with Supervised(python(REPORT_AND_SLEEP), tmp_path) as pod:
        pod.wait_for_first_step()
        status, text = pod.get("/metrics")
        assert status == 200
        assert {f"# TYPE {row.name} {row.type}" for row in METRICS} <= set(text.decode().splitlines())


@pytest.mark.distributed
def test_an_attempt_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    command = python(f"open({str(count)!r}, 'a').write('x')")
    with Supervised(command, tmp_path) as pod:
        ended = pod.wait_for_end()
    with Supervised(command, tmp_path) as pod:
        assert pod.wait_for_end() == ended
    assert count.read_text() == "x"


@pytest.mark.distributed
def test_another_attempt_is_run_and_forgets_what_the_last_one_reported(tmp_path: Path) -> None:
    with Supervised(python(REPORT_AND_SLEEP), tmp_path) as pod:
        pod.wait_for_first_step()
        pod.stop()
        pod.wait_for_exit()
    with Supervised(python("pass"), tmp_path, attempt=1) as pod:
        status = pod.wait_for_end()
        assert (status.attempt, status.state, status.progress) == (1, WorkerState.SUCCEEDED, None)


@pytest.mark.distributed
def test_a_killed_supervisor_takes_its_command_along_and_does_not_start_it_again(tmp_path: Path) -> None:
    file = tmp_path / "process"
    command = python(f"import os; print(os.getpid(), file=open({str(file)!r}, 'w'), flush=True); {SLEEP}")
    with Supervised(command, tmp_path) as pod:
        process = process_in(file)
        pod.kill()
    wait_until(lambda: not is_alive(process), what="the command is gone")
    file.unlink()
    with Supervised(command, tmp_path) as pod:
        status = pod.wait_for_end()
    assert status.state is WorkerState.FAILED
    assert not file.exists()


@pytest.mark.distributed
def test_nothing_that_a_command_started_survives_it(tmp_path: Path) -> None:
    file = tmp_path / "process"
    start_orphan = f"""
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(orphan.pid, file=open({str(file)!r}, "w"), flush=True)
"""
    with Supervised(python(start_orphan), tmp_path) as pod:
        pod.wait_for_end()
        assert not is_alive(process_in(file))


@pytest.mark.distributed
def test_a_request_to_stop_reaches_the_command_and_ends_as_preempted(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    handles_the_signal = f"""
import signal, sys
def stop(*_):
    open({str(ended)!r}, "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
{REPORT_AND_SLEEP}
"""
    with Supervised(python(handles_the_signal), tmp_path) as pod:
        pod.wait_for_first_step()
        pod.stop()
        assert pod.wait_for_exit() == 75
        failure = pod.result().failure
    assert ended.exists()
    assert failure is not None
    assert failure.reason is ExitClass.PREEMPTED


@pytest.mark.distributed
def test_a_command_that_ignores_a_request_to_stop_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    ignores = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {REPORT_AND_SLEEP}"
    with Supervised(python(ignores), tmp_path, "--grace-seconds", "1") as pod:
        pod.wait_for_first_step()
        pod.stop()
        assert pod.wait_for_exit() == 75


@pytest.mark.distributed
def test_a_command_waits_until_its_first_pod_can_be_resolved(tmp_path: Path) -> None:
    with Supervised(python("pass"), tmp_path, "--wait-for", "unknown.invalid") as pod:
        assert pod.status().state is WorkerState.WAITING
        assert pod.get("/readyz")[0] == 503
        pod.stop()
        assert pod.wait_for_exit() == 75
    with Supervised(python("pass"), tmp_path, "--wait-for", "localhost", attempt=1) as pod:
        assert pod.wait_for_end().state is WorkerState.SUCCEEDED


@pytest.mark.distributed
def test_the_earliest_word_of_a_rank_is_the_cause(tmp_path: Path) -> None:
    fails = """
import os
from galvatron_planner.worker import ExitClass
from galvatron_runtime.reports import report_failure
for rank, reason in (("1", ExitClass.DATA_ERROR), ("0", ExitClass.USER_ERROR)):
    os.environ["RANK"] = rank
    report_failure(reason, f"rank {rank} failed", exit_code=1)
raise SystemExit(1)
"""
    with Supervised(python(fails), tmp_path) as pod:
        failure = pod.wait_for_end().failure
    assert failure is not None
    assert (failure.reason, failure.rank, failure.message) == (ExitClass.DATA_ERROR, 1, "rank 1 failed")


@pytest.mark.distributed
def test_a_supervisor_says_what_to_do_about_a_port_that_is_taken(tmp_path: Path) -> None:
    with Supervised(python(SLEEP), tmp_path / "first") as pod:
        # Both are told the same port; the later one loses.
        with Supervised(python(SLEEP), tmp_path / "second", "--port", str(pod.port)) as other:
            assert other.wait_for_exit() == 2
        assert pod.get("/livez")[0] == 200


class Attempts:
    """The file that the kubelet keeps equal to the pod's annotation."""

    def __init__(self, directory: Path, number: int) -> None:
        self.path = directory / "attempt"
        self.write(number)

    def write(self, number: int) -> None:
        write_atomically(self.path, str(number))


def says_its_attempt(directory: Path, then: str = "") -> tuple[str, ...]:
    """A command that appends the number of its attempt, as its environment and its arguments have it, to a file."""
    script = f"""
import os, sys
from galvatron_runtime.reports import report_progress
attempt = int(os.environ["GALVATRON_ATTEMPT"])
print(attempt, sys.argv[1], file=open({str(directory / "began")!r}, "a"), flush=True)
report_progress("training", step=attempt, total_steps=9)
{then}
"""
    return (*python(script), "uid-{attempt}")


def began(directory: Path) -> list[str]:
    file = directory / "began"
    # A command runs before it has said anything.
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.distributed
def test_a_parked_supervisor_runs_its_command_again_for_a_newer_attempt(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    with Supervised(
        says_its_attempt(tmp_path, "sys.exit(3 if attempt == 1 else 0)"), tmp_path, attempt=attempts.path
    ) as pod:
        assert pod.wait_for_end().state is WorkerState.FAILED
        attempts.write(2)
        status = pod.wait_for_attempt(2, WorkerState.SUCCEEDED)
        assert status.progress is not None
        assert status.progress.step == 2
    assert began(tmp_path) == ["1 uid-1", "2 uid-2"]


@pytest.mark.distributed
def test_a_newer_attempt_kills_the_command_of_the_old_one_without_grace(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    file = tmp_path / "process"
    ignores = f"""
import signal
if attempt == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), file=open({str(file)!r}, "w"), flush=True)
    {SLEEP}
"""
    with Supervised(says_its_attempt(tmp_path, ignores), tmp_path, attempt=attempts.path) as pod:
        process = process_in(file)
        attempts.write(2)
        pod.wait_for_attempt(2, WorkerState.SUCCEEDED)
        assert not is_alive(process)
        assert pod.result(1).failure is not None


@pytest.mark.distributed
def test_the_reports_of_the_old_attempt_are_no_progress_of_the_newer_one(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    waits = ("--wait-for", "unknown.invalid")
    with Supervised(says_its_attempt(tmp_path, SLEEP), tmp_path, attempt=attempts.path) as pod:
        pod.wait_for_first_step()
        pod.kill()
    attempts.write(2)
    with Supervised(says_its_attempt(tmp_path), tmp_path, *waits, attempt=attempts.path) as pod:
        status = pod.wait_for_attempt(2, WorkerState.WAITING)
        assert status.progress is None
        assert pod.get("/readyz")[0] == 503


@pytest.mark.distributed
def test_an_attempt_that_is_passed_over_is_never_run(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    with Supervised(says_its_attempt(tmp_path, SLEEP), tmp_path, attempt=attempts.path) as pod:
        pod.wait_for_first_step()
        attempts.write(2)
        attempts.write(3)
        pod.wait_for_attempt(3, WorkerState.RUNNING)
        wait_until(lambda: began(tmp_path)[-1] == "3 uid-3", what="the third attempt begins")
        assert "3 uid-3" in began(tmp_path)
        assert len(began(tmp_path)) <= 3


def waits_as_a_spare(directory: Path) -> tuple[str, ...]:
    """A command that appends its attempt and process to a file; as a spare it first says its process, and waits."""
    script = f"""
import os, sys
from galvatron_runtime.reports import report_progress
attempt = int(os.environ["GALVATRON_ATTEMPT"])
if "GALVATRON_SPARE" in os.environ:
    print(os.getpid(), file=open({str(directory)!r} + f"/spare-{{attempt}}", "w"), flush=True)
    if not os.read(0, 1):
        sys.exit(1)
print(attempt, os.getpid(), file=open({str(directory / "began")!r}, "a"), flush=True)
report_progress("training", step=attempt, total_steps=9)
{SLEEP}
"""
    return python(script)


@pytest.mark.distributed
def test_the_next_attempt_is_run_by_the_spare_that_was_kept_for_it(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    with Supervised(waits_as_a_spare(tmp_path), tmp_path, "--keep-spare", attempt=attempts.path) as pod:
        first = process_in(tmp_path / "spare-2")
        attempts.write(2)
        pod.wait_for_attempt(2, WorkerState.RUNNING)
        second = process_in(tmp_path / "spare-3")
        assert began(tmp_path)[1:] == [f"2 {first}"]
        pod.kill()
        wait_until(lambda: not is_alive(first) and not is_alive(second), what="nothing survives the supervisor")


@pytest.mark.distributed
def test_a_spare_for_an_attempt_that_is_passed_over_is_never_run(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    with Supervised(waits_as_a_spare(tmp_path), tmp_path, "--keep-spare", attempt=attempts.path):
        spare = process_in(tmp_path / "spare-2")
        attempts.write(3)
        wait_until(lambda: len(began(tmp_path)) == 2, what="the third attempt begins")
        assert began(tmp_path)[1].startswith("3 ")
        wait_until(lambda: not is_alive(spare), what="the spare is gone")


@pytest.mark.distributed
def test_a_spare_that_was_killed_is_replaced_by_a_new_command(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    with Supervised(waits_as_a_spare(tmp_path), tmp_path, "--keep-spare", attempt=attempts.path):
        spare = process_in(tmp_path / "spare-2")
        os.kill(spare, signal.SIGKILL)
        wait_until(lambda: not is_alive(spare), what="the spare is gone")
        attempts.write(2)
        wait_until(lambda: len(began(tmp_path)) == 2, what="the second attempt begins")
        number, process = began(tmp_path)[1].split()
        assert (number, int(process) != spare) == ("2", True)


def test_a_file_that_is_spoiled_or_goes_back_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "attempt"
    for text, newest in (("4", 4), ("2\n", 3), ("", 3), ("four", 3), ("-9", 3)):
        file.write_text(text)
        assert newest_attempt(file, known=3) == newest
    assert newest_attempt(tmp_path / "missing", known=3) == 3


@pytest.mark.distributed
def test_a_container_that_starts_again_waits_for_the_next_attempt(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    termination = tmp_path / "termination"
    command = says_its_attempt(tmp_path, SLEEP)
    with Supervised(command, tmp_path, attempt=attempts.path) as pod:
        pod.wait_for_first_step()
        pod.kill()
    with Supervised(command, tmp_path, "--termination-log", str(termination), attempt=attempts.path) as pod:
        assert pod.wait_for_attempt(1, WorkerState.FAILED).failure is not None
        assert termination.read_text()
        attempts.write(2)
        pod.wait_for_attempt(2, WorkerState.RUNNING)
        # What killed the first attempt must not be taken for what ends the second.
        assert not termination.read_text()
        pod.wait_for_first_step()
    assert began(tmp_path) == ["1 uid-1", "2 uid-2"]


@pytest.mark.distributed
def test_a_request_to_stop_reaches_a_later_attempt_and_none_begins_after_it(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, 1)
    handles = f"""
import signal
signal.signal(signal.SIGTERM, lambda *_: (print("saved", file=open({str(tmp_path / "began")!r}, "a")), sys.exit(1)))
{SLEEP}
"""
    with Supervised(says_its_attempt(tmp_path, handles), tmp_path, attempt=attempts.path) as pod:
        pod.wait_for_first_step()
        attempts.write(2)
        wait_until(lambda: "2 uid-2" in began(tmp_path), what="the second attempt begins")
        pod.stop()
        attempts.write(3)
        assert pod.wait_for_exit() == 75
    assert "3 uid-3" not in began(tmp_path)


@pytest.mark.distributed
def test_a_supervisor_needs_a_number_in_its_file(tmp_path: Path) -> None:
    with Supervised(python("pass"), tmp_path, attempt=tmp_path / "missing") as pod:
        assert pod.wait_for_exit() == 2


@pytest.mark.distributed
def test_other_nodes_wait_until_node_0_runs_the_same_attempt(tmp_path: Path) -> None:
    command = says_its_attempt(tmp_path, SLEEP)
    port = free_port()
    first, second = Attempts(tmp_path / "first", 1), Attempts(tmp_path / "second", 2)
    peer = ("--wait-for", "127.0.0.1")
    with (
        Supervised(command, tmp_path / "0", attempt=first.path, port=port) as node_0,
        Supervised(
            command, tmp_path / "1", *peer, attempt=second.path, port=port, node_rank=1, address="127.0.0.2"
        ) as node_1,
    ):
        node_0.wait_for_attempt(1, WorkerState.RUNNING)
        wait_until(lambda: began(tmp_path) == ["1 uid-1"], what="node 0 begins")
        assert node_1.status().state is WorkerState.WAITING
        first.write(2)
        node_1.wait_for_attempt(2, WorkerState.RUNNING)
        assert node_0.status().attempt == 2
