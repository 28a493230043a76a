"""Run by several processes: save a training checkpoint under every plan of a folder and load it under every one.

    python -m galvatron_runtime.launch ... -m runtime.resume_plans FOLDER [SOURCES]

reads ``FOLDER/<case>.plan.json`` and writes ``FOLDER/result.json``: pairs, tensors compared, and what differed. With a
number of sources every plan loads the checkpoints of so many plans only, other ones each time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from galvatron_planner.cluster import DeviceKind
from galvatron_planner.plan import Plan
from galvatron_planner.training import AdamW, SyntheticData, TrainingCheckpoints, TrainingSpec
from galvatron_runtime.apply import apply
from galvatron_runtime.checkpoint import CheckpointStore, TrainingState
from galvatron_runtime.data import Batch
from galvatron_runtime.mesh import finish, start_process_groups
from galvatron_runtime.optimizer import make_optimizer
from runtime import train_plans

OPTIMIZER = AdamW(learning_rate=1e-2)
CPU = torch.device("cpu")
OF_A_RANK = 1 << 40
"""More than the elements of any piece: marks tell which rank's they are, and which of its."""


def main(arguments: Sequence[str]) -> None:
    """Save under all plans, then load all, or some, under all."""
    folder, num_sources = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else None
    torch.set_num_threads(1)
    start_process_groups(DeviceKind.CPU, timeout_seconds=60)
    plans = {file.name.removesuffix(".plan.json"): read(file) for file in sorted(folder.glob("*.plan.json"))}
    saved = {case: save(plan, folder / case) for case, plan in plans.items()}
    started, wrong, num_tensors = time.monotonic(), [], 0
    sources = min(num_sources or len(plans), len(plans))
    for number, (here, plan) in enumerate(plans.items()):
        state = fresh(plan, seed=train_plans.SEED + 1)
        held: dict[str, Tensor] = {}
        for index, (there, expected) in enumerate(
            islice(cycle(saved.items()), number * sources, (number + 1) * sources)
        ):
            store(plan, folder / there).load(state, 1)
            # That the pieces make up whole tensors is seen once; putting them together takes longer than loading.
            found = pieces(state) if index else whole(state)
            held = held or {name: elements(value) for name, value in tensors(state).items()}
            for name, value in found.items():
                num_tensors += 1
                known = expected[name].flatten()[held[name]] if index else expected[name]
                if not torch.equal(value, known):
                    wrong.append(f"{name} of {there} under {here} on rank {dist.get_rank()}")
        tell(f"{here}: resumed the checkpoints of {sources} plans")
    told: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(told, wrong)
    if dist.get_rank() == 0:
        result = {
            "pairs": len(plans) * sources,
            "tensors": num_tensors,
            "wrong": [one for rank in told for one in rank],
            "seconds": time.monotonic() - started,
        }
        (folder / "result.json").write_text(json.dumps(result))
    finish()


def read(file: Path) -> Plan:
    """Read a plan."""
    return Plan.from_json(file.read_text())


def store(plan: Plan, directory: Path) -> CheckpointStore:
    """Where a plan's checkpoint goes."""
    settings = TrainingCheckpoints(directory=str(directory), period_steps=1)
    training = TrainingSpec(
        steps=1, optimizer=OPTIMIZER, gradient_clip_norm=0, seed=1, data=SyntheticData(), checkpoints=settings
    )
    return CheckpointStore(settings, plan, training, attempt=0)


def fresh(plan: Plan, *, seed: int) -> TrainingState:
    """This rank's part of a model that has learned nothing."""
    named = apply(plan, seed=seed, device=CPU).trained_parameters
    return TrainingState(named, make_optimizer(named.values(), OPTIMIZER))


def save(plan: Plan, directory: Path) -> Mapping[str, Tensor]:
    """Make a step, save, and give all values of all ranks."""
    model = apply(plan, seed=train_plans.SEED, device=CPU)
    optimizer = make_optimizer(model.trained_parameters.values(), OPTIMIZER)
    batch = train_plans.samples(plan.model, plan.global_batch_size, 0)
    model.run_step(lambda i, j: Batch(tuple(one[i:j] for one in batch.inputs), batch.targets[i:j]))
    model.update(optimizer)
    state = TrainingState(model.trained_parameters, optimizer)
    store(plan, directory).save(state, 1)
    of_ranks: list[Mapping[str, Tensor]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, whole(state))
    tell(f"{plan.summary}: saved")
    return {name: value for values in of_ranks for name, value in values.items()}


def tensors(state: TrainingState) -> Mapping[str, Tensor]:
    """All tensors of this rank's layers, and how often they were updated."""
    counts = {f"step.{name}": state.optimizer.state[p]["step"] for name, p in state.parameters.items()}
    return {**state.tensors(), **counts}


def whole(state: TrainingState) -> Mapping[str, Tensor]:
    """All tensors of this rank's layers, put together."""
    return {name: train_plans.gather(value) for name, value in tensors(state).items()}


def pieces(state: TrainingState) -> Mapping[str, Tensor]:
    """What this rank holds of them, flat."""
    return {name: local(value).flatten() for name, value in tensors(state).items()}


def local(tensor: Tensor) -> Tensor:
    """This rank's piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def elements(tensor: Tensor) -> Tensor:
    """Tell which elements of the whole tensor this rank's piece holds, as flat indices in its own order."""
    piece = local(tensor)
    own = torch.arange(piece.numel())
    if not isinstance(tensor, DTensor):
        return own
    marked = DTensor.from_local(
        (own + dist.get_rank() * OF_A_RANK).view_as(piece),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    marks = marked.full_tensor().flatten()
    mine = torch.nonzero(marks // OF_A_RANK == dist.get_rank()).flatten()
    return mine[marks[mine].argsort()]


def tell(text: str) -> None:
    """Say how far it is."""
    if dist.get_rank() == 0:
        print(text, flush=True)
