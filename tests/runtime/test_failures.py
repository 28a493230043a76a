"""From an exception to the class that decides what happens to the job."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import builders
from galvatron_planner.errors import InvalidDocument, InvalidPlan
from galvatron_planner.worker import ExitClass
from galvatron_runtime.data import UnusableData
from galvatron_runtime.failures import FAILURE_CODE, classify, describe, exit_code, fail
from galvatron_runtime.model import build_layers
from galvatron_runtime.parallel.stage import Stage
from galvatron_runtime.reports import RUN_DIRECTORY_VARIABLE, read_failures


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnusableData("no text", remedy="add some"), ExitClass.DATA_ERROR),
        (InvalidPlan("for 4 devices", remedy="plan again"), ExitClass.BAD_PLAN),
        (InvalidDocument("$.steps", remedy="correct it"), ExitClass.BAD_PLAN),
        (torch.OutOfMemoryError("CUDA out of memory"), ExitClass.OUT_OF_DEVICE_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            ExitClass.OUT_OF_DEVICE_MEMORY,
        ),
        (dist.DistBackendError("NCCL error"), ExitClass.COMMUNICATION),
        (RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer"), ExitClass.COMMUNICATION),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ExitClass.USER_ERROR),
        (ValueError("gloo is a word in a user's error"), ExitClass.USER_ERROR),
    ],
)
def test_an_exception_has_a_class(error: Exception, reason: ExitClass) -> None:
    assert classify(error) is reason


@pytest.mark.parametrize(
    ("ended_with", "code", "reason"),
    [
        (64, 64, ExitClass.USER_ERROR),
        (65, 65, ExitClass.DATA_ERROR),
        (66, 66, ExitClass.DATA_ERROR),
        (69, 69, ExitClass.COMMUNICATION),
        (75, 75, ExitClass.PREEMPTED),
        (76, 76, ExitClass.COMMUNICATION),
        (3, 3, ExitClass.USER_ERROR),
        # As the system would tell them.
        (65 + 256, 65, ExitClass.DATA_ERROR),
        (-1, 255, ExitClass.USER_ERROR),
        ("no more", 1, ExitClass.USER_ERROR),
        # A rank that ends before the others has failed, whatever it says.
        (0, 1, ExitClass.USER_ERROR),
        (None, 1, ExitClass.USER_ERROR),
    ],
)
def test_a_users_exit_keeps_its_code_and_may_choose_its_class(
    ended_with: int | str | None, code: int, reason: ExitClass
) -> None:
    error = SystemExit(ended_with)
    assert (exit_code(error), classify(error)) == (code, reason)
    assert "a connection broke" not in describe(error)


def test_an_exception_ends_a_rank_with_code_1() -> None:
    assert exit_code(ValueError("65")) == 1


def test_out_of_memory_says_what_to_change() -> None:
    assert "spec.budget.memoryPerGPU" in describe(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_failure_names_its_layer() -> None:
    stage = Stage(build_layers(builders.model())[1:3], [None, None], first_layer=1)
    with pytest.raises(RuntimeError) as caught:
        stage((torch.zeros(1, 2, 3),), (), None)
    assert "in layer 1 of the model" in describe(caught.value)


def test_running_out_of_memory_is_reported_also_where_there_is_no_gpu_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, str(tmp_path))
    assert fail(torch.OutOfMemoryError("CUDA out of memory")) == FAILURE_CODE
    [said] = read_failures(tmp_path)
    assert said.reason is ExitClass.OUT_OF_DEVICE_MEMORY
    assert said.peak_bytes is None


def test_our_own_errors_speak_for_themselves_and_others_bring_their_traceback() -> None:
    assert describe(InvalidPlan("for 4 devices", remedy="plan again")) == "for 4 devices; plan again"
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    assert "Traceback" in describe(caught.value)
