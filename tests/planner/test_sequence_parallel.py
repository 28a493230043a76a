"""Tensor parallelism with sequence parallelism: which layers admit it, what they say to each other, what it costs."""

import json
import re

import pytest

import builders
from galvatron_planner import families
from galvatron_planner.activations import activation_bytes, transient_bytes
from galvatron_planner.analytic import analytic_profile
from galvatron_planner.catalogue import parse_cluster
from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.cost.layer import Conditions, LayerCost, price
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.dimensions import (
    Communication,
    LayerCommunication,
    communication,
    held_elements,
    prefetches,
    refusal,
)
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.model import Family, LayerSpec, Precision
from galvatron_planner.problem import Algorithm, BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Collective, LayerProfile, Profile
from galvatron_planner.search.baselines import baselines_of
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.request import profile_request
from galvatron_planner.strategy import Dimension, LayerStrategy
from galvatron_planner.workload import forward_flops, input_bytes, parameters

MODEL = builders.model()
# 16 tokens of 32 numbers of 4 bytes: 2 KiB a sample.
EMBEDDING, BLOCK, _, HEAD = families.layers(MODEL)
# An encoder of 16 tokens and a decoder of 8.
T5 = families.layers(builders.model(Family.T5))
DECODER = T5[-2]
PAIR = Group(size=2, stride=1)
THREE_SAMPLES = 3 * 2048


def spoken(layer: LayerSpec, text: str = "sptp2-dp2", precision: Precision = Precision.FP32) -> LayerCommunication:
    return communication(layer, LayerStrategy.parse(text), local_samples=3, precision=precision)


def gather(num_bytes: int = THREE_SAMPLES) -> Communication:
    return Communication(Collective.ALL_GATHER, PAIR, num_bytes)


def scatter(num_bytes: int = THREE_SAMPLES) -> Communication:
    return Communication(Collective.REDUCE_SCATTER, PAIR, num_bytes)


def shared(numbers: int, num_bytes: int = 4) -> Communication:
    return Communication(Collective.ALL_REDUCE, PAIR, numbers * num_bytes)


def test_an_embedding_scatters_its_sums_and_gathers_their_gradient() -> None:
    found = spoken(EMBEDDING)
    assert found.forward == (scatter(),)
    # The table of 16 positions is on every device.
    assert found.backward == (gather(), shared(16 * 32))


def test_each_part_of_a_block_gathers_and_scatters_and_gathers_its_input_again() -> None:
    found = spoken(BLOCK)
    assert found.forward == (gather(), scatter()) * 2
    # Two norms with weight and bias, and the biases of both matrices that leave: 6 x 32 numbers.
    assert found.backward == (gather(), gather(), scatter()) * 2 + (shared(6 * 32),)


def test_recomputing_ends_before_the_last_sum_is_scattered() -> None:
    assert spoken(BLOCK).recomputed == (gather(), gather(), scatter())


def test_shared_gradients_are_summed_as_they_are_computed() -> None:
    assert spoken(BLOCK, precision=Precision.BF16).backward[-1] == shared(6 * 32, num_bytes=2)


def test_a_block_of_a_decoder_also_gathers_the_encoders_output_and_scatters_its_gradient() -> None:
    found = spoken(DECODER)
    own, memory = 3 * 8 * 32 * 4, 3 * 16 * 32 * 4
    assert found.forward == (gather(own), scatter(own)) * 3 + (gather(memory),)
    # Three norms without bias.
    assert found.backward == (
        *((gather(own), gather(own), scatter(own)) * 3),
        gather(memory),
        scatter(memory),
        shared(3 * 32),
    )


def test_a_head_gathers_its_input_and_exchanges_three_numbers_a_token() -> None:
    found = spoken(HEAD)
    numbers = Communication(Collective.ALL_REDUCE, PAIR, 3 * 16 * 4)
    assert found.forward == (gather(), numbers, numbers, numbers)
    assert found.backward == (gather(), scatter(), shared(2 * 32))


def test_data_parallelism_beside_it_says_what_it_says_beside_tensor_parallelism() -> None:
    for text in ("tp2-dp2", "dp2-tp2", "tp2-fsdp2", "tp2-gsdp2"):
        plain, split = spoken(BLOCK, text), spoken(BLOCK, text.replace("tp2", "sptp2"))
        assert (split.gradient_sync, split.update) == (plain.gradient_sync, plain.update)
        assert split.backward_prefetched == plain.backward_prefetched
        assert held_elements(BLOCK, LayerStrategy.parse(text)) == held_elements(
            BLOCK, LayerStrategy.parse(text.replace("tp2", "sptp2"))
        )


def test_computation_waits_for_it() -> None:
    assert not any(prefetches(Dimension.SEQUENCE_TENSOR, kind) for kind in DeviceKind)


@pytest.mark.parametrize(
    ("layer", "text", "reason"),
    [
        (BLOCK, "tp2-sptp2", "one kind of tensor parallelism"),
        (BLOCK, "sptp8", "key-value heads"),
        (families.layers(builders.model(sequence_length=6))[0], "sptp4", "6 tokens are not divisible by .* degree 4"),
        (families.layers(builders.model(Family.T5, sequence_length=12))[-2], "sptp4", "6 tokens"),
        (T5[-2].model_copy(update={"memory_length": 6}), "sptp4", "6 tokens of the encoder"),
        (families.layers(builders.model(Family.SWIN))[0], "sptp2", "kind patches"),
        (families.layers(builders.model(Family.SWIN))[1], "sptp2", "windows"),
        (families.layers(builders.model(Family.SWIN))[2], "sptp2", "kind merge"),
        (families.layers(builders.model(Family.SWIN))[-1], "sptp2", "classifies every token"),
        (families.layers(builders.model(Family.VIT))[1], "sptp2", "17 tokens"),
    ],
)
def test_a_layer_says_why_its_tokens_are_not_split(layer: LayerSpec, text: str, reason: str) -> None:
    assert re.search(reason, refusal(layer, LayerStrategy.parse(text)) or "admitted")


@pytest.mark.parametrize("layer", dict.fromkeys((EMBEDDING, BLOCK, HEAD, *T5)), ids=lambda layer: layer.kind)
def test_layers_of_texts_admit_it(layer: LayerSpec) -> None:
    assert refusal(layer, LayerStrategy.parse("dp2-sptp2")) is None
    assert refusal(layer, LayerStrategy.parse("sptp4")) is None


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("layer", dict.fromkeys((EMBEDDING, BLOCK, HEAD, *T5)), ids=lambda layer: layer.kind)
def test_less_is_kept_than_with_tensor_parallelism_alone(layer: LayerSpec, precision: Precision) -> None:
    split, plain = (
        activation_bytes(layer, tensor_degree=4, precision=precision, sequence_degree=degree) for degree in (4, 1)
    )
    keeps_vectors = bool(input_bytes(layer, precision))
    assert split < plain if keeps_vectors else split <= plain


def test_a_block_keeps_a_share_of_everything() -> None:
    # Per token: two parts with 2 x 32 numbers and mean and deviation (2 x (64 + 2)), query, key, value and mixed heads
    # (4 x 32) with a number a head, and twice the inner vector (2 x 128), 4 bytes each.
    whole = 16 * (2 * (64 + 2) + 4 * 32 + 4 + 2 * 128) * 4
    assert activation_bytes(BLOCK, tensor_degree=1, precision=Precision.FP32) == whole
    assert activation_bytes(BLOCK, tensor_degree=4, precision=Precision.FP32, sequence_degree=4) == whole // 4


def test_gathered_vectors_are_held_while_a_part_computes() -> None:
    plain, split = (
        transient_bytes(BLOCK, tensor_degree=2, precision=Precision.FP32, sequence_degree=degree) for degree in (1, 2)
    )
    # Half of the output's gradient less; what was gathered more.
    assert split - plain == -2048 // 2 + 2048


def test_matrices_that_nobody_splits_see_a_share_of_the_tokens() -> None:
    # The head of BERT projects its vectors before they are classified.
    head = families.layers(builders.model(Family.BERT))[-1]
    transform = sum(2 * p.num_elements * p.num_products for p in parameters(head) if p.name == "transform.weight")
    plain, split = (forward_flops(head, tensor_degree=4, sequence_degree=degree) for degree in (1, 4))
    assert plain - split == transform * 3 // 4 > 0


def conditions() -> Conditions:
    on = builders.cluster()
    profile = builders.profile(MODEL, on)
    return Conditions(profile, Precision.FP32, DeviceKind.CUDA, devices_per_node=4, num_devices=4)


def cost(text: str, of: Conditions) -> LayerCost:
    return price(BLOCK, LayerStrategy.parse(text), micro_batch_size=8, conditions=of)


def test_a_layer_costs_its_own_passes_and_collectives() -> None:
    of = conditions()
    passes = of.profile.layer(BLOCK, 4, 4).at(8)
    group = Group(size=4, stride=1)
    gathered, scattered, summed = (
        of.profile.link(one, group).seconds(payload)
        for one, payload in (
            (Collective.ALL_GATHER, 8 * 2048),
            (Collective.REDUCE_SCATTER, 8 * 2048),
            (Collective.ALL_REDUCE, 6 * 32 * 4),
        )
    )
    found = cost("sptp4", of)
    assert found.forward_seconds == pytest.approx(passes.forward_seconds + 2 * gathered + 2 * scattered)
    assert found.backward_seconds == pytest.approx(passes.backward_seconds + 4 * gathered + 2 * scattered + summed)
    assert (found.activation_bytes, found.transient_bytes) == (passes.activation_bytes, passes.transient_bytes)
    assert found.state_bytes == cost("tp4", of).state_bytes


def test_checkpointing_keeps_the_tokens_of_a_device_and_repeats_all_but_the_last_scatter() -> None:
    of = conditions()
    last = of.profile.link(Collective.REDUCE_SCATTER, Group(size=4, stride=1)).seconds(8 * 2048)
    plain, checkpointed = cost("sptp4", of), cost("sptp4-ckpt", of)
    assert checkpointed.activation_bytes == 8 * 2048 // 4
    assert checkpointed.forward_seconds == plain.forward_seconds
    assert checkpointed.backward_seconds == pytest.approx(plain.backward_seconds + plain.forward_seconds - last)


def test_what_a_stage_hands_on_is_a_share_of_rows_and_tokens() -> None:
    prices = PriceList.of(builders.problem(on=builders.cluster(8)))
    layout = LayerStrategy.parse("sptp2-dp2").layout
    link = prices.conditions.profile.link(Collective.POINT_TO_POINT, prices.stage_pairs(4, 0))
    assert prices.hop_seconds(layout, 1 << 20, stage_index=0) == link.seconds(1 << 18)


def test_a_profile_without_it_says_what_is_missing() -> None:
    profile = conditions().profile
    plain = profile.model_copy(update={"layers": tuple(one for one in profile.layers if one.sequence_degree == 1)})
    with pytest.raises(MissingMeasurement, match="tensor degree 2 with sequence degree 2"):
        plain.layer(BLOCK, 2, 2)
    assert plain.layer(BLOCK, 2) == profile.layer(BLOCK, 2)


def test_profiles_from_before_are_read_as_without_it() -> None:
    measured = conditions().profile.layers[0]
    before = measured.model_dump(mode="json", exclude={"sequence_degree"})
    assert LayerProfile.model_validate_json(json.dumps(before)) == measured


def catalogued(sequence_parallel: bool) -> Profile:  # noqa: FBT001
    described = parse_cluster("4xa100-40gb")
    request = profile_request(
        MODEL,
        described.cluster(),
        precision=Precision.BF16,
        batch=BatchRange(minimum=8, maximum=8),
        limits=SearchLimits(sequence_parallel=sequence_parallel),
        runtime_version="none",
    )
    return analytic_profile(request, described.device, described.links)


def test_data_sheets_answer_what_is_asked_for() -> None:
    assert {one.sequence_degree for one in catalogued(sequence_parallel=False).layers} == {1}
    profile = catalogued(sequence_parallel=True)
    assert Profile.from_json(profile.to_json()) == profile
    for degree in (2, 4):
        plain, split = profile.layer(BLOCK, degree), profile.layer(BLOCK, degree, degree)
        assert split.samples[-1].activation_bytes < plain.samples[-1].activation_bytes


def problem(algorithm: Algorithm = Algorithm.OPTIMAL, *, sequence_parallel: bool) -> PlanningProblem:
    spec = builders.model(sequence_length=256, vocabulary_size=64)
    limits = SearchLimits(algorithm=algorithm, sequence_parallel=sequence_parallel)
    return builders.problem(spec, builders.cluster(device_memory_bytes=1_500_000), batch=2, limits=limits)


@pytest.mark.parametrize("algorithm", [Algorithm.GALVATRON, Algorithm.GALVATRON_BMW])
def test_published_searches_do_not_know_it(algorithm: Algorithm) -> None:
    plain, wide = (search(problem(algorithm, sequence_parallel=asked)) for asked in (False, True))
    assert wide.plan.stages == plain.plan.stages
    assert wide.report.pruned_by_rule == plain.report.pruned_by_rule


def test_no_baseline_uses_it() -> None:
    plain, wide = (problem(sequence_parallel=asked) for asked in (False, True))
    assert baselines_of(wide, PriceList.of(wide)) == baselines_of(plain, PriceList.of(plain))
