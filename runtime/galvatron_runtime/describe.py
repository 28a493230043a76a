"""Layers of the user's own, described for the planner: shapes are passed through them, nothing is computed.

    python -m galvatron_runtime.describe FUNCTION --vocabulary 256 --tokens 128

prints the layers as JSON. Works on torch's meta device, so a model of any size is described in seconds.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import torch
from pydantic.alias_generators import to_camel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from galvatron_planner.errors import GalvatronError
from galvatron_planner.own import DataKind, OwnData, OwnLayer, OwnModel, OwnParameter, Shape, data_of
from galvatron_runtime.blocks.digests import digest_of
from galvatron_runtime.blocks.own import UnusableModel, call, enter_group, resetter

ROWS = 3
"""Of the batch that passes through: no number that a shape has by chance."""


@dataclass(slots=True)
class RecordingGroup:
    """A group of one that notes what split work would sum; it has state because it is called by the user's code."""

    rank: int = 0
    size: int = 1
    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def enter(self, hidden: Tensor) -> Tensor:
        """Note a tensor whose gradient would be summed."""
        self.entered.append(hidden.numel() // ROWS)
        return hidden

    def leave(self, partial: Tensor) -> Tensor:
        """Note a tensor that would be summed."""
        self.left.append(max(1, partial.numel() // ROWS))
        return partial

    def maximum(self, values: Tensor) -> Tensor:
        """Note a tensor whose maximum would be taken, which costs as much as a sum."""
        return self.leave(values)


def describe(function: str, *, sequence_length: int, vocabulary_size: int, image_size: int = 0) -> OwnModel:
    """Pass shapes through all layers of a function.

    Args:
        function: ``module:function``.
        sequence_length: tokens of a sample; 1 for images.
        vocabulary_size: tokens, or classes of images.
        image_size: pixels along a side of an image; 0 for texts.

    Raises:
        UnusableModel: with the layer and what is wrong with it.
    """
    with torch.device("meta"):
        modules = call(function)
    inputs, targets = data_of(sequence_length=sequence_length, vocabulary_size=vocabulary_size, image_size=image_size)
    stream: tuple[Tensor, ...] = (_without_values(inputs),)
    layers: list[OwnLayer] = []
    for index, module in enumerate(modules):
        where = f"layer {index} ({type(module).__name__}) of {function}"
        is_first, is_last = index == 0, index == len(modules) - 1
        _check_values(module, where)
        entering = (*stream, _without_values(targets)) if is_last else stream
        described, leaving = _describe_layer(module, entering, where, is_last=is_last)
        own = {"function": function, "inputs": () if is_first else tuple(map(_of_a_sample, stream))}
        data = inputs if is_first else targets if is_last else None
        layers.append(described.model_copy(update={**own, "data": data}))
        stream = leaving
    return OwnModel(
        layers=tuple(_numbered(layers)),
        sequence_length=sequence_length,
        vocabulary_size=vocabulary_size,
        image_size=image_size,
    )


def _without_values(data: OwnData) -> Tensor:
    dtype = torch.float32 if data.kind is DataKind.IMAGES else torch.int64
    return torch.empty(ROWS, *data.shape, dtype=dtype, device="meta")


def _numbered(layers: Sequence[OwnLayer]) -> Iterator[OwnLayer]:
    """Give equal layers the number of the first of them: they share one measurement."""
    firsts: dict[OwnLayer, int] = {}
    for index, layer in enumerate(layers):
        yield layer.model_copy(update={"index": firsts.setdefault(layer, index)})


def _describe_layer(
    module: nn.Module, entering: tuple[Tensor, ...], where: str, *, is_last: bool
) -> tuple[OwnLayer, tuple[Tensor, ...]]:
    group, kept = RecordingGroup(), dict[int, int]()
    splits = _splits(module, where)
    enter_group(module, group)
    leaves = tuple(one.detach().requires_grad_() if one.is_floating_point() else one for one in entering)
    own = {one.untyped_storage()._cdata for one in module.parameters()}  # meta tensors have no addresses
    flops = FlopCounterMode(display=False)
    try:
        with flops, _noting(kept):
            leaving = module(*leaves)
    except Exception as error:
        shapes = ", ".join(f"{one.dtype} {list(one.shape)}".removeprefix("torch.") for one in entering)
        raise UnusableModel(
            f"{where} cannot take {shapes}: {type(error).__name__}: {error}",
            remedy="the first layer takes tokens [B, S] or images [B, 3, side, side], the last also targets; what is"
            " done must not depend on values",
        ) from error
    stream = () if is_last else _stream(leaving, where)
    if is_last:
        _check_loss(leaving, where)
    layer = OwnLayer(
        function="a:a",
        index=0,
        digest=digest_of(module),
        inputs=(),
        outputs=tuple(_of_a_sample(one) for one in stream),
        parameters=tuple(
            OwnParameter(name=name, shape=tuple(one.shape), split_dim=splits.get(name))
            for name, one in module.named_parameters()
        ),
        forward_flops=flops.get_total_flops() // ROWS,
        kept_elements=sum(size for storage, size in kept.items() if storage not in own) // ROWS,
        entered=tuple(group.entered) if splits else (),
        left=tuple(group.left) if splits else (),
    )
    return layer, tuple(one.detach() for one in stream)


def _splits(module: nn.Module, where: str) -> dict[str, int]:
    splits: dict[str, int] = dict(getattr(module, "split_dims", {}))
    parameters = dict(module.named_parameters())
    for name, dim in splits.items():
        if name not in parameters or not 0 <= dim < parameters[name].dim():
            raise UnusableModel(
                f"{where} names {name}: {dim} in split_dims, which is no dim of a parameter of it",
                remedy=f"name some of {', '.join(parameters)}",
            )
    return splits


def _stream(leaving: Any, where: str) -> tuple[Tensor, ...]:
    stream = leaving if isinstance(leaving, tuple) else (leaving,)
    if not stream or not all(isinstance(one, Tensor) and one.is_floating_point() for one in stream):
        raise UnusableModel(
            f"{where} hands on {_names(stream)}",
            remedy="give floating-point tensors (one, or a tuple): they cross devices, and gradients come back",
        )
    if any(one.dim() < 2 or one.shape[0] != ROWS for one in stream):
        raise UnusableModel(
            f"{where} gives {[list(one.shape) for one in stream]} for {ROWS} samples",
            remedy="let the first dim be the batch, and samples not see each other",
        )
    return stream


def _check_loss(loss: Any, where: str) -> None:
    if not isinstance(loss, Tensor) or loss.dim():
        shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UnusableModel(
            f"{where} gives {shape} where the loss is made",
            remedy="give one number: the loss summed (not averaged) over all targets, reduction='sum'",
        )


def _check_values(module: nn.Module, where: str) -> None:
    """Refuse what has no way to start, and what lets samples see each other."""
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            raise UnusableModel(
                f"{where} has a batch norm ({name or 'itself'}), through which samples see each other",
                remedy="use a norm over each sample: results must not depend on how a batch is split",
            )
        values = [*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)]
        if values and resetter(one) is None:
            raise UnusableModel(
                f"{where}: {name or type(one).__name__} holds {values[0][0]} and has no reset_parameters()",
                remedy="give it a method reset_parameters() that fills all its parameters and buffers in place, as"
                " torch's modules have: layers are built without memory and filled on their devices",
            )
        if scalar := next((n for n, v in one.named_parameters(recurse=False) if v.dim() == 0), None):
            raise UnusableModel(f"{where} has a parameter {scalar} without dims", remedy="give it the shape [1]")


def _of_a_sample(tensor: Tensor) -> Shape:
    return tuple(tensor.shape[1:])


def _names(values: Sequence[object]) -> str:
    return ", ".join(str(one.dtype) if isinstance(one, Tensor) else type(one).__name__ for one in values) or "nothing"


@contextmanager
def _noting(kept: dict[int, int]) -> Iterator[None]:
    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = prod(tensor.shape)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield


def written(model: OwnModel) -> list[dict[str, Any]]:
    """Write the layers as ``spec.model.own.layers``: runs of equal ones with their count."""
    result = []
    for layer, run in groupby(model.layers):
        fields = layer.model_dump(mode="json", exclude={"kind", "function", "inputs", "data"}, exclude_defaults=True)
        fields["parameters"] = [{to_camel(key): value for key, value in one.items()} for one in fields["parameters"]]
        result.append({"count": len(list(run)), **{to_camel(key): value for key, value in fields.items()}})
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="galvatron_runtime.describe", description=__doc__.split("\n", 1)[0])
    parser.add_argument("function", help="module:function")
    parser.add_argument("--vocabulary", type=int, required=True, help="tokens, or classes of images")
    parser.add_argument("--tokens", type=int, default=1, help="of a sample")
    parser.add_argument("--image", type=int, default=0, help="pixels along a side, instead of tokens")
    options = parser.parse_args(arguments)
    try:
        model = describe(
            options.function,
            sequence_length=options.tokens,
            vocabulary_size=options.vocabulary,
            image_size=options.image,
        )
    except GalvatronError as error:
        sys.stderr.write(f"error: {error.problem}\nwhat to do: {error.remedy}\n")
        return 1
    sys.stdout.write(json.dumps(written(model)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
