"""Models of the user's own: what is known of a function's layers, without its code.

The runtime describes them (``galvatron_runtime.describe``) by passing shapes through; the planner only needs numbers.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from galvatron_planner.documents import Value

FunctionName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$", max_length=255)
]
"""``module:function``, in the image (or on the Python path) of the run."""
Shape = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=8)]


class DataKind(StrEnum):
    """What a layer is fed from the data: the first one inputs, the last one targets."""

    TOKENS = "tokens"
    IMAGES = "images"
    TARGETS = "targets"


class OwnData(Value):
    """What one sample brings from the data.

    Attributes:
        kind: inputs or targets.
        shape: of one sample; none for one class.
        vocabulary_size: what tokens and classes lie below.
    """

    kind: DataKind
    shape: tuple[PositiveInt, ...]
    vocabulary_size: PositiveInt


class OwnParameter(Value):
    """One parameter of a layer.

    Attributes:
        name: as in the user's module.
        shape: whole.
        split_dim: the dim that tensor parallelism splits, or None when every device holds the whole.
    """

    name: str = Field(max_length=255)
    shape: Shape
    split_dim: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.split_dim is not None and self.split_dim >= len(self.shape):
            raise ValueError(f"{self.name} of shape {self.shape} has no dim {self.split_dim}")
        return self


class OwnLayer(Value):
    """One layer of the user's.

    Attributes:
        function: that returns all layers.
        index: number of the first layer that is like this one.
        digest: of its code and configuration; another digest, another measurement.
        inputs: shapes that one sample brings from the layer before; none into the first layer.
        outputs: shapes that one sample hands on; none after the last layer, which gives the summed loss.
        data: what it is fed from the data, the first and the last layer only.
        parameters: in their order.
        forward_flops: operations of one sample's forward pass.
        kept_elements: numbers that one sample keeps from forward to backward, about.
        entered: elements per sample of each tensor that enters split work: summed over its group in the backward pass.
        left: elements per sample of each result of split work: summed over its group in the forward pass.
    """

    kind: Literal["own"] = "own"
    function: FunctionName
    index: NonNegativeInt
    digest: str = Field(max_length=64)
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    data: OwnData | None = None
    parameters: tuple[OwnParameter, ...]
    forward_flops: NonNegativeInt
    kept_elements: NonNegativeInt
    entered: tuple[PositiveInt, ...] = ()
    left: tuple[PositiveInt, ...] = ()

    @property
    def can_be_split(self) -> bool:
        """Whether it says how its parameters split."""
        return any(parameter.split_dim is not None for parameter in self.parameters)


class OwnModel(Value):
    """A model of the user's; takes the place of a :class:`~galvatron_planner.model.ModelSpec`.

    Attributes:
        layers: one after another.
        sequence_length: tokens per sample; 1 for images.
        vocabulary_size: number of distinct tokens, or of classes of images.
        image_size: pixels along a side of an image, which has three channels; 0 for text.
    """

    family: Literal["own"] = "own"
    layers: tuple[OwnLayer, ...] = Field(min_length=2)
    sequence_length: PositiveInt
    vocabulary_size: PositiveInt
    image_size: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        first, *middle, last = self.layers
        if first.data is None or last.data is None or any(layer.data for layer in middle):
            raise ValueError("the first layer reads inputs, the last one targets, and no other any data")
        if any(not layer.outputs for layer in (first, *middle)) or last.outputs:
            raise ValueError("the last layer, and no other, hands nothing on")
        for number, (layer, following) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            if layer.outputs != following.inputs:
                raise ValueError(
                    f"layer {number} hands on {layer.outputs}, layer {number + 1} takes {following.inputs}"
                )
        return self

    @property
    def function(self) -> str:
        """What returns the layers."""
        return self.layers[0].function

    @property
    def num_layers(self) -> int:
        """All layers, both ends included."""
        return len(self.layers)


def data_of(*, sequence_length: int, vocabulary_size: int, image_size: int) -> tuple[OwnData, OwnData]:
    """Say what the first and the last layer of a model read: tokens and the one after each, or images and classes."""
    if image_size:
        image = (3, image_size, image_size)
        return (
            OwnData(kind=DataKind.IMAGES, shape=image, vocabulary_size=vocabulary_size),
            OwnData(kind=DataKind.TARGETS, shape=(), vocabulary_size=vocabulary_size),
        )
    return (
        OwnData(kind=DataKind.TOKENS, shape=(sequence_length,), vocabulary_size=vocabulary_size),
        OwnData(kind=DataKind.TARGETS, shape=(sequence_length,), vocabulary_size=vocabulary_size),
    )
