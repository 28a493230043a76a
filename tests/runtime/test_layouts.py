"""Meshes and re-layouts agree with the planner about who holds which rows."""

from itertools import product

import torch
from hypothesis import assume, given
from hypothesis import strategies as generate

from galvatron_planner.cost.transition import is_local
from galvatron_planner.space import compositions
from galvatron_planner.strategy import TENSOR_DIMENSIONS, Dimension, LayerStrategy, Layout
from galvatron_runtime.mesh import arrange
from galvatron_runtime.parallel.relayout import Piece, pieces

NUM_DEVICES = 8
STRATEGIES = [
    strategy
    for strategy in compositions(NUM_DEVICES, sequence_parallel=True)
    if sum(axis.dimension in TENSOR_DIMENSIONS for axis in strategy.axes) < 2
]
LAYOUTS = generate.sampled_from(sorted({strategy.layout for strategy in STRATEGIES}))


@given(LAYOUTS, generate.integers(1, 3))
def test_a_mesh_orders_devices_by_the_rows_they_hold(layout: Layout, num_stages: int) -> None:
    mesh = arrange(layout, num_stages=num_stages)

    assert mesh.shape == (num_stages, layout.data_degree, layout.tensor_degree)
    assert sorted(mesh.flatten().tolist()) == list(range(num_stages * NUM_DEVICES))
    for stage, rows in enumerate(mesh.tolist()):
        for index, devices in enumerate(rows):
            assert [layout.data_index(rank - stage * NUM_DEVICES) for rank in devices] == [index] * len(devices)
            assert devices == sorted(devices)


@given(generate.sampled_from([s for s in STRATEGIES if s.tensor_degree > 1]))
def test_a_mesh_has_the_groups_that_links_are_measured_for(strategy: LayerStrategy) -> None:
    group = strategy.group(Dimension.TENSOR) or strategy.group(Dimension.SEQUENCE_TENSOR)
    assert group is not None
    for devices in arrange(strategy.layout, num_stages=1)[0].tolist():
        assert tuple(devices) == group.members(devices[0])


Cells = set[tuple[int, int]]
"""Rows, and eighths of the tokens."""


def held(layout: Layout, device: int, num_rows: int) -> Cells:
    return set(product(range(*layout.rows(device, num_rows)), range(*layout.tokens(device, NUM_DEVICES))))


def cells(piece: Piece, num_parts: int) -> Cells:
    share = NUM_DEVICES // num_parts
    return set(product(range(*piece.rows), range(piece.parts[0] * share, piece.parts[1] * share)))


@given(LAYOUTS, LAYOUTS, generate.sampled_from([8, 16, 24]))
def test_every_device_gets_its_part_once_and_from_one_who_has_it(source: Layout, target: Layout, rows: int) -> None:
    num_parts = max(source.sequence_degree, target.sequence_degree)
    for device, own in enumerate(pieces(source, target, num_devices=NUM_DEVICES, num_rows=rows)):
        got = [cell for piece in own for cell in cells(piece, num_parts)]
        assert sorted(got) == sorted(held(target, device, rows))
        for piece in own:
            assert cells(piece, num_parts) <= held(source, piece.holder, rows)


@given(LAYOUTS, LAYOUTS)
def test_nobody_sends_what_the_receiver_has(source: Layout, target: Layout) -> None:
    assume(source != target)
    num_parts = max(source.sequence_degree, target.sequence_degree)
    for device, own in enumerate(pieces(source, target, num_devices=NUM_DEVICES, num_rows=8)):
        for piece in own:
            assert piece.holder == device or not cells(piece, num_parts) & held(source, device, 8)


@given(LAYOUTS, LAYOUTS)
def test_the_planner_knows_which_changes_move_nothing(before: Layout, after: Layout) -> None:
    own = pieces(before, after, num_devices=NUM_DEVICES, num_rows=NUM_DEVICES)
    moves = any(piece.holder != device for device, parts in enumerate(own) for piece in parts)

    assert is_local(before, after) is not moves


def test_a_wider_batch_split_inside_its_groups_moves_nothing() -> None:
    # tp2 holds rows 0-3 on devices 0 and 1; as dp they keep 0-1 and 2-3.
    moved = pieces(Layout(4, 2, 1), Layout(8, 1, 1), num_devices=8, num_rows=16)

    assert all(piece.holder == device for device, own in enumerate(moved) for piece in own)


def test_a_strided_tensor_group_by_hand() -> None:
    # dp2-tp2: the innermost axis is dp, so devices 0 and 1 hold other rows, and 0 and 2 the same.
    assert arrange(Layout(2, 2, 2), num_stages=1).equal(torch.tensor([[[0, 2], [1, 3]]]))
