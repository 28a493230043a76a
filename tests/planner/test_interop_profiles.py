"""Measurements of Hetu-Galvatron: every figure arrives in our units, by hand, and the search runs on them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import builders
from galvatron_planner import families
from galvatron_planner.cluster import Cluster, DeviceKind, Group
from galvatron_planner.errors import GalvatronError, InvalidInput, MissingMeasurement
from galvatron_planner.interop.profiles import MeasuredFiles, import_profile
from galvatron_planner.model import Block, Embedding, Family, Head, LayerSpec, ModelSpec, Precision
from galvatron_planner.presets import preset
from galvatron_planner.problem import BatchRange, SearchLimits
from galvatron_planner.profiles import Collective, LayerSample, Profile, ProfileRequest, ProfileSource
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.request import profile_request
from galvatron_planner.units import GIB, MIB
from galvatron_planner.workload import num_parameters

FOLDER = Path(__file__).parent / "hetu_galvatron"


def llama(*, num_layers: int = 32, sequence_length: int = 4096) -> ModelSpec:
    return builders.model(
        Family.LLAMA, hidden_size=4096, num_layers=num_layers, num_heads=32, feed_forward_size=11_008,
        sequence_length=sequence_length, vocabulary_size=32_000,
    )  # fmt: skip


def cluster(num_nodes: int = 1) -> Cluster:
    return builders.cluster(
        8 * num_nodes, num_nodes=num_nodes, device_memory_bytes=40 * GIB, device_kind=DeviceKind.CUDA
    )


def request(spec: ModelSpec, on: Cluster, *, max_tensor_degree: int = 8) -> ProfileRequest:
    return profile_request(
        spec, on, precision=Precision.BF16, batch=BatchRange(minimum=64, maximum=64),
        limits=SearchLimits(max_tensor_degree=max_tensor_degree), runtime_version="0",
    )  # fmt: skip


def parsed(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return document


def files(num_nodes: int = 1) -> MeasuredFiles:
    place = f"{num_nodes}nodes_8gpus_per_node.json"
    return MeasuredFiles(
        computation=parsed("computation_profiling_bf16_llama-7b.json"),
        memory=parsed("memory_profiling_bf16_llama-7b.json"),
        allreduce=parsed(f"allreduce_bandwidth_{place}"),
        p2p=parsed(f"p2p_bandwidth_{place}"),
        overlap=parsed("overlap_coefficient.json"),
        times=parsed(f"sp_time_{place}") if num_nodes == 1 else {},
    )


def imported(
    measured: MeasuredFiles | None = None, spec: ModelSpec | None = None, on: Cluster | None = None
) -> Profile:
    asked = request(spec or llama(), on or cluster())
    return import_profile(measured or files(), asked, device_name="h100", optimizer_seconds_per_parameter=2e-11)


def sample(profile: Profile, kind: type[LayerSpec], *, tensor_degree: int, size: int) -> LayerSample:
    layer = next(one.layer for one in profile.layers if isinstance(one.layer, kind))
    return next(s for s in profile.layer(layer, tensor_degree).samples if s.micro_batch_size == size)


def seconds(profile: Profile, collective: Collective, *, size: int, stride: int, mib: float) -> float:
    return profile.link(collective, Group(size=size, stride=stride)).seconds(mib * MIB)


def test_a_block_takes_its_milliseconds_a_sample_and_twice_as_long_backward() -> None:
    measured = sample(imported(), Block, tensor_degree=1, size=2)
    # layertype_0_bsz2_seq4096: 4.339 ms a sample.
    assert measured.forward_seconds == pytest.approx(2 * 4.339e-3)
    assert measured.backward_seconds == pytest.approx(4 * 4.339e-3)


def test_a_block_split_four_ways_takes_as_long_as_a_fourth_of_the_batch() -> None:
    measured = sample(imported(), Block, tensor_degree=4, size=8)
    assert measured.forward_seconds == pytest.approx(2 * 4.339e-3)


def test_embedding_and_head_take_half_of_the_rest_each() -> None:
    profile = imported()
    halves = [sample(profile, kind, tensor_degree=1, size=4).forward_seconds for kind in (Embedding, Head)]
    # layertype_other_bsz4_seq4096: 3.164 ms a sample.
    assert halves == pytest.approx([4 * 3.164e-3 / 2] * 2)


def test_activations_are_mebibytes_a_sample_of_the_device_and_its_tensor_degree() -> None:
    profile = imported()
    measured = {
        kind: sample(profile, kind, tensor_degree=2, size=4).activation_bytes for kind in (Embedding, Block, Head)
    }
    expected = {Embedding: 4 * 167.81 * MIB, Block: 4 * 546.56 * MIB, Head: 4 * 686.6 * MIB}
    assert measured == pytest.approx(expected)


def test_an_all_reduce_moves_its_payload_almost_twice_at_the_measured_bandwidth() -> None:
    profile = imported(files(2), on=cluster(2))
    # 2 * 15/16 * 128 MiB at 45.69 MiB/ms.
    assert seconds(profile, Collective.ALL_REDUCE, size=16, stride=1, mib=128) == pytest.approx(240 / 45.69e3)
    assert seconds(profile, Collective.ALL_GATHER, size=16, stride=1, mib=128) == pytest.approx(120 / 45.69e3)
    assert seconds(profile, Collective.ALL_TO_ALL, size=16, stride=1, mib=128) == pytest.approx(120 / 45.69e3)


@pytest.mark.parametrize(
    ("stride", "bandwidth"),
    [(1, 151.23), (2, 151.23), (4, 151.23), (8, 9.28)],  # Only ranks 8 apart are on two nodes.
)
def test_a_group_has_the_bandwidth_of_its_placement(stride: int, bandwidth: float) -> None:
    profile = imported(files(2), on=cluster(2))
    reduced = seconds(profile, Collective.ALL_REDUCE, size=2, stride=stride, mib=64)
    assert reduced == pytest.approx(64 / bandwidth / 1e3)


def test_on_one_node_spread_groups_have_their_own_measurement() -> None:
    # Ranks 2 apart in groups of 4 are all 8 devices: consec_0 of size 4.
    reduced = seconds(imported(), Collective.ALL_REDUCE, size=4, stride=2, mib=64)
    assert reduced == pytest.approx(2 * 3 / 4 * 64 / 164.41e3)


def test_measured_times_are_preferred_to_bandwidths() -> None:
    profile = imported()
    assert seconds(profile, Collective.ALL_REDUCE, size=8, stride=1, mib=256) == pytest.approx(2.5048e-3)
    assert seconds(profile, Collective.REDUCE_SCATTER, size=8, stride=1, mib=256) == pytest.approx(1.2524e-3)
    assert seconds(profile, Collective.ALL_TO_ALL, size=8, stride=1, mib=256) == pytest.approx(1.242e-3)


def test_messages_go_at_the_bandwidth_of_their_pipeline_degree() -> None:
    profile = imported(files(2), on=cluster(2))
    # Stages of 8 devices: pp_size_2; of 2 devices: pp_size_8.
    assert seconds(profile, Collective.POINT_TO_POINT, size=2, stride=8, mib=64) == pytest.approx(64 / 7.97e3)
    assert seconds(profile, Collective.POINT_TO_POINT, size=2, stride=2, mib=64) == pytest.approx(64 / 8.9e3)


def test_pipelines_deeper_than_measured_take_the_deepest_measured() -> None:
    measured = files(2)
    del measured.p2p["pp_size_16"]  # type: ignore[attr-defined] # a dict, as parsed
    profile = imported(measured, on=cluster(2))
    assert seconds(profile, Collective.POINT_TO_POINT, size=2, stride=1, mib=64) == pytest.approx(64 / 8.9e3)


def test_the_rest_of_the_profile_is_theirs_too() -> None:
    profile = imported()
    assert profile.source is ProfileSource.IMPORTED
    assert profile.computation_slowdown == profile.communication_slowdown == 1.146
    assert profile.reserve_bytes == 1024 * MIB


def test_a_model_with_two_kinds_of_blocks_has_two_layertypes() -> None:
    spec = preset("t5-large-32")
    encoder, decoder = (layer for layer in dict.fromkeys(families.layers(spec)) if isinstance(layer, Block))
    measured = replace(
        files(),
        computation={
            "layertype_0_bsz8_seq512": 0.448,
            "layertype_1_bsz8_seq512": 0.628,
            "layertype_other_bsz8_seq[512,512]": 0.801,
        },
        memory={
            **{
                f"layertype_{i}_sp": {"512": {"parameter_size": num_parameters(layer) * 4 / MIB,
                                              "tp_activation_per_bsz_dict": {"1": size, "2": 9, "4": 9, "8": 9}}}
                for i, (layer, size) in enumerate([(encoder, 52.5), (decoder, 71.6)])
            },
            "other_memory_pp_on_first_sp": {"[512,512]": {"activation": {"1": 11.6, "2": 9, "4": 9, "8": 9}}},
            "other_memory_pp_on_last_sp": {"[512,512]": {"activation": {"1": 37.4, "2": 9, "4": 9, "8": 9}}},
        },
    )  # fmt: skip
    profile = imported(measured, spec=spec)
    first, middle = (one for one in dict.fromkeys(families.layers(spec)) if isinstance(one, Embedding))
    at_8 = {layer: profile.layer(layer, 1).samples[3] for layer in (first, encoder, middle, decoder)}
    seconds_at_8 = {layer: measured.forward_seconds for layer, measured in at_8.items()}
    # The decoder's embedding is a part of what the first and the last layer share.
    expected = {first: 8 * 0.801e-3 / 2, encoder: 8 * 0.448e-3, middle: 0.0, decoder: 8 * 0.628e-3}
    assert seconds_at_8 == pytest.approx(expected)
    assert at_8[decoder].activation_bytes == round(8 * 71.6 * MIB)


def test_files_without_a_level_of_sequences_are_read_as_well() -> None:
    flat = {
        "layertype_0": {"parameter_size": 773.25, "tp_activation_per_bsz_dict": {"1": 301.28, "2": 182.16, "4": 123.09,
                        "8": 93.56, "checkpoint": 16.0}},
        "other_memory_pp_on_first": {"model_states": 2157.0, "activation": 46.56},
        "other_memory_pp_on_last": {"model_states": 2285.0, "activation": 184.53},
    }  # fmt: skip
    profile = imported(replace(files(), memory=flat))
    assert sample(profile, Block, tensor_degree=8, size=1).activation_bytes == round(93.56 * MIB)
    assert sample(profile, Head, tensor_degree=8, size=1).activation_bytes == round(184.53 * MIB)


def test_older_names_of_times_are_read_as_well() -> None:
    older = {"layertype_0": 4.789, "layertype_other_0_bsz8_seq4096": 27.3}
    profile = imported(replace(files(), computation=older))
    assert sample(profile, Block, tensor_degree=1, size=4).forward_seconds == pytest.approx(4 * 4.789e-3)
    assert sample(profile, Head, tensor_degree=1, size=8).forward_seconds == pytest.approx(8 * 27.3e-3 / 2)


@pytest.mark.parametrize(
    ("file", "changed", "named"),
    [
        ("computation", {"layertype_other": 3.0}, "layertype_0_bsz.._seq4096 was not measured"),
        (
            "computation",
            {"layertype_other": 1.0, "layertype_0_bsz1_seq2048": 3.0},
            "seq4096 was not measured, only sequences of 2048",
        ),
        ("computation", {"layertype_0": 3.0}, "layertype_other_bsz.._seq4096"),
        ("memory", {}, "other_memory_pp_on_first for sequence 4096"),
        ("allreduce", {}, "allreduce_size_2_consec_0"),
        ("p2p", {}, "pp_size_8"),
        ("overlap", {}, "overlap_coe"),
    ],
)
def test_what_is_missing_is_named(file: str, changed: dict[str, float], named: str) -> None:
    with pytest.raises(MissingMeasurement, match=named):
        imported(replace(files(), **{file: changed}))


def test_a_tensor_degree_that_was_not_measured_is_named() -> None:
    on = cluster(2)
    with pytest.raises(MissingMeasurement, match="tensor degree: 16 was not measured"):
        import_profile(
            files(2), request(llama(), on, max_tensor_degree=16), device_name="", optimizer_seconds_per_parameter=0
        )


def test_files_of_another_model_are_refused() -> None:
    wide = llama().model_copy(update={"feed_forward_size": 18_944})
    with pytest.raises(InvalidInput, match=r"parameter_size is 778.2 MiB, our block has"):
        imported(spec=wide)


@pytest.mark.parametrize("value", [0, -1, "fast", None, float("nan")])
def test_what_is_no_measurement_is_refused(value: object) -> None:
    damaged = {**files().allreduce, "allreduce_size_4_consec_0": value}
    with pytest.raises(GalvatronError, match=r"allreduce_size_4_consec_0 is .* not a measurement"):
        imported(replace(files(), allreduce=damaged))


def test_the_search_plans_on_their_measurements() -> None:
    spec, on = llama(num_layers=2), cluster()
    profile = imported(spec=spec, on=on)
    solution = search(builders.problem(spec, on, batch=64, precision=Precision.BF16, measured=profile))
    # 2 blocks forward and backward at no less than 3 * 3.7 ms a sample, over 8 devices.
    assert solution.plan.estimate.step_seconds > 64 * 2 * 3 * 3.7e-3 / 8
    assert solution.plan.estimate.peak_bytes <= on.device_memory_bytes
