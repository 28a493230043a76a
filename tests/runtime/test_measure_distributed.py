"""Measuring by real processes: a profile that is complete, plausible, and enough for a search."""

import os
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

import builders
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Family, ModelSpec, Precision
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Collective, Profile, ProfileRequest
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.request import profile_request
from galvatron_planner.units import GIB, MIB

pytestmark = pytest.mark.distributed

Measured = tuple[ModelSpec, ProfileRequest, Profile]

BATCH = BatchRange(minimum=4, maximum=4)


@pytest.fixture(
    scope="module",
    params=[
        (Family.GPT, 2, Precision.FP32, SearchLimits(sequence_parallel=True)),
        (Family.LLAMA, 4, Precision.BF16, SearchLimits()),
    ],
    ids=["gpt-fp32-on-2", "llama-bf16-on-4"],
)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    family, num_devices, precision, limits = request.param
    # Its payloads must be far apart to differ in time, hence a few MiB of parameters; two key-value heads refuse tp4.
    spec = builders.model(family, hidden_size=128, num_heads=4, num_key_value_heads=2, vocabulary_size=2048)
    asked = profile_request(
        spec,
        builders.cluster(num_devices),
        precision=precision,
        batch=BATCH,
        limits=limits,
        runtime_version="test",
    )
    return spec, asked, measure(asked, tmp_path_factory.mktemp("profile"))


def measure(asked: ProfileRequest, folder: Path) -> Profile:
    (folder / "request.json").write_text(asked.to_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(asked.devices_per_node), "-m", "galvatron_runtime.measure"),
        *("--request", str(folder / "request.json"), "--output", str(folder / "profile.json"), "--seconds", "2"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run(command, env=environment, check=True, timeout=240)
    return Profile.from_json((folder / "profile.json").read_text())


def test_every_duration_says_how_certain_it_is(measured: Measured) -> None:
    _, _, profile = measured
    found = [sample.uncertainty for layer in profile.layers for sample in layer.samples]
    found += [sample.uncertainty for link in profile.links for sample in link.samples]
    assert all(isfinite(one) and one >= 0 for one in found)
    assert max(found) > 0
    assert 0 < profile.typical_uncertainty < 0.5


def test_every_layer_is_measured_in_every_split_that_it_admits(measured: Measured) -> None:
    _, asked, profile = measured
    expected = [
        (layer, split.tensor_degree, split.sequence_degree)
        for layer in asked.layers
        for split in asked.splits
        if refusal(layer, split) is None
    ]

    assert [(one.layer, one.tensor_degree, one.sequence_degree) for one in profile.layers] == expected
    for one in profile.layers:
        assert tuple(sample.micro_batch_size for sample in one.samples) == asked.micro_batch_sizes


def test_every_collective_is_measured_over_every_group_that_can_run_it(measured: Measured) -> None:
    _, asked, profile = measured
    expected = {
        (collective, group)
        for group in asked.groups
        for collective in Collective
        if collective is not Collective.POINT_TO_POINT or group.size == 2
    }

    assert {(link.collective, link.group) for link in profile.links} == expected
    for link in profile.links:
        assert tuple(sample.payload_bytes for sample in link.samples) == asked.payload_bytes


def test_layers_take_longer_and_more_memory_for_more_samples(measured: Measured) -> None:
    _, _, profile = measured
    for one in profile.layers:
        samples = (sample.model_dump(exclude={"uncertainty"}) for sample in one.samples)
        for figures in zip(*(sample.values() for sample in samples), strict=True):
            assert all(isfinite(figure) for figure in figures)
            assert list(figures) == sorted(figures)
            assert figures[0] > 0


def test_collectives_of_many_bytes_take_longer_than_those_of_few(measured: Measured) -> None:
    _, asked, profile = measured
    assert asked.payload_bytes[-1] >= MIB / 2
    for link in profile.links:
        seconds = [sample.seconds for sample in link.samples]
        assert seconds[0] > 0
        assert seconds == sorted(seconds)
    # All links together: on a busy machine a single one may be all noise.
    few, many = (sum(link.samples[i].seconds for link in profile.links) for i in (0, -1))
    assert few < many


def test_what_a_step_costs_beside_layers_is_measured(measured: Measured) -> None:
    _, asked, profile = measured

    assert profile.request_digest == asked.digest()
    assert profile.computation_slowdown >= 1
    assert profile.communication_slowdown >= 1
    assert 0 < profile.optimizer_seconds_per_parameter < 1e-6
    assert 0 < profile.step_overhead_seconds < 1
    assert 0 < profile.reserve_bytes < 128 * MIB


def test_a_search_accepts_the_profile(measured: Measured) -> None:
    spec, asked, profile = measured
    problem = PlanningProblem(
        model=spec,
        precision=asked.precision,
        cluster=builders.cluster(asked.devices_per_node, device_memory_bytes=4 * GIB),
        batch=BATCH,
        profile=profile,
    )

    assert search(problem).plan.estimate.step_seconds > 0
