"""The supervisor's half of traces: asks the ranks of its pod, waits for their files, and puts them into one."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from galvatron_planner.worker import WorkerState, WorkerStatus
from galvatron_runtime.reports import (
    TraceRequest,
    read_reports,
    request_trace,
    trace_file,
    trace_files,
    withdraw_trace_request,
)

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class NoTrace:
    """Why there is none."""

    reason: str


class TraceRecorder:
    """Records one trace at a time; it has state because requests come in threads of their own."""

    def __init__(self, directory: Path, status: Callable[[], WorkerStatus]) -> None:
        self._directory = directory
        self._status = status
        self._lock = Lock()

    def last(self) -> bytes | NoTrace:
        """Give the newest trace of this pod's ranks, also where another pod was asked for it."""
        files = trace_files(self._directory)
        return _merged(files) if files else NoTrace("nothing was recorded yet: ask for /v1/trace?steps=3")

    def record(self, steps: int) -> bytes | NoTrace:
        """Have the next steps recorded, and wait for them as long as the ranks train."""
        if not self._lock.acquire(blocking=False):
            return NoTrace("another trace is being recorded: ask again when it is done")
        try:
            return self._record(steps)
        finally:
            withdraw_trace_request(self._directory)
            self._lock.release()

    def _record(self, steps: int) -> bytes | NoTrace:
        expected = [
            trace_file(self._directory, report.rank) for report in read_reports(self._directory) if report.training
        ]
        if not expected:
            return NoTrace("no rank has made a training step yet: ask again when training has begun")
        request_trace(self._directory, TraceRequest(number=time.time_ns(), steps=steps))
        # Ranks that end write what they have, so what is missing after the end will not come.
        while self._status().state is WorkerState.RUNNING and not all(path.exists() for path in expected):
            time.sleep(POLL_SECONDS)
        if all(path.exists() for path in expected):
            return _merged(trace_files(self._directory))
        return NoTrace("training ended before the steps were recorded")


def _merged(files: tuple[Path, ...]) -> bytes:
    """Put traces of several processes into one; their clocks and the numbers of their processes go together."""
    first, *others = (json.loads(path.read_bytes()) for path in files)
    for other in others:
        first["traceEvents"] += other["traceEvents"]
    return json.dumps(first).encode()
