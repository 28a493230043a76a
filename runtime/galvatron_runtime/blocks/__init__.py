"""The torch modules of every layer: what a plan splits, and what measuring times.

In the line *job -> profile -> plan -> training* both profile and training run these modules and no others. Parameter
names, shapes and order are those of ``galvatron_planner.workload.parameters``. A module knows that its tensors may be
split (its parameters may be DTensors, and it calls ``tensor_group`` where split work begins and ends), but not how, nor
that data or pipeline parallelism exist.

What a layer hands on is a *stream*: hidden vectors and, in a decoder, the encoder's output beside them.

# B rows of a micro-batch on this device, S sequence, H hidden, N heads, D head size, V vocabulary, M encoder's tokens
"""

from typing import assert_never

from galvatron_planner.model import Block, Embedding, Head, LayerSpec, Merge, Patches
from galvatron_planner.own import OwnLayer
from galvatron_runtime.blocks.block import BlockLayer, DecoderBlockLayer
from galvatron_runtime.blocks.ends import DecoderEmbeddingLayer, EmbeddingLayer, HeadLayer, MergeLayer, PatchesLayer
from galvatron_runtime.blocks.own import OwnLayerModule, build_all, build_own, call, own_name, start
from galvatron_runtime.blocks.parts import INITIAL_STD, LayerModule, Matrix, NoCollectives, TensorGroup, local

__all__ = [
    "INITIAL_STD",
    "HeadLayer",
    "LayerModule",
    "Matrix",
    "NoCollectives",
    "OwnLayerModule",
    "TensorGroup",
    "build_all",
    "build_layer",
    "call",
    "local",
    "own_name",
    "start",
]


def build_layer(layer: LayerSpec, *, is_shifted: bool = False) -> LayerModule:
    """Build a layer on torch's current default device and dtype, with usable initial values.

    Args:
        layer: its shape.
        is_shifted: whether its windows are shifted (``families.shifted_blocks``).
    """
    match layer:
        case Embedding(memory_length=0):
            return EmbeddingLayer(layer)
        case Embedding():
            return DecoderEmbeddingLayer(layer)
        case Patches():
            return PatchesLayer(layer)
        case Block(memory_length=0):
            return BlockLayer(layer, is_shifted=is_shifted)
        case Block():
            return DecoderBlockLayer(layer)
        case Merge():
            return MergeLayer(layer)
        case Head():
            return HeadLayer(layer)
        case OwnLayer():
            return build_own(layer)
        case _:
            assert_never(layer)
