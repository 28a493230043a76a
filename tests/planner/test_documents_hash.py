"""Hashes and lookups that values keep: right for the value, forgotten by copies, and never sent to another process."""

import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner import families
from galvatron_planner.cluster import Group
from galvatron_planner.documents import Value
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.model import LayerSpec, ModelSpec
from galvatron_planner.profiles import Collective, LayerProfile, LayerSample, Profile
from galvatron_planner.space import compositions
from galvatron_planner.strategy import LayerStrategy

MODEL = builders.model()
BLOCK = families.layers(MODEL)[1]
PAIR = Group(size=2, stride=1)


def profile() -> Profile:
    return builders.profile(MODEL, builders.cluster())


def decoded(value: Value) -> Value:
    """Make an equal value that shares nothing with the first."""
    return type(value).model_validate_json(value.model_dump_json(by_alias=True))


@given(generators.EVERY_MODEL)
def test_equal_documents_have_equal_hashes(spec: ModelSpec) -> None:
    values: list[Value] = [spec, *families.layers(spec)]
    for value in values:
        hash(value)
        assert decoded(value) == value
        assert hash(decoded(value)) == hash(value)


def test_equal_profiles_have_equal_hashes_whatever_was_looked_up() -> None:
    asked, fresh = profile(), profile()
    asked.layer(BLOCK, 1).at(3)
    asked.link(Collective.ALL_REDUCE, PAIR).seconds(1000)
    assert asked == fresh
    assert hash(asked) == hash(fresh)
    assert asked.to_json() == fresh.to_json()


@given(generate.sampled_from(compositions(8)))
def test_equal_strategies_have_equal_hashes(strategy: LayerStrategy) -> None:
    again = LayerStrategy.parse(str(strategy))
    assert again == strategy
    assert hash(again) == hash(strategy)


@given(generators.EVERY_MODEL, generate.integers(1, 1000))
def test_a_copy_has_the_hash_of_what_it_has_become(spec: ModelSpec, sequence_length: int) -> None:
    for layer in families.layers(spec):
        hash(layer)
        copied = layer.model_copy(update={"sequence_length": sequence_length})
        assert hash(copied) == hash(decoded(copied))
        assert (copied == layer) is (sequence_length == dict(layer)["sequence_length"])


@pytest.mark.parametrize("deep", [False, True])
def test_a_copy_without_changes_is_found_where_the_original_is(deep: bool) -> None:  # noqa: FBT001
    known = {BLOCK: "known"}
    assert known[BLOCK.model_copy(deep=deep)] == "known"


def test_a_copy_looks_layers_up_among_its_own() -> None:
    asked = profile()
    asked.layer(BLOCK, 1)
    measured = LayerProfile(layer=BLOCK, tensor_degree=2, samples=asked.layer(BLOCK, 1).samples)
    copied = asked.model_copy(update={"layers": (measured,)})
    assert copied.layer(BLOCK, 2) == measured
    with pytest.raises(MissingMeasurement):
        copied.layer(BLOCK, 1)


def test_a_copy_looks_links_up_among_its_own() -> None:
    asked = profile()
    asked.link(Collective.ALL_REDUCE, PAIR)
    copied = asked.model_copy(update={"links": asked.links[-1:]})
    with pytest.raises(MissingMeasurement):
        copied.link(Collective.ALL_REDUCE, PAIR)


def test_a_copy_of_a_link_has_the_curve_of_its_own_samples() -> None:
    link = profile().link(Collective.ALL_REDUCE, PAIR)
    before = link.seconds(5000)
    doubled = tuple(one.model_copy(update={"seconds": 2 * one.seconds}) for one in link.samples)
    assert link.model_copy(update={"samples": doubled}).seconds(5000) == pytest.approx(2 * before, rel=1e-12)
    assert link.seconds(5000) == before


def sample(size: int, forward: float, activations: int = 0) -> LayerSample:
    return LayerSample(
        micro_batch_size=size,
        forward_seconds=forward,
        backward_seconds=10 * forward,
        activation_bytes=activations,
        transient_bytes=2 * activations,
    )


def measured(*samples: LayerSample) -> LayerProfile:
    return LayerProfile(layer=BLOCK, tensor_degree=1, samples=samples)


def test_a_copy_of_a_layer_is_read_off_its_own_samples() -> None:
    first = measured(sample(2, 1.0), sample(4, 2.0))
    first.at(3)
    assert first.model_copy(update={"samples": (sample(2, 3.0), sample(4, 4.0))}).at(3).forward_seconds == 3.5


def test_a_measured_size_is_read_off_as_it_was_measured() -> None:
    samples = sample(2, 1.0, 100), sample(4, 2.0, 180), sample(8, 3.5, 301)
    assert [measured(*samples).at(size) for size in (2, 4, 8)] == list(samples)


def test_a_size_between_samples_lies_on_their_line_with_bytes_rounded_up() -> None:
    # 2 + 3 / 4 * 1.5 s; 180 + 3 / 4 * 121 = 270.75 bytes, and 541.5 of working memory.
    between = measured(sample(2, 1.0, 100), sample(4, 2.0, 180), sample(8, 3.5, 301)).at(7)
    assert (between.micro_batch_size, between.forward_seconds, between.backward_seconds) == (7, 3.125, 31.25)
    assert (between.activation_bytes, between.transient_bytes) == (271, 542)


def test_below_the_samples_passes_take_their_share_or_the_line_whichever_is_more() -> None:
    # The line through (4, 3) and (8, 5) is at 2 at size 2, a share of the first would be 1.5.
    assert measured(sample(4, 3.0), sample(8, 5.0)).at(2).forward_seconds == 2.0
    # The line through (4, 1) and (8, 4) is at -0.5, a half of the first at 0.5.
    assert measured(sample(4, 1.0), sample(8, 4.0)).at(2).forward_seconds == 0.5


def test_beyond_the_samples_the_last_line_goes_on() -> None:
    # From (4, 2) and (8, 3.5) on, 8 more take 2 * 1.5 s more.
    assert measured(sample(2, 1.0), sample(4, 2.0), sample(8, 3.5)).at(16).forward_seconds == 6.5


def test_beyond_samples_that_fall_nothing_falls_further() -> None:
    falling = measured(sample(4, 2.0), sample(8, 1.0))
    beyond = [falling.at(size).forward_seconds for size in (9, 16, 1000)]
    assert beyond == [beyond[0]] * 3
    assert beyond[0] >= falling.at(8).forward_seconds


def test_a_single_sample_is_scaled() -> None:
    # A quarter of 101 bytes is 25.25.
    quarter = measured(sample(4, 2.0, 101)).at(1)
    assert (quarter.forward_seconds, quarter.activation_bytes) == (0.5, 26)


@given(generate.lists(generate.integers(0, 50), min_size=1, max_size=4), generate.integers(1, 20))
def test_what_is_read_off_is_a_valid_sample(forward: list[int], size: int) -> None:
    read = measured(*(sample(3 * n, float(x), x) for n, x in enumerate(forward, start=1))).at(size)
    assert LayerSample.model_validate(read.model_dump()) == read


FOUND = """
import pickle, sys
from galvatron_planner.cluster import Group
from galvatron_planner.model import Block
from galvatron_planner.strategy import LayerStrategy
layer, layer_json, group, group_json, strategy, text = pickle.load(sys.stdin.buffer)
made = Block.model_validate_json(layer_json), Group.model_validate_json(group_json), LayerStrategy.parse(text)
sent = layer, group, strategy
print([{a: True}.get(b, False) and {b: True}.get(a, False) for a, b in zip(sent, made)])
"""


def found_elsewhere(layer: LayerSpec, group: Group, strategy: LayerStrategy, *, seed: str) -> str:
    """Send values to another interpreter, which makes them again and looks one up by the other."""
    sent = layer, layer.model_dump_json(), group, group.model_dump_json(), strategy, str(strategy)
    return subprocess.run(
        [sys.executable, "-c", FOUND],
        input=pickle.dumps(sent),
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    ).stdout.decode()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_what_was_hashed_here_is_found_in_another_interpreter(seed: str) -> None:
    strategy = LayerStrategy.parse("tp2-fsdp4-ckpt")
    assert len({BLOCK, PAIR, strategy}) == 3
    assert found_elsewhere(BLOCK, PAIR, strategy, seed=seed).strip() == "[True, True, True]"


def test_what_is_sent_carries_nothing_that_was_worked_out() -> None:
    fresh, asked = profile(), profile()
    hash(asked)
    asked.layer(BLOCK, 1).at(3)
    assert len(pickle.dumps(asked)) == len(pickle.dumps(fresh))
