"""THE property of the runtime: every valid plan of a job gives the losses of one process.

One torchrun of four processes trains all cases; every case is then a test of its own.
"""

import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from random import Random

import pytest

import builders
from galvatron_planner import families
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Block, Family, LayerSpec, ModelSpec, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Schedule
from galvatron_planner.space import compositions
from supervision import run_ranks

pytestmark = pytest.mark.distributed

MODELS = {
    Family.GPT: builders.model(Family.GPT, num_layers=4, sequence_length=8, feed_forward_size=64),
    Family.LLAMA: builders.model(
        Family.LLAMA, num_layers=4, num_heads=8, num_key_value_heads=4, sequence_length=8, feed_forward_size=48
    ),
    # Biases of queries, keys and values, and heads wider than their share of the hidden size.
    Family.QWEN2: ModelSpec.model_validate(
        {
            **dict(builders.model(Family.QWEN2, num_layers=4, sequence_length=8, feed_forward_size=48)),
            "head_size": 16,
        }
    ),
    Family.BERT: builders.model(Family.BERT, num_layers=4, sequence_length=8, feed_forward_size=48),
    Family.VIT: builders.model(Family.VIT, num_layers=4, feed_forward_size=48),
    # Windows that are shifted, and a merge in the middle.
    Family.SWIN: builders.model(Family.SWIN, num_layers=4, feed_forward_size=48).model_copy(update={"depths": (2, 2)}),
    # Two streams; stages end inside the encoder, before the decoder's embedding, and inside the decoder.
    Family.T5: builders.model(Family.T5, num_layers=2, sequence_length=8, feed_forward_size=48),
}
EVERY_STRATEGY = [
    "dp4",
    "gsdp4",
    "fsdp4",
    "tp4",
    "tp2-dp2",
    "dp2-tp2",
    "tp2-gsdp2",
    "gsdp2-tp2",
    "tp2-fsdp2",
    "fsdp2-tp2",
    "sptp4",
    "sptp2-dp2",
    "gsdp2-sptp2",
    "sptp2-fsdp2",
]


def random_plan(seed: int, precision: Precision) -> Plan:
    """Any pipeline degree, cut, strategies, schedule and number of micro-batches."""
    random = Random(f"{precision}/{seed}")  # noqa: S311  (no secret)
    spec = MODELS[random.choice(list(MODELS))]
    layers = families.layers(spec)
    num_stages = random.choice([1, 1, 2, 2, 4])
    per_stage = 4 // num_stages
    cuts = sorted(random.sample(range(1, len(layers)), num_stages - 1))
    texts = [random_strategy(layer, per_stage, random) for layer in layers]
    num_micro_batches = random.choice([1, 2, 3, 5])
    return builders.plan(
        *(" ".join(texts[i:j]) for i, j in zip([0, *cuts], [*cuts, len(layers)], strict=True)),
        spec=spec,
        global_batch_size=num_micro_batches * per_stage * random.choice([1, 2]),
        num_micro_batches=num_micro_batches,
        schedule=random.choice(list(Schedule)),
        precision=precision,
    )


def random_strategy(layer: LayerSpec, num_devices: int, random: Random) -> str:
    admitted = [s for s in compositions(num_devices, sequence_parallel=True) if refusal(layer, s) is None]
    return str(random.choice(admitted))


def uniform_plan(strategy: str, family: Family) -> Plan:
    """One strategy for all blocks, checkpointed where that is allowed."""
    spec = MODELS[family]
    blocks = [isinstance(layer, Block) for layer in families.layers(spec)]
    layers = [f"{strategy}-ckpt" if is_block and index % 2 else strategy for index, is_block in enumerate(blocks)]
    return builders.plan(
        " ".join(layers), spec=spec, global_batch_size=8, num_micro_batches=2, precision=Precision.FP64
    )


CASES: Mapping[str, Plan] = {
    **{f"fp64-{seed:02}": random_plan(seed, Precision.FP64) for seed in range(40)},
    **{f"fp32-{seed:02}": random_plan(seed, Precision.FP32) for seed in range(8)},
    **{f"bf16-{seed:02}": random_plan(seed, Precision.BF16) for seed in range(8)},
    **{
        strategy: uniform_plan(strategy, family)
        for strategy, family in zip(EVERY_STRATEGY, cycle([f for f in MODELS if f not in (Family.VIT, Family.SWIN)]))
    },
}


TOLERANCES: Mapping[Precision, Mapping[str, float]] = {
    # Relative errors of losses and gradient norms, absolute ones of parameters after the last step.
    Precision.FP64: {"loss": 1e-9, "norm": 1e-9, "parameter": 1e-8},
    # AdamW moves a parameter by its rate (3e-3) however small the gradient is: rounding noise in gradients that ought
    # to be zero shows in parameters, and in nothing else.
    Precision.FP32: {"loss": 1e-4, "norm": 1e-3, "parameter": 1e-2},
    Precision.BF16: {"loss": 1e-2, "norm": 5e-2, "parameter": 3e-2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which four processes have trained all cases."""
    folder = tmp_path_factory.mktemp("plans")
    for case, plan in CASES.items():
        (folder / f"{case}.plan.json").write_text(plan.to_json())
    run_ranks(4, "runtime.train_plans", str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_plan_trains_like_one_process(case: str, trained: Path) -> None:
    plan = CASES[case]
    errors = json.loads((trained / f"{case}.errors.json").read_text())

    assert errors.pop("missing") == 0, plan.summary
    for quantity, tolerance in TOLERANCES[plan.precision].items():
        assert errors[quantity] < tolerance, (quantity, plan.summary)
