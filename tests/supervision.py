"""A real supervisor as a child process, for tests: started, asked over HTTP, waited for."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from galvatron_operator.torchrun import LAUNCH_MODULE
from galvatron_planner.worker import WorkerState, WorkerStatus

TESTS = Path(__file__).parent
PATIENCE_SECONDS = 300.0
"""How long a condition may take on a busy machine before a test fails."""


def torchrun(num_processes: int, *arguments: str, launcher: str | None = None) -> tuple[str, ...]:
    """The command that starts ranks on this machine: a script's, or as in production a module's."""
    port = str(free_port())
    launch = ("--nproc-per-node", str(num_processes), "--master-addr", "127.0.0.1", "--master-port", port)
    launcher = launcher or (LAUNCH_MODULE if arguments[0] == "-m" else "torch.distributed.run")
    return (sys.executable, "-m", launcher, *launch, "--max-restarts", "0", *arguments)


def run_ranks(num_processes: int, module: str, *arguments: str, places: Sequence[Path] = ()) -> None:
    """Run a module of the tests in several processes, forked as in production, to their good end.

    Args:
        num_processes: of this machine.
        module: has a ``main`` that takes the arguments.
        arguments: of the module.
        places: where Python looks for further modules.
    """
    path = os.pathsep.join((str(TESTS), *map(str, places), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        torchrun(num_processes, "-m", module, *arguments),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-6000:]}"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Whether a process runs; zombies do not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Supervised:
    """A supervisor around a command; the end of the block kills what is left of it."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        *options: str,
        attempt: int | Path = 0,
        node_rank: int = 0,
        address: str = "127.0.0.1",
        port: int | None = None,
        cgroup: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.address = address
        self.directory = directory
        listen = ("--address", address, "--port", str(self.port))
        number = ("--attempt-file" if isinstance(attempt, Path) else "--attempt", str(attempt))
        task = ("--run-directory", str(directory), *number, "--node-rank", str(node_rank))
        enter = () if cgroup is None else ("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "enter")
        self._process = subprocess.Popen(
            (*enter, sys.executable, "-m", "galvatron_runtime.supervisor", *listen, *task, *options, "--", *command),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        wait_until(lambda: self._process.poll() is not None or self._answers(), what="the supervisor answers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def process(self) -> int:
        """The supervisor's process."""
        return self._process.pid

    def get(self, path: str) -> tuple[int, bytes]:
        """Status code and body of an answer."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def status(self) -> WorkerStatus:
        """What it says about its command."""
        return WorkerStatus.from_json(self.get("/v1/status")[1])

    def wait_for_first_step(self) -> None:
        """Wait until the command says how far it is."""
        wait_until(lambda: self.get("/readyz")[0] == 200, what="a first step")

    def wait_for_attempt(self, attempt: int, state: WorkerState) -> WorkerStatus:
        """Wait until it stands so in an attempt."""
        wanted = (attempt, state)
        wait_until(lambda: (now := self.status()).attempt == attempt and now.state is state, what=f"{wanted}")
        return self.status()

    def wait_for_end(self) -> WorkerStatus:
        """Wait until the command has ended; works only while the supervisor parks."""
        final = (WorkerState.SUCCEEDED, WorkerState.FAILED)
        wait_until(lambda: self.status().state in final, what="the command ends")
        return self.status()

    def wait_for_exit(self) -> int:
        """Wait until the supervisor itself has ended; its exit code."""
        return self._process.wait(timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        """Ask it to stop, as the kubelet does."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Take it away without warning, as the kernel does for lack of memory."""
        self._process.kill()
        self._process.wait()

    def result(self, attempt: int = 0) -> WorkerStatus:
        """What it left of an attempt in the run directory."""
        return WorkerStatus.from_json((self.directory / f"result-{attempt}.json").read_text())

    def _answers(self) -> bool:
        try:
            return self.get("/livez")[0] == 200
        except OSError:
            return False
