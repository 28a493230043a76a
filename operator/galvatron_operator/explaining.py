"""What ``galvatron explain`` reads from a run directory, asks again, and writes: the decisions are the planner's."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from galvatron_operator.rundirectory import RunDirectory, replace_text, stored
from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.insight import Insight, insight
from galvatron_planner.perfetto import chrome_trace
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import Profile
from galvatron_planner.search.report import SearchReport
from galvatron_planner.sensitivity import Change, changes
from galvatron_planner.timeline_html import timeline_html


class FileNotWritable(GalvatronError):
    """A picture or a trace cannot be written where it was asked for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run as it was planned.

    Attributes:
        plan: document 3.
        report: why the search chose it.
        seen: a simulated step; absent where the directory holds no profile.
    """

    plan: Plan
    report: SearchReport
    seen: Insight | None

    @property
    def other_budgets(self) -> tuple[Change, ...]:
        """What can be asked again."""
        return () if self.seen is None else tuple(changes(self.seen.problem, self.plan))


def planned(path: Path) -> Planned:
    """Read a run directory.

    Raises:
        InvalidInput: when it holds no plan.
        MissingMeasurement: when its profile is of another job.
    """
    if not path.is_dir():
        raise InvalidInput(f"there is no directory {path}", remedy="name that of a run: galvatron-runs/NAME-OF-THE-JOB")
    files = RunDirectory(path)
    plan, report, profile = stored(files.plan, Plan), stored(files.report, SearchReport), stored(files.profile, Profile)
    if plan is None or report is None:
        raise InvalidInput(f"{path} holds no plan", remedy="make one with `galvatron plan job.yaml --directory ...`")
    return Planned(plan, report, None if profile is None else insight(plan, profile, report))


def draw(run: Planned, *, timeline: Path | None, trace: Path | None) -> Iterable[Path]:
    """Write what is asked for, each file at once, and tell its path.

    Raises:
        InvalidInput: when there is no profile to draw from.
        FileNotWritable: when a file cannot be written.
    """
    for path, drawing in ((timeline, timeline_html), (trace, chrome_trace)):
        if path is None:
            continue
        if run.seen is None:
            raise InvalidInput(
                f"{path} cannot be drawn: the run directory holds no profile.json",
                remedy="plan again with `galvatron plan job.yaml --directory ...`, which keeps the profile",
            )
        _write(path, drawing(run.plan, run.seen.timeline))
        yield path


def _write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise FileNotWritable(
            f"cannot write {path}: {error.strerror}", remedy="name a file in a folder that exists and can be written"
        ) from error
