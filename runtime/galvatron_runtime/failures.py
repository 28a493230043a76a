"""From an exception to the class of failure that decides what happens to the job.

Used by the rims of the commands that run on devices (``train.py`` and ``measure``); the last word goes to the run
directory, because torchrun passes no exit code on.
"""

import logging
import os
import sys
import traceback
from typing import Never

import torch
import torch.distributed as dist

from galvatron_planner.errors import GalvatronError, InvalidDocument, InvalidPlan
from galvatron_planner.worker import ExitClass
from galvatron_runtime.data import UnusableData
from galvatron_runtime.memory import MemoryMeter
from galvatron_runtime.pretrained import UnusableWeights
from galvatron_runtime.reports import report_failure

log = logging.getLogger(__name__)

FAILURE_CODE = 1
PREEMPTED_CODE = 75
"""EX_TEMPFAIL of sysexits(3): stopped on request, work saved where it can be, try again."""

_CLASSES: tuple[tuple[type[BaseException], ExitClass], ...] = (
    (UnusableData, ExitClass.DATA_ERROR),
    (UnusableWeights, ExitClass.DATA_ERROR),
    (InvalidPlan, ExitClass.BAD_PLAN),
    (InvalidDocument, ExitClass.BAD_PLAN),
    (torch.OutOfMemoryError, ExitClass.OUT_OF_DEVICE_MEMORY),
    (MemoryError, ExitClass.OUT_OF_DEVICE_MEMORY),
    (dist.DistError, ExitClass.COMMUNICATION),
)
_CODES = {
    65: ExitClass.DATA_ERROR,
    66: ExitClass.DATA_ERROR,
    PREEMPTED_CODE: ExitClass.PREEMPTED,
    69: ExitClass.COMMUNICATION,
    76: ExitClass.COMMUNICATION,
}
"""Classes that a user's code may choose by ``sys.exit``, as sysexits(3) has them: EX_DATAERR, EX_NOINPUT, EX_TEMPFAIL,
EX_UNAVAILABLE, EX_PROTOCOL. Every other code is a user's error, which rules of the failure policy may tell apart.
"""
_TELLING_WORDS: tuple[tuple[str, ExitClass], ...] = (
    # Plain RuntimeErrors of torch 2.13 that have no type of their own.
    ("can't allocate memory", ExitClass.OUT_OF_DEVICE_MEMORY),
    ("gloo", ExitClass.COMMUNICATION),
    ("connection closed by peer", ExitClass.COMMUNICATION),
    ("connection reset by peer", ExitClass.COMMUNICATION),
    ("nccl", ExitClass.COMMUNICATION),
)

_ADVICE = {
    ExitClass.OUT_OF_DEVICE_MEMORY: "out of device memory: set spec.budget.memoryPerGPU to what the device really has"
    " left, or lower, so that the search chooses a plan with less",
    ExitClass.COMMUNICATION: "a connection broke: another rank has failed or was killed, or the network is down",
}


def classify(error: BaseException) -> ExitClass:
    """Tell which class of failure an exception is; what is not known by type or words is a user's error."""
    if isinstance(error, SystemExit):
        return _CODES.get(exit_code(error), ExitClass.USER_ERROR)
    for kind, reason in _CLASSES:
        if isinstance(error, kind):
            return reason
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        for words, reason in _TELLING_WORDS:
            if words in text:
                return reason
    return ExitClass.USER_ERROR


def describe(error: BaseException) -> str:
    """Say what went wrong: problem and remedy where they are known, else the traceback with what helps."""
    if isinstance(error, GalvatronError):
        return f"{error.problem}; {error.remedy}"
    advice = None if isinstance(error, SystemExit) else _ADVICE.get(classify(error))
    return "".join(traceback.format_exception(error)) + (f"\n{advice}" if advice else "")


def exit_code(error: BaseException) -> int:
    """Tell the code of a rank that an exception ends: that of ``sys.exit``, as the system cuts it, or else 1.

    Code 0 is no success here: whoever leaves before the end leaves the others waiting.
    """
    wanted = error.code if isinstance(error, SystemExit) else None
    return (wanted & 0xFF if isinstance(wanted, int) else FAILURE_CODE) or FAILURE_CODE


def fail(error: BaseException) -> int:
    """Log an error at the rim of a process and leave it for the supervisor.

    Returns:
        the exit code of this rank.
    """
    reason, code = classify(error), exit_code(error)
    report_failure(reason, describe(error), exit_code=code, peak_bytes=_peak_bytes(reason))
    log.error("failed", extra={"reason": str(reason)}, exc_info=error)
    return code


def _peak_bytes(reason: ExitClass) -> int | None:
    """Tell how much of its GPU a rank had when it ran out; on CPU the newest report of the rank knows.

    Only then: after other CUDA errors every question to the device fails as well.
    """
    is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch
    if reason is not ExitClass.OUT_OF_DEVICE_MEMORY or not is_on_gpu:
        return None
    return MemoryMeter(torch.device("cuda", torch.cuda.current_device()), idle_bytes=0).peak_bytes()


def leave(code: int) -> Never:
    """End the process at once, without destructors.

    At interpreter exit, with process groups alive or just destroyed, torch 2.13 sometimes aborts (4 of about 190
    launches on CPU) or hangs; the work is done by then, and torchrun would count it as a failure.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
