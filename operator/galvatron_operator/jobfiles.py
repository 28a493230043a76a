"""A GalvatronJob in a YAML file, read for the command line, and whether this machine has what it names.

What can be refused is refused here, before a process is started.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from galvatron_operator import ownmodels
from galvatron_operator.api import GalvatronJob, ProfilingPolicy, parse
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.units import MIB, format_bytes

EXAMPLE = "start from docs/examples/quickstart.yaml"
IDLE_PROCESS_BYTES = 140 * MIB
"""What a process has for itself when it has imported torch, and nothing else: measured with torch 2.13 for CPU."""


def load(path: Path) -> GalvatronJob:
    """Read a GalvatronJob from a YAML file; layers of the user's own are described.

    Raises:
        InvalidInput: when the file is missing, is no YAML, or is no GalvatronJob.
    """
    return parse(load_body(path))


def load_body(path: Path) -> dict[str, Any]:
    """Read the object of a YAML file, complete but unchecked; errors as of :func:`load`."""
    try:
        body: Any = yaml.load(path.read_text(), _JobLoader)  # noqa: S506 -- a safe loader
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", remedy="check the path of the file") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no text: byte {error.start} is none of UTF-8", remedy=EXAMPLE) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"{path} is no YAML: {_yaml_problem(error)}", remedy="correct it there") from error
    if body is None:
        raise InvalidInput(f"{path} is empty", remedy=EXAMPLE)
    if not isinstance(body, dict):
        kind = "a list" if isinstance(body, list) else "a single value"
        raise InvalidInput(f"{path} holds no object but {kind}", remedy=f"one GalvatronJob a file; {EXAMPLE}")
    return ownmodels.complete(body, path.resolve().parent)


def check_files(job: GalvatronJob, root: Path) -> None:
    """Refuse a job whose files are missing, before anything is measured.

    Raises:
        InvalidInput: naming the field.
    """
    training = job.spec.training
    weights = training.initial_weights
    tokenizer = training.dataset.tokenizer
    named = {
        "dataset.path": training.dataset.path,
        "dataset.tokenizer.path": None if tokenizer is None else tokenizer.path,
        "initialWeights.path": None if weights is None else weights.path,
    }
    for field, path in named.items():
        if path is not None and not (root / path).exists():
            raise InvalidInput(
                f"spec.training.{field} is {path}, and {root / path} does not exist",
                remedy="paths start at the folder of the job's file: put the data there, or link to it",
            )


def check_memory(job: GalvatronJob) -> None:
    """Refuse more CPU devices than this machine has memory for: each is a process.

    Raises:
        InvalidInput: naming the field.
    """
    budget = job.spec.budget
    if job.spec.profiling.policy is ProfilingPolicy.NEVER:
        # Planned from data sheets, maybe for another machine.
        return
    has_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed_bytes = budget.gpus * IDLE_PROCESS_BYTES
    if job.cluster.device_kind is DeviceKind.CPU and needed_bytes > has_bytes:
        raise InvalidInput(
            f"spec.budget.gpus is {budget.gpus}: so many processes take {format_bytes(needed_bytes)} before they hold"
            f" anything, and this machine has {format_bytes(has_bytes)}",
            remedy="ask for fewer devices here, or plan for those that you do not have:"
            " spec.profiling.policy Never (docs/what-if.md)",
        )


class _JobLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, as ``kubectl apply`` does: PyYAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Make a dictionary of a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value} is written twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: yaml.YAMLError | RecursionError) -> str:
    """Say on one line where and what."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
    mark = error.problem_mark
    problem = f"line {mark.line + 1}, column {mark.column + 1}: {(error.problem or '').removeprefix('but ')}"
    begun = error.context_mark
    if error.context is None or begun is None or begun.line == mark.line:
        return problem
    return f"{problem} ({error.context} that begins on line {begun.line + 1})"
