"""Process 1 of every pod of ours, and the parent of every local run: starts one command, tells how it goes, parks.

    python -m galvatron_runtime.supervisor --run-directory DIR --attempt N --node-rank R -- torchrun ...

A StatefulSet restarts whatever exits, so by default the supervisor stays after the end and goes on answering until it
is told to stop. An attempt runs once: where its result, or only the trace of its start, is found, nothing is started
again. It imports no torch: it is up within a second, and small beside the ranks.
"""

import argparse
import logging
import os
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

from galvatron_planner.errors import GalvatronError
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState, WorkerStatus
from galvatron_runtime.endpoints import RESULT_FILE, serve
from galvatron_runtime.logs import configure_logging
from galvatron_runtime.outcome import lost_attempt, pod_failure, pod_progress
from galvatron_runtime.processes import adopt_orphans, die_with_parent, kill_descendants, wait_for_child
from galvatron_runtime.reports import (
    ATTEMPT_VARIABLE,
    RUN_DIRECTORY_VARIABLE,
    clear_reports,
    read_failures,
    read_reports,
    write_atomically,
)

log = logging.getLogger(__name__)

PREEMPTED_CODE = 75
"""EX_TEMPFAIL of sysexits(3): stopped on request."""
UNUSABLE_CODE = 2
"""The supervisor itself cannot work as it was told to."""
RESOLVE_INTERVAL_SECONDS = 1.0
TERMINATION_LOG_BYTES = 4096
"""What the kubelet reads of a termination message."""


class WhenFinished(StrEnum):
    """What the supervisor does after the command's end."""

    PARK = "park"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Task:
    """What a supervisor was told to do; its fields are the command line's."""

    command: tuple[str, ...]
    run_directory: Path
    attempt: int
    node_rank: int
    address: str
    port: int
    wait_for: str | None
    when_finished: WhenFinished
    termination_log: Path | None
    grace_seconds: int

    @property
    def result_path(self) -> Path:
        """Where the final status of this attempt stands."""
        return self.run_directory / f"result-{self.attempt}.json"

    @property
    def started_path(self) -> Path:
        """The trace that this attempt was started."""
        return self.run_directory / f"started-{self.attempt}"


class Supervision:
    """One attempt at one command.

    A class with state, because three parties share it: the main thread that waits for the command, the signal handlers
    that stop it, and the HTTP threads that read where it stands. Only the main thread changes it.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._state = WorkerState.WAITING
        self._final: WorkerStatus | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        # A queue and not an Event: only SimpleQueue.put may be called from a signal handler.
        self._stops: SimpleQueue[None] = SimpleQueue()

    def status(self) -> WorkerStatus:
        """Where the command stands now."""
        return self._final or self._status(self._state)

    def run(self) -> None:
        """Bring the attempt to its end, or find that it has ended before."""
        task = self._task
        if task.result_path.exists():
            self._final = WorkerStatus.from_json(task.result_path.read_text())
            log.info("attempt has ended before", extra={"attempt": task.attempt, "state": str(self._final.state)})
        elif task.started_path.exists():
            self._finish(lost_attempt(now=time.time()))
        else:
            self._finish(self._run_command())

    def park(self) -> None:
        """Go on answering until a signal to stop comes."""
        log.info("parked", extra={"attempt": self._task.attempt})
        if not self._stopped:
            self._stops.get()

    def exit_code(self) -> int:
        """The command's code, or the one that says it was stopped on request."""
        failure = self.status().failure
        if failure is None:
            return 0
        return PREEMPTED_CODE if failure.reason is ExitClass.PREEMPTED else failure.exit_code

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT: hand them on, and give the command time to save."""
        self._stopped = True
        self._stops.put(None)
        self._terminate_child()

    def kill(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGALRM: the time to save is over."""
        if self._child is not None:
            self._child.kill()

    def _run_command(self) -> WorkerFailure | None:
        task = self._task
        task.started_path.touch()
        clear_reports(task.run_directory)
        (task.run_directory / RESULT_FILE).unlink(missing_ok=True)
        self._wait_for_host()
        try:
            exit_code = PREEMPTED_CODE if self._stopped else self._wait_for_command()
        except OSError as error:
            message = f"cannot start {task.command[0]}: {error.strerror}; correct the command or the image"
            return WorkerFailure(reason=ExitClass.USER_ERROR, message=message, exit_code=127, time=time.time())
        if exit_code == 0:
            return None
        return pod_failure(
            read_failures(task.run_directory),
            reported=read_reports(task.run_directory),
            exit_code=exit_code,
            stopped=self._stopped,
            now=time.time(),
        )

    def _wait_for_host(self) -> None:
        """Wait until the name of the first pod resolves; DNS lags behind the pods of a headless Service."""
        while self._task.wait_for is not None and not self._stopped:
            with suppress(OSError):
                socket.getaddrinfo(self._task.wait_for, None)
                return
            with suppress(Empty):
                self._stops.get(timeout=RESOLVE_INTERVAL_SECONDS)

    def _wait_for_command(self) -> int:
        self._child = self._start_command()
        self._state = WorkerState.RUNNING
        log.info("command started", extra={"attempt": self._task.attempt, "pid": self._child.pid})
        if self._stopped:  # the signal came while the command was being started
            self._terminate_child()
        try:
            return wait_for_child(self._child)
        finally:
            signal.alarm(0)
            kill_descendants()

    def _start_command(self) -> subprocess.Popen[bytes]:
        variables = {
            RUN_DIRECTORY_VARIABLE: str(self._task.run_directory),
            ATTEMPT_VARIABLE: str(self._task.attempt),
        }
        return subprocess.Popen(  # noqa: S603 - running the given command is what a supervisor is for
            self._task.command,
            env=os.environ | variables,
            start_new_session=True,
            # One call into libc that is already loaded: safe after a fork with threads.
            preexec_fn=die_with_parent,
        )

    def _terminate_child(self) -> None:
        if self._child is not None:
            self._child.terminate()
            signal.alarm(self._task.grace_seconds)

    def _finish(self, failure: WorkerFailure | None) -> None:
        """Make the end known: to the run directory, to the kubelet, to whoever asks."""
        final = self._status(WorkerState.FAILED if failure else WorkerState.SUCCEEDED, failure)
        write_atomically(self._task.result_path, final.to_json())
        if self._task.termination_log is not None:
            self._task.termination_log.write_bytes(termination_message(final))
        self._final = final
        reason = {"reason": str(failure.reason), "problem": failure.message} if failure else {}
        log.log(
            logging.ERROR if failure else logging.INFO, "command ended", extra={"state": str(final.state), **reason}
        )

    def _status(self, state: WorkerState, failure: WorkerFailure | None = None) -> WorkerStatus:
        return WorkerStatus(
            attempt=self._task.attempt,
            node_rank=self._task.node_rank,
            state=state,
            progress=pod_progress(read_reports(self._task.run_directory)),
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
    parser.add_argument("--attempt", type=int, required=True, help="the fence: a result of this attempt ends it")
    parser.add_argument("--node-rank", type=int, required=True, help="ordinal of the pod")
    parser.add_argument("--address", default="0.0.0.0", help="where to listen (default: everywhere)")  # noqa: S104
    parser.add_argument("--port", type=int, default=9464, help="of the HTTP endpoints (default: 9464)")
    parser.add_argument("--wait-for", metavar="HOST", help="start the command only when this name resolves")
    parser.add_argument("--when-finished", type=WhenFinished, choices=list(WhenFinished), default=WhenFinished.PARK)
    parser.add_argument("--termination-log", type=Path, metavar="PATH", help="also leave the final status here")
    parser.add_argument("--grace-seconds", type=int, default=100, help="time to save after SIGTERM (default: 100)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, behind --")
    options = vars(parser.parse_args(arguments))
    options["run_directory"] = options["run_directory"].resolve()
    return Task(**options | {"command": tuple(options["command"])})


if __name__ == "__main__":
    raise SystemExit(main())
