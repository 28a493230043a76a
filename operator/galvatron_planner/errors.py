"""Everything that can be wrong with what people, clusters and files hand to us.

    GalvatronError                 problem and remedy, both for people
    + InvalidInput                 a value in a document or a GalvatronJob that cannot be meant
    | + InvalidDocument            a JSON document that does not follow its schema
    | + InvalidPlan                a plan that contradicts its model, cluster or batch
    | + InexpressiblePlan          a plan that another system's format cannot hold
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


class InexpressiblePlan(InvalidInput):
    """A plan that the format of another system cannot hold."""


class MissingMeasurement(GalvatronError):
    """The profile lacks a measurement that the cost model asks for."""


class NoFeasiblePlan(GalvatronError):
    """No plan fits the budget.

    Attributes:
        changes: nearest changes that would fit, each verified by a search, best first.
        needed_bytes: device memory of the smallest plan; absent when there is none of any size, or it is not known.
    """

    def __init__(self, problem: str, *, changes: Sequence[str], needed_bytes: int | None = None) -> None:
        remedy = "any one of: " + "; ".join(changes) if changes else "use a smaller model or more devices"
        super().__init__(problem, remedy=remedy)
        self.changes = tuple(changes)
        self.needed_bytes = needed_bytes

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when the error crosses a process boundary."""
        return (_rebuild_no_feasible_plan, (self.problem, self.changes, self.needed_bytes))


def _rebuild_no_feasible_plan(problem: str, changes: tuple[str, ...], needed_bytes: int | None) -> NoFeasiblePlan:
    return NoFeasiblePlan(problem, changes=changes, needed_bytes=needed_bytes)
