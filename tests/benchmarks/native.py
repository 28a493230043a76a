"""The runtime against PyTorch by hand: the same GPT under the same plan, in turns, in the same processes.

    cd tests && python -m benchmarks.native [--rounds N] [--steps N] [--only NAME ...]

By hand is what the documentation of torch shows: ``DistributedDataParallel``, ``fully_shard``, ``parallelize_module``
and ``Schedule1F1B`` around plain modules, with fused AdamW. Two processes, so that nothing waits for a core of two. The
table gives throughput relative to the hand-written program: median, and first and third quartile, of the rounds; and
the same of processor time, which is steadier where others use the machine, but knows nothing of waiting.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from statistics import median, quantiles

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import builders
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.families import layers
from galvatron_planner.training import AdamW
from galvatron_planner.workload import num_parameters
from galvatron_runtime.apply import apply
from galvatron_runtime.data import Batch
from galvatron_runtime.mesh import finish, start_process_groups
from galvatron_runtime.optimizer import make_optimizer

HIDDEN, HEADS, BLOCKS, LENGTH, VOCABULARY, BATCH, MICRO_BATCHES = 256, 8, 4, 128, 1024, 16, 4
SPEC = builders.model(
    hidden_size=HIDDEN, num_layers=BLOCKS, num_heads=HEADS, sequence_length=LENGTH, vocabulary_size=VOCABULARY
).model_copy(update={"tie_word_embeddings": False})
OPTIMIZER = AdamW(learning_rate=1e-4)
CPU = torch.device("cpu")

Step = Callable[[], object]
"""One optimizer step on the same global batch."""


class Block(nn.Module):
    """A block of GPT-2, its projections apart so that they can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.query, self.key, self.value, self.output = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to the same."""
        normed = self.norm_1(hidden)
        query, key, value = (
            one(normed).unflatten(-1, (-1, HIDDEN // HEADS)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.output(mixed.transpose(1, 2).flatten(2))
        grown: Tensor = self.down(F.gelu(self.up(self.norm_2(hidden)), approximate="tanh"))
        return hidden + grown


class Embed(nn.Module):
    """Tokens and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(LENGTH, HIDDEN)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S] to [B, S, H]."""
        hidden: Tensor = self.tokens(tokens) + self.positions.weight
        return hidden


class Score(nn.Module):
    """Norm and projection to the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.projection = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to [B, S, V]."""
        scores: Tensor = self.projection(self.norm(hidden))
        return scores


def build() -> nn.Sequential:
    """The whole model, equal on all ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(Embed(), *(Block() for _ in range(BLOCKS)), Score())
    count, expected = sum(p.numel() for p in model.parameters()), sum(map(num_parameters, layers(SPEC)))
    if count != expected:
        raise AssertionError(f"{count} parameters by hand, {expected} of ours: not the same model")
    return model


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """Fused, one group for each kind of tensor."""
    return make_optimizer(model.parameters(), OPTIMIZER)


def plain_step(model: nn.Module, optimizer: torch.optim.AdamW, tokens: Tensor, targets: Tensor) -> None:
    """Forward, backward, update."""
    optimizer.zero_grad()
    loss = loss_of(model(tokens), targets)
    torch.autograd.backward(loss)
    optimizer.step()
    loss.item()


def own_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """This rank's half of the batch."""
    rows = slice(dist.get_rank() * BATCH // 2, (dist.get_rank() + 1) * BATCH // 2)
    return batch.inputs[0][rows], batch.targets[rows]


def data_parallel(batch: Batch) -> Step:
    """DistributedDataParallel."""
    model = DistributedDataParallel(build(), gradient_as_bucket_view=True)
    return partial(plain_step, model, optimizer_of(model), *own_rows(batch))


def sharded(batch: Batch) -> Step:
    """FSDP2, every layer by itself."""
    model = build()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return partial(plain_step, model, optimizer_of(model), *own_rows(batch))


def tensor_parallel(batch: Batch) -> Step:
    """DTensor's plans, embedding and projection split over the vocabulary."""
    model, mesh = build(), init_device_mesh("cpu", (2,))
    parallelize_module(model[0], mesh, {"tokens": RowwiseParallel(input_layouts=Replicate())})
    for block in list(model.children())[1:-1]:
        block_plan = {name: ColwiseParallel() for name in ("query", "key", "value", "up")}
        parallelize_module(block, mesh, {**block_plan, "output": RowwiseParallel(), "down": RowwiseParallel()})
    parallelize_module(model[-1], mesh, {"projection": ColwiseParallel(output_layouts=Replicate())})
    return partial(plain_step, model, optimizer_of(model), batch.inputs[0], batch.targets)


def pipelined(batch: Batch) -> Step:
    """torch.distributed.pipelining, cut in the middle."""
    rank, whole = dist.get_rank(), build()
    half = nn.Sequential(*list(whole.children())[:3] if rank == 0 else list(whole.children())[3:])
    stage = PipelineStage(half, rank, 2, CPU)
    schedule, optimizer = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=loss_of), optimizer_of(half)

    def step() -> None:
        optimizer.zero_grad()
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(batch.inputs[0])
        else:
            schedule.step(target=batch.targets, losses=losses)
        optimizer.step()
        if losses:
            torch.stack(losses).mean().item()

    return step


def ours(stages: tuple[str, ...], num_micro_batches: int, batch: Batch) -> Step:
    """The runtime under a plan."""
    plan = builders.plan(
        *stages,
        spec=SPEC,
        on=builders.cluster(2),
        global_batch_size=BATCH,
        num_micro_batches=num_micro_batches,
    )
    model = apply(plan, seed=0, device=CPU)
    optimizer = make_optimizer(model.parameters_by_name.values(), OPTIMIZER)

    def step() -> None:
        model.run_step(lambda i, j: Batch((batch.inputs[0][i:j],), batch.targets[i:j]))
        optimizer.step()

    return step


@dataclass(frozen=True, slots=True)
class Case:
    """A plan, and the program by hand that does the same."""

    name: str
    stages: tuple[str, ...]
    num_micro_batches: int
    by_hand: Callable[[Batch], Step]


def everywhere(strategy: str) -> tuple[str, ...]:
    """One stage whose layers are all split alike."""
    return (" ".join([strategy] * (BLOCKS + 2)),)


CASES = (
    Case("DDP", everywhere("dp2"), 1, data_parallel),
    Case("FSDP2", everywhere("fsdp2"), 1, sharded),
    Case("DTensor TP", everywhere("tp2"), 1, tensor_parallel),
    Case("pipelining", ("single single single", "single single single"), MICRO_BATCHES, pipelined),
)


def time_step(step: Step, num_steps: int) -> tuple[float, float]:
    """Seconds of a step on the slower rank, and processor seconds of both."""
    dist.barrier()
    started, used = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        step()
    wall = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    processor = torch.tensor(time.process_time() - used, dtype=torch.float64)
    dist.all_reduce(wall, op=dist.ReduceOp.MAX)
    dist.all_reduce(processor)
    return wall.item() / num_steps, processor.item() / num_steps


def compare(case: Case, *, rounds: int, num_steps: int) -> None:
    """Run both in turns and print a row."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    batch = Batch((tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous())
    steps = {"ours": ours(case.stages, case.num_micro_batches, batch), "theirs": case.by_hand(batch)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        # Whoever comes second meets warm caches: take turns at that too. The first round warms up.
        for name in sorted(steps, reverse=bool(number % 2)):
            taken = time_step(steps[name], num_steps)
            if number:
                seconds[name].append(taken)
    if dist.get_rank() == 0:
        mine, theirs = seconds["ours"], seconds["theirs"]
        print(f"{case.name:<12} {milliseconds(mine)} {milliseconds(theirs)}", end="")
        for kind in range(2):
            ratios = [by_hand[kind] / own[kind] for own, by_hand in zip(mine, theirs, strict=True)]
            low, _, high = quantiles(ratios, n=4)
            print(f"   {median(ratios):5.3f} ({low:.3f} to {high:.3f})", end="")
        print(flush=True)


def milliseconds(seconds: list[tuple[float, float]]) -> str:
    """Median of a step."""
    return f"{median(wall for wall, _ in seconds) * 1e3:10.1f}"


def work(arguments: argparse.Namespace) -> None:
    """One rank."""
    torch.set_num_threads(1)
    start_process_groups(DeviceKind.CPU)
    if dist.get_rank() == 0:
        rounds = f"{arguments.rounds} rounds of {arguments.steps} steps"
        print(f"{datetime.now(UTC).date()}, torch {torch.__version__}, 2 processes, {rounds}")
        print(f"{'':<12} {'ours, ms':>10} {'theirs, ms':>10}   {'throughput':<22}   processor time")
    for case in CASES:
        if not arguments.only or case.name in arguments.only:
            compare(case, rounds=arguments.rounds, num_steps=arguments.steps)
    finish()


def main() -> None:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of each program in a round")
    parser.add_argument("--only", nargs="*", default=[], choices=[case.name for case in CASES])
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        work(arguments)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    variables = {"OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "0"}
    done = subprocess.run([*command, "-m", "benchmarks.native", *sys.argv[1:]], env=os.environ | variables, check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
