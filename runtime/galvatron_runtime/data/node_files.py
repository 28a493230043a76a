"""Files that the first process of a node makes of a data source, and the others find."""

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def node_file(directory: Path, suffix: str, *, key: str, files: Sequence[Path]) -> Iterator[Path]:
    """Hold the path of what is made of files, which the caller makes if it does not exist; others wait meanwhile.

    Args:
        directory: of this node.
        suffix: of the path.
        key: what else than the files it depends on.
        files: what it is made of; recognised by size and time, not read.
    """
    stats = [(path, path.stat()) for path in files]
    listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    fingerprint = hashlib.sha256(f"{key}\n{listing}".encode()).hexdigest()[:16]
    path = directory / "data" / f"{fingerprint}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
