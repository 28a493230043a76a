from dataclasses import replace

import pytest

import builders
from galvatron_planner import families
from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.cost.layer import Conditions, LayerCost, overlapped_seconds, price
from galvatron_planner.dimensions import communication, gathered_elements, held_elements
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.model import LayerSpec, Precision, Sharing
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.workload import input_bytes, num_parameters

MODEL = builders.model()
EMBEDDING, BLOCK, _, HEAD = families.layers(MODEL)
PARAMETERS = num_parameters(BLOCK)


def conditions(precision: Precision = Precision.FP32, kind: DeviceKind = DeviceKind.CUDA) -> Conditions:
    on = builders.cluster()
    profile = builders.profile(MODEL, on, precision=precision)
    return Conditions(profile, precision, kind, devices_per_node=on.devices_per_node, num_devices=on.num_devices)


def cost(text: str, *, layer: LayerSpec = BLOCK, of: Conditions | None = None, samples: int = 8) -> LayerCost:
    return price(layer, LayerStrategy.parse(text), micro_batch_size=samples, conditions=of or conditions())


def test_replicated_states_take_sixteen_bytes_a_parameter_and_are_reduced_in_place() -> None:
    assert cost("dp4").state_bytes == 16 * PARAMETERS
    assert cost("dp4").transient_bytes == conditions().profile.layer(BLOCK, 1).samples[1].transient_bytes


def test_sharding_divides_states_and_holds_a_layer_unsharded_while_it_computes() -> None:
    held = held_elements(BLOCK, LayerStrategy.parse("fsdp4"))
    assert cost("fsdp4").state_bytes == 16 * held
    assert cost("fsdp4").gathered_bytes == 4 * 4 * held
    # Gathered parameters, their gradients, and the flat input of a reduce-scatter, 4 bytes each.
    assert cost("fsdp4").transient_bytes - cost("dp4").transient_bytes == 3 * 4 * 4 * held


def test_sharded_gradients_leave_whole_parameters_beside_the_divided_states() -> None:
    held = held_elements(BLOCK, LayerStrategy.parse("gsdp4"))
    assert cost("gsdp4").state_bytes == 16 * held + 4 * 4 * held
    assert cost("gsdp4", of=conditions(Precision.BF16)).state_bytes == 16 * held + 2 * 4 * held
    assert cost("gsdp4").gathered_bytes == 0
    # Gradients and the flat input of a reduce-scatter, 4 bytes each.
    assert cost("gsdp4").transient_bytes - cost("dp4").transient_bytes == 2 * 4 * 4 * held


def test_sharded_gradients_are_scattered_with_every_micro_batch_and_parameters_gathered_once_a_step() -> None:
    layer, strategy = (BLOCK, LayerStrategy.parse("gsdp4"))
    spoken = communication(layer, strategy, local_samples=2, precision=Precision.BF16)
    elements = 4 * held_elements(layer, strategy)
    (scatter,), (gather,) = spoken.backward_prefetched, spoken.update
    assert (scatter.collective, scatter.payload_bytes) == (Collective.REDUCE_SCATTER, 4 * elements)
    assert (gather.collective, gather.payload_bytes) == (Collective.ALL_GATHER, 2 * elements)
    assert spoken.forward_prefetched == spoken.gradient_sync == ()
    seconds = conditions().profile.link(Collective.ALL_GATHER, Group(size=4, stride=1)).seconds(4 * elements)
    assert cost("gsdp4").optimizer_seconds == pytest.approx(cost("fsdp4").optimizer_seconds + seconds)
    assert cost("gsdp4").forward_seconds < cost("fsdp4", of=conditions(kind=DeviceKind.CPU)).forward_seconds


def test_a_copy_of_the_table_of_tokens_has_no_moments_and_is_exchanged_between_stages() -> None:
    table = num_parameters(HEAD) - 2 * MODEL.hidden_size  # all but the norm
    assert cost("dp4", layer=HEAD).state_bytes == 16 * num_parameters(HEAD) - 8 * table
    alone = HEAD.model_copy(update={"sharing": Sharing.NONE})
    profile = conditions().profile
    layers = (
        *profile.layers,
        *(one.model_copy(update={"layer": alone}) for one in profile.layers if one.layer == HEAD),
    )
    both = replace(conditions(), profile=profile.model_copy(update={"layers": layers}))
    step = 2 * profile.link(Collective.POINT_TO_POINT, Group(size=2, stride=2)).seconds(table * 4)
    saved = profile.optimizer_seconds_per_parameter * table
    tied, untied = (cost("dp2", layer=one, of=both).optimizer_seconds for one in (HEAD, alone))
    assert tied - untied == pytest.approx(step - saved)
    # The other end waits as long; one stage of all devices has nothing to send.
    assert cost("dp2", layer=EMBEDDING).optimizer_seconds > cost("dp4", layer=EMBEDDING).optimizer_seconds
    tied, untied = (cost("dp4", layer=one, of=both).optimizer_seconds for one in (HEAD, alone))
    assert untied - tied == pytest.approx(saved)


def test_half_precision_keeps_a_copy_unless_it_is_gathered() -> None:
    half = conditions(Precision.BF16)
    assert cost("dp4", of=half).state_bytes == 18 * PARAMETERS
    assert cost("single", of=half).state_bytes == 18 * PARAMETERS
    assert cost("fsdp4", of=half).state_bytes == 16 * held_elements(BLOCK, LayerStrategy.parse("fsdp4"))


def test_half_precision_reduces_through_buffers() -> None:
    half = conditions(Precision.BF16)
    measured = half.profile.layer(BLOCK, 1).samples[1].transient_bytes
    # Gradients as computed, 2 bytes; the flat input of the reduction, 4. Its output is the gradient that is kept.
    assert cost("dp4", of=half).transient_bytes == measured + 6 * PARAMETERS


def with_activations(kept: int, kind: DeviceKind) -> Conditions:
    """Half precision, where a pass keeps so many bytes and works in none."""
    half = conditions(Precision.BF16, kind)
    layers = tuple(
        one.model_copy(
            update={
                "samples": tuple(
                    sample.model_copy(update={"activation_bytes": kept, "transient_bytes": 0}) for sample in one.samples
                )
            }
        )
        for one in half.profile.layers
    )
    return replace(half, profile=half.profile.model_copy(update={"layers": layers}))


def test_gloo_sums_a_copy_of_the_gradients_that_it_scatters() -> None:
    strategy = LayerStrategy.parse("gsdp4")
    gathered, held = gathered_elements(BLOCK, strategy), held_elements(BLOCK, strategy)
    # In the backward pass: gradients as computed, and the flat input of the layer before.
    assert cost("gsdp4", of=with_activations(0, DeviceKind.CUDA)).transient_bytes == (2 + 4) * gathered
    # While they are scattered: the flat input, the copy of it, and this device's part of the sum.
    scattering = (4 + 4) * gathered + 4 * held
    assert cost("gsdp4", of=with_activations(0, DeviceKind.CPU)).transient_bytes == scattering
    # By then the pass has used what it kept, but for the gradient of its input.
    arriving = 2 * input_bytes(BLOCK, Precision.BF16)
    used = cost("gsdp4", of=with_activations(arriving + 1000, DeviceKind.CPU))
    assert used.activation_bytes + used.transient_bytes == arriving + scattering


def test_double_precision_doubles_the_states() -> None:
    assert cost("dp4", of=conditions(Precision.FP64)).state_bytes == 32 * PARAMETERS


def test_passes_are_those_measured_for_the_local_samples() -> None:
    # 8 samples over dp4 are 2 a device; a single device has no collective to wait for.
    measured = conditions().profile.layer(BLOCK, 1).samples[1]
    assert measured.micro_batch_size == 2
    assert cost("dp4").forward_seconds == measured.forward_seconds
    assert cost("single", samples=2).backward_seconds == measured.backward_seconds


def test_backward_is_measured_and_not_twice_the_forward_pass() -> None:
    assert cost("single").backward_seconds != pytest.approx(2 * cost("single").forward_seconds)


def test_checkpointing_keeps_the_input_and_repeats_the_forward_pass_but_for_its_last_collective() -> None:
    plain, checkpointed = cost("tp4"), cost("tp4-ckpt")
    last = conditions().profile.link(Collective.ALL_REDUCE, Group(size=4, stride=1)).seconds(8 * 16 * 32 * 4)
    assert checkpointed.activation_bytes == 8 * 16 * 32 * 4
    assert checkpointed.forward_seconds == plain.forward_seconds
    assert checkpointed.backward_seconds == pytest.approx(plain.backward_seconds + plain.forward_seconds - last)
    freed = plain.activation_bytes - checkpointed.activation_bytes
    assert checkpointed.transient_bytes == plain.transient_bytes + freed


def test_checkpointing_gathers_sharded_parameters_once_in_the_backward_pass() -> None:
    cpu = conditions(kind=DeviceKind.CPU)
    extra = cost("fsdp4-ckpt", of=cpu).backward_seconds - cost("fsdp4", of=cpu).backward_seconds
    assert extra == pytest.approx(cost("dp4", of=cpu).forward_seconds)


def test_gradient_reduction_of_the_embedding_is_not_free() -> None:
    assert cost("dp4", layer=EMBEDDING).sync_seconds > 0


def test_a_step_counts_gradient_reduction_once() -> None:
    one = cost("dp4")
    per_micro_batch = one.forward_seconds + one.backward_seconds
    assert one.step_seconds(4) - one.step_seconds(3) == pytest.approx(per_micro_batch)


def test_activations_are_held_for_every_micro_batch_in_flight() -> None:
    for text in ("dp4", "fsdp4"):
        one = cost(text)
        more = one.kept_bytes(3, holds_all=False) - one.kept_bytes(1, holds_all=False)
        assert more == one.kept_bytes(3, holds_all=True) - one.kept_bytes(1, holds_all=True)
        assert more == 2 * one.activation_bytes


def test_sharded_gradients_come_when_activations_go_where_no_micro_batch_is_left_to_come() -> None:
    for text in ("fsdp4", "gsdp4", "fsdp4-ckpt"):
        one = cost(text)
        gradients = 4 * held_elements(BLOCK, LayerStrategy.parse(text))
        rest = one.state_bytes - gradients
        assert one.kept_bytes(1, holds_all=False) == rest + gradients + one.activation_bytes
        assert one.kept_bytes(1, holds_all=True) == rest + max(gradients, one.activation_bytes)
        assert one.kept_bytes(2, holds_all=True) == rest + max(gradients, one.activation_bytes) + one.activation_bytes


def test_gradients_in_buckets_are_there_all_the_time() -> None:
    for text in ("dp4", "single", "tp4"):
        assert cost(text).kept_bytes(1, holds_all=True) == cost(text).kept_bytes(1, holds_all=False)
    half = cost("dp4", of=conditions(Precision.BF16))
    assert half.kept_bytes(1, holds_all=True) < half.kept_bytes(1, holds_all=False)


def test_gradients_of_a_copy_come_late_however_they_are_divided() -> None:
    half = conditions(Precision.BF16)
    for text in ("dp4", "fsdp4", "gsdp4"):
        assert cost(text, of=half).late_bytes == 4 * held_elements(BLOCK, LayerStrategy.parse(text))


def test_overlap_slows_both_sides_until_the_shorter_ends() -> None:
    # By hand: 2 s of computation take 3 s; meanwhile 3 / 1.25 = 2.4 s of 4 s communication are done, 1.6 s stick out.
    assert overlapped_seconds(2.0, 4.0, computation_slowdown=1.5, communication_slowdown=1.25) == pytest.approx(4.6)
    # And the other way round: communication takes 1.25 s, in which 1.25 / 1.5 s of computation are done.
    expected = 1.25 + (4.0 - 1.25 / 1.5)
    assert overlapped_seconds(4.0, 1.0, computation_slowdown=1.5, communication_slowdown=1.25) == pytest.approx(
        expected
    )


def test_overlap_of_two_processes_on_one_core_gains_nothing() -> None:
    assert overlapped_seconds(3.0, 2.0, computation_slowdown=2.0, communication_slowdown=2.0) == pytest.approx(5.0)


def test_overlap_with_nothing_costs_nothing() -> None:
    assert overlapped_seconds(3.0, 0.0, computation_slowdown=1.5, communication_slowdown=2.0) == 3.0


def test_a_layer_that_was_not_measured_is_an_error() -> None:
    other = families.layers(builders.model(hidden_size=64))[1]
    with pytest.raises(MissingMeasurement, match="hidden size 64"):
        cost("dp4", layer=other)
