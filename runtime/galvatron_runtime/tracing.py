"""Traces of some steps on request: what every rank did and waited for, as Perfetto and chrome://tracing show it.

The supervisor leaves a request in the run directory; all ranks agree on the first step, so that a request to one pod
records all of them, each into its own pod's directory. Without a request, a step pays for one look at a file.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from galvatron_runtime.reports import trace_file, trace_request, write_atomically

log = logging.getLogger(__name__)


class StepTracer:
    """Records steps of one rank.

    It has state because a recording spans steps.
    """

    def __init__(self, directory: Path, *, rank: int, stage_index: int, device: torch.device) -> None:
        self._directory = directory
        self._rank = rank
        self._title = f"rank {rank}, stage {stage_index}"
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._served: int | None = None
        self._profiler: profile | None = None
        self._steps_left = 0

    def requested_steps(self) -> int:
        """Tell how many steps this rank's pod has been asked to record; 0 for none, or when it is recording."""
        request = None if self._profiler is not None else trace_request(self._directory)
        if request is None or request.number == self._served:
            return 0
        self._served = request.number
        return request.steps

    def step_finished(self, *, agreed_steps: int) -> None:
        """Go on, end or begin between two steps.

        Args:
            agreed_steps: the most that any rank has been asked for.
        """
        if self._profiler is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self.stop()
        elif agreed_steps > 0:
            self._profiler = profile(activities=self._activities)
            self._profiler.start()
            self._steps_left = agreed_steps

    def stop(self) -> None:
        """End a recording, also one that training outran, and write what there is."""
        if self._profiler is None:
            return
        self._profiler.stop()
        path = trace_file(self._directory, self._rank)
        path.parent.mkdir(exist_ok=True)
        raw = path.with_suffix(".raw")
        self._profiler.export_chrome_trace(str(raw))
        self._profiler = None
        write_atomically(path, json.dumps(titled(json.loads(raw.read_text()), self._title)))
        raw.unlink()
        log.info("trace written", extra={"path": str(path)})


def titled(trace: dict[str, Any], title: str) -> dict[str, Any]:
    """Name the processes of a trace: torch calls all of them by the interpreter."""
    for event in trace["traceEvents"]:
        if event.get("ph") == "M" and event.get("name") == "process_name":
            event["args"]["name"] = title
    return trace
