"""Layers of the user's own as layers of ours.

A function returns the layers in order, each an ``nn.Module``: the first takes tokens [B, S] or images [B, 3, side,
side], each hands one or more floating-point tensors with the batch as their first dim to the next, and the last takes
targets as its last argument and gives the summed loss. Modules say how they start in ``reset_parameters()``, as torch's
own do. One that also names ``split_dims`` (parameter to dim) computes with its shard and calls ``self.tensor_group``,
which is set here, where split work begins and ends: docs/own-models.md.
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from galvatron_planner.errors import GalvatronError
from galvatron_planner.own import OwnLayer, OwnModel
from galvatron_planner.workload import OWN_PREFIX
from galvatron_runtime.blocks.digests import digest_of
from galvatron_runtime.blocks.parts import LayerModule, local


class UnusableModel(GalvatronError):
    """A function that does not return layers that can be planned and trained."""


class OwnLayerModule(LayerModule):
    """One layer of the user's under a strategy; its parameters have the prefix ``own.``."""

    def __init__(self, layer: OwnLayer, module: nn.Module) -> None:
        super().__init__(layer)
        self.own = module
        self.takes_stream, self.gives_stream = bool(layer.inputs), bool(layer.outputs)

    def forward(self, *stream: Tensor) -> Any:
        """Call the user's module; where its parameters are split, it sees plain tensors, its shards.

        Images, and what is handed on, have the number format of the computation, as their place in memory is planned.
        """
        enter_group(self.own, self.tensor_group)
        dtype = next((one.dtype for one in self.own.parameters()), None)
        if not self.takes_stream:
            stream = _converted(stream, dtype)
        if self.tensor_group.size > 1:
            shards = {name: local(parameter) for name, parameter in self.own.named_parameters()}
            leaving = functional_call(self.own, shards, stream)
        else:
            leaving = self.own(*stream)
        if not self.gives_stream:
            return leaving
        return _converted(leaving, dtype) if isinstance(leaving, tuple) else _converted((leaving,), dtype)[0]


def _converted(stream: tuple[Tensor, ...], dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    return tuple(one.to(dtype) if dtype is not None and one.is_floating_point() else one for one in stream)


def enter_group(module: nn.Module, group: object) -> None:
    """Tell a module over which devices it is split; it calls the group's ``enter`` and ``leave``."""
    module.tensor_group = group  # type: ignore[assignment]  # an attribute of theirs, no module


def call(function: str) -> list[nn.Module]:
    """Get all layers of a function, on torch's current default device.

    Raises:
        UnusableModel: when there is no such function, it fails, or returns something else.
    """
    module_name, _, name = function.partition(":")
    try:
        factory: Callable[[], Sequence[nn.Module]] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UnusableModel(
            f"cannot import {function}: {error}",
            remedy="write module:function, and put the module on the Python path: that of the image in a cluster, here"
            f" one of {', '.join(dict.fromkeys(path or '.' for path in sys.path[:4]))}",
        ) from error
    except Exception as error:
        # What a module does when it is imported is its writer's; the last frame is theirs.
        frames = traceback.extract_tb(error.__traceback__)
        place = "" if isinstance(error, SyntaxError) else f" ({frames[-1].filename}, line {frames[-1].lineno})"
        raise UnusableModel(
            f"importing {module_name} fails: {type(error).__name__}: {error}{place}", remedy="correct the module"
        ) from error
    try:
        layers = list(factory())
    except Exception as error:
        raise UnusableModel(
            f"{function}() fails: {type(error).__name__}: {error}",
            remedy="make it build its layers without arguments, also on torch's meta device (torch.device('meta')),"
            " where tensors have no values",
        ) from error
    if len(layers) < 2 or not all(isinstance(layer, nn.Module) for layer in layers):
        raise UnusableModel(
            f"{function}() returns {len(layers)} layers of {sorted({type(one).__name__ for one in layers})}",
            remedy="return at least two layers, each an nn.Module: the first reads data, the last makes the loss",
        )
    return layers


def build_own(layer: OwnLayer) -> OwnLayerModule:
    """Build one layer with its initial values on torch's current default device."""
    device = torch.get_default_device()
    with torch.device("meta"):
        module = call(layer.function)[layer.index]
    if device.type != "meta":
        start(module.to_empty(device=device))
    return OwnLayerModule(layer, module)


def build_all(model: OwnModel) -> list[LayerModule]:
    """Build all layers on torch's current default device.

    Raises:
        UnusableModel: when they are not those that were described.
    """
    modules = call(model.function)
    described = [(layer.digest, [(one.name, one.shape) for one in layer.parameters]) for layer in model.layers]
    found = [(digest_of(one), [(name, tuple(p.shape)) for name, p in one.named_parameters()]) for one in modules]
    if found != described:
        place = next((i for i, (a, b) in enumerate(zip(found, described, strict=False)) if a != b), len(described))
        raise UnusableModel(
            f"layer {place} of {model.function} is not the one that was described",
            remedy="describe the model again (`galvatron describe JOB.YAML`) after changing its code, and use the image"
            " that holds the same code",
        )
    return [OwnLayerModule(layer, module) for layer, module in zip(model.layers, modules, strict=True)]


def start(module: nn.Module) -> None:
    """Give a module's parameters and buffers their first values, those of outer modules last."""
    for one in reversed(list(module.modules())):
        if reset := resetter(one):
            reset()


def resetter(module: nn.Module) -> Callable[[], object] | None:
    """Find what gives a module's own parameters and buffers their first values."""
    found: Callable[[], object] | None = getattr(module, "reset_parameters", None) or getattr(
        module, "_reset_parameters", None
    )
    return found


def own_name(name: str) -> str:
    """Name a parameter as the user does."""
    return name.removeprefix(OWN_PREFIX)
