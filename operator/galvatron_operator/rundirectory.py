"""What a local run keeps on disk, and that only one run works on it at a time."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeVar

from galvatron_planner.documents import Document
from galvatron_planner.errors import GalvatronError, InvalidDocument

DATA_FOLDER = "data"
"""Where the runtime keeps what it makes of texts, images and token files."""

D = TypeVar("D", bound=Document)
_MAKE_ANEW = "delete it, and let `galvatron plan` or `galvatron run` make it anew"


class DirectoryInUse(GalvatronError):
    """Another run works in the same directory, or it is another job's."""


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
    def model(self) -> Path:
        """The model, for a look at what training reads."""
        return self.path / "model.json"

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

    def clear(self, phase: str) -> None:
        """Empty the supervisor's run directory: what an earlier run reported there would be taken for this one's.

        What was made of the data stays; it is found again by what it was made of.

        Raises:
            DirectoryNotWritable: when it cannot be made.
        """
        directory = self.supervisor(phase)
        try:
            directory.mkdir(exist_ok=True)
            for path in directory.iterdir():
                if path.name != DATA_FOLDER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.log(phase).unlink(missing_ok=True)
        except OSError as error:
            raise not_writable(directory, error) from error

    @contextmanager
    def locked(self, job: str) -> Iterator[None]:
        """Make the directory and keep every other run out of it.

        Args:
            job: the name of the job whose directory it is.

        Raises:
            DirectoryInUse: when another run holds it, or it is another job's.
            DirectoryNotWritable: when it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("ab+", buffering=0)
        except OSError as error:
            raise not_writable(self.path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DirectoryInUse(
                    f"another run is working in {self.path}", remedy="wait for it, or choose another --directory"
                ) from error
            self._claim(lock, job)
            yield

    def _claim(self, lock: FileIO, job: str) -> None:
        """Write the job's name into the file of the lock, unless there is one."""
        lock.seek(0)
        owner = lock.read().decode(errors="replace").strip()
        if owner and owner != job:
            raise DirectoryInUse(
                f"{self.path} is the directory of job {owner}, and this is {job}",
                remedy="choose another --directory, or remove this one",
            )
        if not owner:
            try:
                lock.write(job.encode())
            except OSError as error:
                raise not_writable(self.path, error) from error


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


def keep(path: Path, text: str) -> None:
    """Write a file of a run at once.

    Raises:
        DirectoryNotWritable: when it cannot be written; what it held before stays.
    """
    try:
        replace_text(path, text)
    except OSError as error:
        raise not_writable(path, error) from error


def not_writable(path: Path, error: OSError, *, option: str = "--directory") -> DirectoryNotWritable:
    """Say that a file cannot be written, and which option would choose another place."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there, or choose" if is_full else "choose"
    return DirectoryNotWritable(
        f"cannot write to {path}: {error.strerror}", remedy=f"{remedy} another folder with {option}"
    )


def stored(path: Path, document: type[D]) -> D | None:
    """Read a document that an earlier run may have left.

    Raises:
        InvalidDocument: when there is one that cannot be read.
    """
    if not path.exists():
        return None
    try:
        return document.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidDocument(f"cannot read {path}: {problem}", remedy=_MAKE_ANEW) from error
    except InvalidDocument as error:
        raise InvalidDocument(
            f"{path} is damaged, or of another version: {error.problem}", remedy=_MAKE_ANEW
        ) from error
