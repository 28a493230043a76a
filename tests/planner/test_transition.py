import pytest

import builders
from galvatron_planner.cluster import Group
from galvatron_planner.cost.transition import FREE, is_local, price
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import LayerStrategy, Layout

PROFILE = builders.profile(builders.model(), builders.cluster())
MICRO_BATCH_BYTES = 1 << 16


def layout(text: str) -> Layout:
    return LayerStrategy.parse(text).layout


def test_equal_layouts_cost_nothing_whatever_is_sharded() -> None:
    same = price(layout("dp4"), layout("fsdp4-ckpt"), micro_batch_bytes=MICRO_BATCH_BYTES, profile=PROFILE)
    assert same == FREE


@pytest.mark.parametrize(
    ("before", "after", "local"),
    [
        ("tp4", "dp4", True),  # every device holds all rows
        ("tp2-dp2", "dp4", True),  # ranks 0 and 1 hold the first half, of which each keeps a quarter
        ("dp2-tp2", "dp4", False),  # rank 2 holds the first half and needs the third quarter
        ("dp4", "tp4", False),
        ("tp2-dp2", "dp2-tp2", False),
        ("tp4", "sptp4", True),  # every device holds all tokens, of which each keeps a quarter
        ("sptp4", "tp4", False),
        ("sptp4", "dp4", False),  # all rows of a quarter of the tokens are not all tokens of a quarter of the rows
        ("tp2-dp2", "sptp2-dp2", True),
        ("tp4", "dp2-sptp2", True),
        ("sptp2-dp2", "dp2-sptp2", False),
    ],
)
def test_rows_stay_where_a_growing_data_degree_only_slices(before: str, after: str, local: bool) -> None:  # noqa: FBT001
    assert is_local(layout(before), layout(after)) is local


def test_a_device_that_holds_other_tokens_sends_and_receives_less() -> None:
    moved = price(layout("sptp2-dp2"), layout("tp2-dp2"), micro_batch_bytes=MICRO_BATCH_BYTES, profile=PROFILE)
    # A quarter of the micro-batch is held, half of it is wanted; in the backward pass each keeps a slice of its half.
    exchange = PROFILE.link(Collective.ALL_TO_ALL, Group(size=4, stride=1)).seconds(MICRO_BATCH_BYTES // 2)
    assert (moved.forward_seconds, moved.backward_seconds) == (exchange, 0.0)
    assert moved.transient_bytes == MICRO_BATCH_BYTES // 4 + MICRO_BATCH_BYTES // 2


def test_a_slice_forward_is_an_exchange_backward() -> None:
    moved = price(layout("tp4"), layout("dp4"), micro_batch_bytes=MICRO_BATCH_BYTES, profile=PROFILE)
    # What arrives decides: in the backward pass every device gathers the whole micro-batch's gradient.
    exchange = PROFILE.link(Collective.ALL_TO_ALL, Group(size=4, stride=1)).seconds(MICRO_BATCH_BYTES)
    assert (moved.forward_seconds, moved.backward_seconds) == (0.0, exchange)


def test_both_ways_cost_the_same_in_mirror_image() -> None:
    there = price(layout("tp4"), layout("dp4"), micro_batch_bytes=MICRO_BATCH_BYTES, profile=PROFILE)
    back = price(layout("dp4"), layout("tp4"), micro_batch_bytes=MICRO_BATCH_BYTES, profile=PROFILE)
    assert (there.forward_seconds, there.backward_seconds) == (back.backward_seconds, back.forward_seconds)
    assert there.transient_bytes == back.transient_bytes == MICRO_BATCH_BYTES + MICRO_BATCH_BYTES // 4
