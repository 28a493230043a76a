"""Tiny models of Hugging Face transformers with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from galvatron_planner.huggingface import from_config
from galvatron_planner.model import Family, ModelSpec

WIDTH, HEADS, INNER, LENGTH, VOCABULARY, CLASSES = 32, 4, 64, 24, 67, 10
_NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "max_position_embeddings": LENGTH,
}  # fmt: skip
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 2, "num_labels": CLASSES, **_NO_DROPOUT}


def _text(tied: bool) -> dict[str, Any]:  # noqa: FBT001
    return {**_TEXT, "tie_word_embeddings": tied}


_T5_CONFIG: Any = transformers.T5Config
"""Its signature does not name all that it takes."""

MODELS: Mapping[Family, Callable[[bool], nn.Module]] = {
    Family.GPT: lambda tied: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=LENGTH, tie_word_embeddings=tied,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ),
    Family.LLAMA: lambda tied: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_text(tied), num_key_value_heads=2)
    ),
    Family.MISTRAL: lambda tied: transformers.MistralForCausalLM(
        transformers.MistralConfig(**_text(tied), num_key_value_heads=2, head_dim=16, sliding_window=None)
    ),
    Family.QWEN2: lambda tied: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**_text(tied), num_key_value_heads=2)
    ),
    Family.BERT: lambda tied: transformers.BertForMaskedLM(transformers.BertConfig(**_text(tied), **_NO_DROPOUT)),
    Family.T5: lambda tied: transformers.T5ForConditionalGeneration(
        _T5_CONFIG(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=2, num_heads=HEADS, dropout_rate=0.0,
            n_positions=LENGTH, tie_word_embeddings=tied,
        )
    ),
    Family.VIT: lambda _: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **_IMAGE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=INNER
        )
    ),
    Family.SWIN: lambda _: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            **_IMAGE, embed_dim=WIDTH, depths=[2, 2], num_heads=[2, 4], window_size=2, drop_path_rate=0.0
        )
    ),
}  # fmt: skip


def published(family: Family, *, tied: bool = False) -> tuple[nn.Module, ModelSpec]:
    """A model with weights large enough that every part of it shows, and what we make of its configuration."""
    torch.manual_seed(1)
    model = MODELS[family](tied).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    config: Any = model.config
    return model, from_config(config.to_dict())
