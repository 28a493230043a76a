"""Files that the first process of a node makes of a data source, and the others find."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path


def node_file(directory: Path, suffix: str, *, key: str, files: Sequence[Path], make: Callable[[Path], object]) -> Path:
    """Find what is made of files, or make it; processes of a node that want it too wait for the first.

    Args:
        directory: of this node.
        suffix: of the path.
        key: what else than the files it depends on.
        files: what it is made of; recognised by size and time, not read.
        make: writes the file to the path that it gets, which is renamed when it is complete.
    """
    stats = [(path, path.stat()) for path in files]
    listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    fingerprint = hashlib.sha256(f"{key}\n{listing}".encode()).hexdigest()[:16]
    path = directory / "data" / f"{fingerprint}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            make(temporary)
            temporary.replace(path)
    return path
