"""From an exception to the class that decides what happens to the job."""

import pytest
import torch
import torch.distributed as dist

import builders
from galvatron_planner.errors import InvalidDocument, InvalidPlan
from galvatron_planner.worker import ExitClass
from galvatron_runtime.data import UnusableData
from galvatron_runtime.failures import classify, describe
from galvatron_runtime.model import build_layers
from galvatron_runtime.parallel.stage import Stage


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


def test_out_of_memory_says_what_to_change() -> None:
    assert "spec.budget.memoryPerGPU" in describe(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_failure_names_its_layer() -> None:
    stage = Stage(build_layers(builders.model())[1:3], [None, None], first_layer=1)
    with pytest.raises(RuntimeError) as caught:
        stage((torch.zeros(1, 2, 3),), (), None)
    assert "in layer 1 of the model" in describe(caught.value)


def test_our_own_errors_speak_for_themselves_and_others_bring_their_traceback() -> None:
    assert describe(InvalidPlan("for 4 devices", remedy="plan again")) == "for 4 devices; plan again"
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    assert "Traceback" in describe(caught.value)
