"""Seconds of a device's work, without making the host wait for the device in between."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Stopwatch:
    """Adds up intervals: of the clock on CPUs, of the current stream on GPUs.

    It has state because a GPU tells its times only afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        if self._on_gpu:
            start, end = _gpu_event(), _gpu_event()
            start.record()
            yield
            end.record()
            self._pairs.append((start, end))
        else:
            started = perf_counter()
            yield
            self._seconds += perf_counter() - started

    def read(self) -> float:
        """Return the seconds counted since the last reading; waits for a GPU to get there."""
        for start, end in self._pairs:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1e3
        total, self._seconds = self._seconds, 0.0
        self._pairs.clear()
        return total


def _gpu_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch
