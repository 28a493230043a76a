import pytest

import builders
from galvatron_planner import families, space
from galvatron_planner.model import Block, LayerSpec
from galvatron_planner.problem import SearchDimension, SearchLimits
from galvatron_planner.space import compositions
from galvatron_planner.strategy import Dimension

# Many heads and a power of two everywhere, so that no layer refuses a degree.
WIDE = families.layers(builders.model(hidden_size=16384, num_heads=16384, feed_forward_size=16384))


def stage_sizes(num_devices: int) -> list[int]:
    return [2**k for k in range(num_devices.bit_length())]


@pytest.mark.parametrize(("num_devices", "count"), [(8, 146), (16, 418), (64, 2090)])
def test_the_whole_tree_has_as_many_paths_as_counted_by_hand(num_devices: int, count: int) -> None:
    # 2^k devices split over r of four dimensions, in any order: C(k - 1, r - 1) times 4! / (4 - r)!.
    assert sum(len(compositions(size)) for size in stage_sizes(num_devices)) == count


@pytest.mark.parametrize(("num_devices", "count"), [(8, 62), (16, 106), (64, 230), (1024, 622), (16384, 1206)])
def test_pruning_leaves_as_many_strategies_as_the_closed_form(num_devices: int, count: int) -> None:
    # 3K^2 + K + 1 strategies for 2^K devices, each without and with checkpointing.
    exponent = num_devices.bit_length() - 1
    assert count == 2 * (3 * exponent**2 + exponent + 1)
    kept = [space.strategies(size, SearchLimits(), WIDE[1]) for size in stage_sizes(num_devices)]
    assert sum(len(one.strategies) for one in kept) == count


@pytest.mark.parametrize(("excluded", "count"), [((), 44), ((SearchDimension.CKPT,), 22)])
def test_eight_devices_leave_the_papers_44_strategies_and_22_without_checkpointing(
    excluded: tuple[SearchDimension, ...], count: int
) -> None:
    limits = SearchLimits(excluded=(SearchDimension.ZERO2, *excluded))
    assert sum(len(space.strategies(size, limits, WIDE[1]).strategies) for size in stage_sizes(8)) == count


@pytest.mark.parametrize("layer", WIDE[:1] + WIDE[-2:], ids=lambda layer: layer.kind)
def test_everything_that_is_not_kept_is_counted_under_a_rule(layer: LayerSpec) -> None:
    limits = SearchLimits(excluded=(SearchDimension.SDP,), max_tensor_degree=2)
    found = space.strategies(8, limits, layer)
    assert len(found.strategies) + sum(count for _, count in found.removed) == len(compositions(8))


def test_only_blocks_are_checkpointed() -> None:
    for layer in WIDE:
        checkpointed = any(s.checkpoint for s in space.strategies(8, SearchLimits(), layer).strategies)
        assert checkpointed == isinstance(layer, Block)


SEQUENCE_PARALLEL = SearchLimits(sequence_parallel=True)
LONG = families.layers(
    builders.model(hidden_size=16384, num_heads=16384, feed_forward_size=16384, sequence_length=16384)
)


@pytest.mark.parametrize(("num_devices", "count"), [(8, 104), (16, 186), (64, 422)])
def test_sequence_parallelism_leaves_as_many_strategies_as_the_closed_form(num_devices: int, count: int) -> None:
    # Three kinds of data and two of tensor parallelism: 6K^2 - K + 1 for 2^K devices, without and with checkpointing.
    exponent = num_devices.bit_length() - 1
    assert count == 2 * (6 * exponent**2 - exponent + 1)
    kept = [space.strategies(size, SEQUENCE_PARALLEL, LONG[1]) for size in stage_sizes(num_devices)]
    assert sum(len(one.strategies) for one in kept) == count


def test_what_is_not_asked_for_is_neither_kept_nor_counted() -> None:
    plain, wide = (space.strategies(8, limits, LONG[1]) for limits in (SearchLimits(), SEQUENCE_PARALLEL))
    assert set(plain.strategies) == {one for one in wide.strategies if one.sequence_degree == 1}
    assert len(plain.strategies) + sum(count for _, count in plain.removed) == len(compositions(8))
    assert len(wide.strategies) + sum(count for _, count in wide.removed) == len(
        compositions(8, sequence_parallel=True)
    )


def test_limits_of_tensor_parallelism_bind_sequence_parallelism_as_well() -> None:
    none = SEQUENCE_PARALLEL.without(SearchDimension.TP)
    assert all(one.tensor_degree == 1 for one in space.strategies(8, none, LONG[1]).strategies)
    two = SearchLimits(sequence_parallel=True, max_tensor_degree=2)
    assert {one.sequence_degree for one in space.strategies(8, two, LONG[1]).strategies} == {1, 2}


def test_an_excluded_dimension_occurs_nowhere() -> None:
    limits = SearchLimits(excluded=(SearchDimension.TP,))
    assert all(s.degree(Dimension.TENSOR) == 1 for s in space.strategies(8, limits, WIDE[1]).strategies)


def test_heads_limit_the_tensor_degree() -> None:
    block = families.layers(builders.model(num_heads=4, num_key_value_heads=2))[1]
    assert {s.tensor_degree for s in space.strategies(8, SearchLimits(), block).strategies} == {1, 2}


def test_strategies_come_in_the_order_of_their_texts() -> None:
    texts = [str(s) for s in space.strategies(8, SearchLimits(), WIDE[1]).strategies]
    assert texts == sorted(texts)
