"""What a local run keeps on disk, and that only one run works on it at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from galvatron_planner.documents import Document
from galvatron_planner.errors import GalvatronError

D = TypeVar("D", bound=Document)


class DirectoryInUse(GalvatronError):
    """Another run works in the same directory."""


class DirectoryNotWritable(GalvatronError):
    """The run directory cannot be made or written."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Places of the files of one local run; documents are stored as they travel in a cluster.

    Attributes:
        path: the directory itself.
    """

    path: Path

    @property
    def request(self) -> Path:
        """Document 1."""
        return self.path / "request.json"

    @property
    def profile(self) -> Path:
        """Document 2."""
        return self.path / "profile.json"

    @property
    def plan(self) -> Path:
        """Document 3."""
        return self.path / "plan.json"

    @property
    def training(self) -> Path:
        """Document 4."""
        return self.path / "training.json"

    @property
    def report(self) -> Path:
        """Why the search chose the plan."""
        return self.path / "report.json"

    @property
    def checkpoints(self) -> Path:
        """Parent of training checkpoints."""
        return self.path / "checkpoints"

    def supervisor(self, phase: str) -> Path:
        """Run directory of the supervisor of one phase."""
        return self.path / phase

    def log(self, phase: str) -> Path:
        """What the processes of one phase printed."""
        return self.path / f"{phase}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and keep every other run out of it.

        Raises:
            DirectoryInUse: when another run holds it.
            DirectoryNotWritable: when it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise DirectoryNotWritable(
                f"cannot write to {self.path}: {error.strerror}", remedy="choose another folder with --directory"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DirectoryInUse(
                    f"another run is working in {self.path}", remedy="wait for it, or choose another --directory"
                ) from error
            yield


def replace_text(path: Path, text: str) -> None:
    """Write a file at once: whoever reads it sees the old text or the new one.

    Raises:
        OSError: when it cannot be written; nothing half-written stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def stored(path: Path, document: type[D]) -> D | None:
    """Read a document that an earlier run may have left."""
    return document.from_json(path.read_text()) if path.exists() else None
