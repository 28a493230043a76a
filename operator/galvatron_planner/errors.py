"""Everything that can be wrong with what people, clusters and files hand to us.

    GalvatronError                 problem and remedy, both for people
    + InvalidInput                 a value in a document or a GalvatronJob that cannot be meant
    | + InvalidDocument            a JSON document that does not follow its schema
    | + InvalidPlan                a plan that contradicts its model, cluster or batch
    + MissingMeasurement           the profile lacks what the cost model asks for
    + NoFeasiblePlan               no plan fits; carries the nearest changes that would

The operator and the runtime add their own leaves in their packages.
"""

from collections.abc import Sequence


class GalvatronError(Exception):
    """Base of all our errors: what is wrong, and what to do about it.

    Attributes:
        problem: the offending values and where they came from.
        remedy: an instruction the reader can follow.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


class InvalidInput(GalvatronError):
    """A value in a document or a GalvatronJob that cannot be meant."""


class InvalidDocument(InvalidInput):
    """A JSON document that does not follow its schema; the problem names the JSON path."""


class InvalidPlan(InvalidInput):
    """A plan that contradicts its model, its cluster or its batch."""


class MissingMeasurement(GalvatronError):
    """The profile lacks a measurement that the cost model asks for."""


class NoFeasiblePlan(GalvatronError):
    """No plan fits the budget.

    Attributes:
        changes: nearest changes that would fit, each verified by a search, best first.
    """

    def __init__(self, problem: str, *, changes: Sequence[str]) -> None:
        remedy = "any one of: " + "; ".join(changes) if changes else "use a smaller model or more devices"
        super().__init__(problem, remedy=remedy)
        self.changes = tuple(changes)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when the error crosses a process boundary."""
        return (_rebuild_no_feasible_plan, (self.problem, self.changes))


def _rebuild_no_feasible_plan(problem: str, changes: tuple[str, ...]) -> NoFeasiblePlan:
    return NoFeasiblePlan(problem, changes=changes)
