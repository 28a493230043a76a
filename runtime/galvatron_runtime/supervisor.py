"""Process 1 of every pod of ours, and the parent of every local run: starts one command, tells how it goes, parks.

    python -m galvatron_runtime.supervisor --run-directory DIR --attempt N --node-rank R -- torchrun ...

A StatefulSet restarts whatever exits, so by default the supervisor stays after the end and goes on answering until it
is told to stop. An attempt runs once: where its result, or only the trace of its start, is found, nothing is started
again. With ``--attempt-file`` the number may grow while the pod stays: the command of the old attempt is killed, and
started again for the new one. It imports no torch: it is up within a second, and small beside the ranks.
"""

import argparse
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType

from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.worker import ATTEMPT_PLACEHOLDER, ExitClass, WorkerFailure, WorkerState, WorkerStatus
from galvatron_runtime.attempts import is_running, newest_attempt, read_attempt
from galvatron_runtime.cgroups import count_kills, kills_since
from galvatron_runtime.endpoints import RESULT_FILE, serve
from galvatron_runtime.logs import configure_logging
from galvatron_runtime.outcome import lost_attempt, pod_failure, pod_progress
from galvatron_runtime.processes import adopt_orphans, exit_code, kill_descendants
from galvatron_runtime.reports import (
    ATTEMPT_VARIABLE,
    RUN_DIRECTORY_VARIABLE,
    clear_reports,
    read_failures,
    read_reports,
    write_atomically,
)
from galvatron_runtime.spare import Spare, start

log = logging.getLogger(__name__)

PREEMPTED_CODE = 75
"""EX_TEMPFAIL of sysexits(3): stopped on request."""
UNUSABLE_CODE = 2
"""The supervisor itself cannot work as it was told to."""
WATCH_SECONDS = 0.2
"""How often the file with the attempt's number is looked at, and at worst the end of the command is noticed.

Signals usually wake the main thread at once; one that comes just before the thread blocks does not.
"""
ASK_SECONDS = 0.5
"""How often node 0 is asked whether it is there; all other nodes do."""
TERMINATION_LOG_BYTES = 4096
"""What the kubelet reads of a termination message."""


class WhenFinished(StrEnum):
    """What the supervisor does after the command's end."""

    PARK = "park"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Task:
    """What a supervisor was told to do; its fields are the command line's.

    Attributes:
        command: what to run; ``{attempt}`` in it stands for the attempt's number.
        run_directory: reports, results and caches of this node.
        attempt: the first attempt.
        attempt_file: where the numbers of later ones are written, None when there are none.
        node_rank: ordinal of the pod.
        address: where to listen.
        port: of the HTTP endpoints, on every node.
        wait_for: host of node 0.
        when_finished: whether to park.
        termination_log: also receives the final status.
        grace_seconds: from SIGTERM to SIGKILL.
        keep_spare: whether the command heeds ``spare.SPARE_VARIABLE``, and one is kept ready for the next attempt.
    """

    command: tuple[str, ...]
    run_directory: Path
    attempt: int
    attempt_file: Path | None
    node_rank: int
    address: str
    port: int
    wait_for: str | None
    when_finished: WhenFinished
    termination_log: Path | None
    grace_seconds: int
    keep_spare: bool

    def result_path(self, attempt: int) -> Path:
        """Where the final status of an attempt stands."""
        return self.run_directory / f"result-{attempt}.json"

    def started_path(self, attempt: int) -> Path:
        """The trace that an attempt was started."""
        return self.run_directory / f"started-{attempt}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the supervisor stands; replaced as a whole, so that no thread sees the state of another attempt."""

    attempt: int
    state: WorkerState = WorkerState.WAITING
    final: WorkerStatus | None = None


class Supervision:
    """The attempts at one command, one after the other.

    A class with state, because three parties share it: the main thread that waits for the command, the signal handlers
    that stop it, and the HTTP threads that read where it stands. Only the main thread changes it.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._standing = Standing(task.attempt)
        self._child: subprocess.Popen[bytes] | None = None
        self._spare: Spare | None = None
        self._wants_spare = task.keep_spare
        self._stopped = False
        # A queue and not an Event: only SimpleQueue.put may be called from a signal handler.
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def status(self) -> WorkerStatus:
        """Where the command stands now."""
        standing = self._standing
        return standing.final or self._status(standing.attempt, standing.state)

    def run(self) -> None:
        """Bring the attempt to its end, or find that it has ended before."""
        task, attempt = self._task, self._standing.attempt
        if task.result_path(attempt).exists():
            final = WorkerStatus.from_json(task.result_path(attempt).read_text())
            self._standing = Standing(attempt, final.state, final)
            log.info("attempt has ended before", extra={"state": str(final.state)})
        elif task.started_path(attempt).exists():
            self._finish(lost_attempt(now=time.time()))
        else:
            self._finish(self._run_command())

    def park(self) -> None:
        """Go on answering until a signal to stop comes; an attempt that begins meanwhile is run."""
        log.info("parked")
        while not self._stopped:
            if self._is_superseded():
                self._begin(self._newest_attempt())
                self.run()
            else:
                self._pause()

    def exit_code(self) -> int:
        """The command's code, or the one that says it was stopped on request."""
        failure = self.status().failure
        if failure is None:
            return 0
        return PREEMPTED_CODE if failure.reason is ExitClass.PREEMPTED else failure.exit_code

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT: hand them on, and give the command time to save."""
        self._stopped = True
        self._wakes.put(None)
        self._terminate_child()

    def kill(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGALRM: the time to save is over."""
        if self._child is not None:
            self._child.kill()

    def wake(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGCHLD: look whether the command has ended."""
        self._wakes.put(None)

    def _begin(self, attempt: int) -> None:
        configure_logging(node_rank=self._task.node_rank, attempt=attempt)
        if self._task.termination_log is not None:
            # What the kubelet finds there belongs to the attempt that runs.
            self._task.termination_log.write_bytes(b"")
        self._standing = Standing(attempt)

    def _newest_attempt(self) -> int:
        file, attempt = self._task.attempt_file, self._standing.attempt
        return attempt if file is None else newest_attempt(file, known=attempt)

    def _is_superseded(self) -> bool:
        return self._newest_attempt() > self._standing.attempt

    def _pause(self, seconds: float = WATCH_SECONDS) -> None:
        """Wait until it is time to look around again."""
        with suppress(Empty):
            self._wakes.get(timeout=seconds)

    def _run_command(self) -> WorkerFailure | None:
        task = self._task
        task.started_path(self._standing.attempt).touch()
        clear_reports(task.run_directory)
        (task.run_directory / RESULT_FILE).unlink(missing_ok=True)
        may_start = self._wait_for_first_node()
        # Of this attempt alone: the supervisor lives over several.
        kills_before = count_kills()
        try:
            code = self._wait_for_command() if may_start else PREEMPTED_CODE
        except OSError as error:
            message = f"cannot start {task.command[0]}: {error.strerror}; correct the command or the image"
            return WorkerFailure(reason=ExitClass.USER_ERROR, message=message, exit_code=127, time=time.time())
        if code == 0:
            return None
        return pod_failure(
            read_failures(task.run_directory),
            reported=read_reports(task.run_directory),
            exit_code=code,
            stopped=self._stopped or self._is_superseded(),
            killed=kills_since(kills_before),
            now=time.time(),
        )

    def _wait_for_first_node(self) -> bool:
        """Wait until the command can reach node 0; whether it is still to be started."""
        while not (self._stopped or self._is_superseded()):
            if self._reaches_first_node():
                return True
            self._pause(ASK_SECONDS)
        return False

    def _reaches_first_node(self) -> bool:
        """Tell whether node 0 takes part in this attempt.

        DNS lags behind the pods of a headless Service. And a node that joins while node 0 is still in the attempt
        before meets that one's store, and is thrown out again when it ends.
        """
        task = self._task
        if task.wait_for is None:
            return True
        if task.node_rank > 0:
            return is_running(task.wait_for, port=task.port, attempt=self._standing.attempt)
        with suppress(OSError):
            socket.getaddrinfo(task.wait_for, None)
            return True
        return False

    def _wait_for_command(self) -> int:
        attempt = self._standing.attempt
        self._child = self._start_command(attempt)
        self._standing = Standing(attempt, WorkerState.RUNNING)
        log.info("command started", extra={"pid": self._child.pid})
        if self._stopped:  # the signal came while the command was being started
            self._terminate_child()
        try:
            while (code := exit_code(self._child)) is None and not self._is_superseded():
                self._prepare_spare(attempt + 1)
                self._pause()
            return PREEMPTED_CODE if code is None else code
        finally:
            signal.alarm(0)
            # Of a superseded attempt everything: what it would still save, the next one may be reading.
            kill_descendants(spared=self._spare.process.pid if self._spare is not None else None)
            self._child = None

    def _start_command(self, attempt: int) -> subprocess.Popen[bytes]:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.attempt == attempt and (process := spare.begin()) is not None:
                return process
            spare.discard()
        return start(*self._command(attempt))

    def _prepare_spare(self, attempt: int) -> None:
        """Keep a command ready for the attempt after the current one, once that one has made a step."""
        if not self._wants_spare or self._spare is not None or self._stopped or not self._has_reported():
            return
        command, variables = self._command(attempt)
        try:
            self._spare = Spare.start(command, variables, attempt=attempt)
        except OSError as error:
            self._wants_spare = False
            log.warning("no spare is kept, so that a next attempt takes longer to start", extra={"problem": str(error)})

    def _has_reported(self) -> bool:
        return any(report.attempt == self._standing.attempt for report in read_reports(self._task.run_directory))

    def _command(self, attempt: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """The command of an attempt, and its variables."""
        variables = {
            RUN_DIRECTORY_VARIABLE: str(self._task.run_directory),
            ATTEMPT_VARIABLE: str(attempt),
        }
        return tuple(part.replace(ATTEMPT_PLACEHOLDER, str(attempt)) for part in self._task.command), variables

    def _terminate_child(self) -> None:
        if self._child is not None:
            self._child.terminate()
            signal.alarm(self._task.grace_seconds)

    def _finish(self, failure: WorkerFailure | None) -> None:
        """Make the end known: to the run directory, to the kubelet, to whoever asks."""
        attempt = self._standing.attempt
        final = self._status(attempt, WorkerState.FAILED if failure else WorkerState.SUCCEEDED, failure)
        write_atomically(self._task.result_path(attempt), final.to_json())
        if self._task.termination_log is not None:
            self._task.termination_log.write_bytes(termination_message(final))
        self._standing = Standing(attempt, final.state, final)
        reason = {"reason": str(failure.reason), "problem": failure.message} if failure else {}
        log.log(
            logging.ERROR if failure else logging.INFO, "command ended", extra={"state": str(final.state), **reason}
        )

    def _status(self, attempt: int, state: WorkerState, failure: WorkerFailure | None = None) -> WorkerStatus:
        reports = read_reports(self._task.run_directory)
        return WorkerStatus(
            attempt=attempt,
            node_rank=self._task.node_rank,
            state=state,
            # Until its command is about to start, the reports are those of the attempt before.
            progress=pod_progress([report for report in reports if report.attempt == attempt]),
            failure=failure,
        )


def termination_message(status: WorkerStatus) -> bytes:
    """The status as the kubelet reads it: the message is shortened until everything fits."""
    text = status.to_json().encode()
    if status.failure is None or len(text) <= TERMINATION_LOG_BYTES:
        return text
    message = status.failure.message
    shorter = status.failure.model_copy(update={"message": message[len(message) // 4 + 1 :]})
    return termination_message(status.model_copy(update={"failure": shorter}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one supervisor; the process's exit code."""
    task = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    configure_logging(node_rank=task.node_rank, attempt=task.attempt)
    task.run_directory.mkdir(parents=True, exist_ok=True)
    supervision = Supervision(task)
    signal.signal(signal.SIGTERM, supervision.stop)
    signal.signal(signal.SIGINT, supervision.stop)
    signal.signal(signal.SIGALRM, supervision.kill)
    signal.signal(signal.SIGCHLD, supervision.wake)
    adopt_orphans()
    try:
        serve(address=task.address, port=task.port, run_directory=task.run_directory, status=supervision.status)
    except GalvatronError as error:
        log.error("cannot supervise", extra={"problem": error.problem, "remedy": error.remedy})
        return UNUSABLE_CODE
    supervision.run()
    if task.when_finished is WhenFinished.PARK:
        supervision.park()
    return supervision.exit_code()


def parse_arguments(arguments: Sequence[str]) -> Task:
    """Read the command line; everything behind ``--`` is the command."""
    parser = argparse.ArgumentParser(prog="galvatron_runtime.supervisor", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run-directory", type=Path, required=True, help="reports, results and caches of this node")
    number = parser.add_mutually_exclusive_group(required=True)
    number.add_argument("--attempt", type=int, help="the fence: a result of this attempt ends it")
    number.add_argument("--attempt-file", type=Path, metavar="PATH", help="the attempt's number, which may grow")
    parser.add_argument("--node-rank", type=int, required=True, help="ordinal of the pod")
    parser.add_argument("--address", default="0.0.0.0", help="where to listen (default: everywhere)")  # noqa: S104
    parser.add_argument("--port", type=int, default=9464, help="of the HTTP endpoints (default: 9464)")
    parser.add_argument("--wait-for", metavar="HOST", help="start the command only when node 0 is there")
    parser.add_argument("--when-finished", type=WhenFinished, choices=list(WhenFinished), default=WhenFinished.PARK)
    parser.add_argument("--termination-log", type=Path, metavar="PATH", help="also leave the final status here")
    parser.add_argument("--grace-seconds", type=int, default=100, help="time to save after SIGTERM (default: 100)")
    parser.add_argument("--keep-spare", action="store_true", help="keep the next attempt's command loaded")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, behind --")
    options = vars(parser.parse_args(arguments))
    if options["attempt_file"] is not None:
        try:
            options["attempt"] = read_attempt(options["attempt_file"])
        except InvalidInput as error:
            parser.error(str(error))
    options["run_directory"] = options["run_directory"].resolve()
    return Task(**options | {"command": tuple(options["command"])})


if __name__ == "__main__":
    raise SystemExit(main())
