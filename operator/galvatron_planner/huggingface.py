"""A Hugging Face ``config.json`` as a model: what it says of shapes is taken, what we would plan wrongly is refused.

What only changes numbers (dropout, initialisation, data types) is ignored.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from galvatron_planner.documents import first_problem
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import TYING_FAMILIES, Family, ModelSpec, num_image_tokens

Config = Mapping[str, Any]

DEFAULT_CLASSES = 1000
"""Of ImageNet: what image models classify when a configuration names no labels."""


def from_config(config: Config | Path, *, sequence_length: int | None = None) -> ModelSpec:
    """Read a configuration.

    Args:
        config: the content of a ``config.json``, or its path.
        sequence_length: tokens per sample; when absent as many as the model knows positions for, at most its sliding
            window.

    Raises:
        InvalidInput: when the file cannot be read, or holds an architecture or an option that we do not know.
    """
    if isinstance(config, Path):
        config = _load(config)
    if "model_type" not in config:
        raise InvalidInput(
            "the configuration has no model_type",
            remedy=f"name the config.json that save_pretrained has written, of one of {', '.join(_READERS)}",
        )
    architecture = str(config["model_type"])
    if architecture not in _READERS:
        raise InvalidInput(
            f"the configuration's model_type is {architecture!r}",
            remedy=f"use a model of one of {', '.join(_READERS)}, or state its shape field by field",
        )
    try:
        _refuse_options(config, architecture)
        fields = _READERS[architecture](config)
        if fields["family"] not in (Family.VIT, Family.SWIN):
            tied = config.get("tie_word_embeddings", fields["family"] in TYING_FAMILIES)
            # A T5 with scores of its own is not scaled; newer files say that alone.
            fields["tie_word_embeddings"] = config.get("scale_decoder_outputs", tied)
        for epsilon in (config[name] for name in _EPSILONS if name in config):
            fields["norm_epsilon"] = epsilon
        if sequence_length is not None:
            fields["sequence_length"] = sequence_length
        return ModelSpec(**fields)
    except KeyError as error:
        raise InvalidInput(
            f"the configuration of this {architecture} lacks {error.args[0]}", remedy="add it to config.json"
        ) from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidInput(
            f"the configuration of this {architecture} describes no model: {found}", remedy="correct config.json"
        ) from error


def _load(path: Path) -> Config:
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", remedy="check the path of the file") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}", remedy="name the config.json of a model") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path} holds no object", remedy="name the config.json of a model")
    return config


_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_GATED = ("llama", "mistral", "qwen2")

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "activation_function": _GELU_TANH,
    "feed_forward_proj": ("relu",),
    "position_embedding_type": ("absolute",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "type_vocab_size": (2,),
    "num_channels": (3,),
    "qkv_bias": (True,),
    "use_absolute_embeddings": (False,),
}
"""Options that change a layer, and the values with which our layers are those of the model."""


def _refuse_options(config: Config, architecture: str) -> None:
    activations = ("silu",) if architecture in _GATED else ("gelu",)
    for option, allowed in {"hidden_act": activations, **_ALLOWED}.items():
        if option in config and config[option] not in allowed:
            known = " or ".join(json.dumps(value) for value in allowed)
            raise InvalidInput(
                f"the configuration's {option} is {json.dumps(config[option])}, which has no family here",
                remedy=f"use a model whose {option} is {known}",
            )
    kind = _rope(config).get("rope_type", _rope(config).get("type", "default"))
    if kind != "default":
        raise InvalidInput(
            f"the configuration scales its rotary positions ({kind})",
            remedy="use a model without rope scaling; supported is rope_theta alone",
        )


def _rope(config: Config) -> Config:
    """Give the group of rotary options, which newer configurations have in any case, older ones when they scale."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _decoder(family: Family) -> Callable[[Config], dict[str, Any]]:
    def read(config: Config) -> dict[str, Any]:
        heads = config["num_attention_heads"]
        length = config["max_position_embeddings"]
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        head_size = config.get("head_dim")
        return {
            "family": family,
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "feed_forward_size": config["intermediate_size"],
            # Beyond the window, tokens see less than what is planned.
            "sequence_length": min(length, window or length),
            "vocabulary_size": config["vocab_size"],
            "rotary_base": int(_rope(config).get("rope_theta") or config.get("rope_theta") or 10_000),
            **({"head_size": head_size} if head_size else {}),
        }

    return read


def _gpt2(config: Config) -> dict[str, Any]:
    return {
        "family": Family.GPT,
        "hidden_size": config["n_embd"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "num_key_value_heads": config["n_head"],
        "feed_forward_size": config.get("n_inner") or 4 * config["n_embd"],
        "sequence_length": config["n_positions"],
        "vocabulary_size": config["vocab_size"],
    }


def _encoder(config: Config, family: Family) -> dict[str, Any]:
    return {
        "family": family,
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "feed_forward_size": config["intermediate_size"],
    }


def _bert(config: Config) -> dict[str, Any]:
    return _encoder(config, Family.BERT) | {
        "sequence_length": config["max_position_embeddings"],
        "vocabulary_size": config["vocab_size"],
    }


def _vit(config: Config) -> dict[str, Any]:
    return _encoder(config, Family.VIT) | _image(config, Family.VIT)


def _t5(config: Config) -> dict[str, Any]:
    length = config.get("n_positions", 512)
    return {
        "family": Family.T5,
        "hidden_size": config["d_model"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "num_key_value_heads": config["num_heads"],
        "feed_forward_size": config["d_ff"],
        "head_size": config["d_kv"],
        "sequence_length": length,
        "vocabulary_size": config["vocab_size"],
        "num_decoder_layers": config.get("num_decoder_layers") or config["num_layers"],
        "decoder_sequence_length": length,
    }


def _swin(config: Config) -> dict[str, Any]:
    hidden, heads = config["embed_dim"], config["num_heads"]
    if heads != [heads[0] * 2**stage for stage in range(len(config["depths"]))]:
        raise InvalidInput(
            f"the configuration's num_heads are {heads}",
            remedy="use a Swin whose stages have twice the heads of the one before",
        )
    return _image(config, Family.SWIN) | {
        "family": Family.SWIN,
        "hidden_size": hidden,
        "num_layers": sum(config["depths"]),
        "num_heads": heads[0],
        "num_key_value_heads": heads[0],
        "feed_forward_size": int(config.get("mlp_ratio", 4) * hidden),
        "depths": tuple(config["depths"]),
        "window_size": config["window_size"],
    }


def _image(config: Config, family: Family) -> dict[str, Any]:
    image_size, patch_size = config["image_size"], config["patch_size"]
    return {
        "sequence_length": num_image_tokens(family, image_size=image_size, patch_size=patch_size),
        "vocabulary_size": len(config.get("id2label") or ()) or DEFAULT_CLASSES,
        "image_size": image_size,
        "patch_size": patch_size,
    }


_READERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "llama": _decoder(Family.LLAMA),
    "mistral": _decoder(Family.MISTRAL),
    "qwen2": _decoder(Family.QWEN2),
    "bert": _bert,
    "t5": _t5,
    "vit": _vit,
    "swin": _swin,
}
"""Architectures that we read, by ``model_type``."""
