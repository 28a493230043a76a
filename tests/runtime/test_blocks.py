"""The modules are the layers that the planner describes, and compute what they promise."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from torch import Tensor, nn

import builders
import generators
from galvatron_planner import families
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Family, LayerSpec, ModelSpec, Precision
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.workload import output_shapes, parameters
from galvatron_runtime.blocks import LayerModule, build_layer
from galvatron_runtime.blocks.attention import rotate
from galvatron_runtime.measure import passes
from galvatron_runtime.parallel.checkpointing import recompute_activations
from galvatron_runtime.parallel.tensor import split_for_measurement

CPU = torch.device("cpu")
EVERY_FAMILY = pytest.mark.parametrize("family", Family)
EVERY_DECODER = pytest.mark.parametrize("family", generators.DECODERS)


def build(layer: LayerSpec) -> LayerModule:
    torch.manual_seed(0)
    return build_layer(layer)


def block_of(family: Family) -> LayerModule:
    return build(families.layers(builders.model(family, num_key_value_heads=2 if family is Family.LLAMA else None))[1])


@settings(deadline=None)
@given(generators.EVERY_MODEL)
def test_modules_register_the_parameters_of_the_table_in_its_order(spec: ModelSpec) -> None:
    for layer in families.layers(spec):
        with torch.device("meta"):
            module = build_layer(layer)
        registered = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
        assert registered == [(parameter.name, parameter.shape) for parameter in parameters(layer)]


def test_a_block_has_heads_wider_than_their_share() -> None:
    spec = ModelSpec.model_validate({**dict(builders.model(Family.MISTRAL)), "head_size": 16})
    block = build(families.layers(spec)[1])

    assert block.get_parameter("query.weight").shape == (4 * 16, 32)
    assert block(torch.randn(2, 16, 32)).shape == (2, 16, 32)


@settings(deadline=None)
@given(generators.EVERY_MODEL)
def test_a_layer_split_for_measurement_holds_the_largest_share(spec: ModelSpec) -> None:
    for layer in families.layers(spec):
        if refusal(layer, LayerStrategy.parse("tp4")) is None:
            module = build_layer(layer)
            split_for_measurement(module, 4)
            sizes = [parameter.numel() for parameter in module.parameters()]
            assert sizes == [parameter.local_elements(4) for parameter in parameters(layer)]


@EVERY_FAMILY
@pytest.mark.parametrize("degree", [1, 2])
def test_a_layer_split_for_measurement_computes_forward_and_backward(family: Family, degree: int) -> None:
    for layer in dict.fromkeys(families.layers(builders.model(family))):
        one = passes.build(layer, tensor_degree=degree, precision=Precision.FP32, device=CPU)
        layer_pass = passes.feed(one, micro_batch_size=2, precision=Precision.FP32, device=CPU)
        leaving = layer_pass.forward()
        layer_pass.backward(leaving)
        assert [tuple(values.shape[1:]) for values in leaving] == [*output_shapes(layer)] or layer.kind == "head"
        assert all(p.grad is not None for p in one.parameters())


@EVERY_DECODER
def test_a_token_does_not_see_later_ones(family: Family) -> None:
    block = block_of(family)
    hidden = torch.randn(1, 16, 32)
    changed = hidden.clone()
    changed[:, 9:] += 1

    before, after = block(hidden), block(changed)

    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)


def test_rotated_heads_know_distances_only() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    places = (query.expand(1, 1, 16, 8), key.expand(1, 1, 16, 8))
    scores = (rotate(places[0], 10_000) @ rotate(places[1], 10_000).mT)[0, 0]

    for distance in range(16):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0])
    assert not math.isclose(scores[0, 0].item(), scores[0, 5].item(), abs_tol=1e-6)


def test_the_head_sums_the_cross_entropy_of_its_tokens() -> None:
    spec = builders.model()
    head = build(families.layers(spec)[-1])
    hidden = torch.randn(2, 16, 32)
    targets = torch.randint(0, 67, (2, 16))
    logits = F.layer_norm(hidden, (32,)) @ head.get_parameter("projection.weight").T

    expected = -logits.log_softmax(-1).gather(2, targets.unsqueeze(2)).sum()

    assert torch.allclose(head(hidden, targets), expected)


@pytest.mark.parametrize(
    ("dtype", "loss_dtype"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str
)
def test_the_loss_is_at_least_single_precision(dtype: torch.dtype, loss_dtype: torch.dtype) -> None:
    head = build(families.layers(builders.model())[-1]).to(dtype)

    loss: Tensor = head(torch.randn(1, 16, 32, dtype=dtype), torch.zeros(1, 16, dtype=torch.long))

    assert loss.dtype is loss_dtype


@EVERY_DECODER
def test_recomputing_changes_neither_names_nor_gradients(family: Family) -> None:
    plain, recomputing = block_of(family), block_of(family)
    recompute_activations(recomputing)
    hidden = torch.randn(2, 16, 32)

    assert gradients(plain, hidden).keys() == gradients(recomputing, hidden).keys()
    for name, gradient in gradients(plain, hidden).items():
        assert torch.equal(gradient, gradients(recomputing, hidden)[name]), name


def gradients(module: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    module(hidden).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
