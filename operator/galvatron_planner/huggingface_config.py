"""A model as a Hugging Face ``config.json``: the mirror of :mod:`galvatron_planner.huggingface`."""

from collections.abc import Callable, Mapping
from typing import Any

from galvatron_planner.model import Family, ModelSpec

Config = dict[str, Any]


def to_config(model: ModelSpec) -> Config:
    """Write a configuration from which transformers builds the model."""
    return _WRITERS[model.family](model) | {"tie_word_embeddings": model.tie_word_embeddings}


def _decoder(architecture: str, model_type: str) -> Callable[[ModelSpec], Config]:
    def write(model: ModelSpec) -> Config:
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.num_key_value_heads,
            "head_dim": model.head_size,
            "intermediate_size": model.feed_forward_size,
            "max_position_embeddings": model.sequence_length,
            "vocab_size": model.vocabulary_size,
            "rope_theta": model.rotary_base,
            "rms_norm_eps": model.norm_epsilon,
            "hidden_act": "silu",
            **({"sliding_window": None} if model_type == "mistral" else {}),
        }

    return write


def _gpt2(model: ModelSpec) -> Config:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.feed_forward_size,
        "n_positions": model.sequence_length,
        "vocab_size": model.vocabulary_size,
        "layer_norm_epsilon": model.norm_epsilon,
        "activation_function": "gelu_new",
    }


def _encoder(model: ModelSpec) -> Config:
    return {
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.feed_forward_size,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_act": "gelu",
    }


def _bert(model: ModelSpec) -> Config:
    return _encoder(model) | {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "max_position_embeddings": model.sequence_length,
        "vocab_size": model.vocabulary_size,
    }


def _image(model: ModelSpec) -> Config:
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "id2label": {str(index): f"LABEL_{index}" for index in range(model.vocabulary_size)},
    }


def _vit(model: ModelSpec) -> Config:
    return _encoder(model) | _image(model) | {"architectures": ["ViTForImageClassification"], "model_type": "vit"}


def _swin(model: ModelSpec) -> Config:
    return _image(model) | {
        "architectures": ["SwinForImageClassification"],
        "model_type": "swin",
        "embed_dim": model.hidden_size,
        "depths": list(model.depths),
        "num_heads": [model.num_heads * 2**stage for stage in range(len(model.depths))],
        "window_size": model.window_size,
        "mlp_ratio": model.feed_forward_size / model.hidden_size,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_act": "gelu",
    }


def _t5(model: ModelSpec) -> Config:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": model.hidden_size,
        "d_kv": model.head_size,
        "d_ff": model.feed_forward_size,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.num_decoder_layers,
        "num_heads": model.num_heads,
        "n_positions": model.sequence_length,
        "vocab_size": model.vocabulary_size,
        "layer_norm_epsilon": model.norm_epsilon,
        "feed_forward_proj": "relu",
        "decoder_start_token_id": 0,
    }


_WRITERS: Mapping[Family, Callable[[ModelSpec], Config]] = {
    Family.GPT: _gpt2,
    Family.LLAMA: _decoder("LlamaForCausalLM", "llama"),
    Family.MISTRAL: _decoder("MistralForCausalLM", "mistral"),
    Family.QWEN2: _decoder("Qwen2ForCausalLM", "qwen2"),
    Family.BERT: _bert,
    Family.T5: _t5,
    Family.VIT: _vit,
    Family.SWIN: _swin,
}
