"""What users state (:class:`ModelSpec`) and what everything else works on (the layers).

A model is a sequence of layers; embedding and head are layers like the others. Layers are plain shapes: equal layers
share one measurement, and nothing here knows how they are computed or split.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, NonNegativeInt, PositiveFloat, PositiveInt, Tag, model_validator

from galvatron_planner.documents import Value
from galvatron_planner.errors import InvalidInput
from galvatron_planner.own import OwnLayer, OwnModel


class Family(StrEnum):
    """A kind of Transformer; the table in ``families.py`` says what its layers look like."""

    GPT = "gpt"
    LLAMA = "llama"
    MISTRAL = "mistral"
    QWEN2 = "qwen2"
    BERT = "bert"
    T5 = "t5"
    VIT = "vit"
    SWIN = "swin"


class Precision(StrEnum):
    """The number format of computation; parameters and optimizer state stay in FP32 (or FP64)."""

    FP64 = "FP64"
    FP32 = "FP32"
    BF16 = "BF16"

    @classmethod
    def named(cls, text: str) -> "Precision":
        """Read an option.

        Raises:
            InvalidInput: when there is no such number format.
        """
        try:
            return cls(text.upper())
        except ValueError as error:
            raise InvalidInput(f"--precision is {text!r}", remedy=f"use one of {', '.join(cls)}") from error

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number of an activation."""
        if self is Precision.BF16:
            return 2
        return 4 if self is Precision.FP32 else 8

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
    GELU_TANH = "gelu_tanh"
    """GELU as GPT-2 approximates it."""
    RELU = "relu"
    SWIGLU = "swiglu"


class Positions(StrEnum):
    """How a model knows the place of a token."""

    LEARNED = "learned"
    """A table that the embedding adds."""
    ROTARY = "rotary"
    """Queries and keys are turned by their place."""
    RELATIVE = "relative"
    """A table of distances in every block, added to its scores."""


class Attention(StrEnum):
    """Which tokens a token of a block sees."""

    CAUSAL = "causal"
    FULL = "full"


class Pooling(StrEnum):
    """Which tokens' vectors a head classifies."""

    ALL = "all"
    FIRST = "first"
    MEAN = "mean"


class Sharing(StrEnum):
    """What a layer's table of tokens (or its projection to the vocabulary) is to those of other layers."""

    NONE = "none"
    """Its own."""
    FIRST = "first"
    """The one that the optimizer changes, for later layers as well."""
    COPY = "copy"
    """A copy of the first, without an optimizer's state."""


def _even_share(fields: dict[str, Any]) -> int:
    """Width of a head when nobody says otherwise."""
    return int(fields["hidden_size"] // fields["num_heads"])


_NORM_EPSILONS: dict[Family, float] = {Family.QWEN2: 1e-6, Family.T5: 1e-6, Family.BERT: 1e-12, Family.VIT: 1e-12}
"""As published; 1e-5 elsewhere."""


def _published_epsilon(fields: dict[str, Any]) -> float:
    return _NORM_EPSILONS.get(fields["family"], 1e-5)


TYING_FAMILIES = (Family.GPT, Family.BERT, Family.T5)
"""Families that are published with one table for tokens and scores."""


def _tied_as_published(fields: dict[str, Any]) -> bool:
    return fields["family"] in TYING_FAMILIES


class ModelSpec(Value):
    """A Transformer as its user states it.

    Attributes:
        family: the kind of Transformer.
        hidden_size: width of the residual stream; of Swin's first stage, every later one is twice as wide.
        num_layers: number of Transformer blocks; of T5 those of the encoder, of Swin those of all stages.
        num_heads: attention heads per block; of Swin's first stage, every later one has twice as many.
        num_key_value_heads: heads of keys and values; equal to ``num_heads`` without grouped-query attention.
        feed_forward_size: inner width of the feed-forward part; of Swin's first stage.
        sequence_length: tokens per sample; of images the patches and ViT's class token, of T5 the encoder's tokens.
        vocabulary_size: number of distinct tokens, or of classes of images.
        head_size: width of a head; when absent, the heads share the hidden size.
        rotary_base: base of the rotary frequencies.
        norm_epsilon: added to variances under the roots of norms; the family's own when absent.
        tie_word_embeddings: whether the projection to the vocabulary is the table of tokens; as published when absent.
        num_decoder_layers: T5: number of the decoder's blocks.
        decoder_sequence_length: T5: tokens per sample in the decoder.
        image_size: ViT and Swin: pixels along a side of an image, which has three channels.
        patch_size: ViT and Swin: pixels along a side of a patch.
        depths: Swin: blocks per stage.
        window_size: Swin: tokens along a side of a window.
    """

    family: Family
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    feed_forward_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    head_size: PositiveInt = Field(default_factory=_even_share)
    rotary_base: PositiveInt = 10_000
    norm_epsilon: PositiveFloat = Field(default_factory=_published_epsilon)
    tie_word_embeddings: bool = Field(default_factory=_tied_as_published)
    num_decoder_layers: NonNegativeInt = 0
    decoder_sequence_length: NonNegativeInt = 0
    image_size: NonNegativeInt = 0
    patch_size: NonNegativeInt = 0
    depths: tuple[PositiveInt, ...] = ()
    window_size: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size % self.num_heads and self.head_size == self.hidden_size // self.num_heads:
            raise ValueError(f"hidden size {self.hidden_size} is not divisible by {self.num_heads} attention heads")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_heads} attention heads are not divisible by {self.num_key_value_heads} key-value heads"
            )
        if self.family in ROTARY_FAMILIES and self.head_size % 2:
            raise ValueError("rotary positions need an even head size (hidden size / attention heads)")
        return self

    @model_validator(mode="after")
    def _check_family_fields(self) -> Self:
        for name, families in FAMILY_FIELDS.items():
            given = bool(getattr(self, name))
            if given != (self.family in families):
                state = f"is only for {' and '.join(families)}" if given else "is missing"
                raise ValueError(f"{name} {state}: the family is {self.family}")
        return self

    @model_validator(mode="after")
    def _check_image(self) -> Self:
        if not self.image_size:
            return self
        if self.tie_word_embeddings:
            raise ValueError(f"the family {self.family} has no word embeddings to tie")
        if self.image_size % self.patch_size:
            raise ValueError(f"image size {self.image_size} is not divisible by patch size {self.patch_size}")
        tokens = num_image_tokens(self.family, image_size=self.image_size, patch_size=self.patch_size)
        if self.sequence_length != tokens:
            raise ValueError(
                f"an image of this size has {tokens} tokens, the sequence length is {self.sequence_length}"
            )
        if self.depths:
            self._check_stages(self.image_size // self.patch_size)
        return self

    def _check_stages(self, side: int) -> None:
        if self.num_layers != sum(self.depths):
            raise ValueError(f"{self.num_layers} layers are not the sum of the depths {self.depths}")
        for stage in range(len(self.depths)):
            here, rest = divmod(side, 2**stage)
            if rest or here % self.window_size:
                raise ValueError(
                    f"stage {stage + 1} has {side / 2**stage:g} tokens along a side, which is no multiple of the"
                    f" window size {self.window_size}"
                )


ROTARY_FAMILIES = (Family.LLAMA, Family.MISTRAL, Family.QWEN2)

FAMILY_FIELDS: dict[str, tuple[Family, ...]] = {
    "num_decoder_layers": (Family.T5,),
    "decoder_sequence_length": (Family.T5,),
    "image_size": (Family.VIT, Family.SWIN),
    "patch_size": (Family.VIT, Family.SWIN),
    "depths": (Family.SWIN,),
    "window_size": (Family.SWIN,),
}
"""The fields that some families need and all others refuse."""


def num_image_tokens(family: Family, *, image_size: int, patch_size: int) -> int:
    """Count the tokens of an image: its patches, and the class token that ViT puts before them."""
    return (image_size // patch_size) ** 2 + (family is Family.VIT)


def _kind_of(value: Any) -> str:
    family = value.get("family") if isinstance(value, dict) else value.family
    return "own" if family == "own" else "published"


Model = Annotated[Annotated[ModelSpec, Tag("published")] | Annotated[OwnModel, Tag("own")], Discriminator(_kind_of)]
"""What a job trains: a Transformer of a family, or layers of the user's own."""


class Embedding(Value):
    """Token ids to hidden vectors.

    Attributes:
        positions: with a table when they are learned.
        num_segments: rows of a table that tells the parts of a sample apart; 0 without one.
        norm: of the sum, when there is one.
        memory_length: tokens of an encoder's output that are normalised here and go on beside the decoder's own; 0
            outside a decoder.
        norm_epsilon: of all norms.
        sharing: of the table of tokens.
    """

    kind: Literal["embedding"] = "embedding"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    positions: Positions
    num_segments: NonNegativeInt = 0
    norm: Normalization | None = None
    memory_length: NonNegativeInt = 0
    norm_epsilon: PositiveFloat = 1e-5
    sharing: Sharing = Sharing.NONE


class Patches(Value):
    """Images to hidden vectors: one projection of every patch.

    Attributes:
        sequence_length: patches, and the class token if there is one.
        patch_values: numbers of a patch: its pixels in three channels.
        class_token: whether a learned vector goes before the patches.
        positions: with a table when they are learned.
        norm: of the projected patches, when there is one.
        norm_epsilon: of the norm.
    """

    kind: Literal["patches"] = "patches"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    patch_values: PositiveInt
    class_token: bool
    positions: Positions
    norm: Normalization | None = None
    norm_epsilon: PositiveFloat = 1e-5


class Block(Value):
    """One Transformer block: attention and feed-forward, each with its norm and residual.

    Attributes:
        bias: of every projection.
        query_bias: of queries, keys and values, also where ``bias`` is off.
        head_size: width of one attention head.
        attention: which tokens a token sees.
        post_norm: whether norms come after the residual sums instead of before attention and feed-forward.
        window_size: tokens along a side of the windows within which tokens see each other; 0 without windows.
        memory_length: tokens of an encoder's output that a second attention sees, and that go on to the next layer; 0
            outside a decoder.
        rotary_base: base of the rotary frequencies.
        norm_epsilon: of all norms.
    """

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
    query_bias: bool = False
    head_size: PositiveInt = Field(default_factory=_even_share)
    attention: Attention = Attention.CAUSAL
    post_norm: bool = False
    window_size: NonNegativeInt = 0
    memory_length: NonNegativeInt = 0
    rotary_base: PositiveInt = 10_000
    norm_epsilon: PositiveFloat = 1e-5

    @property
    def query_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_size

    @property
    def key_value_size(self) -> int:
        """Width of all key-value heads together."""
        return self.num_key_value_heads * self.head_size


class Merge(Value):
    """Four neighbouring tokens of an image to one of twice the width: [S, H] to [S / 4, 2 H]."""

    kind: Literal["merge"] = "merge"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    norm: Normalization
    norm_epsilon: PositiveFloat = 1e-5


class Head(Value):
    """Final norm, projection to the vocabulary, and the summed cross entropy.

    Attributes:
        vocabulary_size: number of distinct tokens, or of classes.
        pooling: what is classified.
        transform: whether a projection with GELU comes before the norm.
        bias: of all projections.
        memory_length: tokens of an encoder's output that arrive beside the decoder's, and end here.
        norm_epsilon: of the norm.
        sharing: of the projection.
        is_scaled: whether vectors are divided by the root of their width before the projection.
    """

    kind: Literal["head"] = "head"
    hidden_size: PositiveInt
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    norm: Normalization
    pooling: Pooling = Pooling.ALL
    transform: bool = False
    bias: bool = False
    memory_length: NonNegativeInt = 0
    norm_epsilon: PositiveFloat = 1e-5
    sharing: Sharing = Sharing.NONE
    is_scaled: bool = False

    @property
    def num_classified(self) -> int:
        """Vectors per sample that are projected to the vocabulary."""
        return self.sequence_length if self.pooling is Pooling.ALL else 1


LayerSpec = Annotated[Embedding | Patches | Block | Merge | Head | OwnLayer, Field(discriminator="kind")]
"""One layer, complete: the shape of everything that is computed in it."""
