"""What layers of the papers' sizes keep on a GPU, counted without one: shapes pass through CUDA's fused kernels.

On torch's meta device nothing is computed, but autograd saves the tensors that it would save. There attention and RMS
norms fall apart into many operations; here they are called by the names of the kernels that CUDA takes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from galvatron_planner import families
from galvatron_planner.activations import activation_bytes, mask_bytes
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Block, LayerSpec, Precision
from galvatron_planner.presets import PRESETS
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.units import MIB
from galvatron_runtime.blocks import build_layer
from galvatron_runtime.measure.passes import feed
from galvatron_runtime.parallel.tensor import split_for_measurement

ROWS = 2
META = torch.device("meta")


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Flash attention, or with a mask the memory-efficient kernel, as torch chooses on CUDA."""
    causal, scale = options.get("is_causal", False), options.get("scale")
    if attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return cast(Tensor, flash(query, key, value, 0.0, causal, return_debug_mask=False, scale=scale)[0])
    mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return cast(Tensor, efficient(query, key, value, mask, compute_log_sumexp=True, is_causal=causal, scale=scale)[0])


class FusedRmsNorm(torch.autograd.Function):
    """What the fused kernel keeps: its input, and a number per token."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(values, weight, values.new_empty(values.shape[:-1], dtype=torch.float32))
        return torch.empty_like(values)


def rms_norm(values: Tensor, _: Sequence[int], weight: Tensor, __: float) -> Tensor:
    """The fused kernel; on the meta device torch's own falls apart."""
    return cast(Tensor, FusedRmsNorm.apply(values, weight))  # type: ignore[no-untyped-call]  # torch


@pytest.fixture(autouse=True)
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.nn.functional, "rms_norm", rms_norm)
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def kept_bytes(layer: LayerSpec, split: LayerStrategy) -> float:
    """Bytes that autograd keeps of a pass; not parameters, and not tables that all passes share."""
    with META:
        module = build_layer(
            layer, is_shifted=isinstance(layer, Block) and 0 < layer.window_size**2 < layer.sequence_length
        )
    split_for_measurement(module, split.tensor_degree, splits_tokens=split.sequence_degree > 1)
    layer_pass = feed(module, micro_batch_size=ROWS, precision=Precision.BF16, device=META)
    passes, outputs = [], []
    for _ in range(2):
        with collecting() as saved:
            outputs.append(layer_pass.forward())
        passes.append({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in saved})
    inputs = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in layer_pass.inputs}
    once = {storage: size for storage, size in passes[0].items() if storage not in passes[1]}
    return sum({**once, **inputs}.values())


@contextmanager
def collecting() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize("split", ["single", "tp2", "tp4", "tp8", "sptp2", "sptp8"])
@pytest.mark.parametrize("name", ["llama2-7b", "llama3-8b", "qwen2.5-7b", "mistral-7b", "gpt3-15b", "bert-huge-32",
                                  "t5-large-32", "vit-huge-32", "swin-huge-32"])  # fmt: skip
def test_a_sample_keeps_on_a_gpu_what_the_cost_model_counts(name: str, split: str) -> None:
    strategy = LayerStrategy.parse(split)
    for layer in dict.fromkeys(families.layers(PRESETS[name])):
        if refusal(layer, strategy) is not None:
            continue
        degrees = {"tensor_degree": strategy.tensor_degree, "sequence_degree": strategy.sequence_degree}
        counted = ROWS * activation_bytes(layer, precision=Precision.BF16, **degrees)
        counted += mask_bytes(layer, tensor_degree=strategy.tensor_degree, precision=Precision.BF16)
        found = kept_bytes(layer, strategy)
        assert counted == pytest.approx(found, rel=0.01, abs=64), (
            f"{layer.kind}: {counted / MIB:.2f} MiB counted, {found / MIB:.2f} MiB kept"
        )
