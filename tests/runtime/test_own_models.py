"""Layers of a user's own train under every plan as in one process."""

import json
from pathlib import Path

import pytest

import builders
from galvatron_planner.model import Precision
from galvatron_planner.plan import Plan
from galvatron_runtime.describe import describe
from supervision import run_ranks

pytestmark = pytest.mark.distributed

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own-model"
BLOCKS = 6
CASES: dict[str, tuple[str, tuple[str, ...], int, Precision]] = {
    "text-dp": ("convolutions:layers", ("dp4 " * 8,), 2, Precision.FP64),
    "text-mixed": ("convolutions:layers", ("fsdp4 tp4 tp2-dp2 dp2-tp2-ckpt tp2-fsdp2 gsdp2-tp2 dp4-ckpt gsdp4",), 2,
                   Precision.FP64),
    "text-stages": ("convolutions:layers", ("dp2 tp2 tp2-ckpt", "fsdp2 dp2 gsdp2 tp2 dp2"), 3, Precision.FP64),
    "text-half": ("convolutions:layers", ("dp4 tp4 tp2-dp2 fsdp4-ckpt dp4 gsdp4 tp2-fsdp2 fsdp4",), 2, Precision.BF16),
    "images-dp": ("runtime.own_layers:images", ("dp4 fsdp4-ckpt gsdp4 fsdp4 dp4",), 2, Precision.FP64),
    "images-stages": ("runtime.own_layers:images", ("single single-ckpt", "single", "single", "single"), 4,
                      Precision.FP64),
}  # fmt: skip


TOLERANCES = {
    # The loss is computed in FP32.
    Precision.FP64: {"loss": 1e-6, "norm": 1e-6, "parameter": 1e-5},
    Precision.BF16: {"loss": 1e-2, "norm": 5e-2, "parameter": 3e-2},
}


def planned(case: str) -> Plan:
    function, stages, num_micro_batches, precision = CASES[case]
    reads = {"sequence_length": 12, "vocabulary_size": 256}
    if case.startswith("images"):
        reads = {"sequence_length": 1, "vocabulary_size": 10, "image_size": 8}
    return builders.plan(
        *stages,
        spec=describe(function, **reads),
        on=builders.cluster(4),
        global_batch_size=4 * num_micro_batches,
        num_micro_batches=num_micro_batches,
        precision=precision,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which four processes have trained all cases."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        for case in CASES:
            (folder / f"{case}.plan.json").write_text(planned(case).to_json())
    run_ranks(4, "runtime.train_plans", str(folder), places=[EXAMPLE])
    return folder


@pytest.mark.parametrize("case", CASES)
def test_own_layers_train_like_one_process(case: str, trained: Path) -> None:
    errors = json.loads((trained / f"{case}.errors.json").read_text())
    assert errors.pop("missing") == 0
    for quantity, tolerance in TOLERANCES[CASES[case][3]].items():
        assert errors[quantity] < tolerance, quantity
