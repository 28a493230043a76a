"""Rules over several fields of ``spec``; the CRD has the same ones in CEL, so that a cluster refuses at once.

Each rule is a function that yields what is wrong as (field, problem, remedy), and stands in ``RULES``.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from galvatron_operator.api import overlay
from galvatron_operator.api.models import IMAGE_FAMILIES, model_of
from galvatron_operator.api.overlay import RESERVED_ENVIRONMENT
from galvatron_operator.api.placing import gang_problems, network_problems, topology_problems
from galvatron_operator.api.policy import elasticity_problems
from galvatron_operator.api.spec import Dataset, DatasetSource, ModelFields, ProfilingPolicy, Spec
from galvatron_operator.names import MAX_JOB_NAME
from galvatron_planner import catalogue
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import FAMILY_FIELDS, Family, Precision
from galvatron_planner.presets import PRESETS
from galvatron_planner.problem import Algorithm, SearchDimension
from galvatron_planner.units import parse_bytes

BYTE_VOCABULARY = 256
"""Text is read as bytes, so a model of text needs this many tokens."""
MAX_BATCH_SIZES = 64
"""Sizes in a range of batch sizes: each one is a search of its own."""

_FIELDS_OF_FAMILIES: dict[str, tuple[Family, ...]] = {
    "hidden_size": tuple(Family),
    "num_attention_heads": tuple(Family),
    "num_layers": tuple(family for family in Family if family is not Family.SWIN),
    "sequence_length": tuple(family for family in Family if family not in IMAGE_FAMILIES),
    **FAMILY_FIELDS,
}
"""The fields that some families need and all others refuse."""

_JOB_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_PARALLEL = (SearchDimension.PP, SearchDimension.TP, SearchDimension.DP, SearchDimension.ZERO2, SearchDimension.SDP)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: ``field`` says ``problem``, and ``remedy`` is what to do."""

    field: str
    problem: str
    remedy: str


def check_name(name: str) -> None:
    """Refuse a name from which no names of pods can be made.

    Raises:
        InvalidInput: when it is too long or no DNS label.
    """
    if len(name) > MAX_JOB_NAME or not _JOB_NAME.fullmatch(name):
        raise InvalidInput(
            f"metadata.name is {name!r}",
            remedy=f"use at most {MAX_JOB_NAME} lower-case letters, digits and dashes, with a letter first",
        )


def check_spec(spec: Spec) -> None:
    """Refuse a specification that cannot be meant.

    Raises:
        InvalidInput: with the first rule that is broken.
    """
    parse_bytes(spec.budget.memory_per_gpu, where="spec.budget.memoryPerGPU")
    if spec.runtime.shared_memory.size_limit is not None:
        parse_bytes(spec.runtime.shared_memory.size_limit, where="spec.runtime.sharedMemory.sizeLimit")
    for rule in RULES:
        for finding in rule(spec):
            raise InvalidInput(f"{finding.field} {finding.problem}", remedy=finding.remedy)


def check_volumes(spec: Spec) -> None:
    """Refuse a specification whose pods would lack a volume; without a cluster none is needed.

    Raises:
        InvalidInput: naming the missing volume.
    """
    dataset = spec.training.dataset
    if dataset.source.is_files and dataset.volume is None:
        raise InvalidInput(
            "spec.training.dataset.volume is missing: pods have no other place for spec.training.dataset.path",
            remedy="name a PersistentVolumeClaim or a ConfigMap in it",
        )
    weights = spec.training.initial_weights
    if weights is not None and weights.volume is None:
        raise InvalidInput(
            "spec.training.initialWeights.volume is missing: pods have no other place for its path",
            remedy="name a PersistentVolumeClaim that every pod can read",
        )
    if spec.checkpoint is not None and spec.checkpoint.volume is None:
        raise InvalidInput(
            "spec.checkpoint.volume is missing: a pod's own files go with it",
            remedy="name a PersistentVolumeClaim that every pod can write to",
        )


def _model(spec: Spec) -> Iterator[Finding]:
    model = spec.model
    if sum(one is not None for one in (model.preset, model.family, model.own)) != 1:
        yield Finding("spec.model", "needs exactly one of preset, family and own", f"name one of {', '.join(PRESETS)}")
    elif model.own is not None:
        yield from _own(spec, model)
    elif model.preset is not None:
        for name in sorted(model.model_fields_set - {"preset", "sequence_length"}):
            yield Finding(
                f"spec.model.{to_camel(name)}",
                f"is given beside preset {model.preset}, which states it",
                "leave it out, or write family and shape instead of the preset",
            )
    elif model.family is not None:
        yield from _family_fields(model, model.family)
        yield from _heads(model)
    try:
        model_of(model)
    except InvalidInput as error:
        yield Finding(
            "spec.model.preset" if model.preset else "spec.model", f"describes no model: {error.problem}", error.remedy
        )
    except ValidationError as error:
        found = error.errors()[0]["msg"].removeprefix("Value error, ")
        yield Finding("spec.model", f"describes no model: {found}", "correct the shape")


def _own(spec: Spec, model: ModelFields) -> Iterator[Finding]:
    for name in sorted(model.model_fields_set - {"own", "sequence_length", "image_size", "vocabulary_size"}):
        yield Finding(
            f"spec.model.{to_camel(name)}", "is given beside own, whose layers have their shapes", "leave it out"
        )
    if (model.sequence_length is None) == (model.image_size is None):
        yield Finding(
            "spec.model.sequenceLength", "or imageSize is needed", "say how long texts or how large images are"
        )
    if model.vocabulary_size is None:
        yield Finding("spec.model.vocabularySize", "is missing", "say how many tokens, or classes of images, there are")
    if spec.profiling.policy is ProfilingPolicy.NEVER:
        yield Finding("spec.profiling.policy", "is Never, but layers of one's own are in no catalogue", "measure them")
    if spec.training.initial_weights is not None:
        yield Finding(
            "spec.training.initialWeights", "is for the families of this project", "load weights in your modules"
        )


def _family_fields(model: ModelFields, family: Family) -> Iterator[Finding]:
    for name, families in _FIELDS_OF_FAMILIES.items():
        given = bool(getattr(model, name))
        if given and family not in families:
            yield Finding(
                f"spec.model.{to_camel(name)}",
                f"is given, but the family {family} has no use for it",
                f"leave it out: it is for {', '.join(families)}",
            )
        if not given and family in families:
            yield Finding(f"spec.model.{to_camel(name)}", f"is missing for the family {family}", "add it")
    if model.tie_word_embeddings and family in IMAGE_FAMILIES:
        yield Finding("spec.model.tieWordEmbeddings", f"is true, but {family} has no word embeddings", "leave it out")


def _heads(model: ModelFields) -> Iterator[Finding]:
    hidden, heads, key_value = model.hidden_size or 0, model.num_attention_heads or 1, model.num_key_value_heads
    if model.head_size is None and hidden % heads:
        yield Finding(
            "spec.model.hiddenSize",
            f"is {hidden}, which is not divisible by {heads} attention heads",
            "use a hidden size that is a multiple of numAttentionHeads",
        )
    if key_value is not None and heads % key_value:
        yield Finding(
            "spec.model.numKeyValueHeads",
            f"is {key_value}, which does not divide {heads} attention heads",
            "use a divisor of numAttentionHeads, or leave it out",
        )


def _budget(spec: Spec) -> Iterator[Finding]:
    budget = spec.budget
    if budget.gpus & (budget.gpus - 1):
        yield Finding(
            "spec.budget.gpus",
            f"is {budget.gpus}, no power of two",
            f"use {1 << (budget.gpus.bit_length() - 1)} or {1 << budget.gpus.bit_length()}",
        )
    if budget.gpus % budget.gpus_per_node:
        yield Finding(
            "spec.budget.gpus",
            f"is {budget.gpus}, which is no multiple of gpusPerNode {budget.gpus_per_node}",
            "use whole nodes: every pod has gpusPerNode devices",
        )


def _elasticity(spec: Spec) -> Iterator[Finding]:
    found = elasticity_problems(
        spec.elasticity.mode,
        gpus=spec.budget.gpus,
        min_gpus=spec.budget.min_gpus,
        gpus_per_node=spec.budget.gpus_per_node,
        is_plan_fixed=spec.search.algorithm is Algorithm.FIXED,
    )
    yield from _below("spec", found)


def _batch(spec: Spec) -> Iterator[Finding]:
    field, batch = "spec.training.globalBatchSize", spec.training.global_batch_size
    shape = "write either {value: N} or {min: N, max: M, step: S}"
    bounds = (batch.min, batch.max, batch.step)
    if batch.value is not None:
        if any(bound is not None for bound in bounds):
            yield Finding(field, "has both a value and a range", shape)
        return
    if batch.min is None or batch.max is None:
        yield Finding(field, "has neither a value nor both ends of a range", shape)
        return
    if batch.max < batch.min:
        yield Finding(f"{field}.max", f"is {batch.max}, below min {batch.min}", "swap the two")
    sizes = (batch.max - batch.min) // (batch.step or batch.min) + 1
    if sizes > MAX_BATCH_SIZES:
        yield Finding(f"{field}.step", f"makes {sizes} sizes to search", f"raise it to at most {MAX_BATCH_SIZES} sizes")


def _dataset(spec: Spec) -> Iterator[Finding]:
    field, dataset, vocabulary = "spec.training.dataset", spec.training.dataset, model_of(spec.model).vocabulary_size
    reads_bytes = dataset.source in {DatasetSource.TEXT, DatasetSource.PYTHON_DOCS} and dataset.tokenizer is None
    if reads_bytes and vocabulary < BYTE_VOCABULARY:
        yield Finding(
            "spec.model.vocabularySize",
            f"is {vocabulary}, too small for text, which is read as bytes",
            f"use {BYTE_VOCABULARY} or more, or a tokenizer: spec.training.dataset.tokenizer, or source Tokens",
        )
    reads_images, is_images = bool(model_of(spec.model).image_size), dataset.source is DatasetSource.IMAGES
    if dataset.source is not DatasetSource.SYNTHETIC and reads_images is not is_images:
        yield Finding(
            f"{field}.source",
            f"is {dataset.source}, and the model reads {'images' if reads_images else 'text'}",
            f"set it to {'Images' if reads_images else 'Text or Tokens'}, or to Synthetic",
        )
    yield from _files(field, dataset)


def _files(field: str, dataset: Dataset) -> Iterator[Finding]:
    if dataset.bin_type is not None and dataset.source is not DatasetSource.TOKENS:
        yield Finding(f"{field}.binType", f"is set with source {dataset.source}", "leave it out, or use Tokens")
    if dataset.tokenizer is not None and dataset.source is not DatasetSource.TEXT:
        yield Finding(f"{field}.tokenizer", f"is set with source {dataset.source}", "leave it out, or use Text")
    if not dataset.source.is_files:
        if dataset.path is not None or dataset.volume is not None:
            problem = f"has a path or a volume with source {dataset.source}"
            yield Finding(field, problem, "leave them out, or use Text, Tokens or Images")
        return
    if dataset.path is None:
        yield Finding(f"{field}.path", f"is missing with source {dataset.source}", "name a file or a directory")
    volume = dataset.volume
    if volume is not None and (volume.claim_name is None) == (volume.config_map_name is None):
        yield Finding(f"{field}.volume", "needs exactly one of claimName and configMapName", "name one of them")


def _optimizer(spec: Spec) -> Iterator[Finding]:
    if float(spec.training.optimizer.learning_rate) <= 0:
        yield Finding("spec.training.optimizer.learningRate", "is 0", "use a rate above 0")


def _search(spec: Spec) -> Iterator[Finding]:
    field, excluded = "spec.search.excludedDimensions", spec.search.excluded_dimensions
    if len(set(excluded)) != len(excluded):
        yield Finding(field, "names a dimension twice", "name each dimension once")
    if spec.budget.gpus > 1 and set(_PARALLEL) <= set(excluded):
        yield Finding(
            field,
            f"excludes every way to use {spec.budget.gpus} devices",
            "keep one of PP, TP, DP and SDP, or use a single device",
        )
    if spec.search.sequence_parallelism and spec.search.algorithm not in (Algorithm.OPTIMAL, Algorithm.FIXED):
        yield Finding(
            "spec.search.sequenceParallelism",
            f"is set with algorithm {spec.search.algorithm}, which does not know it",
            "leave it out, or use algorithm Optimal",
        )
    fixed = spec.search.algorithm is Algorithm.FIXED
    if fixed != (spec.search.fixed_plan_ref is not None):
        yield Finding(
            "spec.search.fixedPlanRef",
            f"is {'missing' if fixed else 'set'} with algorithm {spec.search.algorithm}",
            "name the ConfigMap with the plan" if fixed else "leave it out, or use algorithm Fixed",
        )


def _profiling(spec: Spec) -> Iterator[Finding]:
    profiling = spec.profiling
    never = profiling.policy is ProfilingPolicy.NEVER
    if never and profiling.device is None:
        yield Finding(
            "spec.profiling.device", "is missing with policy Never", f"name one of {', '.join(catalogue.DEVICES)}"
        )
    for field, name in (
        ("device", profiling.device),
        ("linkWithinNode", profiling.link_within_node),
        ("linkBetweenNodes", profiling.link_between_nodes),
    ):
        if name is not None and not never:
            yield Finding(
                f"spec.profiling.{field}",
                f"is {name} with policy {profiling.policy}, which measures",
                "leave it out, or use policy Never",
            )
    if never and profiling.device is not None:
        yield from _catalogue_device(spec, profiling.device)


def _catalogue_device(spec: Spec, name: str) -> Iterator[Finding]:
    profiling = spec.profiling
    try:
        device = catalogue.device(name)
        device.peak_flops(Precision(spec.training.precision.value))
        catalogue.links(device, within_node=profiling.link_within_node, between_nodes=profiling.link_between_nodes)
    except InvalidInput as error:
        yield Finding("spec.profiling", f"does not describe the devices: {error.problem}", error.remedy)
        return
    if (device.kind is DeviceKind.CPU) != spec.budget.uses_cpu:
        yield Finding(
            "spec.profiling.device",
            f"is {name}, a {device.kind} device, with spec.budget.resourceName {spec.budget.resource_name}",
            "name the device that the budget counts",
        )


def _environment(spec: Spec) -> Iterator[Finding]:
    field, names = "spec.runtime.env", [variable.name for variable in spec.runtime.env]
    for name in names:
        if RESERVED_ENVIRONMENT.match(name):
            yield Finding(field, f"sets {name}, which the launcher sets itself", "leave it out")
        if names.count(name) > 1:
            yield Finding(field, f"sets {name} twice", "set each variable once")


def _template(spec: Spec) -> Iterator[Finding]:
    runtime = spec.runtime
    if runtime.template is None:
        return
    taken = frozenset(variable.name for variable in runtime.env)
    found = overlay.problems(runtime.template, taken_variables=taken, gpu_resource=spec.budget.resource_name)
    yield from _below("spec.runtime.template", found)


def _placing(spec: Spec) -> Iterator[Finding]:
    runtime, scheduling = spec.runtime, spec.scheduling
    if runtime.network is not None:
        found = network_problems(runtime.network, runtime.template, gpu_resource=spec.budget.resource_name)
        yield from _below("spec.runtime.network", found)
    if scheduling.topology is not None:
        yield from _below("spec.scheduling.topology", topology_problems(runtime.template))
    if scheduling.gang is not None:
        yield from _below("spec.scheduling.gang", gang_problems(scheduling.gang))


def _below(field: str, found: Iterable[tuple[str, str, str]]) -> Iterator[Finding]:
    """Say of problems below ``field`` where they are in the whole."""
    for part, problem, remedy in found:
        yield Finding(f"{field}.{part}".rstrip("."), problem, remedy)


def _failure_rules(spec: Spec) -> Iterator[Finding]:
    field, rules = "spec.failurePolicy.rules", spec.failure_policy.rules
    names = [rule.name for rule in rules]
    for rule in rules:
        codes = () if rule.on_exit_codes is None else rule.on_exit_codes.values
        if not rule.on_reasons and not codes:
            problem = f"has a rule {rule.name} for no failure"
            yield Finding(field, problem, "name failures by onReasons, by onExitCodes, or by both")
        if names.count(rule.name) > 1:
            yield Finding(field, f"has two rules {rule.name}", "give each rule a name of its own")
        if len(set(codes)) < len(codes) or len(set(rule.on_reasons)) < len(rule.on_reasons):
            yield Finding(field, f"has a rule {rule.name} that names something twice", "name it once")


RULES: tuple[Callable[[Spec], Iterator[Finding]], ...] = (
    _model,
    _budget,
    _elasticity,
    _batch,
    _dataset,
    _optimizer,
    _search,
    _profiling,
    _environment,
    _template,
    _placing,
    _failure_rules,
)
