"""Our layers are the published models: the weights of their files give the scores, losses and gradients of theirs."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import builders
from galvatron_planner.model import Family, ModelSpec
from galvatron_planner.published import origins
from galvatron_planner.workload import reads_data
from galvatron_runtime.blocks import HeadLayer, LayerModule
from galvatron_runtime.model import build_without_memory, global_name, materialize
from galvatron_runtime.pretrained import PretrainedValues, UnusableWeights, open_weights, read_as
from published import CLASSES, LENGTH, VOCABULARY, published

ROWS = 3
CPU = torch.device("cpu")


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


def opened(directory: Path, spec: ModelSpec) -> PretrainedValues:
    return open_weights(directory, spec, dtype=torch.float32, device=CPU)


def saved(family: Family, directory: Path, *, tied: bool = False, **options: str) -> tuple[nn.Module, ModelSpec]:
    """A model of theirs, and its files."""
    model, spec = published(family, tied=tied)
    model.save_pretrained(directory, **options)  # type: ignore[operator]  # of their class
    return model, spec


def ours(spec: ModelSpec, directory: Path) -> list[LayerModule]:
    """Our layers with the weights of a directory."""
    layers, values = build_without_memory(spec), opened(directory, spec)
    for index, layer in enumerate(layers):
        materialize(layer, index, values)
    return layers


def last_stream(layers: list[LayerModule], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What arrives at the head."""
    unread, stream = iter(inputs), ()
    for layer in layers[:-1]:
        leaving = layer(*stream, next(unread)) if reads_data(layer.layer) else layer(*stream)
        stream = leaving if isinstance(leaving, tuple) else (leaving,)
    return stream


TEXT_FAMILIES = [family for family in Family if family not in (Family.VIT, Family.SWIN)]


@pytest.mark.parametrize(
    ("family", "tied"),
    [*((family, False) for family in Family), *((family, True) for family in TEXT_FAMILIES)],
)
def test_scores_loss_and_gradients_are_those_of_transformers(family: Family, tied: bool, tmp_path: Path) -> None:  # noqa: FBT001
    model, spec = saved(family, tmp_path, tied=tied)
    assert spec.tie_word_embeddings == tied
    layers = ours(spec, tmp_path)
    inputs, targets = data(spec)
    expected = theirs(model, inputs)
    stream, head = last_stream(layers, inputs), layers[-1]
    assert isinstance(head, HeadLayer)
    torch.testing.assert_close(head.scores(stream[0]), expected, rtol=1e-5, atol=1e-5)

    expected_loss = F.cross_entropy(expected.flatten(0, -2), targets.flatten(), reduction="sum")
    loss: Tensor = head(*stream, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)

    torch.autograd.backward((expected_loss, loss))
    compare_gradients(model, layers, spec, tmp_path)


def compare_gradients(model: nn.Module, layers: list[LayerModule], spec: ModelSpec, directory: Path) -> None:
    """What they share is a copy in each of our layers: the copies' gradients add up to theirs."""
    gradients = with_file_names(model, directory)
    found = opened(directory, spec).found
    shared: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for index, parameter, _ in origins(spec):
        name, origin = found[global_name(index, parameter.name)]
        gradient = layers[index].get_parameter(parameter.name).grad
        assert gradient is not None
        shared[name, origin.form].append((gradient, read_as(origin, gradients[name], parameter)))
    # BERT's bias has two names, of which files of tied models hold one.
    bias = {"cls.predictions.bias"}
    assert {name for name, _ in shared} | bias == gradients.keys() | bias
    for pairs in shared.values():
        total, wanted = torch.stack([mine for mine, _ in pairs]).sum(0), pairs[0][1]
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5 * max(1.0, wanted.abs().max().item()))


def with_file_names(model: nn.Module, directory: Path) -> dict[str, Tensor]:
    """Their gradients under the names that tensors have in files."""
    weights = load_file(directory / "model.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    model.save_pretrained(directory / "gradients")  # type: ignore[operator]  # of their class
    gradients = load_file(directory / "gradients" / "model.safetensors")
    assert gradients.keys() == weights.keys()
    return gradients


def test_weights_in_several_files_are_found_by_their_index(tmp_path: Path) -> None:
    model, spec = saved(Family.LLAMA, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs, _ = data(spec)
    layers = ours(spec, tmp_path)
    head = layers[-1]
    assert isinstance(head, HeadLayer)
    torch.testing.assert_close(head.scores(last_stream(layers, inputs)[0]), theirs(model, inputs), rtol=1e-5, atol=1e-5)


def test_a_table_that_is_left_out_is_that_of_the_tokens(tmp_path: Path) -> None:
    _, spec = saved(Family.GPT, tmp_path, tied=True)
    layers = ours(spec, tmp_path)
    assert torch.equal(layers[-1].get_parameter("projection.weight"), layers[0].get_parameter("tokens.weight"))


def test_samples_may_be_shorter_than_the_table_of_positions(tmp_path: Path) -> None:
    model, spec = saved(Family.GPT, tmp_path)
    shorter = spec.model_copy(update={"sequence_length": LENGTH // 2})
    table = ours(shorter, tmp_path)[0].get_parameter("positions.weight")
    assert torch.equal(table, model.get_parameter("transformer.wpe.weight")[: LENGTH // 2])
    with pytest.raises(UnusableWeights, match="shape"):
        opened(tmp_path, spec.model_copy(update={"sequence_length": 2 * LENGTH}))


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path: Path) -> None:
    _, spec = saved(Family.LLAMA, tmp_path)
    with pytest.raises(UnusableWeights, match="num_layers 2 instead of 3"):
        opened(tmp_path, spec.model_copy(update={"num_layers": 3}))


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    _, spec = saved(Family.BERT, tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("cls.predictions.transform.dense.weight"))
    with pytest.raises(UnusableWeights, match=r"lacks cls\.predictions\.transform\.dense\.weight"):
        opened(tmp_path, spec)


def test_a_directory_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    spec = builders.model(Family.LLAMA)
    with pytest.raises(UnusableWeights, match=r"config\.json"):
        opened(tmp_path, spec)
    _, spec = saved(Family.LLAMA, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnusableWeights, match=r"neither model\.safetensors nor"):
        opened(tmp_path, spec)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnusableWeights, match="lacks model-00001-of-00002"):
        opened(tmp_path, spec)


def edit(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a directory."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
