"""The processes of containers, seen from the host: the test cluster's nodes are network namespaces of it."""

from pathlib import Path

from e2e.kubectl import Manifest


def first_process(pod: Manifest) -> int:
    """The host's number of the process that is number 1 in the pod's only container."""
    (container,) = pod["status"]["containerStatuses"]
    identifier = container["containerID"].rpartition("/")[2]
    found = [number for number in map(int, _numbers()) if _is_first(number) and identifier in _read(number, "cgroup")]
    assert len(found) == 1, f"{identifier} has first processes {found}"
    return found[0]


def is_alive(number: int) -> bool:
    """Tell whether a process is there and has not ended."""
    state = next((line for line in _read(number, "status").splitlines() if line.startswith("State:")), "State: Z")
    return "Z" not in state.split()[1]


def _numbers() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _is_first(number: int) -> bool:
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in _read(number, "status").splitlines())


def _read(number: int, file: str) -> str:
    """Read a file of a process; empty when the process has ended."""
    try:
        return Path(f"/proc/{number}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
