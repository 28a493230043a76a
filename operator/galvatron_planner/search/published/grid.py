"""The papers' dynamic programme of one stage: layers x memory x strategies, memory counted in units.

``F[l, v, s]``, the least seconds of the first ``l`` layers when they keep at most ``v`` units and layer ``l`` is under
``s``, is the minimum over ``s'`` of ``F[l - 1, v - kept(l, s), s'] + R(s', s)``, plus ``c(l, s)``. What a layer keeps
is rounded up to whole units, so a choice never needs more than it seems to. What comes on top at the moment of the
peak is carried along each best choice, and every amount of kept memory is tried.

Legend: O options of one layer, K layouts of the stage, V units of memory.

Sources: Galvatron (arXiv 2211.13878); Galvatron-BMW (arXiv 2307.02031), which tells the memory that forward passes keep
from the peak of the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Parents = NDArray[np.int16]

NUM_UNITS = 4096
"""Units of a device's memory. The authors count in MiB, which is a little finer where a device has more than 4 GiB."""


@dataclass(frozen=True, slots=True)
class Menu:
    """What one layer of a stage may choose.

    Attributes:
        layout: of each option, as an index among the layouts of the stage, (O,).
        seconds: what the programme minimises the sum of, (O,).
        kept_bytes: held from forward to backward and longer, (O,).
        working_bytes: above that while the layer computes, (O,).
        ahead_bytes: gathered ahead while the layer behind it is in its backward pass, (O,).
    """

    layout: Integers
    seconds: Floats
    kept_bytes: Integers
    working_bytes: Integers
    ahead_bytes: Integers


@dataclass(frozen=True, slots=True)
class Moves:
    """Changes of layout in front of a layer, from every layout to every other, (K, K)."""

    seconds: Floats
    working_bytes: Integers


@dataclass(frozen=True, slots=True)
class StageTask:
    """A stage whose strategies are wanted.

    Attributes:
        menus: per layer.
        moves: in front of each layer.
        entry: layout in which the stage's input comes, as an index.
        exit_bytes: held for the stage's output, by the layout of the last layer, (K,).
        budget_bytes: device memory without the reserve.
    """

    menus: Sequence[Menu]
    moves: Sequence[Moves]
    entry: int
    exit_bytes: Integers
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One layer's row of the programme, per option and units of memory, (O, V + 1).

    Attributes:
        layout: (O,).
        ahead_bytes: (O,).
        seconds: infinite where nothing fits.
        working_bytes: the largest so far along the best choice.
        parent: option of the layer before along it.
    """

    layout: Integers
    ahead_bytes: Integers
    seconds: Floats
    working_bytes: Integers
    parent: Parents


@dataclass(frozen=True, slots=True)
class _Table:
    """The whole programme: its last row, and every layer's way back."""

    last: _Row
    parents: tuple[Parents, ...]
    units: Sequence[Integers]

    def choice(self, option: int, amount: int) -> tuple[int, ...]:
        """Walk back from an option of the last layer and what all layers keep, in units."""
        found = []
        for parent, units in zip(reversed(self.parents), reversed(self.units), strict=True):
            found.append(option)
            before = int(parent[option, amount])
            amount -= int(units[option])
            option = before
        return tuple(reversed(found))


def fastest_choice(task: StageTask) -> tuple[int, ...] | None:
    """Find the option of every layer that together are fastest and fit; None when the programme finds nothing."""
    unit = max(1, -(-task.budget_bytes // NUM_UNITS))
    units = [-(-menu.kept_bytes // unit) for menu in task.menus]
    num_units = max(0, task.budget_bytes) // unit
    if sum(int(amounts.min()) for amounts in units) > num_units:
        return None
    # Most stages with ample memory end at the fastest choice of all, which takes a table of a single column.
    freely = _run(task, [np.zeros_like(amounts) for amounts in units], 0)
    option = int(freely.last.seconds[:, 0].argmin())
    fastest = freely.choice(option, 0)
    kept = sum(int(menu.kept_bytes[chosen]) for menu, chosen in zip(task.menus, fastest, strict=True))
    if kept + int(_needed_above(task, freely.last)[option, 0]) <= task.budget_bytes:
        return fastest
    table = _run(task, units, num_units)
    peaks = np.arange(num_units + 1) * unit + _needed_above(task, table.last)
    seconds = np.where(peaks <= task.budget_bytes, table.last.seconds, np.inf)
    option, amount = (int(index) for index in np.unravel_index(seconds.argmin(), seconds.shape))
    return table.choice(option, amount) if np.isfinite(seconds[option, amount]) else None


def _needed_above(task: StageTask, last: _Row) -> Integers:
    """Give the bytes that come on top of what the layers keep, (O, V + 1)."""
    return last.working_bytes + task.exit_bytes[last.layout][:, None]


def _run(task: StageTask, units: Sequence[Integers], num_units: int) -> _Table:
    """Fill the table, layer by layer; before the first stands what the stage is given."""
    zeros = np.zeros((1, num_units + 1))
    zero = np.zeros(1, dtype=np.int64)
    row = _Row(zero + task.entry, zero, zeros, zeros.astype(np.int64), zeros.astype(np.int16))
    parents = []
    for menu, moves, amounts in zip(task.menus, task.moves, units, strict=True):
        row = _extended(row, menu, moves, amounts)
        parents.append(row.parent)
    return _Table(row, tuple(parents), units)


def _extended(before: _Row, menu: Menu, moves: Moves, units: Integers) -> _Row:
    width = before.seconds.shape[1]
    shape = (len(units), width)
    seconds = np.full(shape, np.inf)
    working, parent = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int16)
    columns = np.arange(width)
    layouts, parents = _best_of_each_layout(before)
    reached = before.seconds[parents, columns]
    for layout in np.unique(menu.layout):
        totals = reached + moves.seconds[layouts, layout][:, None]
        chosen = totals.argmin(axis=0)
        into, from_option = totals[chosen, columns], parents[chosen, columns]
        moving = moves.working_bytes[layouts[chosen], layout]
        so_far = np.maximum(before.working_bytes[from_option, columns], moving)
        ahead = before.ahead_bytes[from_option]
        for option in np.flatnonzero((menu.layout == layout) & (units < width)):
            start, rest = int(units[option]), width - int(units[option])
            seconds[option, start:] = into[:rest] + menu.seconds[option]
            working[option, start:] = np.maximum(so_far, ahead + menu.working_bytes[option])[:rest]
            parent[option, start:] = from_option[:rest]
    return _Row(menu.layout, menu.ahead_bytes, seconds, working, parent)


def _best_of_each_layout(row: _Row) -> tuple[Integers, Integers]:
    """Give the layouts of a row, (J,), and the fastest option in each of them for every amount, (J, V + 1)."""
    layouts = np.unique(row.layout)
    best = []
    for layout in layouts:
        options = np.flatnonzero(row.layout == layout)
        best.append(options[row.seconds[options].argmin(axis=0)])
    return layouts, np.stack(best)
