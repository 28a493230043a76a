"""A rank that gets nowhere says where it stands, and ends: nobody has to log in to a hanging job.

All ranks of a stalled job stand still, most of them waiting for the one that does not come. Each says on its own where
it is, so that the one that waits for nobody stands out.
"""

import faulthandler
import logging
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import galvatron_runtime
from galvatron_planner.worker import ExitClass
from galvatron_runtime.failures import FAILURE_CODE, leave
from galvatron_runtime.reports import report_failure

log = logging.getLogger(__name__)

_LOOKS_PER_DEADLINE = 20
OTHERS_SECONDS = 3.0
"""How long the first rank that gives up waits for the words of the others, whom its end would disturb."""


class StallWatch:
    """Ends this process when nothing moves for too long.

    It has state because a thread reads what the main thread last did.
    """

    def __init__(self, deadline_seconds: float) -> None:
        """Begin to watch.

        Args:
            deadline_seconds: how long nothing may move.
        """
        self._deadline_seconds = deadline_seconds
        self._moved_at = time.monotonic()
        self._doing = "starting"
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="stall watch", daemon=True).start()

    def moved(self, doing: str) -> None:
        """Note that something is done, and what comes next."""
        self._doing = doing
        self._moved_at = time.monotonic()

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _watch(self) -> None:
        looks = min(self._deadline_seconds / _LOOKS_PER_DEADLINE, 10.0)
        while time.monotonic() - self._moved_at <= self._deadline_seconds:
            if self._ended.wait(looks):
                return
        place = where(self._watched)
        message = f"nothing moved for {self._deadline_seconds:.0f} s while {self._doing}, {place}"
        report_failure(ExitClass.STALLED, message, exit_code=FAILURE_CODE)
        log.error("stalled", extra={"doing": self._doing, "place": place, "stacks": stacks()})
        time.sleep(OTHERS_SECONDS)
        leave(FAILURE_CODE)


def where(thread: int) -> str:
    """Say where a thread of this process is: the innermost function, and the innermost of ours around it."""
    frame = sys._current_frames().get(thread)
    frames = traceback.extract_stack(frame) if frame is not None else []
    if not frames:
        return "nowhere"
    package = str(Path(galvatron_runtime.__file__).parent)
    ours = [one for one in frames if one.filename.startswith(package)]
    innermost = [frames[-1]] if not ours or frames[-1] is not ours[-1] else []
    return ", called by ".join(_place(one) for one in (*innermost, *ours[-1:]))


def stacks() -> str:
    """Write down the Python stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _place(frame: traceback.FrameSummary) -> str:
    return f"in {frame.name} ({'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno})"
