"""Our layers are the published models: with the same weights the same scores, losses and gradients as transformers."""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from galvatron_planner.model import Family, ModelSpec
from galvatron_planner.workload import reads_data
from galvatron_runtime.blocks import HeadLayer, LayerModule
from galvatron_runtime.model import build_layers
from published import CLASSES, LENGTH, VOCABULARY, origins, published

ROWS = 3


def data(spec: ModelSpec) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs of the layers that read some, and targets."""
    if spec.image_size:
        return (torch.randn(ROWS, 3, spec.image_size, spec.image_size),), torch.randint(CLASSES, (ROWS,))
    # Token 0 is padding to some of them, whose row gets no gradient.
    tokens, others, targets = torch.randint(1, VOCABULARY, (3, ROWS, LENGTH))
    return (tokens, others) if spec.family is Family.T5 else (tokens,), targets


def theirs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The scores of a model of theirs."""
    names = ("input_ids", "decoder_input_ids") if inputs[0].dtype is torch.int64 else ("pixel_values",)
    scores: Tensor = model(**dict(zip(names, inputs, strict=False))).logits
    return scores


def ours(spec: ModelSpec, model: nn.Module) -> list[LayerModule]:
    """Our layers with the weights of a model of theirs."""
    layers, state = build_layers(spec), model.state_dict()
    for index, name, origin in origins(spec):
        value = origin.read(state[origin.name])
        parameter = layers[index].get_parameter(name)
        assert parameter.shape == value.shape, (name, origin.name)
        parameter.data = value.clone()
    return layers


def last_stream(layers: list[LayerModule], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What arrives at the head."""
    unread, stream = iter(inputs), ()
    for layer in layers[:-1]:
        leaving = layer(*stream, next(unread)) if reads_data(layer.layer) else layer(*stream)
        stream = leaving if isinstance(leaving, tuple) else (leaving,)
    return stream


@pytest.mark.parametrize("family", Family)
def test_scores_loss_and_gradients_are_those_of_transformers(family: Family) -> None:
    model, spec = published(family)
    layers = ours(spec, model)
    inputs, targets = data(spec)
    expected = theirs(model, inputs)
    stream, head = last_stream(layers, inputs), layers[-1]
    assert isinstance(head, HeadLayer)
    torch.testing.assert_close(head.scores(stream[0]), expected, rtol=1e-5, atol=1e-5)

    expected_loss = F.cross_entropy(expected.flatten(0, -2), targets.flatten(), reduction="sum")
    loss: Tensor = head(*stream, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)

    torch.autograd.backward((expected_loss, loss))
    # What they share is a copy in each of our layers: the copies' gradients add up to theirs.
    shared: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    named = dict(model.named_parameters(remove_duplicate=False))
    for index, name, origin in origins(spec):
        found, wanted = layers[index].get_parameter(name).grad, named[origin.name].grad
        assert found is not None
        assert wanted is not None
        shared[id(named[origin.name]), origin.part].append((found, origin.read(wanted)))
    for pairs in shared.values():
        total, wanted = sum(found for found, _ in pairs), pairs[0][1]
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5 * max(1.0, wanted.abs().max().item()))


@pytest.mark.parametrize("family", Family)
def test_every_tensor_of_theirs_has_a_place(family: Family) -> None:
    model, spec = published(family)
    named = dict(model.named_parameters(remove_duplicate=False))
    placed = {id(named[origin.name]) for _, _, origin in origins(spec)}
    # BERT has a second bias of its scores, which is the first when tables are shared and unused otherwise.
    assert placed == {id(parameter) for name, parameter in named.items() if name != "cls.predictions.bias"}
