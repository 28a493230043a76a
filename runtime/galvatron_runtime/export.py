"""Trained weights as a directory that Hugging Face's ``from_pretrained`` reads, written tensor by tensor.

    python -m galvatron_runtime.export CHECKPOINT --output DIRECTORY

The mirror of :mod:`galvatron_runtime.pretrained`: the same table of names, and no more than one file of it in memory.
"""

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader

from galvatron_planner import families
from galvatron_planner.errors import GalvatronError
from galvatron_planner.families import NUM_CHANNELS
from galvatron_planner.huggingface_config import to_config
from galvatron_planner.model import ModelSpec
from galvatron_planner.own import OwnModel
from galvatron_planner.plan import Plan
from galvatron_planner.published import Form, Origin, origins
from galvatron_planner.units import GIB
from galvatron_planner.workload import Parameter
from galvatron_runtime.checkpoint import PLAN_FILE, checkpoint_name, complete_steps
from galvatron_runtime.model import global_name
from galvatron_runtime.pretrained import CONFIG_FILE, INDEX_FILE, SINGLE_FILE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NotExportable(GalvatronError):
    """A checkpoint that cannot become a published model."""


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of theirs, and the parameters of ours that it is made of.

    Attributes:
        name: in the file.
        parts: global name, parameter and form, in the order in which they are put together.
    """

    name: str
    parts: tuple[tuple[str, Parameter, Origin], ...]

    @property
    def num_elements(self) -> int:
        """Elements of the whole tensor."""
        return sum(parameter.num_elements for _, parameter, _ in self.parts)


def export(source: Path, output: Path, *, dtype: torch.dtype, file_bytes: int) -> Path:
    """Write a checkpoint's weights.

    Args:
        source: a training checkpoint, or a directory (also of a local run) of which the newest complete one is taken.
        output: the directory to make.
        dtype: of the written tensors.
        file_bytes: about as large a file may be.

    Returns:
        The checkpoint that was taken.

    Raises:
        NotExportable: when there is no complete checkpoint, or the output exists.
    """
    checkpoint = find_checkpoint(source)
    if output.exists():
        raise NotExportable(f"{output} exists", remedy="remove it, or name another directory")
    model = Plan.from_json((checkpoint / PLAN_FILE).read_text()).model
    if isinstance(model, OwnModel):
        raise NotExportable(
            f"{model.function} is no architecture of Hugging Face",
            remedy="read the checkpoint with torch.distributed.checkpoint: docs/own-models.md",
        )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(checkpoint, model, partial, dtype=dtype, file_bytes=file_bytes)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return checkpoint


def find_checkpoint(source: Path) -> Path:
    """Take a checkpoint, or the newest of a directory: of checkpoints, or of a local run.

    Raises:
        NotExportable: when there is none.
    """
    if (source / ".metadata").exists():
        return source
    found = {step: folder for folder in (source, *source.glob("checkpoints/*")) for step in complete_steps(folder)}
    if not found and (source / PLAN_FILE).exists():
        raise NotExportable(
            f"the run in {source} has saved no training checkpoint",
            remedy="add spec.checkpoint to the job, for instance {periodSteps: 100}, and run it again: it also saves"
            " at the end",
        )
    if not source.is_dir():
        raise NotExportable(f"there is no directory {source}", remedy="name that of a run, or of a training checkpoint")
    if not found:
        raise NotExportable(
            f"{source} holds no complete training checkpoint",
            remedy="name a step-... directory, the directory in which they are, or that of a run",
        )
    return found[max(found)] / checkpoint_name(max(found))


def targets(model: ModelSpec) -> tuple[Target, ...]:
    """List the tensors of a published model, in the order of the layers."""
    parts: dict[str, list[tuple[str, Parameter, Origin]]] = {}
    copies = families.copies(model)
    for index, parameter, origin in origins(model):
        # Copies are in no checkpoint; and a tied model's files leave them out as well.
        if (index, parameter.name) not in copies:
            parts.setdefault(origin.names[0], []).append((global_name(index, parameter.name), parameter, origin))
    return tuple(Target(name, tuple(some)) for name, some in parts.items())


def tensor_of(target: Target, values: Sequence[Tensor]) -> Tensor:
    """Bring our parameters into the shape of their tensor: one, or queries, keys and values side by side."""
    if len(values) > 1:
        return torch.cat([value.mT if value.dim() == 2 else value for value in values], dim=-1)
    value = values[0]
    match target.parts[0][2].form:
        case Form.TURNED:
            return value.mT
        case Form.KERNEL:
            side = round((value.shape[1] // NUM_CHANNELS) ** 0.5)
            return value.view(-1, NUM_CHANNELS, side, side)
        case Form.BATCHED:
            return value.unsqueeze(0)
        case _:
            return value


def _write(checkpoint: Path, model: ModelSpec, folder: Path, *, dtype: torch.dtype, file_bytes: int) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(to_config(model), indent=2) + "\n")
    groups = tuple(_files(targets(model), file_bytes // dtype.itemsize))
    names = (
        [SINGLE_FILE]
        if len(groups) == 1
        else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    )
    places: dict[str, str] = {}
    for name, group in track(list(zip(names, groups, strict=True)), "writing", disable=not sys.stderr.isatty()):
        tensors = {one.name: _read(checkpoint, one).to(dtype).contiguous() for one in group}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        total = sum(one.num_elements for group in groups for one in group) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _files(every: Sequence[Target], num_elements: int) -> Iterator[tuple[Target, ...]]:
    """Fill one file after another; a tensor that is larger than a file has one of its own."""
    group: list[Target] = []
    for one in every:
        if group and sum(other.num_elements for other in group) + one.num_elements > num_elements:
            yield tuple(group)
            group = []
        group.append(one)
    yield tuple(group)


def _read(checkpoint: Path, target: Target) -> Tensor:
    values: Mapping[str, Tensor] = {
        f"model.{name}": torch.empty(parameter.shape) for name, parameter, _ in target.parts
    }
    state = dict(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a single process, as it is meant to be
        state_dict_loader.load(state, checkpoint_id=checkpoint, no_dist=True)
    return tensor_of(target, list(state.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="galvatron_runtime.export", description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, help="a training checkpoint, or the directory of all of them")
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument("--dtype", choices=[*DTYPES], default="float32")
    parser.add_argument("--file-gib", type=float, default=5.0, help="about as large a file may be")
    options = parser.parse_args(arguments)
    try:
        taken = export(
            options.checkpoint.resolve(),
            options.output.resolve(),
            dtype=DTYPES[options.dtype],
            file_bytes=int(options.file_gib * GIB),
        )
    except GalvatronError as error:
        sys.stderr.write(f"error: {error.problem}\nwhat to do: {error.remedy}\n")
        return 1
    sys.stdout.write(f"{taken.name} written to {options.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
