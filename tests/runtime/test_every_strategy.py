"""Every strategy of 8 devices on blocks of every family, against one process.

A plan gives each block another strategy, so that a dozen plans a family show all of them, with all changes of layout in
between. One torchrun of eight processes trains all plans; every family is then a test of its own.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from pathlib import Path

import pytest

import builders
from galvatron_planner import families, space
from galvatron_planner.model import Block, Family, ModelSpec, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import SearchLimits
from galvatron_planner.strategy import LayerStrategy
from supervision import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FAMILIES = tuple(family for family in Family if family is not Family.MISTRAL)
"""Mistral's layers are LLaMA's."""
SPLIT_TOKENS = (Family.GPT, Family.BERT, Family.T5)
"""Norms before and after, and two streams; random plans (test_equal_losses) do so with the others."""
NUM_DEVICES = 8
NUM_BLOCKS = 8
MICRO_BATCH = 8


def model(family: Family) -> ModelSpec:
    """Eight heads and inner vectors that 8 devices can split."""
    layers = NUM_BLOCKS // 2 if family is Family.T5 else NUM_BLOCKS
    spec = builders.model(
        family, hidden_size=32, num_layers=layers, num_heads=8, feed_forward_size=32, sequence_length=8
    )
    if family is Family.T5:
        return spec.model_copy(update={"decoder_sequence_length": 8})
    return spec.model_copy(update={"depths": (4, 4)}) if family is Family.SWIN else spec


def strategies(family: Family, num_stages: int) -> tuple[LayerStrategy, ...]:
    """What the search may choose for blocks on a stage of the pipeline."""
    block = next(layer for layer in families.layers(model(family)) if isinstance(layer, Block))
    limits = SearchLimits(sequence_parallel=family in SPLIT_TOKENS)
    return space.strategies(NUM_DEVICES // num_stages, limits, block).strategies


def plans(family: Family) -> Iterator[Plan]:
    """Plans in which every strategy is that of some block."""
    for num_stages in (1, 2, 4, 8):
        every = strategies(family, num_stages)
        for first in range(0, len(every), NUM_BLOCKS):
            yield plan(family, num_stages, every[first : first + NUM_BLOCKS])


def plan(family: Family, num_stages: int, chosen: Sequence[LayerStrategy]) -> Plan:
    """Give blocks the strategies in turns, and what stands between them that of the block before, without CKPT."""
    spec, turns = model(family), cycle(chosen)
    texts, before = [], chosen[0]
    for layer in families.layers(spec):
        before = next(turns) if isinstance(layer, Block) else LayerStrategy(before.axes)
        texts.append(str(before))
    cuts = [round(index * len(texts) / num_stages) for index in range(num_stages + 1)]
    num_micro_batches = 1 if num_stages == 1 else 3
    return builders.plan(
        *(" ".join(texts[i:j]) for i, j in pairwise(cuts)),
        spec=spec,
        on=builders.cluster(NUM_DEVICES),
        global_batch_size=MICRO_BATCH * num_micro_batches,
        num_micro_batches=num_micro_batches,
        precision=Precision.FP64,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which eight processes have trained all plans."""
    folder = tmp_path_factory.mktemp("strategies")
    for family in FAMILIES:
        for index, one in enumerate(plans(family)):
            (folder / f"{family}-{index:02}.plan.json").write_text(one.to_json())
    run_ranks(NUM_DEVICES, "runtime.train_plans", str(folder))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_all_strategies_train_like_one_process(family: Family, trained: Path) -> None:
    number = 104 if family in SPLIT_TOKENS else 62
    assert sum(len(strategies(family, num_stages)) for num_stages in (1, 2, 4, 8)) == number
    for index, one in enumerate(plans(family)):
        errors = json.loads((trained / f"{family}-{index:02}.errors.json").read_text())
        assert errors.pop("missing") == 0, one.summary
        assert errors["loss"] < 1e-9, one.summary
        assert errors["norm"] < 1e-9, one.summary
        assert errors["parameter"] < 1e-8, one.summary
