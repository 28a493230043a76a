"""Changes of layout: what is worked out for all pairs at once, or from bits, is what one pair at a time says."""

from itertools import product

import pytest

import builders
from galvatron_planner.cost.transition import TransitionCost, TransitionTable, is_local, price, price_all
from galvatron_planner.space import compositions
from galvatron_planner.strategy import Layout

PROFILE = builders.profile(builders.model(), builders.cluster(16, num_nodes=2))
UNEVEN_BYTES = 1_000_003
"""Of a micro-batch that no degree divides."""

every_stage = pytest.mark.parametrize("num_devices", [2, 4, 8, 16])


def layouts(num_devices: int) -> list[Layout]:
    strategies = compositions(num_devices, sequence_parallel=True)
    # A layer has one kind of tensor parallelism.
    return sorted({one.layout for one in strategies if one.sequence_degree in (1, one.tensor_degree)})


def entry(table: TransitionTable, row: int, column: int) -> TransitionCost:
    return TransitionCost(
        forward_seconds=float(table.forward_seconds[row, column]),
        backward_seconds=float(table.backward_seconds[row, column]),
        transient_bytes=int(table.transient_bytes[row, column]),
    )


def holds_all_it_needs(before: Layout, after: Layout, rank: int) -> bool:
    """Compare slices of rows and of tokens in units that divide both layouts' evenly."""
    rows, tokens = before.data_degree * after.data_degree, before.sequence_degree * after.sequence_degree
    return _is_within(after.rows(rank, rows), before.rows(rank, rows)) and _is_within(
        after.tokens(rank, tokens), before.tokens(rank, tokens)
    )


def _is_within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


@every_stage
def test_a_table_has_the_price_of_every_pair(num_devices: int) -> None:
    every = layouts(num_devices)
    table = price_all(every, micro_batch_bytes=UNEVEN_BYTES, profile=PROFILE)
    for (row, before), (column, after) in product(enumerate(every), repeat=2):
        alone = price(before, after, micro_batch_bytes=UNEVEN_BYTES, profile=PROFILE)
        assert entry(table, row, column) == alone


@every_stage
def test_some_layouts_in_any_order_have_the_prices_that_they_have_among_all(num_devices: int) -> None:
    some = layouts(num_devices)[::-2]
    table = price_all(some, micro_batch_bytes=UNEVEN_BYTES, profile=PROFILE)
    for (row, before), (column, after) in product(enumerate(some), repeat=2):
        alone = price(before, after, micro_batch_bytes=UNEVEN_BYTES, profile=PROFILE)
        assert entry(table, row, column) == alone


def test_one_layout_alone_needs_no_link() -> None:
    # A single device has no group that could have been measured.
    table = price_all(layouts(1), micro_batch_bytes=UNEVEN_BYTES, profile=PROFILE)
    assert entry(table, 0, 0) == TransitionCost(0.0, 0.0, 0)


@every_stage
def test_a_change_is_local_when_every_device_holds_all_that_it_needs(num_devices: int) -> None:
    for before, after in product(layouts(num_devices), repeat=2):
        expected = all(holds_all_it_needs(before, after, rank) for rank in range(num_devices))
        assert is_local(before, after) is expected


@every_stage
def test_a_device_has_the_slice_that_its_data_index_says(num_devices: int) -> None:
    for layout in layouts(num_devices):
        indices = [layout.data_index(rank) for rank in range(num_devices)]
        assert sorted(indices) == sorted(list(range(layout.data_degree)) * layout.tensor_degree)


@every_stage
def test_the_boxes_of_rows_and_tokens_make_up_the_micro_batch(num_devices: int) -> None:
    for layout in layouts(num_devices):
        boxes = [(layout.data_index(rank), layout.sequence_index(rank)) for rank in range(num_devices)]
        copies = num_devices // layout.num_slices
        every = product(range(layout.data_degree), range(layout.sequence_degree))
        assert sorted(boxes) == sorted(list(every) * copies)
