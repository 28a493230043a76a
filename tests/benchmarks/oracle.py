"""The search against every plan: random small problems, each solved by both, and the differences counted.

    cd tests && python -m benchmarks.oracle [--instances N] [--seed N] [--plans N] [--processes N]

Instance ``i`` of seed ``s`` is ``instances.small_problem(Random(f"{s}/{i}").choice)``: a difference is printed with
that key and can be looked at again with ``--only s/i``. Exits with 1 where a single instance differs.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from random import Random
from time import process_time

import instances
import oracles
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution

TOLERANCE = 1e-9
"""Relative: sums in another order differ by less."""


class Verdict(StrEnum):
    """What the search's plan is, compared with the best of all plans."""

    EQUAL = "equal"
    NOTHING_FITS = "equal: nothing fits"
    WORSE = "worse"
    BETTER = "better than every plan (the oracle is wrong)"
    MISSED = "found nothing where a plan fits"
    INVENTED = "found a plan where none fits"
    MISPRICED = "estimate is not what the cost model says"
    NO_CERTIFICATE = "no lower bound given"
    CRASHED = "the search failed"
    BAD_BOUND = "lower bound above the optimum"
    BAD_CERTIFICATE = "gap 0 claimed for a plan that is not the best"


AGREEMENTS = (Verdict.EQUAL, Verdict.NOTHING_FITS)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One instance.

    Attributes:
        key: with which it is drawn again.
        verdict: how the two compare.
        difference: throughput of the best plan over that of the search's, minus 1.
        gap: as the search reports it; none without a plan.
        num_plans: plans that were looked at.
        search_seconds: CPU time of the search.
        oracle_seconds: CPU time of looking at all plans.
        title: the instance in words.
    """

    key: str
    verdict: Verdict
    difference: float
    gap: float | None
    num_plans: int
    search_seconds: float
    oracle_seconds: float
    title: str


def main() -> None:
    """Compare, and print the counts."""
    options = parse_options()
    keys = options.only or [f"{options.seed}/{index}" for index in range(options.instances)]
    compared = []
    for done, one in enumerate(comparisons(keys, options.plans, options.processes), 1):
        compared.append(one)
        if one.verdict not in AGREEMENTS:
            print(f"{one.key}: {one.verdict}, {one.difference:.3e} ({one.title})", file=sys.stderr, flush=True)
        if done % max(1, len(keys) // 20) == 0:
            print(f"{done} of {len(keys)}", file=sys.stderr, flush=True)
    print_report(compared, " ".join(sys.argv[1:]))
    sys.exit(any(one.verdict not in AGREEMENTS for one in compared))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Hold the search against exhaustive enumeration.")
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plans", type=int, default=instances.MAX_PLANS, help="plans of the largest instance")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", help="keys of single instances")
    return parser.parse_args()


def comparisons(keys: list[str], max_plans: int, processes: int) -> Iterator[Comparison]:
    """Compare instance after instance, on several cores."""
    if processes == 1:
        yield from (compare(key, max_plans) for key in keys)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(compare, keys, [max_plans] * len(keys), chunksize=8)


def compare(key: str, max_plans: int) -> Comparison:
    """Solve one instance by the search and by looking at every plan."""
    problem = instances.small_problem(Random(key).choice, max_plans=max_plans)  # noqa: S311 - nothing secret
    started = process_time()
    solution, crash = solve(problem)
    searched = process_time()
    best = oracles.optimum(problem)
    ended = process_time()
    verdict, difference = (Verdict.CRASHED, 0.0) if crash else judge(problem, solution, best)
    limits = problem.limits
    return Comparison(
        key=key,
        verdict=verdict,
        difference=difference,
        gap=solution.report.gap if solution else None,
        num_plans=instances.num_plans(problem.model, problem.cluster, problem.batch, problem.limits),
        search_seconds=searched - started,
        oracle_seconds=ended - searched,
        title=f"{problem.model.num_layers} blocks, {problem.cluster.num_devices} devices, batch {problem.batch.minimum}"
        f" to {problem.batch.maximum}, {limits.schedule}, without {'+'.join(limits.excluded) or 'nothing'};"
        f" best {plan_text(best)}, found {crash or (solution.plan.summary if solution else 'nothing')}",
    )


def solve(problem: PlanningProblem) -> tuple[Solution | None, str]:
    """Search; no solution when nothing fits, or when the search fails, and then how it failed."""
    try:
        return search(problem), ""
    except NoFeasiblePlan:
        return None, ""
    except Exception as error:  # noqa: BLE001 - a failure is a finding, and the others are still to be compared
        return None, repr(error)


def judge(problem: PlanningProblem, solution: Solution | None, best: oracles.Optimum | None) -> tuple[Verdict, float]:
    """Compare the search's plan, its price, its bound and its certificate with the best of all plans."""
    if solution is None:
        return (Verdict.NOTHING_FITS, 0.0) if best is None else (Verdict.MISSED, float("inf"))
    if best is None:
        return Verdict.INVENTED, float("inf")
    plan, report = solution.plan, solution.report
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    if estimate(problem, tuple(stage.layers for stage in plan.stages), split) != plan.estimate:
        return Verdict.MISPRICED, float("inf")
    if report.lower_bound_seconds is None or report.gap is None:
        return Verdict.NO_CERTIFICATE, float("inf")
    difference = best.estimate.samples_per_second / plan.estimate.samples_per_second - 1
    bound = report.lower_bound_seconds / plan.global_batch_size * best.estimate.samples_per_second - 1
    if bound > TOLERANCE:
        return Verdict.BAD_BOUND, bound
    if difference < -TOLERANCE:
        return Verdict.BETTER, difference
    if difference > TOLERANCE:
        return (Verdict.WORSE if report.gap > TOLERANCE else Verdict.BAD_CERTIFICATE), difference
    return Verdict.EQUAL, difference


def plan_text(best: oracles.Optimum | None) -> str:
    """Write the best plan on one line."""
    if best is None:
        return "nothing"
    stages = " | ".join(" ".join(str(strategy) for strategy in stage) for stage in best.stages)
    return f"b{best.split.global_batch_size} m{best.split.num_micro_batches}: {stages}"


def print_report(compared: list[Comparison], arguments: str) -> None:
    """Print counts, the worst difference, certificates and times."""
    print(f"python -m benchmarks.oracle {arguments}  ({date.today().isoformat()})\n")  # noqa: DTZ011
    counts = Counter(one.verdict for one in compared)
    print("| verdict | instances |\n|---|---|")
    for verdict in Verdict:
        if counts[verdict] or verdict in AGREEMENTS:
            print(f"| {verdict} | {counts[verdict]:,} |")
    gaps = [one.gap for one in compared if one.gap is not None]
    plans = sorted(one.num_plans for one in compared)
    print(f"\n{len(compared):,} instances, {sum(plans):,} plans looked at (median {plans[len(plans) // 2]:,},", end=" ")
    print(f"most {plans[-1]:,}); worst difference {max(one.difference for one in compared):.2e}")
    if gaps:
        certified = sum(gap <= TOLERANCE for gap in gaps)
        print(f"certified optimal: {certified:,} of {len(gaps):,}; largest gap {max(gaps):.2%}")
    print(f"CPU seconds per instance: search {spread([one.search_seconds for one in compared])};", end=" ")
    print(f"oracle {spread([one.oracle_seconds for one in compared])}")


def spread(seconds: list[float]) -> str:
    """Give median and maximum."""
    ranked = sorted(seconds)
    return f"median {ranked[len(ranked) // 2]:.4f}, largest {ranked[-1]:.3f}"


if __name__ == "__main__":
    main()
