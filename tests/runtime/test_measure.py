"""What measuring concludes from its numbers, and what it counts instead of timing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner import families
from galvatron_planner.cost.layer import overlapped_seconds
from galvatron_planner.model import Block, Embedding, Family, Head, LayerSpec, Precision
from galvatron_runtime.measure.footprint import Footprint, footprint, lasting_storages
from galvatron_runtime.measure.overlap import MAX_SLOWDOWN, Durations, slowdowns
from galvatron_runtime.measure.passes import build, feed
from galvatron_runtime.measure.rounds import rising, uncertainty

CPU = torch.device("cpu")
B, S, H, N, F = 2, 16, 32, 4, 128
"""Micro-batch, sequence, hidden, heads and feed-forward size of the layers below."""

DURATIONS = generate.floats(0, 10)


@given(generate.lists(DURATIONS, min_size=1))
def test_a_rising_curve_never_falls_and_keeps_the_mean(values: list[float]) -> None:
    risen = rising(values)

    assert list(risen) == sorted(risen)
    assert sum(risen) == pytest.approx(sum(values))


@given(generate.lists(DURATIONS, min_size=1).map(sorted))
def test_a_curve_that_rises_is_left_alone(values: list[float]) -> None:
    assert rising(values) == tuple(values)


def test_neighbours_in_the_wrong_order_share_their_mean() -> None:
    assert rising([1.0, 4.0, 2.0, 5.0]) == (1.0, 3.0, 3.0, 5.0)


def test_the_uncertainty_of_a_median_shrinks_with_the_root_of_the_samples() -> None:
    # By hand: median 2, absolute deviations 1 0 1, their median 1; 1.25 x 1.48 x 1 / sqrt(3).
    assert uncertainty([1.0, 2.0, 3.0]) == pytest.approx(1.85 / 3**0.5)
    assert uncertainty([1.0, 2.0, 3.0] * 4) == pytest.approx(1.85 / 12**0.5)


def test_sides_that_share_one_core_slow_each_other_down_twofold() -> None:
    # By hand: 3 s of computation and 1 s of reduction; both run at half speed until the reduction ends after 2 s, when
    # 2 s of computation are left.
    measured = slowdowns(alone=Durations(3.0, 1.0), together=Durations(4.0, 2.0))

    assert measured.computation == pytest.approx(2.0)
    assert measured.communication == pytest.approx(2.0)


def test_a_side_that_waits_for_the_other_one_is_slowed_down_most() -> None:
    measured = slowdowns(alone=Durations(2.0, 1.0), together=Durations(2.0, 3.0))

    assert (measured.computation, measured.communication) == (1.0, MAX_SLOWDOWN)


@given(
    computation=generate.floats(0.1, 10),
    communication=generate.floats(0.1, 10),
    factors=generate.tuples(generate.floats(1, 4), generate.floats(1, 4)),
)
def test_the_cost_model_predicts_what_the_slowdowns_were_measured_from(
    computation: float, communication: float, factors: tuple[float, float]
) -> None:
    total = overlapped_seconds(
        computation, communication, computation_slowdown=factors[0], communication_slowdown=factors[1]
    )
    first = min(computation * factors[0], communication * factors[1])
    together = Durations(computation * factors[0], total) if first < total else Durations(total, total)
    if communication * factors[1] < computation * factors[0]:
        together = Durations(total, communication * factors[1])

    measured = slowdowns(alone=Durations(computation, communication), together=together)

    assert measured.computation == pytest.approx(factors[0], rel=1e-6)
    assert measured.communication == pytest.approx(factors[1], rel=1e-6)


def test_a_gpt_block_keeps_what_a_count_by_hand_says() -> None:
    # Input, both norms' outputs, query, key, value, attention's output and the sum after it: 8 x B S H; before and
    # after GELU: 2 x B S F; mean and deviation of two norms: 4 x B S; logarithms of the softmax sums: B N S.
    expected = 4 * (8 * B * S * H + 2 * B * S * F + 4 * B * S + B * N * S)

    assert memory_of(layer(Block)).activation_bytes == expected


def test_a_split_block_keeps_whole_inputs_and_its_part_of_the_rest() -> None:
    # Split: query, key, value, attention's output and its sums, and the feed-forward part.
    whole, split = 4 * B * S * H + 4 * B * S, 4 * B * S * H + 2 * B * S * F + B * N * S

    assert memory_of(layer(Block), tensor_degree=2).activation_bytes == 4 * (whole + split // 2)


def test_an_embedding_keeps_only_its_tokens() -> None:
    assert memory_of(layer(Embedding)).activation_bytes == 8 * B * S


def test_half_precision_keeps_half_of_the_hidden_vectors() -> None:
    full = memory_of(layer(Block)).activation_bytes
    half = memory_of(layer(Block), precision=Precision.BF16).activation_bytes

    # Statistics of norms and softmax stay in FP32, or become BF16 too.
    statistics = 4 * (4 * B * S + B * N * S)
    assert (full - statistics) // 2 <= half <= (full - statistics) // 2 + statistics


@pytest.mark.parametrize("family", generators.DECODERS)
@pytest.mark.parametrize("kind", [Embedding, Block, Head])
def test_every_further_sample_keeps_as_much_as_the_one_before(family: Family, kind: type[LayerSpec]) -> None:
    one, two, three = (memory_of(layer(kind, family), micro_batch_size=size).activation_bytes for size in (1, 2, 3))

    assert one < two < three
    assert two - one == three - two


def test_the_working_memory_of_a_head_holds_the_gradient_of_its_scores() -> None:
    head = layer(Head)

    assert isinstance(head, Head)
    assert memory_of(head).transient_bytes >= 4 * B * S * head.vocabulary_size


def layer(kind: type[LayerSpec], family: Family = Family.GPT) -> LayerSpec:
    spec = builders.model(family, hidden_size=H, num_heads=N, feed_forward_size=F, sequence_length=S)
    return next(one for one in families.layers(spec) if isinstance(one, kind))


def memory_of(
    one: LayerSpec, *, tensor_degree: int = 1, micro_batch_size: int = B, precision: Precision = Precision.FP32
) -> Footprint:
    module = build(one, tensor_degree=tensor_degree, precision=precision, device=CPU)
    layer_pass = feed(module, micro_batch_size=micro_batch_size, precision=precision, device=CPU)
    lasting = lasting_storages(layer_pass)
    layer_pass.run()
    return footprint(layer_pass, lasting)
