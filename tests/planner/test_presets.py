"""Presets have the parameters that their authors publish."""

import pytest

from galvatron_planner import families
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Block
from galvatron_planner.presets import PRESETS, model_named

PUBLISHED_MILLIONS = {
    # Galvatron (arXiv 2211.13878), the table of its models.
    "bert-huge-32": 672,
    "bert-huge-48": 987,
    "vit-huge-32": 632,
    "vit-huge-48": 947,
    "t5-large-32": 502,
    "t5-large-48": 737,
    "t5-512-4-32": 502,
    "t5-512-4-48": 737,
    "swin-huge-32": 701,
    "swin-huge-48": 1016,
}

PUBLISHED = {
    # What the published weights hold, to the parameter.
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_the_papers_models_have_their_size_within_a_percent(name: str) -> None:
    assert families.num_parameters(PRESETS[name]) == pytest.approx(PUBLISHED_MILLIONS[name] * 1e6, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_well_known_models_have_exactly_their_parameters(name: str) -> None:
    assert families.num_parameters(PRESETS[name]) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "billions"), [("gpt3-15b", 15), ("gpt3-39b", 39), ("gpt3-65b", 65)])
def test_the_blocks_of_gpt3_give_it_its_name(name: str, billions: int) -> None:
    # 12 x layers x hidden^2 (Narayanan et al. 2021, arXiv 2104.04473, equation 2).
    blocks = [layer for layer in families.layers(PRESETS[name]) if isinstance(layer, Block)]
    assert 12 * len(blocks) * blocks[0].hidden_size ** 2 / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_preset_takes_another_sequence_length() -> None:
    assert model_named("llama3-8b", sequence_length=4096).sequence_length == 4096


def test_a_misspelt_name_gets_the_close_ones() -> None:
    with pytest.raises(InvalidInput, match="bert-hug-32") as caught:
        model_named("bert-hug-32")
    assert caught.value.remedy.startswith("use bert-huge-32")


def test_an_image_keeps_its_number_of_tokens() -> None:
    with pytest.raises(InvalidInput, match="197 tokens"):
        model_named("vit-huge-32", sequence_length=512)
