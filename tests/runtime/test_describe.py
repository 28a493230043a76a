"""What is known of a user's layers, and what is said of those that cannot be planned or trained."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from galvatron_planner import families
from galvatron_planner.dimensions import communication, refusal
from galvatron_planner.model import Precision
from galvatron_planner.own import DataKind, OwnModel
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.workload import forward_flops, input_bytes, num_parameters, output_bytes, reads_data
from galvatron_runtime.blocks.own import UnusableModel, build_all
from galvatron_runtime.describe import describe
from galvatron_runtime.model import initial_values, materialize

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own-model"
H, S, INNER, CONVOLVED = 128, 64, 384, 8


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> OwnModel:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return describe("convolutions:layers", sequence_length=S, vocabulary_size=256)


def own(function: str) -> OwnModel:
    return describe(f"runtime.own_layers:{function}", sequence_length=12, vocabulary_size=32)


def images() -> OwnModel:
    return describe("runtime.own_layers:images", sequence_length=1, vocabulary_size=10, image_size=8)


def test_layers_have_their_shapes_parameters_and_work(example: OwnModel) -> None:
    first, *blocks, last = example.layers
    assert len(set(blocks)) == 1
    assert [layer.index for layer in example.layers] == [0, 1, 1, 1, 1, 1, 1, 7]
    assert (first.outputs, blocks[0].inputs, blocks[0].outputs, last.outputs) == (((S, H),),) * 3 + ((),)
    block = H * INNER * 3 + H * CONVOLVED + H + 2 * H
    assert num_parameters(blocks[0]) == block
    assert forward_flops(blocks[0]) == 2 * S * H * INNER * 3 + 2 * (S) * H * CONVOLVED
    assert input_bytes(blocks[0], Precision.BF16) == output_bytes(first, Precision.BF16) == 2 * S * H
    assert [reads_data(layer) for layer in example.layers] == [True] + [False] * 7
    assert last.data is not None
    assert (last.data.kind, last.data.shape) == (DataKind.TARGETS, (S,))


def test_what_is_split_is_summed_where_it_says(example: OwnModel) -> None:
    block = example.layers[1]
    strategy = LayerStrategy.parse("tp2-dp2")
    assert refusal(block, strategy) is None
    said = communication(block, strategy, local_samples=3, precision=Precision.FP32)
    assert (
        [one.payload_bytes for one in said.forward] == [one.payload_bytes for one in said.backward] == [3 * S * H * 4]
    )
    assert "does not say how its parameters split" in str(refusal(example.layers[0], strategy))
    assert refusal(block, LayerStrategy.parse("dp4-ckpt")) is None
    assert "not checkpointed" in str(refusal(example.layers[-1], LayerStrategy.parse("dp4-ckpt")))


def test_several_tensors_and_buffers_are_described() -> None:
    model = images()
    assert model.layers[1].inputs == model.layers[1].outputs == ((8, 16), (16,))
    assert [layer.index for layer in model.layers] == [0, 1, 1, 1, 4]
    assert families.num_parameters(model) == sum(num_parameters(layer) for layer in model.layers)


def test_initial_values_follow_from_the_seed_and_the_layer_alone() -> None:
    model = images()

    def drawn(seed: int) -> list[torch.nn.Module]:
        with torch.device("meta"):
            layers = build_all(model)
        values = initial_values(model, seed=seed, dtype=torch.float32, device=torch.device("cpu"))
        for index in reversed(range(len(layers))):
            materialize(layers[index], index, values)
        return list(layers)

    one, same, other = drawn(1), drawn(1), drawn(2)
    for layer, again in zip(one, same, strict=True):
        for (name, value), (_, repeated) in zip(
            [*layer.named_parameters(), *layer.named_buffers()],
            [*again.named_parameters(), *again.named_buffers()],
            strict=True,
        ):
            assert not value.is_meta
            assert torch.equal(value, repeated), name
    assert not torch.equal(next(one[0].parameters()), next(other[0].parameters()))
    assert not torch.equal(next(one[1].parameters()), next(one[2].parameters()))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("batch_normed", "layer 1 (BatchNormed) of runtime.own_layers:batch_normed has a batch norm"),
        ("unstarted", "Unstarted holds scale and has no reset_parameters()"),
        ("scalar", "has a parameter scale without dims"),
        ("mixed", "gives [[36, 16]] for 3 samples"),
        ("indexed", "hands on torch.int64"),
        ("deciding", "cannot take float32 [3, 12, 16]"),
        ("misnamed", "names wait: 0 in split_dims"),
        ("averaged", "gives [3, 12] where the loss is made"),
        ("too_wide", "cannot take float32 [3, 12, 16]"),
        ("failing", "failing() fails: RuntimeError: no weights here"),
        ("alone", "returns 1 layers of ['Tokens']"),
        ("no_modules", "returns 2 layers of ['Tokens', 'str']"),
        ("nowhere", "cannot import runtime.own_layers:nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_layer(function: str, problem: str) -> None:
    with pytest.raises(UnusableModel) as caught:
        own(function)
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_code_that_has_changed_since_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (EXAMPLE / "convolutions.py").read_text()
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "changing.py").write_text(source)
    model = describe("changing:layers", sequence_length=S, vocabulary_size=256)
    build_all(model)
    (tmp_path / "changing.py").write_text(source.replace("F.silu(self.gate(wide))", "F.gelu(self.gate(wide))"))
    monkeypatch.delitem(sys.modules, "changing")
    importlib.invalidate_caches()
    with pytest.raises(UnusableModel, match="layer 1 of changing:layers is not the one that was described"):
        build_all(model)
