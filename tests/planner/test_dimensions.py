import pytest

import builders
from galvatron_planner import families
from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.dimensions import (
    Communication,
    LayerCommunication,
    communication,
    gathered_elements,
    held_elements,
    prefetches,
)
from galvatron_planner.model import LayerSpec, Precision
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import Dimension, LayerStrategy
from galvatron_planner.workload import num_parameters

# 16 tokens of 32 numbers of 4 bytes: 2 KiB a sample.
EMBEDDING, BLOCK, _, HEAD = families.layers(builders.model())
PAIR = Group(size=2, stride=1)


def spoken(layer: LayerSpec, text: str, precision: Precision = Precision.FP32) -> LayerCommunication:
    return communication(layer, LayerStrategy.parse(text), local_samples=3, precision=precision)


def test_a_tensor_parallel_block_reduces_twice_forward_and_twice_backward() -> None:
    all_reduce = Communication(Collective.ALL_REDUCE, PAIR, 3 * 2048)
    found = spoken(BLOCK, "tp2-dp2")
    assert (found.forward, found.backward) == ((all_reduce,) * 2,) * 2
    # Recomputing ends before the last sum, which is only handed on.
    assert found.recomputed == (all_reduce,)


def test_a_tensor_parallel_embedding_reduces_its_output_only() -> None:
    found = spoken(EMBEDDING, "tp2-dp2")
    assert found.forward == (Communication(Collective.ALL_REDUCE, PAIR, 3 * 2048),)
    assert found.backward == ()


def test_a_tensor_parallel_head_exchanges_three_numbers_a_token_and_its_input_gradient() -> None:
    found = spoken(HEAD, "tp2-dp2", Precision.BF16)
    # Even in BF16 the loss is worked out in FP32: 3 samples x 16 tokens x 4 bytes.
    assert found.forward == (Communication(Collective.ALL_REDUCE, PAIR, 3 * 16 * 4),) * 3
    assert found.backward == (Communication(Collective.ALL_REDUCE, PAIR, 3 * 1024),)


def test_replicated_gradients_are_reduced_once_a_step_over_the_outer_group() -> None:
    found = spoken(BLOCK, "tp2-dp2", Precision.BF16)
    split = held_elements(BLOCK, LayerStrategy.parse("tp2-dp2"))
    assert found.gradient_sync == (Communication(Collective.ALL_REDUCE, Group(size=2, stride=2), split * 4),)


def test_sharded_parameters_are_gathered_twice_and_their_gradients_scattered_once() -> None:
    found = spoken(BLOCK, "fsdp4", Precision.BF16)
    elements = gathered_elements(BLOCK, LayerStrategy.parse("fsdp4"))
    group = Group(size=4, stride=1)
    gather = Communication(Collective.ALL_GATHER, group, elements * 2)
    assert found.forward_prefetched == (gather,)
    assert found.backward_prefetched == (gather, Communication(Collective.REDUCE_SCATTER, group, elements * 4))
    assert found.gradient_sync == ()


def test_shards_are_padded_to_the_largest() -> None:
    # 67 rows of the vocabulary over 4 devices: 17 rows of 32; 16 positions: 4 rows.
    assert held_elements(EMBEDDING, LayerStrategy.parse("fsdp4")) == 17 * 32 + 4 * 32
    # Over tp2 34 rows stay, of which fsdp2 takes 17; positions are not split by tp.
    assert held_elements(EMBEDDING, LayerStrategy.parse("tp2-fsdp2")) == 17 * 32 + 8 * 32


@pytest.mark.parametrize("text", ["single", "dp4"])
def test_without_splitting_a_device_holds_every_parameter(text: str) -> None:
    assert held_elements(BLOCK, LayerStrategy.parse(text)) == num_parameters(BLOCK)


def test_sharding_overlaps_on_gpus_only() -> None:
    assert prefetches(Dimension.SHARDED_DATA, DeviceKind.CUDA)
    assert not prefetches(Dimension.SHARDED_DATA, DeviceKind.CPU)
    assert all(prefetches(Dimension.DATA, kind) for kind in DeviceKind)
