"""The layers of every family: parameters, work, boundaries, splits, and what they keep, counted by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as generate
from pydantic import ValidationError

import builders
from galvatron_planner import families
from galvatron_planner.activations import activation_bytes, transient_bytes
from galvatron_planner.cluster import Group
from galvatron_planner.dimensions import communication, refusal
from galvatron_planner.model import Block, Embedding, Family, Head, LayerSpec, Merge, ModelSpec, Patches, Precision
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.workload import (
    boundary_bytes,
    forward_flops,
    input_bytes,
    memory_bytes,
    num_parameters,
    output_bytes,
    parameters,
)
from generators import EVERY_MODEL

S, H, F, N = 16, 32, 128, 4
"""Sequence, hidden size, feed-forward size and heads of ``builders.model``."""


def layers_of(family: Family, kind: type[LayerSpec]) -> list[LayerSpec]:
    return [layer for layer in families.layers(builders.model(family)) if isinstance(layer, kind)]


def decoder_block() -> Block:
    block = layers_of(Family.T5, Block)[-1]
    assert isinstance(block, Block)
    return block


def names(layer: LayerSpec) -> list[str]:
    return [parameter.name for parameter in parameters(layer)]


@given(EVERY_MODEL, generate.sampled_from(Precision))
def test_what_a_layer_hands_on_is_what_the_next_one_gets(spec: ModelSpec, precision: Precision) -> None:
    for layer, following in pairwise(families.layers(spec)):
        assert output_bytes(layer, precision) == input_bytes(following, precision) > 0


@given(EVERY_MODEL, generate.sampled_from(Precision), generate.sampled_from([1, 2, 4]))
def test_splitting_never_costs_work_or_blocks_memory(spec: ModelSpec, precision: Precision, degree: int) -> None:
    for layer in families.layers(spec):
        assert forward_flops(layer, tensor_degree=degree) <= forward_flops(layer)
        whole, part = (activation_bytes(layer, tensor_degree=n, precision=precision) for n in (1, degree))
        assert input_bytes(layer, precision) <= part
        if isinstance(layer, Block):
            assert part <= whole
            assert transient_bytes(layer, tensor_degree=degree, precision=precision) > 0


@given(EVERY_MODEL)
def test_equal_layers_are_one_layer_to_measure(spec: ModelSpec) -> None:
    kinds = {Family.T5: 5, Family.SWIN: 2 + len(spec.depths) + len(spec.depths) - 1}
    assert len(set(families.layers(spec))) == kinds.get(spec.family, 3)


@given(EVERY_MODEL)
def test_layers_hold_at_least_what_their_authors_count(spec: ModelSpec) -> None:
    held = sum(num_parameters(layer) for layer in families.layers(spec))
    counted = families.num_parameters(spec)
    assert (held > counted) if spec.tie_word_embeddings or spec.family is Family.T5 else (held == counted)


@pytest.mark.parametrize("family", [Family.BERT, Family.GPT])
def test_a_tied_vocabulary_counts_once(family: Family) -> None:
    spec = builders.model(family)
    held = sum(num_parameters(layer) for layer in families.layers(spec))
    assert held - families.num_parameters(spec) == spec.vocabulary_size * H


def test_t5_counts_its_vocabulary_and_each_stacks_distances_once() -> None:
    spec = builders.model(Family.T5, num_layers=3)
    held = sum(num_parameters(layer) for layer in families.layers(spec))
    # Two of three tables of tokens; two of three tables of 32 distances, in either stack.
    assert held - families.num_parameters(spec) == 2 * spec.vocabulary_size * H + 2 * 2 * 32 * N


@given(EVERY_MODEL)
def test_copies_have_the_shape_of_what_they_copy_and_come_after_it(spec: ModelSpec) -> None:
    shapes = {
        (index, parameter.name): (parameter.shape, parameter.split_dim)
        for index, layer in enumerate(families.layers(spec))
        for parameter in parameters(layer)
    }
    known = families.copies(spec)
    assert not known.keys() & set(known.values())
    for copy, first in known.items():
        assert first < copy
        assert shapes[copy] == shapes[first]


def test_a_bert_embedding_adds_segments_and_normalises() -> None:
    (embedding,) = layers_of(Family.BERT, Embedding)
    assert names(embedding) == ["tokens.weight", "positions.weight", "segments.weight", "norm.weight", "norm.bias"]


def test_only_queries_keys_and_values_of_qwen_have_biases() -> None:
    block = layers_of(Family.QWEN2, Block)[0]
    assert [name for name in names(block) if name.endswith("bias")] == ["query.bias", "key.bias", "value.bias"]


def test_heads_may_be_wider_than_their_share() -> None:
    spec = ModelSpec.model_validate({**dict(builders.model(Family.MISTRAL)), "head_size": 16})
    shapes = {parameter.name: parameter.shape for parameter in parameters(families.layers(spec)[1])}
    assert (shapes["query.weight"], shapes["output.weight"]) == ((N * 16, H), (H, N * 16))


def test_an_image_becomes_patches_and_a_class_token() -> None:
    (patches,) = layers_of(Family.VIT, Patches)
    # 16 patches of 2 x 2 pixels in 3 channels; projection and bias, class token, 17 positions.
    assert num_parameters(patches) == 12 * H + H + H + 17 * H
    assert forward_flops(patches) == 2 * 16 * 12 * H


def test_vit_classifies_its_first_token() -> None:
    (head,) = layers_of(Family.VIT, Head)
    assert forward_flops(head) == 2 * 67 * H


def test_swin_halves_its_boundary_at_every_merge() -> None:
    merge, block = layers_of(Family.SWIN, Merge)[0], layers_of(Family.SWIN, Block)[1]
    # 4 x 4 tokens of width H become 2 x 2 of width 2 H.
    assert (input_bytes(merge, Precision.FP32), output_bytes(merge, Precision.FP32)) == (4 * 16 * H, 4 * 4 * 2 * H)
    assert isinstance(block, Block)
    assert (block.hidden_size, block.sequence_length) == (2 * H, 4)
    assert num_parameters(merge) == 2 * (4 * H) + 2 * H * 4 * H


def test_windows_limit_what_tokens_see() -> None:
    block = layers_of(Family.SWIN, Block)[0]
    # Four projections of H x H, two of H x F; every token sees the 4 of its 2 x 2 window.
    assert forward_flops(block) == 2 * S * (4 * H * H + 2 * H * F) + 4 * S * 4 * H
    # 3 x 3 distances in a window of 2 x 2.
    assert parameters(block)[10].shape == (9, N)


def test_a_decoder_block_attends_to_its_own_tokens_and_to_the_encoders() -> None:
    block = decoder_block()
    own, memory = S // 2, S
    projections = 2 * (own * 6 + memory * 2) * H * H + 2 * own * 2 * H * F
    assert forward_flops(block) == projections + 4 * own * (own + memory) * H
    assert num_parameters(block) == 8 * H * H + 2 * H * F + 3 * H + 32 * N


def test_both_streams_leave_a_decoder_block() -> None:
    block = decoder_block()
    assert output_bytes(block, Precision.FP32) == 4 * (S // 2) * H + 4 * S * H
    assert memory_bytes(block, Precision.FP32) == 4 * S * H


def test_a_split_decoder_block_reduces_three_parts_and_the_encoders_gradient() -> None:
    block, group = decoder_block(), Group(size=2, stride=1)
    spoken = communication(block, LayerStrategy.parse("tp2"), local_samples=1, precision=Precision.FP32)
    own = (Collective.ALL_REDUCE, group, boundary_bytes(block, Precision.FP32))
    memory = (Collective.ALL_REDUCE, group, memory_bytes(block, Precision.FP32))
    assert [(c.collective, c.group, c.payload_bytes) for c in spoken.forward] == [own] * 3
    assert [(c.collective, c.group, c.payload_bytes) for c in spoken.backward] == [own] * 3 + [memory]
    # Recomputing ends before the last sum, which is only handed on.
    assert spoken.recomputed == spoken.forward[:2]


@pytest.mark.parametrize("kind", [Patches, Merge])
def test_what_is_not_split_computes_everywhere_and_says_nothing(kind: type[LayerSpec]) -> None:
    layer = layers_of(Family.SWIN, kind)[0]
    spoken = communication(layer, LayerStrategy.parse("tp4"), local_samples=1, precision=Precision.FP32)
    assert spoken == type(spoken)()
    assert forward_flops(layer, tensor_degree=4) == forward_flops(layer)


def test_the_narrowest_stage_of_swin_bounds_only_its_own_degree() -> None:
    first, second = layers_of(Family.SWIN, Block)
    assert refusal(first, LayerStrategy.parse("tp8")) == "4 key-value heads are not divisible by tensor degree 8"
    assert refusal(second, LayerStrategy.parse("tp8")) is None


def test_merges_can_be_recomputed_and_patches_need_not_be() -> None:
    (patches,), (merge,) = layers_of(Family.SWIN, Patches), layers_of(Family.SWIN, Merge)
    assert refusal(merge, LayerStrategy.parse("dp2-ckpt")) is None
    assert "checkpointing the patches" in str(refusal(patches, LayerStrategy.parse("dp2-ckpt")))


def test_a_decoder_block_keeps_what_a_count_by_hand_says() -> None:
    own, memory = S // 2, S
    # Own: input, two sums and three norms; queries and mixed values of two attentions; keys and values; after ReLU.
    # The encoder's: its output, keys and values. Deviations of three norms, and two logarithms a head.
    numbers = own * (6 * H + 4 * H + 2 * H + F) + memory * 3 * H + 3 * own + 2 * own * N
    assert activation_bytes(decoder_block(), tensor_degree=1, precision=Precision.FP32) == 4 * numbers


def test_a_merge_keeps_its_input_in_both_orders_and_the_norm() -> None:
    (merge,) = layers_of(Family.SWIN, Merge)
    assert activation_bytes(merge, tensor_degree=1, precision=Precision.FP32) == 4 * (3 * S * H + 2 * S // 4)


@given(EVERY_MODEL)
def test_models_and_layers_survive_being_written(spec: ModelSpec) -> None:
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    for layer in families.layers(spec):
        assert type(layer).model_validate_json(layer.model_dump_json()) == layer


def test_layers_that_were_written_before_there_were_families_are_still_read() -> None:
    (block, *_) = layers_of(Family.LLAMA, Block)
    written = block.model_dump_json(exclude_defaults=True, exclude={"head_size"})
    assert Block.model_validate_json(written) == block


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        (Family.GPT, {"depths": (1, 1)}, "depths is only for swin"),
        (Family.BERT, {"num_decoder_layers": 2}, "num_decoder_layers is only for t5"),
        (Family.T5, {"decoder_sequence_length": 0}, "decoder_sequence_length is missing"),
        (Family.VIT, {"patch_size": 3}, "image size 8 is not divisible by patch size 3"),
        (Family.VIT, {"sequence_length": 16}, "has 17 tokens"),
        (Family.SWIN, {"num_layers": 5}, "5 layers are not the sum"),
        (Family.SWIN, {"window_size": 4}, "stage 2 has 2 tokens along a side"),
        (Family.QWEN2, {"head_size": 7}, "even head size"),
    ],
)
def test_a_shape_that_its_family_cannot_have_is_refused(
    family: Family, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        ModelSpec.model_validate({**dict(builders.model(family)), **changes})
