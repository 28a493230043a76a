"""Other plans for the same problem, good ones and random ones: what a choice is measured against."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from random import Random

from galvatron_planner import families
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.model import LayerSpec
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.baselines import BASELINE_SPACES
from galvatron_planner.search.candidates import candidate_strategies, explore
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.optimizer import as_plan
from galvatron_planner.search.ranges import degrees, splits
from galvatron_planner.search.uniform import UniformSearch, uniform_plans
from galvatron_planner.strategy import LayerStrategy

MAX_DRAWS = 200
"""Draws for every random plan that is wanted; where memory is short, most do not fit."""
MAX_PALETTE = 3
"""Different strategies of the blocks of one stage, at most."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A plan that fits, and why it is here."""

    name: str
    plan: Plan


def rivals(problem: PlanningProblem, *, num_plans: int, seed: int = 0) -> tuple[Rival, ...]:
    """List different plans that fit, the most interesting first.

    The proven best plan, the best ones of other pipeline degrees and of every way to split without a search, then
    random ones, priced by the same profile.

    Args:
        problem: what they are for.
        num_plans: at most so many; fewer where not so many were found to fit.
        seed: of the random ones.
    """
    found: dict[tuple[StageStrategies, BatchSplit], Rival] = {}
    prices = PriceList.of(problem)
    for name, candidate in chain(_good(problem, prices), _random(problem, prices, num_plans=num_plans, seed=seed)):
        if len(found) == num_plans:
            break
        found.setdefault((candidate.stages, candidate.split), Rival(name, as_plan(problem, candidate)))
    return tuple(found.values())


def _good(problem: PlanningProblem, prices: PriceList) -> Iterator[tuple[str, Candidate]]:
    uniform = UniformSearch(problem, prices)
    best = sorted(explore(problem, prices, uniform).best.values(), key=lambda one: -one.estimate.samples_per_second)
    for index, candidate in enumerate(best):
        yield f"best of pp{len(candidate.stages)}" if index else "Optimal", candidate
    groups = tuple(uniform_plans(problem))
    for space in BASELINE_SPACES:
        if space.is_uniform:
            own = chain.from_iterable(group for group in groups if space.has(group[0]))
            fastest = uniform.fastest(own)
            if fastest is not None:
                yield space.name, fastest


def _random(
    problem: PlanningProblem, prices: PriceList, *, num_plans: int, seed: int
) -> Iterator[tuple[str, Candidate]]:
    random = Random(seed)  # noqa: S311 -- no secret
    choices = {num_stages: candidate_strategies(problem, num_stages) for num_stages in degrees(problem)}
    sizes = tuple(splits(problem))
    draws = (_draw(problem, random, choices, sizes) for _ in range(MAX_DRAWS * num_plans))
    fitting = (one for one in (_priced(problem, prices, *draw) for draw in draws if draw is not None) if one)
    for index, candidate in enumerate(islice(fitting, num_plans), start=1):
        yield f"random {index}", candidate


def _draw(
    problem: PlanningProblem,
    random: Random,
    choices: Mapping[int, Mapping[LayerSpec, tuple[LayerStrategy, ...]]],
    sizes: Sequence[BatchSplit],
) -> tuple[StageStrategies, BatchSplit] | None:
    """Draw a pipeline degree, a batch split, a cut, and strategies; None where they do not go together."""
    layers = families.layers(problem.model)
    num_stages, split = random.choice([*choices]), random.choice(sizes)
    cuts = (0, *sorted(random.sample(range(1, len(layers)), num_stages - 1)), len(layers))
    stages = []
    for start, end in pairwise(cuts):
        palettes: dict[LayerSpec, list[LayerStrategy]] = {}
        for layer in dict.fromkeys(layers[start:end]):
            able = [s for s in choices[num_stages][layer] if split.micro_batch_size % s.data_degree == 0]
            if not able:
                return None
            palettes[layer] = random.sample(able, min(len(able), random.randint(1, MAX_PALETTE)))
        stages.append(tuple(random.choice(palettes[layer]) for layer in layers[start:end]))
    return tuple(stages), split


def _priced(
    problem: PlanningProblem, prices: PriceList, stages: StageStrategies, split: BatchSplit
) -> Candidate | None:
    estimate = price_step(prices, problem, stages, split)
    fits = estimate.peak_bytes <= problem.cluster.device_memory_bytes
    return Candidate(split, stages, estimate) if fits else None
