"""A training checkpoint that was saved under any plan goes on, bit for bit, under any other."""

import json
from pathlib import Path

import pytest

import builders
from galvatron_planner.model import Family
from supervision import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STAGES = {
    "replicated": ("dp4 dp4 dp4 dp4",),
    "sharded": ("fsdp4 fsdp4-ckpt fsdp4 fsdp4",),
    "sharded-gradients": ("gsdp4 gsdp4 gsdp4-ckpt gsdp4",),
    "split": ("tp4 tp4 tp4 tp4",),
    "split-and-sharded": ("tp2-fsdp2 tp2-dp2 fsdp2-tp2 dp2-tp2",),
    "mixed": ("dp4 tp2-gsdp2 fsdp4 tp4",),
    "split-tokens": ("sptp4 sptp2-dp2 fsdp2-sptp2-ckpt sptp4",),
    "two-stages": ("dp2 tp2", "fsdp2-ckpt gsdp2"),
    "uneven-stages": ("tp2", "gsdp2 fsdp2 tp2"),
    "four-stages": ("single", "single-ckpt", "single", "single"),
}


def test_every_checkpoint_resumes_under_every_plan(tmp_path: Path) -> None:
    for case, stages in STAGES.items():
        plan = builders.plan(
            *stages,
            spec=builders.model(Family.LLAMA),
            on=builders.cluster(4),
            global_batch_size=8,
            num_micro_batches=1 if len(stages) == 1 else 2,
        )
        (tmp_path / f"{case}.plan.json").write_text(plan.to_json())
    run_ranks(4, "runtime.resume_plans", str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["wrong"] == []
    assert result["pairs"] == len(STAGES) ** 2
    assert result["tensors"] > 10 * result["pairs"]
