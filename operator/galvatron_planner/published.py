"""THE TABLE of published weights: which tensor of a Hugging Face checkpoint is which parameter of ours.

Names are those in the files (``*.safetensors``), which outlive the names of modules. What a published model holds once,
and several of our layers a copy of, has one origin for all of them (``families.copies`` tells which are copies).

Source: the checkpoints that ``transformers`` writes; tests hold the table against them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from galvatron_planner import families
from galvatron_planner.model import Family, ModelSpec
from galvatron_planner.workload import Parameter, parameters


class Form(StrEnum):
    """How their tensor lies there."""

    SAME = "same"
    TURNED = "turned"
    """A matrix as [inputs, outputs]."""
    QUERY, KEY, VALUE = "query", "key", "value"
    """A third of a matrix [inputs, 3 x outputs], or of its bias."""
    KERNEL = "kernel"
    """A matrix over patches as the kernel of a convolution, [outputs, channels, rows, columns]."""
    BATCHED = "batched"
    """With a leading dim of one."""
    FIRST_ROWS = "first rows"
    """A table that may have more rows than samples have tokens."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a parameter comes from.

    Attributes:
        names: of their tensor; later ones are tried where earlier ones are missing.
        form: how it lies there.
    """

    names: tuple[str, ...]
    form: Form = Form.SAME


Place = Callable[[str, str], Origin]
"""From a module and a parameter of a layer to theirs."""


def origins(model: ModelSpec) -> Iterator[tuple[int, Parameter, Origin]]:
    """Yield for every parameter of a model its layer and where it comes from."""
    places = _PLACES[model.family](model)
    for index, layer in enumerate(families.layers(model)):
        for parameter in parameters(layer):
            owner, _, leaf = parameter.name.rpartition(".")
            yield index, parameter, places[index](owner, leaf)


def _renamed(prefix: str, names: Mapping[str, str], owner: str, leaf: str) -> Origin:
    return Origin((f"{prefix}{names[owner]}.{leaf}",))


def _tied(name: str, other: str) -> Place:
    """Place the projection to the vocabulary, which may be left out where it is the table of tokens."""
    return lambda _owner, leaf: Origin((f"{name}.{leaf}", f"{other}.{leaf}"))


def _head(prefix: str, norm: str, projection: Place) -> Place:
    def place(owner: str, leaf: str) -> Origin:
        return projection(owner, leaf) if owner == "projection" else Origin((f"{prefix}{norm}.{leaf}",))

    return place


def _llama(model: ModelSpec) -> list[Place]:
    block = {
        "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "query": "self_attn.q_proj",
        "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.o_proj", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    return [
        partial(_renamed, "", {"tokens": "model.embed_tokens"}),
        *(partial(_renamed, f"model.layers.{index}.", block) for index in range(model.num_layers)),
        _head("model.", "norm", _tied("lm_head", "model.embed_tokens")),
    ]


_GPT2_BLOCK = {
    "attention_norm": "ln_1", "mlp_norm": "ln_2", "output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip


def _gpt2_block(index: int, owner: str, leaf: str) -> Origin:
    def named(name: str, form: Form) -> Origin:
        # The oldest files have no prefix.
        return Origin((f"transformer.h.{index}.{name}.{leaf}", f"h.{index}.{name}.{leaf}"), form)

    if owner in ("query", "key", "value"):
        return named("attn.c_attn", Form(owner))
    return named(_GPT2_BLOCK[owner], Form.TURNED if leaf == "weight" and "norm" not in owner else Form.SAME)


def _gpt2(model: ModelSpec) -> list[Place]:
    def embedding(owner: str, leaf: str) -> Origin:
        name, form = ("wte", Form.SAME) if owner == "tokens" else ("wpe", Form.FIRST_ROWS)
        return Origin((f"transformer.{name}.{leaf}", f"{name}.{leaf}"), form)

    def head(owner: str, leaf: str) -> Origin:
        if owner == "projection":
            return Origin(("lm_head.weight", "transformer.wte.weight", "wte.weight"))
        return Origin((f"transformer.ln_f.{leaf}", f"ln_f.{leaf}"))

    return [embedding, *(partial(_gpt2_block, index) for index in range(model.num_layers)), head]


def _bert_named(prefix: str, names: Mapping[str, str], owner: str, leaf: str) -> Origin:
    name = f"{prefix}{names[owner]}"
    # The oldest files call what a norm multiplies and adds gamma and beta.
    greek = {"weight": "gamma", "bias": "beta"}[leaf]
    return Origin((f"{name}.{leaf}", f"{name}.{greek}"), Form.FIRST_ROWS if owner == "positions" else Form.SAME)


def _bert(model: ModelSpec) -> list[Place]:
    block = {
        "attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm", "query": "attention.self.query",
        "key": "attention.self.key", "value": "attention.self.value", "output": "attention.output.dense",
        "up": "intermediate.dense", "down": "output.dense",
    }  # fmt: skip
    embedding = {
        "tokens": "word_embeddings", "positions": "position_embeddings", "segments": "token_type_embeddings",
        "norm": "LayerNorm",
    }  # fmt: skip
    names = {"transform": "transform.dense", "norm": "transform.LayerNorm"}

    def head(owner: str, leaf: str) -> Origin:
        if owner != "projection":
            return _bert_named("cls.predictions.", names, owner, leaf)
        tied = {"weight": "bert.embeddings.word_embeddings.weight", "bias": "cls.predictions.bias"}[leaf]
        return Origin((f"cls.predictions.decoder.{leaf}", tied))

    return [
        partial(_bert_named, "bert.embeddings.", embedding),
        *(partial(_bert_named, f"bert.encoder.layer.{index}.", block) for index in range(model.num_layers)),
        head,
    ]


_T5_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}


def _t5_block(stack: str, index: int, owner: str, leaf: str) -> Origin:
    """Place a block; the first of a stack holds the table of distances of all."""
    last = 2 if stack == "decoder" else 1
    others = {
        "attention_norm": "0.layer_norm", "memory_norm": "1.layer_norm", "mlp_norm": f"{last}.layer_norm",
        "up": f"{last}.DenseReluDense.wi", "down": f"{last}.DenseReluDense.wo",
    }  # fmt: skip
    if owner == "relative_bias":
        return Origin((f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.{leaf}",))
    memory = owner.removeprefix("memory_")
    if owner in _T5_ATTENTION:
        name = f"0.SelfAttention.{_T5_ATTENTION[owner]}"
    else:
        name = f"1.EncDecAttention.{_T5_ATTENTION[memory]}" if memory in _T5_ATTENTION else others[owner]
    return Origin((f"{stack}.block.{index}.layer.{name}.{leaf}",))


def _t5(model: ModelSpec) -> list[Place]:
    def head(owner: str, leaf: str) -> Origin:
        return Origin(
            ("lm_head.weight", "shared.weight") if owner == "projection" else (f"decoder.final_layer_norm.{leaf}",)
        )

    return [
        partial(_renamed, "", {"tokens": "shared"}),
        *(partial(_t5_block, "encoder", index) for index in range(model.num_layers)),
        partial(_renamed, "", {"tokens": "shared", "memory_norm": "encoder.final_layer_norm"}),
        *(partial(_t5_block, "decoder", index) for index in range(model.num_decoder_layers)),
        head,
    ]


def _patches(prefix: str, owner: str, leaf: str) -> Origin:
    match owner, leaf:
        case "projection", _:
            name = f"{prefix}patch_embeddings.projection.{leaf}"
            return Origin((name,), Form.KERNEL if leaf == "weight" else Form.SAME)
        case "norm", _:
            return Origin((f"{prefix}norm.{leaf}",))
        case "positions", _:
            return Origin((f"{prefix}position_embeddings",), Form.BATCHED)
        case _:
            return Origin((f"{prefix}cls_token",), Form.BATCHED)


_IMAGE_BLOCK = {
    "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after", "output": "attention.output.dense",
    "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip


def _vit(model: ModelSpec) -> list[Place]:
    block = {**_IMAGE_BLOCK, **{name: f"attention.attention.{name}" for name in ("query", "key", "value")}}
    return [
        partial(_patches, "vit.embeddings."),
        *(partial(_renamed, f"vit.encoder.layer.{index}.", block) for index in range(model.num_layers)),
        partial(_renamed, "", {"norm": "vit.layernorm", "projection": "classifier"}),
    ]


def _swin_block(prefix: str, owner: str, leaf: str) -> Origin:
    if owner == "relative_bias":
        return Origin((f"{prefix}attention.self.relative_position_bias_table",))
    block = {**_IMAGE_BLOCK, **{name: f"attention.self.{name}" for name in ("query", "key", "value")}}
    return _renamed(prefix, block, owner, leaf)


def _swin(model: ModelSpec) -> list[Place]:
    places: list[Place] = [partial(_patches, "swin.embeddings.")]
    for stage, depth in enumerate(model.depths):
        if stage:
            merge = {"norm": "norm", "reduction": "reduction"}
            places.append(partial(_renamed, f"swin.encoder.layers.{stage - 1}.downsample.", merge))
        places += [partial(_swin_block, f"swin.encoder.layers.{stage}.blocks.{index}.") for index in range(depth)]
    return [*places, partial(_renamed, "", {"norm": "swin.layernorm", "projection": "classifier"})]


_PLACES: Mapping[Family, Callable[[ModelSpec], list[Place]]] = {
    Family.GPT: _gpt2, Family.LLAMA: _llama, Family.MISTRAL: _llama, Family.QWEN2: _llama, Family.BERT: _bert,
    Family.T5: _t5, Family.VIT: _vit, Family.SWIN: _swin,
}  # fmt: skip
