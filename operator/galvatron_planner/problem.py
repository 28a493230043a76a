"""What the search is asked: model, cluster, batch, limits and the measured profile, as one value with a digest."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from galvatron_planner.cluster import Cluster
from galvatron_planner.documents import Document, Value
from galvatron_planner.model import Model, Precision
from galvatron_planner.profiles import Profile


class SearchDimension(StrEnum):
    """A dimension as users name it; all are searched unless excluded."""

    DP = "DP"
    ZERO2 = "ZERO2"
    SDP = "SDP"
    TP = "TP"
    PP = "PP"
    CKPT = "CKPT"


class Schedule(StrEnum):
    """The order of forward and backward passes in a pipeline."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"


class Algorithm(StrEnum):
    """How the strategies are searched; the value is what users write."""

    OPTIMAL = "Optimal"
    """All stages, cuts and strategies at once, with a lower bound that certifies the plan."""
    GALVATRON = "Galvatron"
    """As published in 2022 (arXiv 2211.13878): equal stages, dynamic programming over a memory grid, no CKPT."""
    GALVATRON_BMW = "GalvatronBMW"
    """As published in 2024 (arXiv 2307.02031): with CKPT, and stages balanced between memory and time."""
    FIXED = "Fixed"
    """Not at all: the user brings the plan, and it is priced (``search/fixed.py``)."""


class BatchRange(Value):
    """Global batch sizes to choose from: ``minimum``, ``minimum + step``, ... up to ``maximum``."""

    minimum: PositiveInt
    maximum: PositiveInt
    step: PositiveInt = 1

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.maximum < self.minimum:
            raise ValueError(f"batch maximum {self.maximum} is below its minimum {self.minimum}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size, rising."""
        return tuple(range(self.minimum, self.maximum + 1, self.step))


class SearchLimits(Value):
    """What the search may use.

    Attributes:
        excluded: dimensions it leaves alone.
        max_tensor_degree: largest tensor-parallel degree.
        max_pipeline_degree: largest number of stages.
        schedule: the pipeline schedule of the plan.
        algorithm: how it searches.
        sequence_parallel: whether it also considers tensor parallelism with sequence parallelism.
    """

    excluded: tuple[SearchDimension, ...] = ()
    max_tensor_degree: PositiveInt = Field(default=1 << 30)
    max_pipeline_degree: PositiveInt = Field(default=1 << 30)
    schedule: Schedule = Schedule.ONE_F_ONE_B
    algorithm: Algorithm = Algorithm.OPTIMAL
    sequence_parallel: bool = False

    def allows(self, dimension: SearchDimension) -> bool:
        """Tell whether the search may use ``dimension``."""
        return dimension not in self.excluded

    def without(self, *dimensions: SearchDimension) -> "SearchLimits":
        """Exclude more dimensions."""
        return self.model_copy(update={"excluded": tuple(dict.fromkeys((*self.excluded, *dimensions)))})


class PlanningProblem(Document):
    """Everything that decides a plan; equal problems have equal plans."""

    schema_tag: Literal["galvatron/planning-problem/v1"] = Field(
        default="galvatron/planning-problem/v1", alias="schema"
    )
    model: Model
    precision: Precision
    cluster: Cluster
    batch: BatchRange
    limits: SearchLimits = SearchLimits()
    profile: Profile

    def without(self, *dimensions: SearchDimension) -> "PlanningProblem":
        """Pose the same problem in a smaller space."""
        return self.model_copy(update={"limits": self.limits.without(*dimensions)})

    def without_sequence_parallelism(self) -> "PlanningProblem":
        """Pose the same problem with tensor parallelism as the papers and most people know it."""
        return self.model_copy(update={"limits": self.limits.model_copy(update={"sequence_parallel": False})})
