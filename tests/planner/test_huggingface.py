"""Configurations as they are published become models of the published size; what we would plan wrongly is refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner import families
from galvatron_planner.errors import InvalidInput
from galvatron_planner.huggingface import from_config
from galvatron_planner.model import Family
from galvatron_planner.presets import PRESETS, model_named

Config = dict[str, Any]

GPT2: Config = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "tie_word_embeddings": True,
}
LLAMA2_7B: Config = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rope_scaling": None,
    "vocab_size": 32000,
}
MISTRAL_7B: Config = {
    **LLAMA2_7B,
    "model_type": "mistral",
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
}
QWEN25_7B: Config = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
BERT_BASE: Config = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
T5_3B: Config = {
    "model_type": "t5",
    "d_ff": 16384,
    "d_kv": 128,
    "d_model": 1024,
    "n_positions": 512,
    "num_heads": 32,
    "num_layers": 24,
    "vocab_size": 32128,
}
VIT_BASE: Config = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
}
SWIN_TINY: Config = {
    "model_type": "swin",
    "depths": [2, 2, 6, 2],
    "embed_dim": 96,
    "hidden_act": "gelu",
    "id2label": {str(i): "a label" for i in range(1000)},
    "image_size": 224,
    "mlp_ratio": 4.0,
    "num_heads": [3, 6, 12, 24],
    "patch_size": 4,
    "window_size": 7,
}

EVERY_CONFIG = [GPT2, LLAMA2_7B, MISTRAL_7B, QWEN25_7B, BERT_BASE, T5_3B, VIT_BASE, SWIN_TINY]
JSON = generate.recursive(
    generate.none() | generate.booleans() | generate.integers() | generate.floats() | generate.text(),
    lambda inner: generate.lists(inner) | generate.dictionaries(generate.text(), inner),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        pytest.param(GPT2, 124_439_808, id="gpt2"),
        pytest.param({**GPT2, "tie_word_embeddings": False}, 124_439_808 + 50257 * 768, id="gpt2-untied"),
        pytest.param(LLAMA2_7B, 6_738_415_616, id="llama2-7b"),
        pytest.param(MISTRAL_7B, 7_241_732_096, id="mistral-7b"),
        pytest.param(QWEN25_7B, 7_615_616_512, id="qwen2.5-7b"),
        pytest.param(BERT_BASE, 109_514_298, id="bert-base"),
        pytest.param(T5_3B, 2_851_598_336, id="t5-3b"),
        pytest.param(VIT_BASE, 86_567_656, id="vit-base"),
        pytest.param(SWIN_TINY, 28_288_354, id="swin-tiny"),
    ],
)
def test_a_published_configuration_has_the_published_parameters(config: Config, count: int) -> None:
    assert families.num_parameters(from_config(config)) == count


@pytest.mark.parametrize(("name", "config"), [("llama2-7b", LLAMA2_7B), ("mistral-7b", MISTRAL_7B)])
def test_a_configuration_and_its_preset_are_the_same_model(name: str, config: Config) -> None:
    assert from_config(config) == PRESETS[name]


def test_a_t5_is_tied_where_its_outputs_are_scaled() -> None:
    assert from_config(T5_3B).tie_word_embeddings
    assert not from_config({**T5_3B, "tie_word_embeddings": False}).tie_word_embeddings
    # As transformers 5 writes the same.
    newer = {**T5_3B, "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert not from_config(newer).tie_word_embeddings


def test_a_sample_is_no_longer_than_the_sliding_window() -> None:
    assert from_config(MISTRAL_7B).sequence_length == 4096


def test_a_window_that_is_not_used_bounds_nothing() -> None:
    assert from_config({**QWEN25_7B, "sliding_window": 4096}).sequence_length == 131072


def test_rotary_options_are_found_where_newer_configurations_keep_them() -> None:
    newer = {**LLAMA2_7B, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert from_config(newer).rotary_base == 500_000


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scales its rotary positions (llama3)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scales its rotary positions (linear)"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, "not divisible by 31 attention heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": None}, "vocabulary_size"),
    ],
)
def test_what_would_be_planned_wrongly_is_refused(changes: Config, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_config({**LLAMA2_7B, **changes})
    assert problem in caught.value.problem


def test_a_refusal_names_what_is_supported() -> None:
    with pytest.raises(InvalidInput, match="gpt2, llama, mistral, qwen2, bert, t5, vit, swin"):
        from_config({"architectures": ["Mamba"]})


@given(generate.sampled_from(EVERY_CONFIG), generate.data())
def test_nonsense_is_refused_and_never_crashes(config: Config, data: generate.DataObject) -> None:
    changed = {**config, data.draw(generate.sampled_from(sorted(config))): data.draw(JSON)}
    with contextlib.suppress(InvalidInput):
        from_config(changed)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidInput, match="lacks vocab_size"):
        from_config({key: value for key, value in BERT_BASE.items() if key != "vocab_size"})


def test_heads_of_swin_must_double() -> None:
    with pytest.raises(InvalidInput, match="num_heads"):
        from_config({**SWIN_TINY, "num_heads": [4, 4, 4, 4]})


def test_the_path_of_a_configuration_names_a_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BERT_BASE))
    model = model_named(str(path), sequence_length=128)
    assert (model.family, model.sequence_length) == (Family.BERT, 128)


@pytest.mark.parametrize(("text", "problem"), [(None, "cannot read"), ("{", "is no JSON"), ("[]", "holds no object")])
def test_a_file_that_holds_no_configuration_is_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=problem):
        model_named(str(path))
