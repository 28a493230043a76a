"""Files of Hetu-Galvatron: its plans and profiles in our documents, and plans of ours in its JSON."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from galvatron_planner.analytic import analytic_profile
from galvatron_planner.catalogue import ClusterDescription, parse_cluster
from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.interop.plans import GalvatronPlan, from_galvatron, priced, to_galvatron
from galvatron_planner.interop.profiles import MeasuredFiles, import_profile
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.presets import model_named
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Profile, ProfileRequest
from galvatron_planner.search.request import profile_request
from galvatron_planner.units import format_bytes

_NO_LIMITS = SearchLimits()


class UnreadableFile(GalvatronError):
    """A file that is not there, or no JSON object."""


def convert_plan(  # noqa: PLR0913 -- the options of a command
    file: Path,
    *,
    output: Path,
    model: str,
    cluster: str,
    sequence_length: int | None,
    precision: Precision,
    profile: Path | None,
) -> None:
    """Write a plan of ours as a galvatron_config, or one of theirs as plan.json (with --model and --cluster)."""
    if "schema" in _read(file):
        _write(output, to_galvatron(Plan.from_json(file.read_text())).to_json())
        return
    theirs = GalvatronPlan.from_json(file.read_text())
    if not (model and cluster):
        raise InvalidInput(f"{file} does not say its model and cluster", remedy="add --model and --cluster")
    described, spec = parse_cluster(cluster), model_named(model, sequence_length=sequence_length)
    imported = from_galvatron(theirs, model=spec, cluster=described.cluster())
    size = BatchRange(minimum=theirs.global_bsz, maximum=theirs.global_bsz)
    if profile is None:
        request = _request(spec, described, precision=precision, batch=size)
        prices = analytic_profile(request, described.device, described.links)
    else:
        prices = read_profile(profile)
    problem = PlanningProblem(model=spec, precision=precision, cluster=described.cluster(), batch=size, profile=prices)
    ours = priced(imported, problem)
    _write(output, ours.to_json())
    typer.echo(f"{ours.summary}\n{_expectation(ours)}")


def convert_profile(  # noqa: PLR0913 -- the options of a command
    folders: list[Path],
    *,
    output: Path,
    model: str,
    cluster: str,
    sequence_length: int | None,
    precision: Precision,
    batch: int,
    max_tensor_degree: int,
) -> None:
    """Write their profiling files as a profile.json of ours."""
    described, spec = parse_cluster(cluster), model_named(model, sequence_length=sequence_length)
    limits = SearchLimits(max_tensor_degree=max_tensor_degree)
    sizes = BatchRange(minimum=1, maximum=batch)
    request = _request(spec, described, precision=precision, batch=sizes, limits=limits)
    estimated = analytic_profile(request, described.device, described.links)
    imported = import_profile(
        _measured_files(folders, request),
        request,
        device_name=described.device.name,
        optimizer_seconds_per_parameter=estimated.optimizer_seconds_per_parameter,
    )
    _write(output, imported.to_json())


def read_profile(path: Path) -> Profile:
    """Read a profile.json.

    Raises:
        UnreadableFile: when it is not there.
    """
    _read(path)
    return Profile.from_json(path.read_text())


def _expectation(plan: Plan) -> str:
    needed, budget = plan.estimate.peak_bytes, plan.cluster.device_memory_bytes
    fits = "fits" if needed <= budget else "does not fit"
    return (
        f"{plan.estimate.samples_per_second:.4g} samples/s, {format_bytes(needed)} of {format_bytes(budget)}"
        f" on the fullest device: {fits}"
    )


def _request(
    model: ModelSpec,
    described: ClusterDescription,
    *,
    precision: Precision,
    batch: BatchRange,
    limits: SearchLimits = _NO_LIMITS,
) -> ProfileRequest:
    return profile_request(
        model,
        described.cluster(),
        precision=precision,
        batch=batch,
        limits=limits,
        runtime_version=version("galvatron-operator"),
    )


def _measured_files(folders: list[Path], request: ProfileRequest) -> MeasuredFiles:
    """Find their files by the names that their profilers give them."""
    place = f"{request.num_nodes}nodes_{request.devices_per_node}gpus_per_node.json"
    number_format = request.precision.value.lower()
    times = _find(folders, f"sp_time_{place}")
    return MeasuredFiles(
        computation=_one(folders, f"computation_profiling_{number_format}_*.json"),
        memory=_one(folders, f"memory_profiling_{number_format}_*.json"),
        allreduce=_one(folders, f"allreduce_bandwidth_{place}"),
        p2p=_one(folders, f"p2p_bandwidth_{place}"),
        overlap=_one(folders, "overlap_coefficient.json"),
        times=_read(times[0]) if times else {},
    )


def _find(folders: list[Path], pattern: str) -> list[Path]:
    return sorted({path for folder in folders for path in folder.glob(pattern)})


def _one(folders: list[Path], pattern: str) -> dict[str, Any]:
    found = _find(folders, pattern)
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise UnreadableFile(
            f"there should be one {pattern} in {', '.join(map(str, folders))}, found: {names}",
            remedy="name the folders that hold exactly one of it (models/NAME/configs, hardware_configs)",
        )
    return _read(found[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", remedy="name a JSON file") from error
    if not isinstance(document, dict):
        raise UnreadableFile(f"{path} is no JSON object", remedy="name a plan or a profiling file")
    return document


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UnreadableFile(f"cannot write {path}: {error.strerror}", remedy="name another file") from error
