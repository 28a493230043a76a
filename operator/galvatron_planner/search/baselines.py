"""What simpler ways to train achieve on the same devices: the yardstick that shows what the hybrid plan gains.

Each baseline is the same problem in a smaller space. All but DP+TP are *uniform*, as people configure them by hand: one
strategy for all layers of all stages, so that every plan of the space can be listed and the fastest that fits is found
by pricing few of them.
"""

from dataclasses import dataclass
from itertools import chain

from galvatron_planner import space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.problem import PlanningProblem, SearchDimension
from galvatron_planner.search.candidates import explore
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.ranges import seconds_per_sample
from galvatron_planner.search.report import Baseline
from galvatron_planner.search.summaries import alternative
from galvatron_planner.search.uniform import UniformPlan, UniformSearch, uniform_plans

DP, ZERO2, SDP, TP, PP, CKPT = SearchDimension
CKPT_SUFFIX = f"+{CKPT}"


@dataclass(frozen=True, slots=True)
class BaselineSpace:
    """A smaller space, under the name that users know.

    Attributes:
        name: with ``+CKPT`` where the activations of all layers that can are recomputed.
        dimensions: what it may use.
        is_uniform: all layers share one strategy; otherwise each has its own.
    """

    name: str
    dimensions: tuple[SearchDimension, ...]
    is_uniform: bool = True

    def has(self, plan: UniformPlan) -> bool:
        """Tell whether a uniform plan is one of this space."""
        used = {space.SEARCHED_AS[axis.dimension] for axis in plan.strategy.axes}
        used |= {PP} if plan.num_stages > 1 else set()
        return used <= set(self.dimensions) and plan.strategy.checkpoint == (CKPT in self.dimensions)


BASELINE_SPACES = (
    BaselineSpace("DP", (DP,)),
    BaselineSpace("DP+CKPT", (DP, CKPT)),
    BaselineSpace("ZERO2", (ZERO2,)),
    BaselineSpace("ZERO2+CKPT", (ZERO2, CKPT)),
    BaselineSpace("SDP", (SDP,)),
    BaselineSpace("SDP+CKPT", (SDP, CKPT)),
    BaselineSpace("TP", (TP,)),
    BaselineSpace("TP+CKPT", (TP, CKPT)),
    BaselineSpace("PP", (PP,)),
    BaselineSpace("PP+CKPT", (PP, CKPT)),
    BaselineSpace("DP+TP", (DP, TP), is_uniform=False),
    BaselineSpace("DP+PP", (DP, PP)),
    BaselineSpace("3D", (DP, TP, PP)),
    BaselineSpace("3D+CKPT", (DP, TP, PP, CKPT)),
)
"""DP+TP chooses per layer and DP+PP cuts freely, as the limited searches of the Galvatron paper (arXiv 2211.13878,
section 5) do; 3D is the grid of Megatron-LM and DeepSpeed: data x tensor x pipeline parallel, equal everywhere."""


def baselines_of(
    problem: PlanningProblem, prices: PriceList, uniform: UniformSearch | None = None
) -> tuple[Baseline, ...]:
    """Find the best plan of every baseline that the problem's limits allow, or the memory that one would need.

    Args:
        problem: what is asked.
        prices: of the problem.
        uniform: of the problem, where one has begun.
    """
    if problem.cluster.num_devices == 1:
        return ()
    spaces = [one for one in BASELINE_SPACES if all(problem.limits.allows(d) for d in one.dimensions)]
    groups, uniform = tuple(uniform_plans(problem)), uniform or UniformSearch(problem, prices)
    found = []
    for one in spaces:
        own = [group for group in groups if one.has(group[0])]
        best = uniform.fastest(chain.from_iterable(own)) if one.is_uniform else _searched(one, problem, prices)
        needed = uniform.smallest_peak(own) if best is None else None
        found.append(Baseline(name=one.name, plan=alternative(best) if best else None, needed_bytes=needed))
    return tuple(found)


def restricted(problem: PlanningProblem, dimensions: tuple[SearchDimension, ...]) -> PlanningProblem:
    """Pose the same problem with these dimensions only, and without sequence parallelism, as they are known."""
    excluded = tuple(dimension for dimension in SearchDimension if dimension not in dimensions)
    return with_limits(problem.without_sequence_parallelism(), excluded)


def with_limits(problem: PlanningProblem, excluded: tuple[SearchDimension, ...]) -> PlanningProblem:
    """Pose the same problem with other dimensions excluded."""
    limits = problem.limits.model_copy(update={"excluded": excluded})
    return problem.model_copy(update={"limits": limits})


def _searched(smaller: BaselineSpace, problem: PlanningProblem, prices: PriceList) -> Candidate | None:
    found = explore(restricted(problem, smaller.dimensions), prices).best.values()
    return min(found, key=seconds_per_sample, default=None)
