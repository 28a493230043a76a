"""Measured memory follows what tensors take, and forgets when told to."""

import pytest
import torch

from galvatron_planner.units import MIB
from galvatron_runtime.memory import MemoryMeter, idle_meter

SLACK = 4 * MIB
"""Resident sets are counted in pages by several threads; a big tensor stands out by far more."""


@pytest.fixture(scope="module")
def meter() -> MemoryMeter:
    return idle_meter(torch.device("cpu"))


def test_an_idle_process_has_taken_almost_nothing(meter: MemoryMeter) -> None:
    meter.reset_peak()

    assert meter.current_bytes() < SLACK
    assert meter.peak_bytes() < SLACK


def test_the_peak_remembers_a_tensor_that_is_gone(meter: MemoryMeter) -> None:
    before = meter.current_bytes()
    meter.reset_peak()
    torch.ones(64 * MIB // 4)

    assert meter.current_bytes() - before < SLACK
    assert abs(meter.peak_bytes() - before - 64 * MIB) < SLACK


def test_a_reset_forgets_the_peak(meter: MemoryMeter) -> None:
    before = meter.current_bytes()
    torch.ones(64 * MIB // 4)
    meter.reset_peak()

    assert meter.peak_bytes() - before < SLACK
