"""Processes that the kernel killed for lack of host memory, as the memory cgroup of this process counts them.

cgroup v1, and v2 without ``memory.oom.group``, lose one process of a container and not the container: process 1 lives
on, Kubernetes says nothing, and what was killed could say nothing itself.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60
"""Where nothing is set, v1 gives the largest number of whole pages instead of a word."""


@dataclass(frozen=True, slots=True)
class MemoryKills:
    """What the kernel took during one attempt.

    Attributes:
        num_processes: how many processes it killed, at least 1.
        limit_bytes: of the cgroup, None where it has none of its own.
    """

    num_processes: int
    limit_bytes: int | None


def count_kills(root: Path = Path("/")) -> int | None:
    """Count the processes killed in this process's memory cgroup since it exists; None where that cannot be read.

    Args:
        root: of the file system.
    """
    with suppress(OSError, ValueError):
        for line in _file(root, v1="memory.oom_control", v2="memory.events").read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


def kills_since(before: int | None, root: Path = Path("/")) -> MemoryKills | None:
    """Tell what was killed since ``before`` was counted, None for nothing or where it was not to be read."""
    now = count_kills(root)
    if before is None or now is None or now <= before:
        return None
    return MemoryKills(now - before, _limit_bytes(root))


def _limit_bytes(root: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number
        limit = int(_file(root, v1="memory.limit_in_bytes", v2="memory.max").read_text())
        return limit if limit < _NO_LIMIT_BYTES else None
    return None


def _file(root: Path, *, v1: str, v2: str) -> Path:
    """Find a file of this process's memory cgroup, by its name in either version (cgroups(7)).

    Raises:
        OSError: when it is not known to which cgroup this process belongs.
    """
    lines = (root / "proc/self/cgroup").read_text().splitlines()
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    of_v1 = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), None)
    groups = root / "sys/fs/cgroup"
    mount, path, name = (groups, paths.get("", ""), v2) if of_v1 is None else (groups / "memory", of_v1, v1)
    within = mount / path / name
    # A container often sees the path as its host has it, while only its own cgroup is mounted.
    return within if within.exists() else mount / name
