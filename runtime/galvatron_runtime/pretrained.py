"""Published weights as initial values: read tensor by tensor from the files, in place of drawing them.

Files are mapped, so a rank holds one tensor of them at a time, as it does when values are drawn; no rank ever holds the
model, and nothing is converted first (docs/adr/0026-weights-are-read-where-they-lie.md).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from galvatron_planner.errors import GalvatronError
from galvatron_planner.huggingface import from_config
from galvatron_planner.model import ModelSpec
from galvatron_planner.published import Form, Origin, origins
from galvatron_planner.workload import Parameter
from galvatron_runtime.model import global_name

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_LISTED = 5
"""Names in a message."""


class UnusableWeights(GalvatronError):
    """A directory whose weights are not those of the job's model."""


@dataclass(frozen=True, slots=True)
class PretrainedValues:
    """Values of a model's parameters from the files of a directory; a ``galvatron_runtime.model.Values``.

    Attributes:
        files: which file holds which of their tensors.
        found: for every parameter by its global name, their tensor and how it lies there.
        dtype: format of stored parameters.
        device: where they are stored.
    """

    files: Mapping[str, Path]
    found: Mapping[str, tuple[str, Origin]]
    dtype: torch.dtype
    device: torch.device

    def whole(self, parameter: Parameter, name: str) -> Tensor:
        """Read a whole parameter, on the CPU and in FP32."""
        theirs, origin = self.found[name]
        with safe_open(self.files[theirs], "pt") as file:
            value: Tensor = file.get_tensor(theirs).float()
        return read_as(origin, value, parameter)


def open_weights(directory: Path, model: ModelSpec, *, dtype: torch.dtype, device: torch.device) -> PretrainedValues:
    """Find every parameter of a model in the files of a directory, before anything starts.

    Raises:
        UnusableWeights: when the directory lacks files or tensors, or they are of another model.
    """
    config = _config(directory)
    _check_model(directory, config, model)
    files = _tensor_files(directory)
    found, missing = {}, []
    for index, parameter, origin in origins(model):
        theirs = next((name for name in origin.names if name in files), None)
        if theirs is None:
            missing.append(origin.names[0])
            continue
        found[global_name(index, parameter.name)] = (theirs, origin)
        _check_shape(files[theirs], theirs, origin, parameter)
    if missing:
        raise UnusableWeights(
            f"{directory} lacks {_listed(missing)}", remedy="use the weights of this architecture with its head"
        )
    if unused := sorted(files.keys() - {theirs for theirs, _ in found.values()}):
        log.warning("weights left out: the model has no such part", extra={"tensors": _listed(unused)})
    return PretrainedValues(files, found, dtype, device)


def read_as(origin: Origin, value: Tensor, parameter: Parameter) -> Tensor:
    """Bring their tensor into the shape of ours."""
    match origin.form:
        case Form.SAME:
            return value
        case Form.TURNED:
            return value.T.contiguous()
        case Form.QUERY | Form.KEY | Form.VALUE:
            part = value.chunk(3, dim=-1)[(Form.QUERY, Form.KEY, Form.VALUE).index(origin.form)]
            return part.T.contiguous() if part.dim() == 2 else part.contiguous()
        case Form.KERNEL:
            return value.flatten(1)
        case Form.BATCHED:
            return value[0]
        case Form.FIRST_ROWS:
            return value[: parameter.shape[0]].contiguous()


def _config(directory: Path) -> Mapping[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UnusableWeights(
            f"cannot read {path}: {error.strerror}",
            remedy="name a directory as save_pretrained writes it, and mount it on every node",
        ) from error
    except ValueError as error:
        raise UnusableWeights(f"{path} is no JSON: {error}", remedy="copy the directory again") from error
    return config


def _check_model(directory: Path, config: Mapping[str, Any], model: ModelSpec) -> None:
    theirs = from_config(config, sequence_length=None if model.image_size else model.sequence_length).model_dump()
    ours = model.model_dump()
    # How long samples are is the job's matter; positions that are learned are checked by the shape of their table.
    free = {"sequence_length", "decoder_sequence_length", "norm_epsilon"}
    if theirs["norm_epsilon"] != ours["norm_epsilon"]:
        log.warning(
            "norms differ slightly from the published ones",
            extra={"epsilon": ours["norm_epsilon"], "published": theirs["norm_epsilon"]},
        )
    differences = [
        f"{name} {theirs[name]} instead of {ours[name]}"
        for name in ours
        if name not in free and ours[name] != theirs[name]
    ]
    if differences:
        raise UnusableWeights(
            f"the weights in {directory} are of another model: {', '.join(differences)}",
            remedy="state the model of these weights in spec.model, or name other weights",
        )


def _tensor_files(directory: Path) -> Mapping[str, Path]:
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if index.exists():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = {name: directory / file for name, file in weight_map.items()}
        if absent := sorted({path.name for path in files.values() if not path.exists()}):
            raise UnusableWeights(f"{directory} lacks {_listed(absent)}", remedy="copy the directory again")
        return files
    if not single.exists():
        raise UnusableWeights(
            f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}",
            remedy="save the model with save_pretrained(..., safe_serialization=True)",
        )
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def _check_shape(path: Path, theirs: str, origin: Origin, parameter: Parameter) -> None:
    with safe_open(path, "pt") as file:
        shape = tuple(file.get_slice(theirs).get_shape())
    expected = tuple(read_as(origin, torch.empty(shape, device="meta"), parameter).shape)
    if expected != parameter.shape:
        raise UnusableWeights(
            f"{theirs} in {path} has the shape {shape}, for {parameter.name} of shape {parameter.shape}",
            remedy="state the model of these weights in spec.model, or shorten its sequences",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"
