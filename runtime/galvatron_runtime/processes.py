"""What Linux offers to a supervisor so that nothing of a process tree survives it.

torchrun gives every worker a session of its own, so signalling its process group misses them. The supervisor therefore
adopts orphans (subreaper) and ends its descendants by their parent links; and every process asks to be killed when its
parent dies, for the case that the supervisor itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 0.005
"""Between two looks whether killed processes are gone."""


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def name_process(name: str) -> None:
    """Name this process (prctl(2)); the kernel keeps 15 bytes."""
    _LIBC.prctl(_PR_SET_NAME, name.encode())


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends; process 1 of a container is that already."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(process: int) -> tuple[int, ...]:
    """List the processes below ``process``, parents before children, zombies included."""
    children = _children_by_parent()
    found, unvisited = [], [process]
    while unvisited:
        below = children.get(unvisited.pop(), [])
        found += below
        unvisited += below
    return tuple(found)


def kill_descendants(*, spared: int | None = None) -> None:
    """Kill everything below this process, and wait until it is gone.

    Args:
        spared: a child that stays, with all below it.
    """
    while below := _descendants_but(spared):
        for process in below:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            # Without waiting for what stays.
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(KILL_SECONDS)


def _descendants_but(spared: int | None) -> set[int]:
    kept = set() if spared is None else {spared, *descendants(spared)}
    return set(descendants(os.getpid())) - kept


def exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """Collect adopted processes that have ended; the child's exit code, as shells give it, or None while it runs."""
    with suppress(ChildProcessError):
        # WNOWAIT leaves the ended process in place: Popen must collect its own.
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child.pid:
            os.waitpid(ended.si_pid, 0)
    code = child.poll()
    return code if code is None or code >= 0 else 128 - code  # ended by signal -code


def _children_by_parent() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything; state and parent follow its last parenthesis.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    return children
