"""Trained weights become models of transformers: the same scores, and the very tensors that were imported."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed.checkpoint import state_dict_saver

import builders
from galvatron_planner import families
from galvatron_planner.huggingface import from_config
from galvatron_planner.huggingface_config import to_config
from galvatron_planner.model import Family, ModelSpec
from galvatron_runtime.export import NotExportable, export
from galvatron_runtime.model import build_without_memory, global_name, materialize
from galvatron_runtime.pretrained import open_weights
from published import published

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

CLASSES = {
    Family.BERT: transformers.AutoModelForMaskedLM,
    Family.T5: transformers.AutoModelForSeq2SeqLM,
    Family.VIT: transformers.AutoModelForImageClassification,
    Family.SWIN: transformers.AutoModelForImageClassification,
}


def checkpoint_of(family: Family, folder: Path, *, step: int = 3, tied: bool = False) -> tuple[Path, Path]:
    """Their files, and a training checkpoint with the same weights."""
    model, spec = published(family, tied=tied)
    original = folder / "original"
    model.save_pretrained(original)  # type: ignore[operator]  # of their class
    return original, saved(spec, original, folder / "checkpoints" / f"step-{step:08d}")


def saved(spec: ModelSpec, original: Path, checkpoint: Path) -> Path:
    layers = build_without_memory(spec)
    values = open_weights(original, spec, dtype=torch.float32, device=torch.device("cpu"))
    for index, layer in enumerate(layers):
        materialize(layer, index, values)
    state = {
        f"model.{global_name(index, name)}": parameter.detach()
        for index, layer in enumerate(layers)
        for name, parameter in layer.named_parameters()
        if (index, name) not in families.copies(spec)
    }
    state_dict_saver.save(state, checkpoint_id=checkpoint, no_dist=True)
    one_stage = " ".join(["dp4"] * len(families.layers(spec)))
    (checkpoint / "plan.json").write_text(builders.plan(one_stage, spec=spec).to_json())
    return checkpoint


def exported(checkpoint: Path, output: Path, *, file_bytes: int = 1 << 30, dtype: torch.dtype = torch.float32) -> Path:
    export(checkpoint, output, dtype=dtype, file_bytes=file_bytes)
    return output


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        # Newer transformers cannot make a T5 whose tables differ.
        *((family, False) for family in Family if family is not Family.T5),
        *((family, True) for family in (Family.GPT, Family.QWEN2, Family.BERT, Family.T5)),
    ],
)
def test_what_was_imported_is_exported_bit_for_bit_and_loaded_by_transformers(
    family: Family,
    tied: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    original, checkpoint = checkpoint_of(family, tmp_path, tied=tied)
    output = exported(checkpoint, tmp_path / "out")
    before, after = load_file(original / "model.safetensors"), load_file(output / "model.safetensors")
    # BERT's bias has two names.
    other = {"cls.predictions.bias", "cls.predictions.decoder.bias"}
    assert after.keys() - other == before.keys() - other
    for name in after.keys() & before.keys():
        assert torch.equal(after[name], before[name]), name
    loader = CLASSES.get(family, transformers.AutoModelForCausalLM)
    loaded = loader.from_pretrained(output).state_dict()
    reference, _ = published(family, tied=tied)
    for name, tensor in reference.state_dict().items():
        assert name == "cls.predictions.bias" or torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", Family)
def test_a_configuration_says_all_of_a_model(family: Family, tied: bool) -> None:  # noqa: FBT001
    _, spec = published(family, tied=tied)
    assert from_config(to_config(spec)) == spec


def test_large_models_take_several_files_in_half_precision(tmp_path: Path) -> None:
    _, checkpoint = checkpoint_of(Family.LLAMA, tmp_path)
    output = exported(checkpoint, tmp_path / "out", file_bytes=10_000, dtype=torch.bfloat16)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in output.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    tensors = [tensor for file in files for tensor in load_file(output / file).values()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert sum(tensor.nbytes for tensor in tensors) == index["metadata"]["total_size"]


def test_the_newest_checkpoint_of_a_directory_is_taken(tmp_path: Path) -> None:
    checkpoint_of(Family.LLAMA, tmp_path / "a", step=3)
    _, newest = checkpoint_of(Family.LLAMA, tmp_path / "a", step=12)
    assert export(newest.parent, tmp_path / "out", dtype=torch.float32, file_bytes=1 << 30) == newest
    newest.parent.rename(tmp_path / "a" / "job")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "job").rename(tmp_path / "run" / "checkpoints" / "job")
    assert export(tmp_path / "run", tmp_path / "too", dtype=torch.float32, file_bytes=1 << 30).name == newest.name


def test_what_is_no_checkpoint_or_exists_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="no complete training checkpoint"):
        exported(tmp_path, tmp_path / "out")
    _, checkpoint = checkpoint_of(Family.LLAMA, tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(NotExportable, match="out exists"):
        exported(checkpoint, tmp_path / "out")
