"""What the kernel killed for lack of memory: read from trees of both versions, and from a real cgroup."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from galvatron_planner.units import MIB
from galvatron_planner.worker import ExitClass, WorkerState
from galvatron_runtime.cgroups import MemoryKills, count_kills, kills_since
from galvatron_runtime.reports import write_atomically
from supervision import Supervised, wait_until

V1 = "5:cpu,cpuacct:/elsewhere\n4:memory:/pods/mine\n0::/elsewhere\n"
V2 = "0::/pods/mine\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def v1(root: Path, *, kills: int, limit: int, within: str = "pods/mine") -> Path:
    group = root / "sys/fs/cgroup/memory" / within
    write(root / "proc/self/cgroup", V1)
    write(group / "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    write(group / "memory.limit_in_bytes", f"{limit}\n")
    return root


def v2(root: Path, *, kills: int, limit: str, within: str = "pods/mine") -> Path:
    group = root / "sys/fs/cgroup" / within
    write(root / "proc/self/cgroup", V2)
    write(group / "memory.events", f"low 0\nhigh 0\nmax 97\noom 9\noom_kill {kills}\noom_group_kill 0\n")
    write(group / "memory.max", f"{limit}\n")
    return root


def test_version_1_is_read(tmp_path: Path) -> None:
    assert kills_since(3, v1(tmp_path, kills=5, limit=1 << 30)) == MemoryKills(2, 1 << 30)


def test_version_2_is_read(tmp_path: Path) -> None:
    assert kills_since(3, v2(tmp_path, kills=5, limit="1073741824")) == MemoryKills(2, 1 << 30)


def test_version_1_without_a_limit_has_none(tmp_path: Path) -> None:
    # What the kernel gives where nothing is set: the largest number of pages, in bytes.
    assert kills_since(0, v1(tmp_path, kills=1, limit=9223372036854771712)) == MemoryKills(1, None)


def test_version_2_without_a_limit_has_none(tmp_path: Path) -> None:
    assert kills_since(0, v2(tmp_path, kills=1, limit="max")) == MemoryKills(1, None)


def test_a_container_that_sees_only_its_own_cgroup_finds_it(tmp_path: Path) -> None:
    assert count_kills(v1(tmp_path / "one", kills=4, limit=MIB, within="")) == 4
    assert count_kills(v2(tmp_path / "two", kills=4, limit="max", within="")) == 4


def test_kills_before_an_attempt_do_not_count(tmp_path: Path) -> None:
    root = v1(tmp_path, kills=5, limit=MIB)
    assert kills_since(count_kills(root), root) is None


def test_where_there_is_nothing_to_read_nothing_is_said(tmp_path: Path) -> None:
    assert count_kills(tmp_path) is None
    write(tmp_path / "proc/self/cgroup", V2)  # the root of version 2 has no such file
    assert count_kills(tmp_path) is None
    assert kills_since(None, v2(tmp_path, kills=5, limit="max")) is None


LIMIT_BYTES = 192 * MIB
GROW = "held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))"
RANK_1_GROWS_IN_ATTEMPT_1 = f"""
import os, subprocess, sys
from galvatron_planner.worker import ExitClass
from galvatron_runtime.reports import report_failure, report_progress
if os.environ["GALVATRON_ATTEMPT"] == "2":
    sys.exit(3)
for rank in "10":
    os.environ["RANK"] = rank
    report_progress("training", step=1, total_steps=9)
subprocess.run([sys.executable, "-c", {GROW!r}])
report_failure(ExitClass.COMMUNICATION, "connection closed by peer", exit_code=1)
sys.exit(1)
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup with little memory."""
    is_v1 = Path("/sys/fs/cgroup/memory").is_dir()
    group = Path("/sys/fs/cgroup/memory" if is_v1 else "/sys/fs/cgroup") / f"galvatron-test-{os.getpid()}"
    limit, swapping = ("memory.limit_in_bytes", "memory.swappiness") if is_v1 else ("memory.max", "memory.swap.max")
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT_BYTES))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"needs the right to make a memory cgroup: {error}")
    with suppress(OSError):  # a kernel without swap has no such file
        (group / swapping).write_text("0")
    yield group
    wait_until(lambda: is_removed(group), what="nothing is left in the cgroup")


def is_removed(group: Path) -> bool:
    with suppress(OSError):  # while a process that was killed still ends
        group.rmdir()
    return not group.exists()


@pytest.mark.distributed
def test_a_rank_that_the_kernel_kills_is_named_with_the_limit_in_its_attempt_alone(
    small_group: Path, tmp_path: Path
) -> None:
    write_atomically(tmp_path / "attempt", "1")
    command = (sys.executable, "-c", RANK_1_GROWS_IN_ATTEMPT_1)
    with Supervised(command, tmp_path, attempt=tmp_path / "attempt", cgroup=small_group) as pod:
        failure = pod.wait_for_end().failure
        write_atomically(tmp_path / "attempt", "2")
        later = pod.wait_for_attempt(2, WorkerState.FAILED).failure
    assert failure is not None
    assert (failure.reason, failure.rank, failure.exit_code) == (ExitClass.OUT_OF_HOST_MEMORY, 1, 137)
    assert "ranks [1] vanished without a word: the kernel killed a process" in failure.message
    assert "the limit is 192 MiB; raise spec.runtime.resources.limits.memory" in failure.message
    assert later is not None
    assert later.reason is ExitClass.UNKNOWN
