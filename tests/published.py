"""Tiny models of Hugging Face transformers with random weights, and which of their tensors are which of ours."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from galvatron_planner import families
from galvatron_planner.huggingface import from_config
from galvatron_planner.model import Family, ModelSpec
from galvatron_planner.workload import parameters

WIDTH, HEADS, INNER, LENGTH, VOCABULARY, CLASSES = 32, 4, 64, 24, 67, 10
_NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "max_position_embeddings": LENGTH, "tie_word_embeddings": False,
}  # fmt: skip
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 2, "num_labels": CLASSES, **_NO_DROPOUT}

_T5_CONFIG: Any = transformers.T5Config
"""Its signature does not name all that it takes."""

MODELS: Mapping[Family, Callable[[], nn.Module]] = {
    Family.GPT: lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=LENGTH, tie_word_embeddings=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ),
    Family.LLAMA: lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT, num_key_value_heads=2)),
    Family.MISTRAL: lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**_TEXT, num_key_value_heads=2, head_dim=16, sliding_window=None)
    ),
    Family.QWEN2: lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_TEXT, num_key_value_heads=2)),
    Family.BERT: lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_TEXT, **_NO_DROPOUT)),
    Family.T5: lambda: transformers.T5ForConditionalGeneration(
        _T5_CONFIG(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=2, num_heads=HEADS, dropout_rate=0.0,
            n_positions=LENGTH, tie_word_embeddings=False,
        )
    ),
    Family.VIT: lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **_IMAGE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=INNER
        )
    ),
    Family.SWIN: lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            **_IMAGE, embed_dim=WIDTH, depths=[2, 2], num_heads=[2, 4], window_size=2, drop_path_rate=0.0
        )
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where one of our parameters comes from: a tensor of theirs, which part of it, and how it is read."""

    name: str
    read: Callable[[Tensor], Tensor] = lambda tensor: tensor
    part: int = 0


def published(family: Family) -> tuple[nn.Module, ModelSpec]:
    """A model with weights large enough that every part of it shows, and what we make of its configuration."""
    torch.manual_seed(1)
    model = MODELS[family]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    config: Any = model.config
    return model, from_config(config.to_dict())


def origins(spec: ModelSpec) -> Iterator[tuple[int, str, Origin]]:
    """For every parameter its layer, its name, and where it comes from."""
    places = _PLACES[spec.family](spec)
    for index, layer in enumerate(families.layers(spec)):
        for parameter in parameters(layer):
            owner, _, leaf = parameter.name.rpartition(".")
            yield index, parameter.name, places[index](owner, leaf)


Place = Callable[[str, str], Origin]
"""From a module and a parameter of ours to theirs."""


def _renamed(prefix: str, names: Mapping[str, str], owner: str, leaf: str) -> Origin:
    return Origin(f"{prefix}{names[owner]}.{leaf}")


def _decoder(spec: ModelSpec) -> list[Place]:
    block = {
        "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "query": "self_attn.q_proj",
        "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.o_proj", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    return [
        partial(_renamed, "", {"tokens": "model.embed_tokens"}),
        *(partial(_renamed, f"model.layers.{i}.", block) for i in range(spec.num_layers)),
        partial(_renamed, "", {"norm": "model.norm", "projection": "lm_head"}),
    ]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.dim() == 2 else tensor


def _gpt2_block(prefix: str, owner: str, leaf: str) -> Origin:
    """Its matrices are [inputs, outputs], and queries, keys and values one of them."""
    names = {
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "output": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    if owner in ("query", "key", "value"):
        part = ("query", "key", "value").index(owner)
        return Origin(f"{prefix}attn.c_attn.{leaf}", lambda tensor: _turned(tensor.chunk(3, dim=-1)[part]), part)
    is_matrix = leaf == "weight" and not owner.endswith("norm")
    return Origin(f"{prefix}{names[owner]}.{leaf}", _turned if is_matrix else lambda tensor: tensor)


def _gpt2(spec: ModelSpec) -> list[Place]:
    return [
        partial(_renamed, "transformer.", {"tokens": "wte", "positions": "wpe"}),
        *(partial(_gpt2_block, f"transformer.h.{i}.") for i in range(spec.num_layers)),
        partial(_renamed, "", {"norm": "transformer.ln_f", "projection": "lm_head"}),
    ]


def _bert(spec: ModelSpec) -> list[Place]:
    block = {
        "attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm", "query": "attention.self.query",
        "key": "attention.self.key", "value": "attention.self.value", "output": "attention.output.dense",
        "up": "intermediate.dense", "down": "output.dense",
    }  # fmt: skip
    embedding = {
        "tokens": "word_embeddings", "positions": "position_embeddings", "segments": "token_type_embeddings",
        "norm": "LayerNorm",
    }  # fmt: skip
    head = {"transform": "transform.dense", "norm": "transform.LayerNorm", "projection": "decoder"}
    return [
        partial(_renamed, "bert.embeddings.", embedding),
        *(partial(_renamed, f"bert.encoder.layer.{i}.", block) for i in range(spec.num_layers)),
        partial(_renamed, "cls.predictions.", head),
    ]


def _t5_block(stack: str, index: int, *, is_decoder: bool) -> Place:
    names = {"query": "q", "key": "k", "value": "v", "output": "o"}
    prefix, last = f"{stack}.block.{index}.layer.", 2 if is_decoder else 1

    def place(owner: str, leaf: str) -> Origin:
        if owner == "relative_bias":
            return Origin(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.{leaf}")
        if owner in names:
            return Origin(f"{prefix}0.SelfAttention.{names[owner]}.{leaf}")
        if owner.removeprefix("memory_") in names:
            return Origin(f"{prefix}1.EncDecAttention.{names[owner.removeprefix('memory_')]}.{leaf}")
        others = {
            "attention_norm": "0.layer_norm", "memory_norm": "1.layer_norm", "mlp_norm": f"{last}.layer_norm",
            "up": f"{last}.DenseReluDense.wi", "down": f"{last}.DenseReluDense.wo",
        }  # fmt: skip
        return Origin(f"{prefix}{others[owner]}.{leaf}")

    return place


def _t5(spec: ModelSpec) -> list[Place]:
    return [
        partial(_renamed, "", {"tokens": "shared"}),
        *(_t5_block("encoder", i, is_decoder=False) for i in range(spec.num_layers)),
        partial(_renamed, "", {"tokens": "shared", "memory_norm": "encoder.final_layer_norm"}),
        *(_t5_block("decoder", i, is_decoder=True) for i in range(spec.num_decoder_layers)),
        partial(_renamed, "", {"norm": "decoder.final_layer_norm", "projection": "lm_head"}),
    ]


def _patches(prefix: str, owner: str, leaf: str) -> Origin:
    if owner == "projection":
        return Origin(
            f"{prefix}patch_embeddings.projection.{leaf}",
            lambda tensor: tensor.flatten(1) if tensor.dim() > 1 else tensor,
        )
    if owner == "norm":
        return Origin(f"{prefix}norm.{leaf}")
    return Origin(
        f"{prefix}{'cls_token' if leaf == 'class_token' else 'position_embeddings'}", lambda tensor: tensor[0]
    )


_IMAGE_BLOCK = {
    "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after", "query": "attention.q_proj",
    "key": "attention.k_proj", "value": "attention.v_proj", "output": "attention.o_proj", "up": "mlp.fc1",
    "down": "mlp.fc2",
}  # fmt: skip


def _vit(spec: ModelSpec) -> list[Place]:
    return [
        partial(_patches, "vit.embeddings."),
        *(partial(_renamed, f"vit.layers.{i}.", _IMAGE_BLOCK) for i in range(spec.num_layers)),
        partial(_renamed, "", {"norm": "vit.layernorm", "projection": "classifier"}),
    ]


def _swin_block(prefix: str, owner: str, leaf: str) -> Origin:
    if owner == "relative_bias":
        return Origin(f"{prefix}attention.relative_position_bias.relative_position_bias_table")
    return _renamed(prefix, _IMAGE_BLOCK, owner, leaf)


def _swin(spec: ModelSpec) -> list[Place]:
    places: list[Place] = [partial(_patches, "swin.embeddings.")]
    for stage, depth in enumerate(spec.depths):
        prefix = f"swin.encoder.layers.{stage}."
        if stage:
            merge = {"norm": "norm", "reduction": "reduction"}
            places.append(partial(_renamed, f"swin.encoder.layers.{stage - 1}.downsample.", merge))
        places += [partial(_swin_block, f"{prefix}blocks.{i}.") for i in range(depth)]
    return [*places, partial(_renamed, "", {"norm": "swin.layernorm", "projection": "classifier"})]


_PLACES: Mapping[Family, Callable[[ModelSpec], list[Place]]] = {
    Family.GPT: _gpt2, Family.LLAMA: _decoder, Family.MISTRAL: _decoder, Family.QWEN2: _decoder, Family.BERT: _bert,
    Family.T5: _t5, Family.VIT: _vit, Family.SWIN: _swin,
}  # fmt: skip
