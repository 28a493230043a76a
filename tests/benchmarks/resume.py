"""Every checkpoint under every plan: one plan for each strategy of 8 devices, all pairs, bit for bit.

    cd tests && python -m benchmarks.resume [--zero2] [--sources N]

All pairs take about an hour on two cores; with ``--sources`` every plan resumes the checkpoints of N others, other
ones each. 44 strategies (62 with ZeRO-2) on six blocks of a GPT whose vocabulary is tied; embedding and head have that
of the blocks, without CKPT. Exits with 1 where a single tensor differs.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import builders
from galvatron_planner import families, space
from galvatron_planner.model import Block, Family
from galvatron_planner.plan import Plan
from galvatron_planner.problem import SearchDimension, SearchLimits
from galvatron_planner.strategy import LayerStrategy
from supervision import torchrun

NUM_DEVICES, NUM_STRATEGIES = 8, 62
TESTS = Path(__file__).parents[1]
SPEC = builders.model(
    Family.GPT, hidden_size=32, num_layers=6, num_heads=8, feed_forward_size=32, sequence_length=8, vocabulary_size=67
)


def plans(limits: SearchLimits) -> Iterator[Plan]:
    """One plan for every strategy that the search may give to a block."""
    block = next(layer for layer in families.layers(SPEC) if isinstance(layer, Block))
    for num_stages in (1, 2, 4, 8):
        for strategy in space.strategies(NUM_DEVICES // num_stages, limits, block).strategies:
            yield plan(strategy, num_stages)


def plan(strategy: LayerStrategy, num_stages: int) -> Plan:
    """Give all layers a strategy."""
    whole = LayerStrategy(strategy.axes)
    texts = [str(strategy if isinstance(layer, Block) else whole) for layer in families.layers(SPEC)]
    cuts = [round(index * len(texts) / num_stages) for index in range(num_stages + 1)]
    num_micro_batches = 1 if num_stages == 1 else 2
    return builders.plan(
        *(" ".join(texts[i:j]) for i, j in pairwise(cuts)),
        spec=SPEC,
        on=builders.cluster(NUM_DEVICES),
        global_batch_size=NUM_DEVICES * num_micro_batches,
        num_micro_batches=num_micro_batches,
    )


def main() -> int:
    """Run the benchmark; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--zero2", action="store_true", help="also the strategies with ZeRO-2")
    parser.add_argument("--sources", type=int, default=NUM_STRATEGIES, help="checkpoints that every plan resumes")
    options = parser.parse_args()
    limits = SearchLimits(excluded=() if options.zero2 else (SearchDimension.ZERO2,))
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, one in enumerate(plans(limits)):
            (folder / f"{number:02}.plan.json").write_text(one.to_json())
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
        subprocess.run(
            torchrun(NUM_DEVICES, "-m", "runtime.resume_plans", str(folder), str(options.sources)),
            check=True,
            env=environment,
        )
        result = json.loads((folder / "result.json").read_text())
    wrong = result["wrong"]
    today = date.today().isoformat()  # noqa: DTZ011
    print(
        f"{today}: {result['pairs']} pairs of plans, {result['tensors']} tensors on rank 0, {len(wrong)} differ,"
        f" {result['seconds']:.0f} s"
    )
    print(*wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
