"""Plans without measuring: what the catalogue describes, and how profiles made from it behave.

Published measurements that it is held against are named where they stand.
"""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as generate

import builders
from galvatron_planner import catalogue
from galvatron_planner.analytic import COLLECTIVE_SECONDS, analytic_profile
from galvatron_planner.catalogue import DEVICES, parse_cluster
from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Family, ModelSpec, Precision
from galvatron_planner.problem import BatchRange, SearchLimits
from galvatron_planner.profiles import Collective, Profile, ProfileSource
from galvatron_planner.search.request import profile_request
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy
from galvatron_planner.units import MIB

GPT_22B = builders.model(hidden_size=6144, num_layers=48, num_heads=64, sequence_length=2048, vocabulary_size=51_200)
LLAMA_7B = builders.model(
    Family.LLAMA,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    feed_forward_size=11_008,
    sequence_length=2048,
    vocabulary_size=32_000,
)


def profile_of(cluster: str, model: ModelSpec = LLAMA_7B, *, precision: Precision = Precision.BF16) -> Profile:
    described = parse_cluster(cluster)
    request = profile_request(
        model,
        described.cluster(),
        precision=precision,
        batch=BatchRange(minimum=64, maximum=64),
        limits=SearchLimits(),
        runtime_version="none",
    )
    return analytic_profile(request, described.device, described.links)


def block_seconds(profile: Profile, *, tensor_degree: int, samples: int) -> tuple[float, float]:
    (passes,) = (
        sample
        for one in profile.layers
        if one.layer.kind == "block" and one.tensor_degree == tensor_degree
        for sample in one.samples
        if sample.micro_batch_size == samples
    )
    return passes.forward_seconds, passes.backward_seconds


def all_reduce_bandwidth(profile: Profile, size: int, stride: int) -> float:
    """Bytes per second between neighbours of a ring, as NCCL's tests call it."""
    link = profile.link(Collective.ALL_REDUCE, Group(size=size, stride=stride))
    return 2 * (size - 1) / size * 2**30 / link.seconds(2**30)


@pytest.mark.parametrize(
    ("text", "num_nodes", "devices_per_node", "device", "within_node", "between_nodes"),
    [
        ("8xa100-80gb", 1, 8, "a100-80gb", "nvlink3", "infiniband-hdr"),
        ("2x8xA100-80GB", 2, 8, "a100-80gb", "nvlink3", "infiniband-hdr"),
        ("4x4xl40s+infiniband-ndr", 4, 4, "l40s", "pcie4", "infiniband-ndr"),
        ("2x2xrtx-4090/pcie3+ethernet-10g", 2, 2, "rtx-4090", "pcie3", "ethernet-10g"),
        ("2048x8xh100", 2048, 8, "h100", "nvlink4", "infiniband-ndr"),
        ("1xcpu-core", 1, 1, "cpu-core", "loopback", "ethernet-10g"),
    ],
)
def test_a_cluster_is_described_by_nodes_devices_and_links(
    text: str, num_nodes: int, devices_per_node: int, device: str, within_node: str, between_nodes: str
) -> None:
    described = parse_cluster(text)
    cluster = described.cluster()
    assert (cluster.num_nodes, cluster.devices_per_node) == (num_nodes, devices_per_node)
    assert (described.device.name, cluster.device_memory_bytes) == (device, DEVICES[device].memory_bytes)
    assert described.links.within_node.name == within_node
    assert described.links.between_nodes.name == between_nodes


def test_the_memory_of_devices_can_be_limited() -> None:
    assert parse_cluster("8xrtx-titan").cluster(8000 * MIB).device_memory_bytes == 8000 * MIB


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "8xa100-80gb"),
        ("a100-80gb", "8xa100-80gb"),
        ("8xa100", "a100-40gb, a100-80gb"),
        ("8xh10", "h100"),
        ("8xa100-80gb+infiniband", "infiniband-edr, infiniband-hdr, infiniband-ndr"),
        ("8xa100-80gb/nvlink", "nvlink3, nvlink4, nvlink5"),
        ("6xh100", "power of two"),
        ("0xh100", "power of two"),
        ("4096x8xh100", "16384"),
    ],
)
def test_what_describes_no_cluster_is_answered_with_what_would(text: str, answer: str) -> None:
    with pytest.raises(InvalidInput, match=answer):
        parse_cluster(text)


def test_every_device_names_links_of_the_catalogue() -> None:
    for device in DEVICES.values():
        assert catalogue.links(device).within_node.sustained_bandwidth > 0


def test_the_profile_answers_its_request_and_says_that_nothing_was_measured() -> None:
    described = parse_cluster("2x4xa100-40gb")
    request = profile_request(
        builders.model(),
        described.cluster(),
        precision=Precision.BF16,
        batch=BatchRange(minimum=8, maximum=8),
        limits=SearchLimits(),
        runtime_version="none",
    )
    profile = analytic_profile(request, described.device, described.links)
    assert profile.request_digest == request.digest()
    assert profile.source is ProfileSource.ANALYTIC
    assert profile.device_name == "a100-40gb (analytic)"
    assert {link.group for link in profile.links} == set(request.groups)
    assert Profile.from_json(profile.to_json()) == profile


def test_a_layer_of_22_billion_parameters_takes_about_as_long_as_published() -> None:
    # Korthikanti et al. 2022 (arXiv 2205.05198), table 4: 7.7 ms forward, 11.9 ms backward on eight A100, micro-batch
    # 4, two all-reduces in each included; with dropout and without fused attention, neither of which is counted here.
    profile = profile_of("8xa100-80gb", GPT_22B)
    forward, backward = block_seconds(profile, tensor_degree=8, samples=4)
    reduced = profile.link(Collective.ALL_REDUCE, Group(size=8, stride=1)).seconds(4 * 2048 * 6144 * 2)
    assert forward + 2 * reduced == pytest.approx(7.7e-3, rel=0.25)
    assert backward + 2 * reduced == pytest.approx(11.9e-3, rel=0.25)


def test_a_layer_of_llama_takes_about_as_long_as_published() -> None:
    # Hetu-Galvatron, llama_fa/computation_profiling_bf16_hidden4096_head32_seqlen2048.json: 4.0 ms a sample; the device
    # is not stated, by its speed an A100.
    forward, _ = block_seconds(profile_of("1xa100-80gb"), tensor_degree=1, samples=8)
    assert forward / 8 == pytest.approx(4.0e-3, rel=0.15)


@pytest.mark.parametrize(
    ("nodes", "model", "per_device", "published"),
    [
        # torchtitan, docs/performance.md: Llama 2 13B, 64 A100, FSDP2, no checkpointing, 2 samples a device.
        (8, (5120, 40, 40, 13_824), 2, 2162),
        # IBM and Meta, "Maximizing training throughput using PyTorch FSDP" (2024): Llama 2 7B, 128 A100, FSDP.
        (16, (4096, 32, 32, 11_008), 2, 3700),
    ],
)
def test_a_run_takes_about_as_long_as_published(
    nodes: int, model: tuple[int, int, int, int], per_device: int, published: int
) -> None:
    hidden, num_layers, num_heads, inner = model
    spec = builders.model(
        Family.LLAMA, hidden_size=hidden, num_layers=num_layers, num_heads=num_heads,
        feed_forward_size=inner, sequence_length=4096, vocabulary_size=32_000,
    )  # fmt: skip
    num_devices = 8 * nodes
    profile = profile_of(f"{nodes}x8xa100-80gb", spec)
    problem = builders.problem(
        spec,
        parse_cluster(f"{nodes}x8xa100-80gb").cluster(),
        batch=per_device * num_devices,
        precision=Precision.BF16,
        measured=profile,
    )
    sharded = (LayerStrategy((Axis(Dimension.SHARDED_DATA, num_devices),)),) * (num_layers + 2)
    run = estimate(problem, (sharded,), BatchSplit(global_batch_size=per_device * num_devices, num_micro_batches=1))
    assert run.samples_per_second * 4096 / num_devices == pytest.approx(published, rel=0.2)
    assert run.source is ProfileSource.ANALYTIC


def test_groups_share_the_cards_of_their_node() -> None:
    # Hetu-Galvatron, allreduce_bandwidth_2nodes_8gpus_per_node.json: 9.3, 19.3, 32.1 and 45.7 GB/s over two nodes of
    # eight devices, for groups of 2, 4, 8 and 16 with 1, 2, 4 and 8 members in each node: at first a card's share each.
    profile = profile_of("2x8xa100-80gb")
    alone = all_reduce_bandwidth(profile, 2, 8)
    assert all_reduce_bandwidth(profile, 4, 4) == pytest.approx(2 * alone, rel=0.05)
    assert all_reduce_bandwidth(profile, 8, 2) == pytest.approx(4 * alone, rel=0.05)
    assert all_reduce_bandwidth(profile, 16, 1) <= 8 * alone
    assert all_reduce_bandwidth(profile, 8, 1) > all_reduce_bandwidth(profile, 16, 1)


def test_one_card_of_a_node_is_divided_among_its_devices() -> None:
    # By hand: 12.5 GB/s * 0.92 for eight devices that each send to the other node; and to a group of all of them alone.
    profile = profile_of("2x8xa100-80gb+ethernet-100g")
    share = 12.5e9 * 0.92
    assert all_reduce_bandwidth(profile, 2, 8) == pytest.approx(share / 8, rel=0.01)
    assert all_reduce_bandwidth(profile, 16, 1) == pytest.approx(share, rel=0.01)
    hop = profile.link(Collective.POINT_TO_POINT, Group(size=2, stride=8))
    assert hop.seconds(2**28) == pytest.approx(2**28 / (share / 8), rel=0.01)


def test_an_all_to_all_sends_less_the_fewer_of_its_members_are_elsewhere() -> None:
    # By hand, two members on two nodes, one card a device: half of the payload crosses, 25 GB/s * 0.92.
    profile = profile_of("2x8xa100-80gb")
    link = profile.link(Collective.ALL_TO_ALL, Group(size=2, stride=8))
    assert link.seconds(2**28) == pytest.approx(2**27 / 23e9 + COLLECTIVE_SECONDS, rel=0.01)
    assert profile.link(Collective.ALL_TO_ALL, Group(size=2, stride=1)).seconds(2**28) < link.seconds(2**28) / 5


@pytest.mark.parametrize("device", [name for name, device in DEVICES.items() if device.kind is DeviceKind.CUDA])
def test_splitting_a_layer_helps_less_and_less(device: str) -> None:
    profile = profile_of(f"8x{device}", precision=Precision.FP32)
    seconds = [sum(block_seconds(profile, tensor_degree=degree, samples=4)) for degree in (1, 2, 4, 8)]
    for whole, split in pairwise(seconds):
        assert whole / 2 < split < whole


def test_small_micro_batches_use_a_device_less_well() -> None:
    profile = profile_of("8xh100")
    one, sixteen = (sum(block_seconds(profile, tensor_degree=8, samples=samples)) for samples in (1, 16))
    assert one > 1.2 * sixteen / 16


@given(
    generate.sampled_from(sorted(DEVICES)),
    generate.sampled_from([(1, 1), (1, 8), (2, 2), (4, 8), (8, 1)]),
    generate.sampled_from([GPT_22B, LLAMA_7B, builders.model()]),
)
def test_nothing_gets_cheaper_with_more_samples_or_more_bytes(
    device: str, nodes: tuple[int, int], model: ModelSpec
) -> None:
    profile = profile_of(f"{nodes[0]}x{nodes[1]}x{device}", model, precision=Precision.FP32)
    for layer in profile.layers:
        for less, more in pairwise(layer.samples):
            assert less.forward_seconds <= more.forward_seconds
            assert less.backward_seconds <= more.backward_seconds
            assert less.activation_bytes < more.activation_bytes
            assert less.forward_seconds <= less.backward_seconds
    for link in profile.links:
        assert all(less.seconds < more.seconds for less, more in pairwise(link.samples))


def test_a_device_without_units_for_a_number_format_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rtx-titan has no units for BF16; use FP32"):
        profile_of("8xrtx-titan")


def test_a_device_of_another_kind_than_the_job_is_refused() -> None:
    request = profile_request(
        builders.model(),
        builders.cluster(2),
        precision=Precision.FP32,
        batch=BatchRange(minimum=8, maximum=8),
        limits=SearchLimits(),
        runtime_version="none",
    )
    device = catalogue.device("h100")
    with pytest.raises(InvalidInput, match="h100 is a cuda device"):
        analytic_profile(request, device, catalogue.links(device))


def test_a_profile_of_the_largest_cluster_is_ready_at_once() -> None:
    described = parse_cluster("2048x8xh100")
    model = builders.model(
        Family.LLAMA, hidden_size=16_384, num_layers=126, num_heads=128, num_key_value_heads=8,
        feed_forward_size=53_248, sequence_length=8192, vocabulary_size=128_256,
    )  # fmt: skip
    request = profile_request(
        model,
        described.cluster(),
        precision=Precision.BF16,
        batch=BatchRange(minimum=2048, maximum=2048),
        limits=SearchLimits(),
        runtime_version="none",
    )
    began = time.process_time()
    analytic_profile(request, described.device, described.links)
    # 0.03 s on one shared core; the bound only catches a change of its order.
    assert time.process_time() - began < 0.5
