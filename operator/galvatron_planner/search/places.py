"""One place in a pipeline: bounds of every stage that can stand there, replaced by exact values where they are needed.

Legend: W metrics, Q possible stages (first and last layer), E layouts in which a stage can be entered, X exits.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from galvatron_planner.search.bound import BoundTable
from galvatron_planner.search.contents import Contents, Stages
from galvatron_planner.search.graph import StageGraph, StageTask
from galvatron_planner.search.options import BACKWARD, FORWARD, Flags, Floats, Integers, PipelineOptions, rising
from galvatron_planner.search.stage import StageChoice, StageSearch
from galvatron_planner.strategy import Layout


class Metric(IntEnum):
    """What of a stage is minimised."""

    TRAVERSAL = 0
    """What a stage adds to the way of one micro-batch through the pipeline and back."""
    WORK = 1
    """Seconds of all micro-batches and of the optimizer: what the slowest stage takes."""
    FINISH = 2
    """The same with the gradient reduction that sticks out."""
    RETURN = 3
    """What a stage adds to the way of one micro-batch, on the first stage with the optimizer.

    The first stage ends last: reduction and optimizer follow its last pass, however long other stages have worked.
    """
    DRAIN = 4
    """What the first stage does beside the ways through all others for which it waits; see :func:`draining`.

    Of other stages: what they add to so many ways, with their optimizer.
    """
    PASSES = 5
    """The same of the first stage without its optimizer, since that of another one may take longer."""


def draining(num_micro_batches: int, in_flight: int) -> tuple[float, float, float]:
    """Tell for how many ways of a micro-batch through all later stages and back the first stage waits in a step.

    With all micro-batches in flight but one at most, for one: one forward pass comes before it, those that are in
    flight happen meanwhile, everything else comes after. With fewer in flight for two, and for as many more as its
    window is emptied in between; passes of a window less one are hidden behind each but the last.

    Returns:
        forward passes and backward passes that are not hidden, and ways.
    """
    window = min(in_flight, num_micro_batches)
    if num_micro_batches - 1 < window:
        return float(num_micro_batches - window + 1), float(num_micro_batches), 1.0
    times = (num_micro_batches - 1) // window
    passes = float(num_micro_batches - (window - 1) * times)
    return passes, passes, 1.0 + times


Weights = tuple[float, float, float, float]
"""Of the amounts of time of a stage: forward, backward, reduction, optimizer."""


@dataclass(frozen=True, slots=True)
class Position:
    """What all stages of a place have in common.

    Attributes:
        stage_index: of the place.
        num_micro_batches: of the step.
        in_flight: micro-batches whose activations they hold at most.
        first_in_flight: those of the first stage.
        budget_bytes: device memory without the reserve.
        is_first: whether the model begins here.
        is_last: whether it ends here.
    """

    stage_index: int
    num_micro_batches: int
    in_flight: int
    first_in_flight: int
    budget_bytes: int
    is_first: bool
    is_last: bool

    @property
    def holds_all(self) -> bool:
        """Tell whether all micro-batches of the step are in flight at once."""
        return self.in_flight == self.num_micro_batches

    def weights(self, metric: Metric) -> Weights:
        """Weigh the amounts of time of a stage.

        The first stage is the last to end its passes, so its reduction comes after whatever the others take.
        """
        m, after_all = float(self.num_micro_batches), float(self.is_first)
        if self.is_first and self.is_last:
            return m, m, 1.0, 1.0
        forward, backward, ways = draining(self.num_micro_batches, self.first_in_flight)
        return {
            Metric.TRAVERSAL: (1.0, 1.0, after_all, 0.0),
            Metric.WORK: (m, m, after_all, 1.0),
            Metric.FINISH: (m, m, 1.0, 1.0),
            Metric.RETURN: (1.0, 1.0, after_all, after_all),
            Metric.DRAIN: (forward, backward, 1.0, 1.0) if self.is_first else (ways, ways, 0.0, 1.0),
            # Where it tells nothing it is the same as another one, and costs nothing more to bound.
            Metric.PASSES: (forward, backward, 1.0, 0.0) if self.is_first else (1.0, 1.0, 0.0, 0.0),
        }[metric]


class Place:
    """All stages of one place; it has state because bounds are sharpened where the search looks.

    Attributes:
        position: what they have in common.
        start: first layer of each stage, rising, (Q,).
        end: one past its last layer, (Q,).
        content: what it holds, (Q,).
        entries: layouts in which stages can be entered, as indices in the options' list, rising, (E,); 0 for none.
        exits: layouts in which they can leave, likewise, (X,).
        seconds: per metric, transfers included, (W, Q, E, X); bounds, or exact where ``exact`` says so.
        exact: (W, Q, E, X).
        offsets: where the stages of each distinct first layer begin, for reductions over them.
    """

    def __init__(
        self, options: PipelineOptions, contents: Contents, position: Position, stages: Stages, before: "Place | None"
    ) -> None:
        """List the stages; bounds follow with :meth:`bound`.

        Args:
            options: what layers may choose.
            contents: of the model.
            position: of the place.
            stages: that can stand there.
            before: the place before it.
        """
        self.position = position
        self.start, self.end = stages
        self.content: Integers = contents.of(stages)
        self.offsets = np.flatnonzero(np.diff(self.start, prepend=-1))
        self._options = options
        self._contents = contents
        self._graphs: dict[tuple[Weights, int], StageGraph] = {}
        self._searches: dict[tuple[Weights, int], StageSearch] = {}
        none = np.zeros((len(self.start), 1))
        self.entries: Integers = np.zeros(1, dtype=np.int64) if before is None else before.exits
        self.exits: Integers = self._list_exits()
        shape = (len(self.start), self.num_entries, len(self.exits))
        self._arriving: Floats = (
            none if position.is_first else self._hops(position.stage_index - 1, self.start, self.entries)
        )
        self._returning: Floats = none if position.is_last else self._hops(position.stage_index, self.end, self.exits)
        self.seconds: Floats = np.full((len(Metric), *shape), np.inf)
        self.exact: Flags = np.zeros((len(Metric), *shape), dtype=bool)

    @property
    def num_entries(self) -> int:
        """Layouts in which a stage can be entered."""
        return len(self.entries)

    def entry_layout(self, entry: int) -> Layout | None:
        """Give a layout in which stages are entered; None on the first stage."""
        return None if self.position.is_first else self._options.exits[self.entries[entry]]

    def exit_layout(self, exit_index: int) -> Layout | None:
        """Give a layout in which stages leave; None on the last stage."""
        return None if self.position.is_last else self._options.exits[self.exits[exit_index]]

    def _list_exits(self) -> Integers:
        if self.position.is_last:
            return np.zeros(1, dtype=np.int64)
        last = {self._contents.distinct[content].pair[1] for content in self.content}
        states = [self._options.layers[kind].own_states for kind in sorted(last)]
        return rising(self._options.exit_of[np.concatenate([np.zeros(0, dtype=np.int64), *states])])

    def solve(
        self, metric: Metric, stage: int, entry: int, exit_index: int, cutoff_seconds: float = float("inf")
    ) -> StageChoice | None:
        """Find the best strategies of one stage, and sharpen every equal stage's bound to their value.

        Returns:
            the strategies, with their seconds but for transfers, or None when the stage is not faster than the cutoff.
        """
        content, leaving = int(self.content[stage]), self.exit_layout(exit_index)
        receiving = self.receiving_seconds(metric, stage, entry, exit_index)
        kinds = self._contents.kinds_of(content)
        choice = self._search(metric, entry).best(kinds, leaving, cutoff_seconds - receiving)
        seconds = cutoff_seconds if choice is None else choice.seconds + receiving
        equal = np.flatnonzero(self.content == content)
        self.seconds[metric, equal, entry, exit_index] = seconds
        self.exact[metric, equal, entry, exit_index] = choice is not None
        return choice

    def glance(self, metric: Metric, stage: int, entry: int, exit_index: int) -> StageChoice | None:
        """Find good strategies of one stage, quickly."""
        kinds = self._contents.kinds_of(int(self.content[stage]))
        return self._search(metric, entry).glance(kinds, self.exit_layout(exit_index))

    def transfer_seconds(self, stage: int, entry: int, exit_index: int) -> tuple[float, float]:
        """Give the transfers with which the forward and the backward pass of a stage begin."""
        return float(self._arriving[stage, entry]), float(self._returning[stage, exit_index])

    def receiving_seconds(self, metric: Metric, stage: int, entry: int, exit_index: int) -> float:
        """Give what transfers add to a metric of a stage, which no choice inside it can change."""
        weights, (there, back) = self.position.weights(metric), self.transfer_seconds(stage, entry, exit_index)
        return weights[FORWARD] * there + weights[BACKWARD] * back

    def graph(self, metric: Metric, entry: int) -> StageGraph:
        """Give the graph of the stages that are entered in one layout."""
        return self._graph(self.position.weights(metric), entry)

    def _graph(self, weights: Weights, entry: int) -> StageGraph:
        if (weights, entry) not in self._graphs:
            task = StageTask(
                weights=weights,
                in_flight=self.position.in_flight,
                holds_all=self.position.holds_all,
                budget_bytes=self.position.budget_bytes,
                entry=self.entry_layout(entry),
                feeds_next=not self.position.is_last,
            )
            like = next((graph for (own, _), graph in self._graphs.items() if own == weights), None)
            self._graphs[weights, entry] = StageGraph(self._options, task, like)
        return self._graphs[weights, entry]

    def _search(self, metric: Metric, entry: int) -> StageSearch:
        weights = self.position.weights(metric)
        if (weights, entry) not in self._searches:
            self._searches[weights, entry] = StageSearch(self.graph(metric, entry))
        return self._searches[weights, entry]

    def _hops(self, stage_index: int, ahead: Integers, layouts: Integers) -> Floats:
        """Price transfers between a stage and the next, which begins with the layers ``ahead``, (Q, layouts)."""
        kinds = range(len(self._options.layers))
        by_kind = np.array([self._options.hop_seconds(kind, stage_index=stage_index) for kind in kinds])
        return np.asarray(by_kind[np.array(self._options.kinds)[ahead - 1]][:, layouts])

    def bound(self) -> "Place":
        """Bound all stages."""
        wanted = rising(self.content)
        index = np.searchsorted(wanted, self.content)
        weightings = list(dict.fromkeys(self.position.weights(metric) for metric in Metric))
        graphs = [[self._graph(weights, entry) for entry in range(self.num_entries)] for weights in weightings]
        bounds = BoundTable(graphs, self._contents, self.exits).seconds(wanted)
        for metric in Metric:
            weights = self.position.weights(metric)
            receiving = weights[FORWARD] * self._arriving[:, :, None] + weights[BACKWARD] * self._returning[:, None, :]
            self.seconds[metric] = bounds[weightings.index(weights)][index] + receiving
        return self

    def peaks(self) -> Floats:
        """Give the least device memory that each stage needs, without the reserve, (Q, E, X)."""
        wanted = rising(self.content)
        index = np.searchsorted(wanted, self.content)
        graphs = [[self.graph(Metric.FINISH, entry) for entry in range(self.num_entries)]]
        return np.asarray(BoundTable(graphs, self._contents, self.exits, exact_caps=True).peaks(wanted)[index])
