"""What layers really communicate is what the planner lists, collective by collective and byte by byte."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import builders
from galvatron_planner import families
from galvatron_planner.dimensions import Communication, communication, refusal
from galvatron_planner.model import Family, LayerSpec, Precision
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import LayerStrategy
from galvatron_runtime.measure.passes import LayerPass, build, feed
from galvatron_runtime.parallel.checkpointing import recompute_activations
from galvatron_runtime.parallel.tensor import connect_for_measurement

ROWS = 2
CPU = torch.device("cpu")
Said = Counter[tuple[Collective, int]]


class Group:
    """Two devices, of which only this one exists."""

    def size(self) -> int:
        return 2


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Collectives with their payloads, which nobody answers."""
    said: Said = Counter()

    def all_reduce(values: Tensor, **_: Any) -> None:
        said[Collective.ALL_REDUCE, values.nbytes] += 1

    def all_gather(whole: Tensor, _part: Tensor, **_kwargs: Any) -> None:
        said[Collective.ALL_GATHER, whole.zero_().nbytes] += 1

    def reduce_scatter(part: Tensor, whole: Tensor, **_: Any) -> None:
        part.zero_()
        said[Collective.REDUCE_SCATTER, whole.nbytes] += 1

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather_single", all_gather)
    monkeypatch.setattr(dist, "reduce_scatter_single", reduce_scatter)
    return said


def split(layer: LayerSpec, strategy: LayerStrategy) -> LayerPass:
    splits_tokens = strategy.sequence_degree > 1
    module = build(layer, tensor_degree=2, splits_tokens=splits_tokens, precision=Precision.FP32, device=CPU)
    connect_for_measurement(module, Group())  # type: ignore[arg-type]
    if strategy.checkpoint:
        recompute_activations(module)
    return feed(module, micro_batch_size=ROWS, precision=Precision.FP32, device=CPU)


def listed(collectives: tuple[Communication, ...]) -> Said:
    return Counter((one.collective, one.payload_bytes) for one in collectives)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("text", ["tp2", "tp2-ckpt", "sptp2", "sptp2-ckpt"])
def test_a_layer_communicates_what_is_listed(family: Family, text: str, heard: Said) -> None:
    strategy = LayerStrategy.parse(text)
    for layer in dict.fromkeys(families.layers(builders.model(family, sequence_length=8))):
        if refusal(layer, strategy) is not None:
            continue
        said = communication(layer, strategy, local_samples=ROWS, precision=Precision.FP32)
        one = split(layer, strategy)

        heard.clear()
        leaving = one.forward()
        assert heard == listed(said.forward), layer.kind

        heard.clear()
        one.backward(leaving)
        assert heard == listed(said.backward + (said.recomputed if strategy.checkpoint else ())), layer.kind
