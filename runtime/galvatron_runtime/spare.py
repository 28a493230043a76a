"""The command of the next attempt, with its libraries loaded, before anybody needs it.

Loading torch takes seconds of every core that a gang which starts again has to wait for. So each supervisor keeps one
process more, which has done that and waits for a byte on its standard input. It is made when the current attempt has
made its first step: until then the cores are needed for that.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from galvatron_runtime.processes import die_with_parent

SPARE_VARIABLE = "GALVATRON_SPARE"
"""Set for a command that waits until it is told to begin; ``galvatron_runtime.launch`` heeds it."""


@dataclass(frozen=True, slots=True)
class Spare:
    """A command that waits.

    Attributes:
        attempt: that it is for.
        process: of the command.
    """

    attempt: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, command: Sequence[str], variables: Mapping[str, str], *, attempt: int) -> Self:
        """Start a command that loads what it needs and waits.

        Raises:
            OSError: when it cannot be started.
        """
        return cls(attempt, start(command, {**variables, SPARE_VARIABLE: "1"}, stdin=subprocess.PIPE))

    def begin(self) -> subprocess.Popen[bytes] | None:
        """Let it begin; None when it has ended meanwhile."""
        if self.process.poll() is not None or self.process.stdin is None:
            return None
        try:
            self.process.stdin.write(b"1")
            self.process.stdin.close()
        except OSError:
            return None
        return self.process

    def discard(self) -> None:
        """Let it go."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.kill()


def start(command: Sequence[str], variables: Mapping[str, str], *, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command that ends with this process, in a session of its own.

    Raises:
        OSError: when it cannot be started.
    """
    return subprocess.Popen(  # noqa: S603 - running the given command is what a supervisor is for
        command,
        env=os.environ | variables,
        stdin=stdin,
        start_new_session=True,
        # One call into libc that is already loaded: safe after a fork with threads.
        preexec_fn=die_with_parent,
    )
