"""What users state (:class:`ModelSpec`) and what everything else works on (the layers).

A model is a sequence of layers; embedding and head are layers like the others. Layers are plain shapes: equal layers
share one measurement, and nothing here knows how they are computed or split.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from galvatron_planner.documents import Value


class Family(StrEnum):
    """A kind of Transformer; the table in ``families.py`` says what its layers look like."""

    GPT = "gpt"
    LLAMA = "llama"


class Precision(StrEnum):
    """The number format of computation; parameters and optimizer state stay in FP32 (or FP64)."""

    FP64 = "FP64"
    FP32 = "FP32"
    BF16 = "BF16"

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number of an activation."""
        return {Precision.FP64: 8, Precision.FP32: 4, Precision.BF16: 2}[self]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one number of a stored parameter, gradient or optimizer moment."""
        return 8 if self is Precision.FP64 else 4


class Normalization(StrEnum):
    """How a layer normalises its input."""

    LAYER_NORM = "layer_norm"
    RMS_NORM = "rms_norm"


class Mlp(StrEnum):
    """The feed-forward part of a block."""

    GELU = "gelu"
    SWIGLU = "swiglu"


class Positions(StrEnum):
    """How a model knows the place of a token."""

    LEARNED = "learned"
    ROTARY = "rotary"


class ModelSpec(Value):
    """A Transformer as its user states it.

    Attributes:
        family: the kind of Transformer.
        hidden_size: width of the residual stream.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        num_key_value_heads: heads of keys and values; equal to ``num_heads`` without grouped-query attention.
        feed_forward_size: inner width of the feed-forward part.
        sequence_length: tokens per sample.
        vocabulary_size: number of distinct tokens.
    """

    family: Family
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    feed_forward_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt

    @model_validator(mode="after")
    def _check_divisibility(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden size {self.hidden_size} is not divisible by {self.num_heads} attention heads")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_heads} attention heads are not divisible by {self.num_key_value_heads} key-value heads"
            )
        if self.family is Family.LLAMA and (self.hidden_size // self.num_heads) % 2:
            raise ValueError("rotary positions need an even head size (hidden size / attention heads)")
        return self


class Embedding(Value):
    """Token ids to hidden vectors, with a position table when positions are learned."""

    kind: Literal["embedding"] = "embedding"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    positions: Positions


class Block(Value):
    """One causal Transformer block: attention and feed-forward, each with its norm and residual."""

    kind: Literal["block"] = "block"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    feed_forward_size: PositiveInt
    norm: Normalization
    mlp: Mlp
    positions: Positions
    bias: bool

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


class Head(Value):
    """Final norm, projection to the vocabulary, and the summed cross entropy."""

    kind: Literal["head"] = "head"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    norm: Normalization


LayerSpec = Annotated[Embedding | Block | Head, Field(discriminator="kind")]
"""One layer, complete: the shape of everything that is computed in it."""
