"""Run by several processes: train every plan of a folder for some steps and write down how far it is from one process.

    python -m galvatron_runtime.launch ... -m runtime.train_plans FOLDER

reads ``FOLDER/<case>.plan.json`` and writes ``FOLDER/<case>.errors.json``. The reference is :func:`train_alone`: the
same layers, one process, the whole batch, nothing parallel.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from galvatron_planner import families
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.model import Model, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.training import AdamW
from galvatron_planner.workload import reads_data
from galvatron_runtime.apply import ParallelModel, apply
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.data import Batch, SyntheticSamples
from galvatron_runtime.mesh import finish, start_process_groups
from galvatron_runtime.model import build_layers, global_name, initial_values, materialize
from galvatron_runtime.optimizer import make_optimizer

SEED = 11
NUM_STEPS = 3
OPTIMIZER = AdamW(learning_rate=3e-3, beta1=0.9, beta2=0.95, weight_decay=0.1)
"""With a rate that moves the losses."""
CLIP_NORM = 0.5
"""Below the norms of the small models, so that clipping does something."""


@dataclass(frozen=True)
class Outcome:
    """Losses and gradient norms of the steps, and the whole parameters after them."""

    losses: list[float]
    norms: list[float]
    parameters: Mapping[str, Tensor]


def main(arguments: Sequence[str]) -> None:
    """Train all cases, one after another, in the same processes."""
    folder = Path(arguments[0])
    torch.set_num_threads(1)
    device = start_process_groups(DeviceKind.CPU, timeout_seconds=60)
    for file in sorted(folder.glob("*.plan.json")):
        plan = Plan.from_json(file.read_text())
        case = file.name.removesuffix(".plan.json")
        if dist.get_rank() == 0:
            print(f"{case}: {plan.model.family} {plan.schedule} {plan.summary}", flush=True)
        outcome = train(apply(plan, seed=SEED, device=device))
        errors = compare(outcome, train_alone(plan.model, plan.global_batch_size, plan.precision))
        if dist.get_rank() == 0:
            (folder / f"{case}.errors.json").write_text(json.dumps(errors))
    finish()


def samples(spec: Model, global_batch_size: int, step: int) -> Batch:
    """The global batch of a step."""
    return SyntheticSamples(spec, seed=5).samples(step, 0, global_batch_size)


def train(model: ParallelModel) -> Outcome:
    """Run some steps of a plan."""
    update = make_optimizer(model.trained_parameters.values(), OPTIMIZER)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        batch = samples(model.plan.model, model.plan.global_batch_size, step)

        def read(first: int, last: int, batch: Batch = batch) -> Batch:
            return Batch(tuple(one[first:last] for one in batch.inputs), batch.targets[first:last])

        losses.append(model.run_step(read).loss)
        norms.append(model.clip_gradients(CLIP_NORM))
        model.update(update)
    return Outcome(losses, norms, {name: gather(p.detach()) for name, p in model.parameters_by_name.items()})


def gather(tensor: Tensor) -> Tensor:
    """Make a split tensor whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@cache
def train_alone(spec: Model, global_batch_size: int, precision: Precision) -> Outcome:
    """Run the same steps in one process on whole batches; BF16 is held against FP32."""
    layers = build_alone(spec, torch.float64 if precision is Precision.FP64 else torch.float32)
    named = {global_name(i, name): p for i, layer in enumerate(layers) for name, p in layer.named_parameters()}
    copies = {global_name(*place) for place in families.copies(spec)}
    trained = {name: parameter for name, parameter in named.items() if name not in copies}
    update = torch.optim.AdamW(trained.values(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        batch = samples(spec, global_batch_size, step)
        loss = whole_loss(layers, batch) / (batch.targets >= 0).sum()
        update.zero_grad()
        torch.autograd.backward(loss)
        norms.append(nn.utils.clip_grad_norm_(trained.values(), CLIP_NORM).item())
        update.step()
        losses.append(loss.item())
    return Outcome(losses, norms, {name: parameter.detach() for name, parameter in named.items()})


def whole_loss(layers: list[LayerModule], batch: Batch) -> Tensor:
    """One layer after another; those that read data get it in their order."""
    inputs, stream = iter(batch.inputs), ()
    for layer in layers[:-1]:
        leaving = layer(*stream, next(inputs)) if reads_data(layer.layer) else layer(*stream)
        stream = leaving if isinstance(leaving, tuple) else (leaving,)
    loss: Tensor = layers[-1](*stream, batch.targets)
    return loss


def build_alone(spec: Model, dtype: torch.dtype) -> list[LayerModule]:
    """All layers, whole, with the initial values that every plan starts from."""
    values = initial_values(spec, seed=SEED, dtype=dtype, device=torch.device("cpu"))
    layers = build_layers(spec)
    for index, layer in enumerate(layers):
        materialize(layer, index, values)
    for (index, name), (first, owner) in families.copies(spec).items():
        module, _, leaf = name.rpartition(".")
        setattr(layers[index].get_submodule(module), leaf, layers[first].get_parameter(owner))
    return layers


def compare(ours: Outcome, expected: Outcome) -> dict[str, float]:
    """The largest errors on any rank: relative ones of losses and norms, absolute ones of parameters."""
    differences = [(value - expected.parameters[name]).abs().max().item() for name, value in ours.parameters.items()]
    errors = {
        "loss": max(abs(a / b - 1) for a, b in zip(ours.losses, expected.losses, strict=True)),
        "norm": max(abs(a / b - 1) for a, b in zip(ours.norms, expected.norms, strict=True)),
        "parameter": max(differences),
    }
    worst = torch.tensor(list(errors.values()), dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    names: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(names, list(ours.parameters))
    missing = set(expected.parameters) - {name for rank in names for name in rank}
    return {**dict(zip(errors, worst.tolist(), strict=True)), "missing": len(missing)}
