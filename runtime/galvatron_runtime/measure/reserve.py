"""Device memory that is gone before the first parameter: what context, libraries and communicators hold."""

from tempfile import TemporaryDirectory

import torch
from torch.distributed.checkpoint import state_dict_saver

from galvatron_planner.cluster import Cluster
from galvatron_planner.documents import Digest
from galvatron_planner.model import Family, ModelSpec
from galvatron_planner.plan import Estimate, Plan, StagePlan
from galvatron_planner.problem import Schedule
from galvatron_planner.profiles import Collective, ProfileRequest
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy
from galvatron_planner.training import AdamW
from galvatron_runtime.apply import apply
from galvatron_runtime.checkpoint import TrainingState
from galvatron_runtime.data import Batch
from galvatron_runtime.measure.bench import Bench
from galvatron_runtime.measure.links import Link, is_used, prepare
from galvatron_runtime.measure.passes import build, feed
from galvatron_runtime.memory import MemoryMeter, return_freed_memory
from galvatron_runtime.optimizer import make_optimizer


def measure_reserve(links: tuple[Link, ...], request: ProfileRequest, meter: MemoryMeter, *, bench: Bench) -> int:
    """Use every communicator once, take a step with a tiny model, and read what has become of the memory.

    The step and its checkpoint load what sharding, tensor parallelism and saving need (4 MB of a CPU process). No plan
    uses more groups than the request lists, so this is an upper bound for all of them.

    Returns:
        bytes on the fullest device, with what the library holds while it sums the largest payload in place.
    """
    buffer = torch.zeros(bench.world_size, device=bench.device)
    for link in links:
        for collective in Collective:
            if is_used(collective, link.group):
                prepare(link, collective, payload_bytes=1, buffer=buffer, rank=bench.rank)()
    _take_step(tiny_plan(request), bench)
    _compute(request, bench)
    bench.line_up()
    summing = max((_summing_bytes(link, request, meter, bench=bench) for link in links), default=0)
    return_freed_memory()
    return _of_the_fullest(meter.current_bytes(), bench) + summing


def _compute(request: ProfileRequest, bench: Bench) -> None:
    """Pass the fewest samples through every layer: matrix libraries keep what they make for its shapes."""
    for layer in request.layers:
        module = build(layer, tensor_degree=1, precision=request.precision, device=bench.device)
        size = request.micro_batch_sizes[0]
        feed(module, micro_batch_size=size, precision=request.precision, device=bench.device).run()


def _summing_bytes(link: Link, request: ProfileRequest, meter: MemoryMeter, *, bench: Bench) -> int:
    """Measure what the library works in while it sums the largest payload: gloo receives into segments of 2 MB."""
    buffer = torch.ones(max(request.payload_bytes) // torch.float32.itemsize, device=bench.device)
    return_freed_memory()
    meter.reset_peak()
    prepare(link, Collective.ALL_REDUCE, payload_bytes=buffer.nbytes, buffer=buffer, rank=bench.rank)()
    bench.line_up()
    # What stays is read with everything else that does.
    most = meter.peak_bytes()
    return_freed_memory()
    return _of_the_fullest(max(0, most - meter.current_bytes()), bench)


def _of_the_fullest(num_bytes: int, bench: Bench) -> int:
    (fullest,) = bench.slowest([float(num_bytes)])
    return int(fullest)


def tiny_plan(request: ProfileRequest) -> Plan:
    """Plan a model of a few kilobytes that is replicated, sharded, split and recomputed, as far as devices allow."""
    cluster = Cluster(
        num_nodes=request.num_nodes,
        devices_per_node=request.devices_per_node,
        device_kind=request.device_kind,
        device_memory_bytes=1,
    )
    num_devices = cluster.num_devices
    tensor_degree = min(2, num_devices)
    strategies = (
        _strategy((Dimension.DATA, num_devices)),
        _strategy((Dimension.TENSOR, tensor_degree), (Dimension.SHARDED_DATA, num_devices // tensor_degree)),
        _strategy((Dimension.SHARDED_DATA, num_devices), checkpoint=True),
        _strategy((Dimension.SHARDED_DATA, num_devices)),
    )
    return Plan(
        model=_TINY,
        precision=request.precision,
        cluster=cluster,
        global_batch_size=num_devices,
        num_micro_batches=1,
        schedule=Schedule.ONE_F_ONE_B,
        stages=(StagePlan(layers=strategies),),
        estimate=Estimate(
            step_seconds=1.0,
            samples_per_second=float(num_devices),
            stage_seconds=(1.0,),
            stage_peak_bytes=(1,),
            bubble_ratio=0.0,
        ),
        problem_digest=Digest("0" * 64),
    )


_TINY = ModelSpec(
    family=Family.GPT,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=2,
    feed_forward_size=32,
    sequence_length=8,
    vocabulary_size=16,
)


def _strategy(*axes: tuple[Dimension, int], checkpoint: bool = False) -> LayerStrategy:
    return LayerStrategy(tuple(Axis(dimension, degree) for dimension, degree in axes if degree > 1), checkpoint)


def _take_step(plan: Plan, bench: Bench) -> None:
    model = apply(plan, seed=0, device=bench.device)
    tokens = torch.zeros(plan.global_batch_size, plan.model.sequence_length, dtype=torch.long)
    model.run_step(lambda first, last: Batch((tokens[first:last],), tokens[first:last]))
    model.clip_gradients(1.0)
    optimizer = make_optimizer(model.trained_parameters.values(), AdamW(learning_rate=1e-3))
    model.update(optimizer)
    with TemporaryDirectory() as directory:
        state_dict_saver.save(TrainingState(model.trained_parameters, optimizer).tensors(), checkpoint_id=directory)
