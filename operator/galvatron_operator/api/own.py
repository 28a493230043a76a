"""``spec.model.own``: layers of the user's own, as ``galvatron describe`` writes them."""

from typing import Annotated

from pydantic import Field

from galvatron_operator.api.values import SpecValue
from galvatron_planner.own import FunctionName

_Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=2_147_483_647)], ...], Field(max_length=8)]
_Count = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]


class OwnParameterFields(SpecValue):
    """``spec.model.own.layers[].parameters[]``."""

    name: str = Field(min_length=1, max_length=255)
    shape: _Shape
    split_dim: int | None = Field(default=None, ge=0, le=7)


class OwnLayerFields(SpecValue):
    """``spec.model.own.layers[]``: equal layers that follow each other, as ``galvatron describe`` writes them."""

    count: int = Field(ge=1, le=1024)
    index: int = Field(ge=0, le=1023)
    digest: str = Field(min_length=64, max_length=64)
    outputs: tuple[_Shape, ...] = Field(max_length=16)
    parameters: tuple[OwnParameterFields, ...] = Field(max_length=1024)
    forward_flops: _Count
    kept_elements: _Count
    entered: tuple[_Count, ...] = Field(default=(), max_length=64)
    left: tuple[_Count, ...] = Field(default=(), max_length=64)


class OwnFields(SpecValue):
    """``spec.model.own``: layers that a function in the image returns."""

    function: FunctionName
    layers: tuple[OwnLayerFields, ...] = Field(min_length=1, max_length=1024)
