"""The planning problem as a mixed-integer linear programme, solved by HiGHS: a second oracle, for more layers.

Formulated from the prices (``tables.py``), not from the search. A plan is a path through nodes (layer, stage, layout of
the activations): arcs inside a stage carry the price of a change of layout, arcs between stages that of the boundary,
and every node that the path visits chooses one of its layer's strategies. Time and memory of a stage are then linear
in what is chosen, and so is the step: GPipe by its closed form, 1F1B by one variable for the end of every pass. Both
are exact; what is left is the solver's own tolerance.

Source of the closed form: stages of equal micro-batches are a proportionate flow shop, whose last job ends after the
sum over the stages and (jobs - 1) times the longest of them. A stage receives before it computes, so a transfer makes
the passes of the receiver longer.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import StageStrategies, price_step
from galvatron_planner.problem import PlanningProblem, Schedule
from oracles import Optimum
from tables import Pass, Tables, every_table, schedule_order

SOLVER_TOLERANCE = 1e-6
"""HiGHS takes constraints as kept and integers as whole up to this; memory and time are scaled to about 1."""

Terms = Mapping[int, float]
"""Coefficient by index of variable."""


@dataclass(frozen=True, slots=True)
class Formulated:
    """What the formulation says of a problem.

    Attributes:
        seconds_per_sample: no plan is faster, up to the solver's tolerance; infinite when nothing fits.
        optimum: the best plan that it found, priced by the cost model; none when nothing fits.
        is_exact: whether it solved everything, and found no plan that fits only within its tolerance.
    """

    seconds_per_sample: float
    optimum: Optimum | None
    is_exact: bool


def formulate(problem: PlanningProblem, *, time_limit_seconds: float = 60) -> Formulated:
    """Solve a problem: every split and pipeline degree by its own programme, each to beat the ones before it."""
    prices = PriceList.of(problem)
    bound, best, is_exact = float("inf"), None, True
    for asked in every_table(problem, prices):
        cutoff = asked.split.global_batch_size / best.estimate.samples_per_second if best else float("inf")
        solved = _Programme(asked).solve(cutoff, time_limit_seconds)
        bound = min(bound, solved.bound_seconds / asked.split.global_batch_size)
        is_exact &= solved.is_exact
        if solved.stages is None:
            continue
        estimate = price_step(prices, problem, solved.stages, asked.split)
        # What exceeds the memory by no more than the solver's tolerance is no plan.
        fits = estimate.peak_bytes <= problem.cluster.device_memory_bytes
        is_exact &= fits
        if fits and (best is None or estimate.samples_per_second > best.estimate.samples_per_second):
            best = Optimum(asked.split, solved.stages, estimate)
    return Formulated(bound, best, is_exact)


@dataclass(frozen=True, slots=True)
class _Solved:
    bound_seconds: float
    stages: StageStrategies | None
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the solver says: its status, its message, its bound, and values of the variables if it found any."""

    status: int
    message: str
    bound: float | None
    values: np.ndarray[Any, Any] | None


_SOLVERS: list[ProcessPoolExecutor] = []
"""The process in which problems are solved: HiGHS in SciPy 1.17 sometimes ends it by a segmentation fault."""


def _ask_solver(*question: Any) -> _Answer | None:
    """Have a problem solved; None when the solver dies of it."""
    if not _SOLVERS:
        _SOLVERS.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
    try:
        return _SOLVERS[0].submit(_solve, *question).result()
    except BrokenProcessPool:
        _SOLVERS.pop().shutdown()
        return None


def _solve(costs: Any, integrality: Any, bounds: Any, constraints: Any, time_limit_seconds: float) -> _Answer:
    options = {"time_limit": time_limit_seconds, "mip_rel_gap": 1e-9}
    result: Any = milp(costs, integrality=integrality, bounds=bounds, constraints=constraints, options=options)
    return _Answer(result.status, result.message, result.mip_dual_bound, result.x)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Linear constraints: ``lower <= sum of terms <= upper``."""

    terms: list[Terms] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, terms: Terms, *, lower: float = -np.inf, upper: float = np.inf) -> None:
        self.terms.append(terms)
        self.lower.append(lower)
        self.upper.append(upper)

    def equal(self, variable: int, terms: Terms) -> None:
        """Let a variable be the sum of terms."""
        self.add({**terms, variable: terms.get(variable, 0.0) - 1.0}, lower=0.0, upper=0.0)

    def at_least(self, variable: int, *parts: Terms) -> None:
        """Let a variable be no smaller than the sum of terms."""
        self.add({**_negative(_sum(*parts)), variable: 1.0 - _sum(*parts).get(variable, 0.0)}, lower=0.0)

    def constraint(self, num_variables: int) -> LinearConstraint:
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for row, terms in enumerate(self.terms):
            rows += [row] * len(terms)
            columns += terms.keys()
            values += terms.values()
        matrix = csr_array((values, (rows, columns)), shape=(len(self.terms), num_variables))
        return LinearConstraint(matrix, np.array(self.lower), np.array(self.upper))


class _Programme:
    """One programme; it has state because variables and constraints are added one by one."""

    def __init__(self, asked: Tables) -> None:
        self.asked = asked
        self.rows = _Rows()
        self.num_variables = 0
        # Time in units of the quickest work there is, memory in units of the device.
        self.second = 1.0 / sum(float((x.forward + x.backward).min()) for x in asked.layers)
        self.byte = 1.0 / max(1, asked.room_bytes)
        stages = range(asked.num_stages)
        last = len(asked.layers) - 1
        self.nodes = [
            (index, k)
            for index in range(last + 1)
            for k in stages
            if k <= index and asked.num_stages - 1 - k <= last - index
        ]
        self.chosen = {node: self._new(asked.layers[node[0]].size) for node in self.nodes}
        self.num_binaries = self.num_variables
        pairs = len(asked.layouts) ** 2
        self.arcs = {
            (node, ahead): self._new(pairs)
            for node in self.nodes
            for ahead in ((node[0] + 1, node[1]), (node[0] + 1, node[1] + 1))
            if ahead in self.chosen
        }
        self._path()
        self.working = self._new(asked.num_stages)
        self._memory()
        self.step = self._new(1)[0]
        self.optimizer = self._new(1)[0]
        self._time()

    def solve(self, cutoff_seconds: float, time_limit_seconds: float) -> _Solved:
        """Solve for a step of at most ``cutoff_seconds``."""
        overhead = self.asked.problem.profile.step_overhead_seconds
        costs = np.zeros(self.num_variables)
        costs[[self.step, self.optimizer]] = 1.0
        if cutoff_seconds < np.inf:
            terms = {self.step: 1.0, self.optimizer: 1.0}
            self.rows.add(terms, upper=(cutoff_seconds - overhead) * self.second)
        upper = np.full(self.num_variables, np.inf)
        upper[: self.num_binaries] = 1.0
        answer = _ask_solver(
            costs,
            np.arange(self.num_variables) < self.num_binaries,
            Bounds(np.zeros(self.num_variables), upper),
            self.rows.constraint(self.num_variables),
            time_limit_seconds,
        )
        if answer is None:
            return _Solved(0.0, None, is_exact=False)
        if answer.status == 2:  # infeasible: nothing fits, or nothing is faster
            return _Solved(cutoff_seconds, None)
        assert answer.status in (0, 1), answer.message
        bound = min(cutoff_seconds, float(answer.bound or 0.0) / self.second + overhead)
        stages = None if answer.values is None else self._stages(answer.values)
        return _Solved(bound, stages, is_exact=answer.status == 0)

    def _new(self, number: int) -> list[int]:
        self.num_variables += number
        return list(range(self.num_variables - number, self.num_variables))

    def _stages(self, values: "np.ndarray[Any, np.dtype[np.float64]]") -> StageStrategies:
        stages: list[list[Any]] = [[] for _ in range(self.asked.num_stages)]
        for index, k in self.nodes:
            for strategy, variable in zip(self.asked.layers[index].strategies, self.chosen[index, k], strict=True):
                if values[variable] > 0.5:
                    stages[k].append(strategy)
        return tuple(tuple(stage) for stage in stages)

    def _path(self) -> None:
        """One strategy a layer, and arcs between the layouts of neighbours: contiguous stages follow."""
        num_layouts = len(self.asked.layouts)
        for index in range(len(self.asked.layers)):
            everywhere = [v for node in self.nodes if node[0] == index for v in self.chosen[node]]
            self.rows.add(dict.fromkeys(everywhere, 1.0), lower=1.0, upper=1.0)
        for node in self.nodes:
            for layout in range(num_layouts):
                here = {
                    v: 1.0
                    for v, placed in zip(self.chosen[node], self.asked.layers[node[0]].layouts, strict=True)
                    if placed == layout
                }
                incoming = [arcs[a * num_layouts + layout] for arcs in self._into(node) for a in range(num_layouts)]
                outgoing = [arcs[layout * num_layouts + b] for arcs in self._from(node) for b in range(num_layouts)]
                if node[0] > 0:
                    self.rows.add(_sum(here, dict.fromkeys(incoming, -1.0)), lower=0.0, upper=0.0)
                if node[0] < len(self.asked.layers) - 1:
                    self.rows.add(_sum(here, dict.fromkeys(outgoing, -1.0)), lower=0.0, upper=0.0)

    def _into(self, node: tuple[int, int]) -> Iterator[list[int]]:
        return (arcs for (_, ahead), arcs in self.arcs.items() if ahead == node)

    def _from(self, node: tuple[int, int]) -> Iterator[list[int]]:
        return (arcs for (before, _), arcs in self.arcs.items() if before == node)

    def _crossed(self, amounts: "np.ndarray[Any, Any]", arcs: Iterable[list[int]], unit: float) -> Terms:
        """Charge arcs with an amount per pair of layouts."""
        flat = [float(amount) * unit for amount in amounts.ravel()]
        return {variable: amount for some in arcs for variable, amount in zip(some, flat, strict=True)}

    def _picked(self, node: tuple[int, int], amounts: "np.ndarray[Any, Any]", unit: float) -> Terms:
        """Charge the strategies of a node with an amount each."""
        if node not in self.chosen:
            return {}
        return {v: float(amount) * unit for v, amount in zip(self.chosen[node], amounts, strict=True)}

    def _on_stage(self, k: int) -> Iterator[tuple[int, int]]:
        return (node for node in self.nodes if node[1] == k)

    def _boundary_bytes(self, k: int) -> Iterator[Terms]:
        width = len(self.asked.layouts)
        for (before, ahead), arcs in self.arcs.items():
            boundary = self.asked.boundaries[ahead[0]]
            if before[1] == ahead[1]:
                continue
            if ahead[1] == k:
                yield self._crossed(boundary.entry[k], [arcs], self.byte)
            if before[1] == k:
                yield self._crossed(np.repeat(boundary.exit[k][:, None], width, axis=1), [arcs], self.byte)

    def _memory(self) -> None:
        for k in range(self.asked.num_stages):
            kept: list[Terms] = []
            for node in self._on_stage(k):
                layer, boundary = self.asked.layers[node[0]], self.asked.boundaries[node[0]]
                kept.append(self._picked(node, self.asked.kept(layer, k), self.byte))
                transient = self._picked(node, layer.transient, self.byte)
                ahead = self._picked((node[0] - 1, k), self.asked.layers[node[0] - 1].gathered, self.byte)
                self.rows.at_least(self.working[k], transient, ahead)
                self.rows.at_least(self.working[k], self._crossed(boundary.transient, self._into(node), self.byte))
            self.rows.add(
                _sum(*kept, *self._boundary_bytes(k), {self.working[k]: 1.0}), upper=self.asked.room_bytes * self.byte
            )

    def _amount(self, *terms: Terms) -> int:
        variable = self._new(1)[0]
        self.rows.equal(variable, _sum(*terms))
        return variable

    def _passes(self, k: int) -> tuple[int, int]:
        """Variables of a stage's forward and backward pass, each with what it waits to receive."""
        there, back = self._hops(k - 1), self._hops(k)
        for node in self._on_stage(k):
            layer, boundary = self.asked.layers[node[0]], self.asked.boundaries[node[0]]
            there.append(self._picked(node, layer.forward, self.second))
            back.append(self._picked(node, layer.backward, self.second))
            there.append(self._crossed(boundary.forward, self._into(node), self.second))
            back.append(self._crossed(boundary.backward, self._into(node), self.second))
        return self._amount(*there), self._amount(*back)

    def _hops(self, k: int) -> list[Terms]:
        """Charge whichever arc leads from a stage into the next with a transfer; there is none at the ends."""
        width = len(self.asked.layouts)
        return [
            self._crossed(
                np.repeat(self.asked.boundaries[ahead[0]].hop[k][:, None], width, axis=1), [arcs], self.second
            )
            for (before, ahead), arcs in self.arcs.items()
            if before[1] == k and ahead[1] == k + 1
        ]

    def _time(self) -> None:
        asked = self.asked
        passes = [self._passes(k) for k in range(asked.num_stages)]
        ends = self._gpipe(passes) if asked.problem.limits.schedule is Schedule.GPIPE else self._events(passes)
        for k, end in enumerate(ends):
            nodes = list(self._on_stage(k))
            sync = [self._picked(node, asked.layers[node[0]].sync, self.second) for node in nodes]
            self.rows.at_least(self.step, end, *sync)
            optimizer = [self._picked(node, asked.layers[node[0]].optimizer, self.second) for node in nodes]
            self.rows.at_least(self.optimizer, *optimizer)

    def _gpipe(self, passes: list[tuple[int, int]]) -> list[Terms]:
        """Give when each stage ends: all forward passes, then the backward passes from the last stage down to it."""
        waiting = float(self.asked.split.num_micro_batches - 1)
        slowest = self._new(1)[0]
        for forward, _ in passes:
            self.rows.at_least(slowest, {forward: 1.0})
        there = _sum({slowest: waiting}, *({forward: 1.0} for forward, _ in passes))
        ends = []
        for k in range(len(passes)):
            slowest = self._new(1)[0]
            for _, backward in passes[k:]:
                self.rows.at_least(slowest, {backward: 1.0})
            back = [{backward: 1.0} for _, backward in passes[k:]]
            ends.append(_sum(there, {slowest: waiting}, *back))
        return ends

    def _events(self, passes: list[tuple[int, int]]) -> list[Terms]:
        """Give when each stage ends, with a variable for the end of every pass."""
        last = self.asked.num_stages - 1
        ends: dict[tuple[int, Pass, int], int] = {}
        newest: dict[int, Terms] = {}
        for k, direction, index in schedule_order(self.asked):
            end, own = self._new(1)[0], {passes[k][direction is Pass.BACKWARD]: 1.0}
            self.rows.at_least(end, newest.get(k, {}), own)
            before = k - 1 if direction is Pass.FORWARD else k + 1
            if 0 <= before <= last:
                self.rows.at_least(end, {ends[before, direction, index]: 1.0}, own)
            ends[k, direction, index], newest[k] = end, {end: 1.0}
        return [newest[k] for k in range(last + 1)]


def _sum(*parts: Terms) -> Terms:
    total: dict[int, float] = {}
    for part in parts:
        for variable, coefficient in part.items():
            total[variable] = total.get(variable, 0.0) + coefficient
    return total


def _negative(terms: Terms) -> Terms:
    return {variable: -coefficient for variable, coefficient in terms.items()}
