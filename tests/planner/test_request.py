import builders
from galvatron_planner.cluster import Cluster
from galvatron_planner.model import Family, ModelSpec, Precision
from galvatron_planner.problem import BatchRange, SearchDimension, SearchLimits
from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.search.request import covering, profile_request
from galvatron_planner.units import GIB, MIB


def request(
    spec: ModelSpec | None = None,
    on: Cluster | None = None,
    *,
    batch: int = 8,
    limits: SearchLimits | None = None,
) -> ProfileRequest:
    return profile_request(
        spec or builders.model(),
        on or builders.cluster(),
        precision=Precision.FP32,
        batch=BatchRange(minimum=1, maximum=batch),
        limits=limits or SearchLimits(),
        runtime_version="test",
    )


def test_equal_layers_are_measured_once() -> None:
    assert [layer.kind for layer in request(builders.model(num_layers=6)).layers] == ["embedding", "block", "head"]


def test_few_micro_batch_sizes_are_measured_in_powers_of_two() -> None:
    assert request(batch=8).micro_batch_sizes == (1, 2, 4, 8)
    assert request(batch=1000).micro_batch_sizes == (1, 2, 4, 8, 16)


def test_sizes_that_cannot_fit_the_device_are_not_measured() -> None:
    # The head's scores: 16 tokens x 100,000 words x 4 bytes x 3 = 18.3 MiB a sample.
    spec = builders.model(vocabulary_size=100_000)
    assert request(spec, builders.cluster(device_memory_bytes=100 * MIB)).micro_batch_sizes == (1, 2, 4)
    assert request(spec, builders.cluster(device_memory_bytes=1 * MIB)).micro_batch_sizes == (1,)


def test_degrees_that_no_strategy_uses_are_not_measured() -> None:
    assert request(builders.model(num_heads=4), builders.cluster(8)).tensor_degrees == (1, 2, 4, 8)
    assert request(limits=SearchLimits(max_tensor_degree=2)).tensor_degrees == (1, 2)
    assert request(limits=SearchLimits(excluded=(SearchDimension.TP,))).tensor_degrees == (1,)


def test_sequence_parallelism_is_measured_only_where_it_is_searched() -> None:
    assert request(on=builders.cluster(8)).sequence_degrees == ()
    # 16 tokens and 4 heads: blocks go up to 4; embedding and head up to 8.
    wide = request(on=builders.cluster(8), limits=SearchLimits(sequence_parallel=True))
    assert (wide.tensor_degrees, wide.sequence_degrees) == ((1, 2, 4, 8), (2, 4, 8))
    assert list(map(str, wide.splits)) == ["single", "tp2", "tp4", "tp8", "sptp2", "sptp4", "sptp8"]
    images = request(builders.model(Family.SWIN), limits=SearchLimits(sequence_parallel=True))
    # The head classifies the mean of all tokens, and windows belong together.
    assert images.sequence_degrees == ()


def test_a_plan_that_is_brought_is_measured_whatever_the_limits_say() -> None:
    asked = request(limits=SearchLimits(excluded=(SearchDimension.TP,)))
    covered = covering(asked, builders.plan("dp4 tp2-dp2 dp2-sptp2 sptp4"))
    assert (covered.tensor_degrees, covered.sequence_degrees) == ((1, 2), (2, 4))
    assert covering(asked, builders.plan("dp4")) == asked


def test_a_plan_for_other_devices_asks_for_nothing() -> None:
    brought = builders.plan("sptp8 dp2-sptp4 dp2-sptp4 sptp8", on=builders.cluster(8))
    assert covering(request(), brought) == request()


def test_payloads_rise_and_stay_within_the_device() -> None:
    for memory in (16 * MIB, 4 * GIB):
        payloads = request(builders.model(hidden_size=1024), builders.cluster(device_memory_bytes=memory)).payload_bytes
        assert list(payloads) == sorted(set(payloads))
        assert len(payloads) >= 2
        assert payloads[-1] <= memory // 16


def test_equal_questions_make_equal_requests() -> None:
    assert request().digest() == request().digest()
    assert ProfileRequest.from_json(request().to_json()) == request()
