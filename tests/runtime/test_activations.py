"""The planner's counts of memory are what the runtime's modules are measured to keep and to use."""

import pytest
import torch

import builders
from galvatron_planner import families
from galvatron_planner.activations import activation_bytes, gradient_buffer_bytes, transient_bytes
from galvatron_planner.model import Family, LayerSpec, Precision
from galvatron_runtime.measure.footprint import Footprint, footprint, lasting_storages
from galvatron_runtime.measure.passes import build, feed

GPT = tuple(dict.fromkeys(families.layers(builders.model(hidden_size=64, feed_forward_size=256, vocabulary_size=512))))
EVERY_LAYER = pytest.mark.parametrize("layer", GPT, ids=lambda layer: str(layer.kind))
EVERY_SPLIT = pytest.mark.parametrize(
    ("tensor_degree", "sequence_degree"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4)], ids=str
)


def memory_of(layer: LayerSpec, tensor_degree: int, micro_batch_size: int, *, sequence_degree: int = 1) -> Footprint:
    device, precision = torch.device("cpu"), Precision.FP32
    splits_tokens = sequence_degree > 1
    module = build(layer, tensor_degree=tensor_degree, splits_tokens=splits_tokens, precision=precision, device=device)
    layer_pass = feed(module, micro_batch_size=micro_batch_size, precision=Precision.FP32, device=device)
    lasting = lasting_storages(layer_pass)
    layer_pass.run()
    return footprint(layer_pass, lasting)


@EVERY_LAYER
@EVERY_SPLIT
def test_a_sample_keeps_what_is_counted(layer: LayerSpec, tensor_degree: int, sequence_degree: int) -> None:
    counted = activation_bytes(
        layer, tensor_degree=tensor_degree, sequence_degree=sequence_degree, precision=Precision.FP32
    )
    found = memory_of(layer, tensor_degree, 2, sequence_degree=sequence_degree).activation_bytes

    # The loss keeps one number whatever the batch.
    assert found == pytest.approx(2 * counted, abs=4)


@EVERY_LAYER
@EVERY_SPLIT
def test_working_memory_grows_as_is_counted(layer: LayerSpec, tensor_degree: int, sequence_degree: int) -> None:
    few, many = (
        memory_of(layer, tensor_degree, size, sequence_degree=sequence_degree).transient_bytes for size in (64, 128)
    )
    counted = transient_bytes(
        layer, tensor_degree=tensor_degree, sequence_degree=sequence_degree, precision=Precision.FP32
    )

    # Numbers per token beside the vectors: masks and sums of the loss.
    assert (many - few) / 64 == pytest.approx(counted, rel=0.05)


@EVERY_LAYER
def test_working_memory_is_at_most_what_is_counted(layer: LayerSpec) -> None:
    counted = 8 * transient_bytes(layer, tensor_degree=1, precision=Precision.FP32)
    buffer = gradient_buffer_bytes(layer, tensor_degree=1, precision=Precision.FP32)

    assert memory_of(layer, 1, 8).transient_bytes <= 1.05 * (counted + buffer)


@pytest.mark.parametrize("family", [Family.LLAMA, Family.MISTRAL, Family.QWEN2])
def test_norms_that_the_cpu_cannot_fuse_keep_more(family: Family) -> None:
    spec = builders.model(family)
    block = families.layers(spec)[1]
    counted = activation_bytes(block, tensor_degree=1, precision=Precision.FP32)
    # A copy of each norm's normalised input.
    copies = 2 * 4 * spec.sequence_length * spec.hidden_size

    assert memory_of(block, 1, 2).activation_bytes == pytest.approx(2 * (counted + copies), rel=0.01)
