"""From layer specifications to modules with values: what every rank of every plan agrees on.

Layers are built without memory, split by others, and given values last: no rank ever holds more than its shards of
one layer and one whole parameter. Initial values depend on the seed and the parameter's global name only, so every plan
starts from the same weights.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from galvatron_planner import families
from galvatron_planner.errors import InvalidPlan
from galvatron_planner.model import Model, ModelSpec, Precision
from galvatron_planner.own import OwnModel
from galvatron_planner.workload import Parameter, parameters
from galvatron_runtime.blocks import (
    INITIAL_STD,
    LayerModule,
    OwnLayerModule,
    build_all,
    build_layer,
    call,
    own_name,
    start,
)

_RESIDUAL = frozenset({"output", "memory_output", "down"})
"""The matrices that write into the residual stream."""


def build_without_memory(model: Model) -> list[LayerModule]:
    """Build all layers on torch's ``meta`` device: names and shapes, no values."""
    with torch.device("meta"):
        return build_layers(model)


def build_layers(model: Model) -> list[LayerModule]:
    """Build all layers of a model on the current device.

    Raises:
        UnusableModel: when the user's function does not give the layers that were described.
    """
    if isinstance(model, OwnModel):
        return build_all(model)
    shifted = families.shifted_blocks(model)
    return [build_layer(layer, is_shifted=index in shifted) for index, layer in enumerate(families.layers(model))]


def parameter_dtype(precision: Precision) -> torch.dtype:
    """Format of stored parameters, gradients and optimizer state."""
    return torch.float64 if precision is Precision.FP64 else torch.float32


def activation_dtype(precision: Precision) -> torch.dtype:
    """Format of activations, also between layers and stages."""
    return {Precision.FP64: torch.float64, Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}[precision]


def sliced(shape: tuple[int, ...], sequence_degree: int) -> tuple[int, ...]:
    """Give the shape of what one device holds of a sample's tokens, the first dim."""
    return shape if sequence_degree == 1 else (shape[0] // sequence_degree, *shape[1:])


def global_name(layer_index: int, parameter_name: str) -> str:
    """Name a parameter independently of the plan."""
    return f"layers.{layer_index}.{parameter_name}"


class Values(Protocol):
    """Where the values of a run's parameters come from, and how they are stored."""

    @property
    def dtype(self) -> torch.dtype:
        """Format of stored parameters."""

    @property
    def device(self) -> torch.device:
        """Where they are stored."""

    def whole(self, parameter: Parameter, name: str) -> Tensor:
        """Give a whole parameter by its place in the layer and its global name, on the CPU and in FP32."""


@dataclass(frozen=True, slots=True)
class InitialValues:
    """What the initial values of all parameters of a run follow from.

    Attributes:
        seed: of the run.
        num_blocks: Transformer blocks of the model, a decoder's included.
        dtype: format of stored parameters.
        device: where they are stored.
    """

    seed: int
    num_blocks: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: ModelSpec, *, seed: int, dtype: torch.dtype, device: torch.device) -> "InitialValues":
        """Start a model."""
        return cls(seed, model.num_layers + model.num_decoder_layers, dtype, device)

    def whole(self, parameter: Parameter, name: str) -> Tensor:
        """Draw a whole parameter, on the CPU and in FP32: the same numbers on every rank, device and precision.

        Norms start at 1 and biases at 0; weights are normal with standard deviation 0.02, those that write into the
        residual stream with ``0.02 / sqrt(2 * num_blocks)``.

        Args:
            parameter: its place and shape in the layer.
            name: its global name.

        Source: Radford et al. 2019, section 2.3.
        """
        owner, _, leaf = parameter.name.rpartition(".")
        if leaf == "bias":
            return torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
        if owner.endswith("norm"):
            return torch.ones(parameter.shape, dtype=torch.float32, device="cpu")
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        std = INITIAL_STD / (2 * self.num_blocks) ** 0.5 if owner in _RESIDUAL else INITIAL_STD
        return torch.empty(parameter.shape, dtype=torch.float32, device="cpu").normal_(std=std, generator=generator)


class OwnValues:
    """Initial values of the user's layers, as their modules draw them; a layer is drawn whole, on the CPU.

    They depend on the seed and the layer's number only. It has state because a layer's parameters are asked for one by
    one.
    """

    def __init__(self, model: OwnModel, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._function, self._seed = model.function, seed
        self._undrawn: dict[int, nn.Module] = {}
        self._drawn: tuple[int, nn.Module] | None = None

    def whole(self, parameter: Parameter, name: str) -> Tensor:
        """Give a whole parameter as its module starts with it, on the CPU and in FP32."""
        module = self.module(int(name.split(".")[1]))
        return module.get_parameter(own_name(parameter.name)).detach().float()

    def module(self, index: int) -> nn.Module:
        """Draw a layer."""
        if self._drawn is None or self._drawn[0] != index:
            digest = hashlib.sha256(f"{self._seed}/{index}".encode()).digest()
            if index not in self._undrawn:
                with torch.device("meta"):
                    self._undrawn = dict(enumerate(call(self._function)))
            module = self._undrawn.pop(index).to_empty(device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest[:7], "big"))
                start(module)
            self._drawn = index, module
        return self._drawn[1]


def initial_values(model: Model, *, seed: int, dtype: torch.dtype, device: torch.device) -> "InitialValues | OwnValues":
    """Say what the parameters of a run start with."""
    if isinstance(model, OwnModel):
        return OwnValues(model, seed=seed, dtype=dtype, device=device)
    return InitialValues.of(model, seed=seed, dtype=dtype, device=device)


def materialize(module: LayerModule, layer_index: int, values: Values) -> None:
    """Put initial values in the place of a layer's ``meta`` parameters; of split ones only this device's shard."""
    for parameter in parameters(module.layer):
        whole = values.whole(parameter, global_name(layer_index, parameter.name))
        current = module.get_parameter(parameter.name)
        if not isinstance(current, DTensor):
            replace_parameter(module, parameter.name, whole.to(values.device, values.dtype))
            continue
        mesh = current.device_mesh
        shard = shard_of(whole, parameter, rank=mesh.get_local_rank(), degree=mesh.size())
        value = DTensor.from_local(
            shard.to(values.device, values.dtype),
            mesh,
            current.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
        replace_parameter(module, parameter.name, value)
    if isinstance(module, OwnLayerModule) and isinstance(values, OwnValues):
        fill_buffers(module.own, values.module(layer_index), values.device)


def fill_buffers(module: nn.Module, drawn: nn.Module, device: torch.device) -> None:
    """Put a drawn module's buffers, which are constants, in the place of ``meta`` ones."""
    for name, buffer in drawn.named_buffers():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def shard_of(whole: Tensor, parameter: Parameter, *, rank: int, degree: int) -> Tensor:
    """Copy one tensor-parallel rank's shard out of a whole parameter; cut as DTensor does, so the last may be smaller.

    Raises:
        InvalidPlan: when a rank would hold nothing.
    """
    if parameter.split_dim is None or degree == 1:
        return whole.clone()
    shards = whole.chunk(degree, dim=parameter.split_dim)
    if len(shards) < degree:
        raise InvalidPlan(
            f"{parameter.name} of shape {parameter.shape} leaves a device empty at tensor degree {degree}",
            remedy="use a smaller tensor degree",
        )
    return shards[rank].clone(memory_format=torch.contiguous_format)


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put another tensor in the place of a parameter, which keeps its name and its place in the order."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value))
