"""A supervisor as a local child process: started, asked for its status, stopped without orphans."""

import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from galvatron_operator import names
from galvatron_planner.errors import GalvatronError, InvalidDocument, InvalidInput
from galvatron_planner.worker import WorkerState, WorkerStatus

POLL_SECONDS = 0.3
GRACE_SECONDS = 60.0
"""How long an interrupted run may take to save its training checkpoint."""
SMALLEST_FREE_BYTES = 4096
"""Less than one block is room for no file."""
_PARENT_DEATH_SIGNAL = 1


class WorkerFailed(GalvatronError):
    """A local profiling or training process failed."""


class PortTaken(GalvatronError):
    """The port for metrics is in use."""


def check_port(port: int) -> None:
    """Refuse a port that the supervisor could not open.

    Raises:
        PortTaken: when something listens on it.
        InvalidInput: when there is no such port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OverflowError as error:
            raise InvalidInput(f"--port is {port}", remedy="use a number from 1 to 65535, or 0 for any") from error
        except OSError as error:
            raise PortTaken(
                f"port {port} for status and metrics is in use",
                remedy="stop what listens there, or choose another with --port (0 takes any free one)",
            ) from error


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(module: str, arguments: Sequence[str]) -> str:
    """Let a short command of the runtime answer, which tells what is wrong as ours do.

    Returns:
        What it printed.

    Raises:
        InvalidInput: with its problem and remedy, when it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    if not done.returncode:
        return done.stdout
    said, _, remedy = done.stderr.strip().rpartition("\nwhat to do: ")
    if said:
        raise InvalidInput(said.rpartition("error: ")[2], remedy=remedy)
    if "No module named" in done.stderr:
        missing = done.stderr.strip().splitlines()[-1]
        raise InvalidInput(
            f"the runtime is not installed: {missing}", remedy="pip install 'galvatron-operator[runtime]'"
        )
    raise InvalidInput(
        f"{module} failed with exit code {done.returncode}:\n{done.stderr.strip()[-2000:]}",
        remedy="this should not happen: please report it",
    )


def supervise(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    port: int,
    result: Path,
    log: Path,
    on_status: Callable[[WorkerStatus], None],
) -> None:
    """Run a supervisor to its end, telling every status it answers with.

    Ctrl-C asks it to stop and waits, so that a training checkpoint is saved; a second Ctrl-C kills it. Should this
    process be killed itself, the kernel stops the supervisor, which takes its own children along.

    Args:
        argv: the supervisor's command line.
        environment: variables beside this process's own.
        port: where the supervisor answers.
        result: the file in which it leaves its final status.
        log: the file that takes what it and its children print.
        on_status: called with every new status.

    Raises:
        WorkerFailed: when the command fails; the problem is the first failure's message.
        KeyboardInterrupt: after an interrupted command has stopped.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 -- the command line is ours
            argv,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    status: WorkerStatus | None = None
    try:
        while process.poll() is None:
            latest = read_status(port)
            if latest is not None and latest != status:
                status = latest
                on_status(latest)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        stop(process)
        raise
    # The last steps may have fallen between two questions; the supervisor leaves its final status behind.
    if result.exists():
        status = WorkerStatus.from_json(result.read_text())
        on_status(status)
    if process.returncode:
        raise _failure(status, process.returncode, log)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a supervisor to stop, and insist when the grace is over or the user is impatient."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_status(port: int) -> WorkerStatus | None:
    """Ask the supervisor on this machine; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{names.STATUS_PATH}", timeout=2) as answer:
            return WorkerStatus.from_json(answer.read())
    except (urllib.error.URLError, OSError, InvalidDocument):
        return None


def _failure(status: WorkerStatus | None, code: int, log: Path) -> WorkerFailed:
    where = f"the whole output is in {log}"
    if status is not None and status.state is WorkerState.FAILED and status.failure is not None:
        return WorkerFailed(f"{status.failure.reason}: {status.failure.message.strip()}", remedy=where)
    lines = log.read_text(errors="replace").splitlines()
    if _is_full(log.parent) or any(os.strerror(errno.ENOSPC) in line for line in lines[-15:]):
        return WorkerFailed(
            f"there is no space left in {log.parent}",
            remedy="make room, or choose another folder with --directory, and run the same command again",
        )
    tail = "\n".join(lines[-15:])
    return WorkerFailed(f"the processes ended with exit code {code}:\n{tail}\n", remedy=where)


def _is_full(folder: Path) -> bool:
    """Tell whether not even a log can be written: a full disk leaves no word of itself there."""
    return shutil.disk_usage(folder).free < SMALLEST_FREE_BYTES


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
