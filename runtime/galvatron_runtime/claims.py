"""Who may write into a directory of training checkpoints: the attempt that claimed it last.

A node that was cut off may go on training while another attempt has taken its place, and a volume takes the writes of
both. So an attempt claims the directory before it looks for a checkpoint: it makes a file of its own, removes those of
the attempts before it, and then renames what they have left unfinished, so that they can finish it no more. A writer
makes its unfinished checkpoint first and looks for its claim then. Whatever the order of the two, one of them sees the
other, on any file system that has one order of renames and new names (NFS has).

An attempt may even run twice: a pod that was deleted by force trains on where its kubelet is away, and the pod that
takes its name begins with the same number until the operator counts on. So each run has a name of its own, and the one
that claims last goes before the one that has trained already.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from galvatron_planner.errors import GalvatronError

PARTIAL_NAME = re.compile(r"^\.step-\d{8,}\.attempt-\d+(-[0-9a-f]+)?$")
"""A checkpoint that is not complete."""
_CLAIM_NAME = re.compile(r"^\.claim-(\d+)(?:-[0-9a-f]+)?-of-(.*)$")
_SWEPT = ".swept-"


class StaleAttempt(GalvatronError):
    """This attempt was given up: another one writes the training checkpoints."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt's right to write.

    Attributes:
        directory: of the training checkpoints.
        owner: the job; an attempt of another job claims whatever the numbers are.
        attempt: later ones go before earlier ones.
        run: hexadecimal name of this run of the attempt, empty where there is only one.
    """

    directory: Path
    owner: str
    attempt: int
    run: str = ""

    def take(self) -> None:
        """Claim the directory, and remove what attempts before this one have left unfinished.

        Raises:
            StaleAttempt: when a later attempt has claimed it.
            OSError: when the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        claims = self._claims()
        if any(owner == self.owner and attempt > self.attempt for owner, attempt in claims.values()):
            self._path.unlink(missing_ok=True)
            self.check()
        for path in claims:
            if path != self._path:
                path.unlink(missing_ok=True)
        for path in self.directory.iterdir():
            if PARTIAL_NAME.match(path.name):
                # A rename happens or does not; a removal could meet the rename that completes the checkpoint.
                path = path.rename(path.with_name(_SWEPT + path.name))
            if path.name.startswith(_SWEPT):
                shutil.rmtree(path, ignore_errors=True)

    def check(self) -> None:
        """Make sure that nobody has claimed the directory since.

        Raises:
            StaleAttempt: when somebody has.
        """
        claims = self._claims()
        if claims and self._path not in claims:
            raise StaleAttempt(
                f"attempt {self.attempt} no longer writes to {self.directory}: another attempt has claimed it",
                remedy="stop this one; if no other attempt should run, look for a second job with the same"
                " spec.checkpoint",
            )

    def _claims(self) -> dict[Path, tuple[str, int]]:
        """Owner and attempt of every claim; the last one to be made stands alone soon after."""
        if not self.directory.is_dir():
            return {}
        matches = {path: _CLAIM_NAME.match(path.name) for path in self.directory.iterdir()}
        return {path: (match[2], int(match[1])) for path, match in matches.items() if match}

    @property
    def _path(self) -> Path:
        return self.directory / f".claim-{self.attempt}{suffix_of(self.run)}-of-{self.owner}"


def suffix_of(run: str) -> str:
    """Write a run behind the number of its attempt."""
    return f"-{run}" if run else ""
