"""Meshes and re-layouts agree with the planner about who holds which rows."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as generate

from galvatron_planner.space import compositions
from galvatron_planner.strategy import Dimension, LayerStrategy, Layout
from galvatron_runtime.mesh import arrange
from galvatron_runtime.parallel.relayout import pieces

NUM_DEVICES = 8
LAYOUTS = generate.sampled_from(sorted({strategy.layout for strategy in compositions(NUM_DEVICES)}))


@given(LAYOUTS, generate.integers(1, 3))
def test_a_mesh_orders_devices_by_the_rows_they_hold(layout: Layout, num_stages: int) -> None:
    mesh = arrange(layout, num_stages=num_stages)

    assert mesh.shape == (num_stages, layout.data_degree, layout.tensor_degree)
    assert sorted(mesh.flatten().tolist()) == list(range(num_stages * NUM_DEVICES))
    for stage, rows in enumerate(mesh.tolist()):
        for index, devices in enumerate(rows):
            assert [layout.data_index(rank - stage * NUM_DEVICES) for rank in devices] == [index] * len(devices)
            assert devices == sorted(devices)


@given(generate.sampled_from([s for s in compositions(NUM_DEVICES) if s.group(Dimension.TENSOR)]))
def test_a_mesh_has_the_groups_that_links_are_measured_for(strategy: LayerStrategy) -> None:
    group = strategy.group(Dimension.TENSOR)
    assert group is not None
    for devices in arrange(strategy.layout, num_stages=1)[0].tolist():
        assert tuple(devices) == group.members(devices[0])


@given(LAYOUTS, LAYOUTS, generate.sampled_from([8, 16, 24]))
def test_every_device_gets_its_rows_once_and_from_one_who_has_them(source: Layout, target: Layout, rows: int) -> None:
    for device, own in enumerate(pieces(source, target, num_devices=NUM_DEVICES, num_rows=rows)):
        first, last = target.rows(device, rows)
        assert [row for piece in own for row in range(piece.first, piece.last)] == list(range(first, last))
        for piece in own:
            has_first, has_last = source.rows(piece.holder, rows)
            assert has_first <= piece.first < piece.last <= has_last


@given(LAYOUTS, LAYOUTS)
def test_nobody_sends_what_the_receiver_has(source: Layout, target: Layout) -> None:
    assume(source != target)
    for device, own in enumerate(pieces(source, target, num_devices=NUM_DEVICES, num_rows=8)):
        has_first, has_last = source.rows(device, 8)
        for piece in own:
            assert piece.holder == device or not has_first <= piece.first < has_last


def test_a_wider_batch_split_inside_its_groups_moves_nothing() -> None:
    # tp2 holds rows 0-3 on devices 0 and 1; as dp they keep 0-1 and 2-3.
    moved = pieces(Layout(4, 2, 1), Layout(8, 1, 1), num_devices=8, num_rows=16)

    assert all(piece.holder == device for device, own in enumerate(moved) for piece in own)


def test_a_strided_tensor_group_by_hand() -> None:
    # dp2-tp2: the innermost axis is dp, so devices 0 and 1 hold other rows, and 0 and 2 the same.
    assert arrange(Layout(2, 2, 2), num_stages=1).equal(torch.tensor([[[0, 2], [1, 3]]]))
