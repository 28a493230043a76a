"""A look at all that training will read, before anything is measured: devices, data, weights, training checkpoints.

    python -m galvatron_runtime.inspection --training training.json --model model.json --precision FP32 ...

Stands before *job -> profile -> plan -> training* on one machine; training looks again, because in a cluster nobody
else does. What is made of the data on the way stays for training to find.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter

from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.model import Model, Precision
from galvatron_planner.own import OwnModel
from galvatron_planner.training import TrainingSpec
from galvatron_runtime.checkpoint import check_model, checkpoint_name, complete_steps, not_resumed
from galvatron_runtime.data import open_samples
from galvatron_runtime.model import parameter_dtype
from galvatron_runtime.pretrained import open_weights


def inspect(model: Model, training: TrainingSpec, *, precision: Precision, directory: Path) -> None:
    """Refuse what training would refuse of its files.

    Args:
        model: what will be trained.
        training: document 4.
        precision: of the computation.
        directory: where training will keep what is made of its data.

    Raises:
        GalvatronError: naming the file, and what is wrong with it.
    """
    # Any batch size: nothing is drawn here.
    open_samples(training.data, model=model, seed=training.seed, batch_size=1, directory=directory)
    saved = training.checkpoints
    folder = None if saved is None else Path(saved.directory)
    newest = 0 if folder is None else max(complete_steps(folder), default=0)
    if saved is not None and folder is not None and newest:
        if not saved.resume:
            raise not_resumed(folder, newest)
        check_model(folder / checkpoint_name(newest), model, precision)
    elif training.initial_weights is not None and not isinstance(model, OwnModel):
        dtype = parameter_dtype(precision)
        open_weights(Path(training.initial_weights), model, dtype=dtype, device=torch.device("cpu"))


def check_gpus(wanted: int) -> None:
    """Refuse more GPUs than this machine has.

    Raises:
        InvalidInput: naming the field.
    """
    found = torch.cuda.device_count() if wanted else 0
    if found < wanted:
        raise InvalidInput(
            f"spec.budget.gpus is {wanted}, and torch sees {found} GPUs on this machine",
            remedy="ask for as many as there are, or for CPU processes: spec.budget.resourceName cpu. To plan for GPUs"
            " that you do not have: spec.profiling.policy Never (docs/what-if.md)",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="galvatron_runtime.inspection", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gpus", type=int, default=0, help="how many this machine must have")
    parser.add_argument("--training", type=Path, help="document 4, to look at what it reads")
    parser.add_argument("--model", type=Path, help="of document 4, as JSON")
    parser.add_argument("--precision", type=Precision, help="number format of the computation")
    parser.add_argument("--directory", type=Path, help="where what is made of the data is kept")
    options = parser.parse_args(arguments)
    try:
        check_gpus(options.gpus)
        if options.training is not None:
            training = TrainingSpec.from_json(options.training.read_text())
            model: Model = TypeAdapter(Model).validate_json(options.model.read_text())
            inspect(model, training, precision=options.precision, directory=options.directory)
    except GalvatronError as error:
        sys.stderr.write(f"error: {error.problem}\nwhat to do: {error.remedy}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
