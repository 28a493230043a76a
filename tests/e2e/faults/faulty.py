"""The convolutions of ``docs/examples/own-model`` with a fault on request, for pods that mount both from a ConfigMap.

``FAULT=KIND:RANK:STEP`` strikes once, in the first attempt, when this rank has made this many optimizer steps since it
was started; ``FAULT_ATTEMPTS=3`` strikes in the first three. Profilers run this module as well, but no attempts.
"""

import os
import signal
import sys
import time

import convolutions  # type: ignore[import-not-found]  # lies beside this file in the pod
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_ATTEMPT = int(os.environ.get("GALVATRON_ATTEMPT", "0"))
_steps = 0


def _raise() -> None:
    raise RuntimeError("a fault on purpose")


def _run_out_of_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _run_out_of_host_memory() -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * (16 << 20))
        time.sleep(0.05)


def _exit() -> None:
    sys.exit(65)


def _vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(100_000)


KINDS = {
    "raise": _raise,
    "device-memory": _run_out_of_device_memory,
    "host-memory": _run_out_of_host_memory,
    "exit": _exit,
    "vanish": _vanish,
    "hang": _hang,
}


def _after_step(*_: object) -> None:
    global _steps
    _steps += 1
    kind, rank, step = os.environ["FAULT"].split(":")
    if (_steps, os.environ["RANK"]) == (int(step), rank):
        KINDS[kind]()


def layers() -> list[nn.Module]:
    """All layers in order: what ``spec.model.own.function`` names."""
    made: list[nn.Module] = convolutions.layers()
    return made


if "FAULT" in os.environ and 1 <= _ATTEMPT <= int(os.environ.get("FAULT_ATTEMPTS", "1")):
    register_optimizer_step_post_hook(_after_step)
