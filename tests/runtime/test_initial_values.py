"""Every rank of every plan draws the same weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as generate

import builders
from galvatron_planner import families
from galvatron_planner.errors import InvalidPlan
from galvatron_planner.workload import Parameter, parameters
from galvatron_runtime.model import InitialValues, build_without_memory, global_name, materialize, shard_of

WEIGHT = Parameter("query.weight", (64, 64), 0)
CPU = torch.device("cpu")


def values(seed: int = 3, dtype: torch.dtype = torch.float32) -> InitialValues:
    return InitialValues(seed=seed, num_blocks=8, dtype=dtype, device=CPU)


def test_a_value_follows_from_seed_and_name() -> None:
    drawn = values(seed=3).whole(WEIGHT, "layers.1.query.weight")
    torch.manual_seed(99)

    assert values(seed=3).whole(WEIGHT, "layers.1.query.weight").equal(drawn)
    assert not values(seed=4).whole(WEIGHT, "layers.1.query.weight").equal(drawn)
    assert not values(seed=3).whole(WEIGHT, "layers.2.query.weight").equal(drawn)


def test_values_do_not_change_between_versions() -> None:
    # Resumed and compared runs rely on it; the numbers were drawn with torch 2.13 on an x86 CPU.
    drawn = values(seed=3).whole(Parameter("query.weight", (4,)), "layers.1.query.weight")

    assert drawn.tolist() == pytest.approx([0.0148927, -0.0170384, 0.0159455, -0.0016272], abs=1e-6)


def test_what_writes_into_the_residual_stream_starts_smaller() -> None:
    deviation = values().whole(WEIGHT, "layers.1.query.weight").std().item()
    residual = values().whole(Parameter("down.weight", (64, 64), 1), "layers.1.down.weight").std().item()

    assert math.isclose(deviation, 0.02, rel_tol=0.05)
    assert math.isclose(residual, 0.02 / math.sqrt(2 * 8), rel_tol=0.05)


def test_norms_start_at_one_and_biases_at_zero() -> None:
    assert values().whole(Parameter("mlp_norm.weight", (5,)), "layers.1.mlp_norm.weight").eq(1).all()
    assert values().whole(Parameter("mlp_norm.bias", (5,)), "layers.1.mlp_norm.bias").eq(0).all()
    assert values().whole(Parameter("up.bias", (5,), 0), "layers.1.up.bias").eq(0).all()


@given(generate.integers(1, 8), generate.integers(8, 30), generate.sampled_from([0, 1, None]))
def test_shards_put_together_are_the_whole(degree: int, length: int, split_dim: int | None) -> None:
    parameter = Parameter("any.weight", (length, length), split_dim)
    whole = torch.arange(length * length).view(length, length)
    if split_dim is not None and len(whole.chunk(degree)) < degree:
        with pytest.raises(InvalidPlan, match="empty"):
            shard_of(whole, parameter, rank=0, degree=degree)
        return
    shards = [shard_of(whole, parameter, rank=rank, degree=degree) for rank in range(degree)]

    assert all(shard.numel() <= parameter.local_elements(degree) for shard in shards)
    assert (whole if split_dim is None else torch.cat(shards, split_dim)).equal(whole)


def test_layers_take_memory_only_with_their_values() -> None:
    spec = builders.model()
    layer, module = families.layers(spec)[1], build_without_memory(spec)[1]
    assert all(parameter.is_meta for parameter in module.parameters())

    materialize(module, 1, values(dtype=torch.float64))

    names = [name for name, _ in module.named_parameters()]
    assert names == [parameter.name for parameter in parameters(layer)]
    assert all(parameter.dtype is torch.float64 and parameter.device == CPU for parameter in module.parameters())
    drawn = values().whole(parameters(layer)[2], global_name(1, "query.weight"))
    assert module.get_parameter("query.weight").equal(drawn.double())
