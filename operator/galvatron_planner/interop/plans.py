"""Plans in the JSON of Hetu-Galvatron (``galvatron_config_*.json``): ours as theirs and back, without loss or not.

What each key means was read where their runtime reads it, PKU-DAIR/Hetu-Galvatron (Apache-2.0):

- names: ``config2strategy`` in ``galvatron/utils/config_utils.py`` at 1d27a7a, which also wants ``cp_sizes_enc``, and
  ``get_hybrid_parallel_configs_api`` in ``galvatron/core/runtime/hybrid_parallel_config.py`` at 38b79ad;
- layers: ``hp_config_whole_model`` there: the lists hold one number a block; everything else (embeddings, merges, head)
  takes ``vtp`` and ``embed_sdp``, consecutive ranks, no checkpointing, and the stage of the block behind it;
- ranks: ``comm_groups.py`` at 5799537: stages are consecutive ranks; flag 1 puts ``tp`` on consecutive ranks and the
  data axis across them, flag 0 the other way round; the flag means nothing when ``tp`` is 1 or the whole stage;
- ``dp_types_enc``: ``wrap_data_parallel`` in ``parallel.py`` at 2ceef76: 0 is ``default_dp_type``, 1 is ZeRO-3;
- missing keys: the defaults of ``arguments.py`` at 5799537;
- ``embed_sdp`` is what their search writes; the argument it sets is ``vocab_sdp`` in ``args_schema.py`` at 0c28e91, so
  files of ours say it under both names: readers ignore keys that they do not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from galvatron_planner import families
from galvatron_planner.cluster import Cluster
from galvatron_planner.cost.step import BatchSplit, StageStrategies, estimate
from galvatron_planner.dimensions import refusal
from galvatron_planner.documents import Document
from galvatron_planner.errors import InexpressiblePlan, InvalidPlan
from galvatron_planner.model import Block, LayerSpec, Model
from galvatron_planner.plan import Plan, StagePlan
from galvatron_planner.problem import Algorithm, PlanningProblem, Schedule
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy

_DATA_TYPES = {"ddp": Dimension.DATA, "zero2": Dimension.SHARDED_GRADIENTS, "zero3": Dimension.SHARDED_DATA}
_PipelineType = Literal["gpipe", "pipedream_flush"]
_SCHEDULES: dict[Schedule, _PipelineType] = {Schedule.GPIPE: "gpipe", Schedule.ONE_F_ONE_B: "pipedream_flush"}


def _from_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} is not a list of numbers such as '1,1,2'") from None


Numbers = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_from_text),
    PlainSerializer(lambda numbers: ",".join(map(str, numbers)), return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""Numbers that their files hold as one text, ``"2,2,1"``."""


class GalvatronPlan(Document):
    """Their plan file, under their names; a list that a file leaves out is empty.

    Attributes:
        pp_deg: stages.
        tp_sizes_enc: tensor-parallel degree, per block.
        tp_consecutive_flags: 1 where the ranks of ``tp`` are consecutive, per block.
        cp_sizes_enc: context-parallel degree, per block; we know only 1.
        dp_types_enc: 1 where the data axis is ZeRO-3, 0 where it is ``default_dp_type``, per block.
        use_sp: 1 where ``tp_sizes_enc`` means Ulysses, per block; we know only 0.
        checkpoint: 1 where activations are recomputed, per block.
        global_bsz: samples per step.
        chunks: micro-batches per step.
        pp_division: blocks per stage; without it equal counts, the rest on the last stage.
        pipeline_type: the schedule; ``pipedream_flush`` is 1F1B.
        default_dp_type: what 0 means in ``dp_types_enc`` and ``embed_sdp``.
        vtp: tensor-parallel degree of everything that is no block: embeddings, merges, head.
        vsp: 1 where ``vtp`` means Ulysses; we know only 0.
        vcp: their context-parallel degree; we know only 1.
        embed_sdp: their ``dp_types_enc``.
        vocab_sdp: the same under the name of later versions.
    """

    pp_deg: PositiveInt
    tp_sizes_enc: Numbers = Field(min_length=1)
    tp_consecutive_flags: Numbers
    cp_sizes_enc: Numbers = ()
    dp_types_enc: Numbers
    use_sp: Numbers = ()
    checkpoint: Numbers = ()
    global_bsz: PositiveInt
    chunks: PositiveInt
    pp_division: Numbers = ()
    pipeline_type: _PipelineType = "gpipe"
    default_dp_type: Literal["ddp", "zero2", "zero3"] = "ddp"
    vtp: PositiveInt = 1
    vsp: Literal[0, 1] = 0
    vcp: PositiveInt = 1
    embed_sdp: Literal[0, 1] = 0
    vocab_sdp: Literal[0, 1] = 0

    @model_validator(mode="before")
    @classmethod
    def _join_names(cls, fields: dict[str, Any]) -> dict[str, Any]:
        given = {name: fields[name] for name in ("embed_sdp", "vocab_sdp") if name in fields}
        return {**dict.fromkeys(("embed_sdp", "vocab_sdp"), next(iter(given.values()))), **fields} if given else fields

    @model_validator(mode="after")
    def _check_names_agree(self) -> Self:
        if self.embed_sdp != self.vocab_sdp:
            raise ValueError(f"embed_sdp {self.embed_sdp} and vocab_sdp {self.vocab_sdp} mean the same and differ")
        return self


@dataclass(frozen=True, slots=True)
class ImportedPlan:
    """What their file says, in our terms."""

    stages: StageStrategies
    split: BatchSplit
    schedule: Schedule


def to_galvatron(plan: Plan) -> GalvatronPlan:
    """Write a plan for their runtime.

    Raises:
        InexpressiblePlan: when their format cannot hold it; names the layer or stage and their field.
    """
    strategies = [strategy for stage in plan.stages for strategy in stage.layers]
    _check_tokens_are_whole(plan.layers, strategies)
    blocks = [s for layer, s in zip(plan.layers, strategies, strict=True) if _is_listed(layer)]
    if not blocks:
        raise _inexpressible("the model has no Transformer blocks, which are all that their lists hold")
    shared = _shared_strategy(plan.layers, strategies)
    division = _division(plan)
    return GalvatronPlan(
        pp_deg=len(plan.stages),
        tp_sizes_enc=tuple(strategy.tensor_degree for strategy in blocks),
        tp_consecutive_flags=tuple(int(_is_consecutive(strategy)) for strategy in blocks),
        cp_sizes_enc=(1,) * len(blocks),
        dp_types_enc=tuple(_data_type(strategy) for strategy in blocks),
        use_sp=(0,) * len(blocks),
        checkpoint=tuple(int(strategy.checkpoint) for strategy in blocks),
        global_bsz=plan.global_batch_size,
        chunks=plan.num_micro_batches,
        pp_division=division,
        pipeline_type=_SCHEDULES[plan.schedule],
        vtp=shared.tensor_degree,
        embed_sdp=_data_type(shared),
        default_dp_type=_default_data_type(strategies),
    )


def from_galvatron(document: GalvatronPlan, *, model: Model, cluster: Cluster) -> ImportedPlan:
    """Read a plan of theirs.

    Args:
        document: their file.
        model: what is trained; their file does not say.
        cluster: where; their file knows only degrees.

    Raises:
        InvalidPlan: when it does not fit model or cluster, or uses what we do not have; names the field.
    """
    layers = families.layers(model)
    num_blocks = sum(_is_listed(layer) for layer in layers)
    _check_lists(document, num_blocks)
    _check_dimensions(document)
    per_stage = _devices_per_stage(document, cluster)
    default = _DATA_TYPES[document.default_dp_type]
    blocks = _block_strategies(document, per_stage, default)
    data = _data(document.embed_sdp, default)
    shared = _strategy(per_stage, document.vtp, consecutive=True, data=data, checkpoint=False)
    strategies = tuple(next(blocks) if _is_listed(layer) else shared for layer in layers)
    places = _places(layers, document.pp_division or _even_division(num_blocks, document.pp_deg))
    imported = ImportedPlan(
        stages=tuple(
            tuple(s for s, place in zip(strategies, places, strict=True) if place == index)
            for index in range(document.pp_deg)
        ),
        split=_split(document),
        schedule=next(ours for ours, theirs in _SCHEDULES.items() if theirs == document.pipeline_type),
    )
    _check_admitted(layers, strategies, imported.split)
    return imported


def priced(imported: ImportedPlan, problem: PlanningProblem) -> Plan:
    """Make the imported plan one of ours: with what the cost model expects of it, whether or not it fits the memory.

    Args:
        imported: of the model and cluster of ``problem``.
        problem: its batch and its schedule give way to the imported ones.

    Raises:
        MissingMeasurement: when the profile lacks what the plan needs.
    """
    size = imported.split.global_batch_size
    batch = problem.batch.model_copy(update={"minimum": size, "maximum": size})
    limits = problem.limits.model_copy(update={"schedule": imported.schedule, "algorithm": Algorithm.FIXED})
    solved = problem.model_copy(update={"batch": batch, "limits": limits})
    return Plan(
        model=solved.model,
        precision=solved.precision,
        cluster=solved.cluster,
        global_batch_size=size,
        num_micro_batches=imported.split.num_micro_batches,
        schedule=imported.schedule,
        stages=tuple(StagePlan(layers=stage) for stage in imported.stages),
        estimate=estimate(solved, imported.stages, imported.split),
        problem_digest=solved.digest(),
    )


def _is_listed(layer: LayerSpec) -> bool:
    """Tell whether their lists have a number for a layer; all others share ``vtp`` and ``embed_sdp``."""
    return isinstance(layer, Block)


def _check_tokens_are_whole(layers: tuple[LayerSpec, ...], strategies: list[LayerStrategy]) -> None:
    for index, (layer, strategy) in enumerate(zip(layers, strategies, strict=True)):
        if strategy.sequence_degree > 1:
            raise InexpressiblePlan(
                f"layer {index} ({layer.kind}, {strategy}) has sequence parallelism, which is a flag of the whole run"
                " in their runtime (sequence_parallel) and in no plan",
                remedy="plan again without spec.search.sequenceParallelism (--sequence-parallel)",
            )


def _is_consecutive(strategy: LayerStrategy) -> bool:
    """Tell their flag; where it means nothing it is 1, as their runtime sets it."""
    group = strategy.group(Dimension.TENSOR)
    return group is None or group.stride == 1


def _data_type(strategy: LayerStrategy) -> Literal[0, 1]:
    return 1 if strategy.degree(Dimension.SHARDED_DATA) > 1 else 0


def _default_data_type(strategies: list[LayerStrategy]) -> Literal["ddp", "zero2"]:
    """Tell what their 0 stands for; it is the same for all layers of a plan."""
    firsts = {
        dimension: (index, strategy)
        for index, strategy in reversed(list(enumerate(strategies)))
        for dimension in (Dimension.DATA, Dimension.SHARDED_GRADIENTS)
        if strategy.degree(dimension) > 1
    }
    if len(firsts) > 1:
        (one, first), (other, second) = sorted(firsts.values(), key=itemgetter(0))
        raise _inexpressible(
            f"layer {one} ({first}) and layer {other} ({second}) differ in what default_dp_type says for both"
        )
    return "zero2" if Dimension.SHARDED_GRADIENTS in firsts else "ddp"


def _shared_strategy(layers: tuple[LayerSpec, ...], strategies: list[LayerStrategy]) -> LayerStrategy:
    ours = [(i, s) for i, (layer, s) in enumerate(zip(layers, strategies, strict=True)) if not _is_listed(layer)]
    first_index, first = ours[0]
    for index, strategy in ours:
        where = f"layer {index} ({layers[index].kind}, {strategy})"
        if strategy != first:
            other = f"layer {first_index} ({layers[first_index].kind}, {first})"
            raise _inexpressible(f"{where} differs from {other}; vtp and embed_sdp are the same for both")
        if not _is_consecutive(strategy):
            raise _inexpressible(f"{where} has tp across its data axis; vtp always means consecutive ranks")
    return first


def _division(plan: Plan) -> tuple[int, ...]:
    """Count the blocks of each stage, and check that counting blocks is enough to place everything."""
    starts = (*plan.first_layers, len(plan.layers))
    division = tuple(sum(_is_listed(layer) for layer in plan.layers[i:j]) for i, j in pairwise(starts))
    ours = [index for index, stage in enumerate(plan.stages) for _ in stage.layers]
    for index, (here, there) in enumerate(zip(ours, _places(plan.layers, division), strict=True)):
        if here != there:
            layer = f"layer {index} ({plan.layers[index].kind})"
            raise _inexpressible(
                f"{layer} is on stage {here} without its neighbouring block; pp_division counts blocks and puts it on"
                f" stage {there}"
            )
    return division


def _places(layers: tuple[LayerSpec, ...], division: tuple[int, ...]) -> list[int]:
    """Tell the stage of every layer: blocks by count, anything else with the next block or, after all, the last."""
    of_blocks = [index for index, count in enumerate(division) for _ in range(count)]
    before = accumulate((_is_listed(layer) for layer in layers[:-1]), initial=0)
    return [of_blocks[min(count, len(of_blocks) - 1)] for count in before]


def _even_division(num_blocks: int, num_stages: int) -> tuple[int, ...]:
    each = num_blocks // num_stages
    return (*(each,) * (num_stages - 1), num_blocks - each * (num_stages - 1))


def _check_lists(document: GalvatronPlan, num_blocks: int) -> None:
    needed = ("tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc")
    for name in (*needed, "cp_sizes_enc", "use_sp", "checkpoint"):
        numbers: tuple[int, ...] = getattr(document, name)
        if len(numbers) != num_blocks and (numbers or name in needed):
            raise _invalid(f"{name} lists {len(numbers)} blocks, the model has {num_blocks}")
    division = document.pp_division
    if division and (len(division) != document.pp_deg or sum(division) != num_blocks):
        raise _invalid(f"pp_division {division} does not cut {num_blocks} blocks into pp_deg {document.pp_deg} stages")
    if 0 in (division or _even_division(num_blocks, document.pp_deg)):
        raise _invalid(f"pp_division leaves one of pp_deg {document.pp_deg} stages without a block")


def _check_dimensions(document: GalvatronPlan) -> None:
    """Refuse what we do not have, before it is silently read as something else."""
    if any(document.use_sp) or document.vsp:
        raise _unknown("use_sp or vsp asks for Ulysses sequence parallelism")
    if any(degree != 1 for degree in (*document.cp_sizes_enc, document.vcp)):
        raise _unknown("cp_sizes_enc or vcp asks for context parallelism")
    for name in ("tp_consecutive_flags", "dp_types_enc", "checkpoint"):
        for index, flag in enumerate(getattr(document, name)):
            if flag not in (0, 1):
                raise _unknown(f"{name} is {flag} for block {index}")


def _block_strategies(document: GalvatronPlan, num_devices: int, default: Dimension) -> Iterator[LayerStrategy]:
    checkpoints = document.checkpoint or (0,) * len(document.tp_sizes_enc)
    lists = (document.tp_sizes_enc, document.tp_consecutive_flags, document.dp_types_enc, checkpoints)
    for degree, flag, kind, checkpoint in zip(*lists, strict=True):
        yield _strategy(
            num_devices, degree, consecutive=flag == 1, data=_data(kind, default), checkpoint=checkpoint == 1
        )


def _data(kind: int, default: Dimension) -> Dimension:
    return Dimension.SHARDED_DATA if kind == 1 else default


def _devices_per_stage(document: GalvatronPlan, cluster: Cluster) -> int:
    per_stage, rest = divmod(cluster.num_devices, document.pp_deg)
    if rest:
        raise _invalid(f"pp_deg {document.pp_deg} does not divide {cluster.num_devices} devices")
    for name, degree in [("vtp", document.vtp), *(("tp_sizes_enc", degree) for degree in document.tp_sizes_enc)]:
        if degree == 0 or per_stage % degree:
            raise _invalid(f"{name} {degree} does not divide the {per_stage} devices of a stage")
    return per_stage


def _strategy(
    num_devices: int, tensor_degree: int, *, consecutive: bool, data: Dimension, checkpoint: bool
) -> LayerStrategy:
    degrees = [(Dimension.TENSOR, tensor_degree), (data, num_devices // tensor_degree)]
    ordered = degrees if consecutive else reversed(degrees)
    return LayerStrategy(tuple(Axis(dimension, degree) for dimension, degree in ordered if degree > 1), checkpoint)


def _split(document: GalvatronPlan) -> BatchSplit:
    if document.global_bsz % document.chunks:
        raise _invalid(f"global_bsz {document.global_bsz} does not divide into {document.chunks} chunks")
    return BatchSplit(document.global_bsz, document.chunks)


def _check_admitted(layers: tuple[LayerSpec, ...], strategies: tuple[LayerStrategy, ...], split: BatchSplit) -> None:
    for index, (layer, strategy) in enumerate(zip(layers, strategies, strict=True)):
        reason = refusal(layer, strategy)
        if split.micro_batch_size % strategy.data_degree:
            reason = f"a micro-batch of {split.micro_batch_size} samples does not divide into {strategy.data_degree}"
        if reason:
            raise _invalid(f"layer {index} ({layer.kind}, {strategy}): {reason}")


def _inexpressible(problem: str) -> InexpressiblePlan:
    return InexpressiblePlan(problem, remedy="keep this plan in our format, or plan again without what it names")


def _invalid(problem: str) -> InvalidPlan:
    return InvalidPlan(problem, remedy="check that the file belongs to this model and cluster")


def _unknown(problem: str) -> InvalidPlan:
    return InvalidPlan(f"{problem}, which this planner does not know", remedy="plan there without it")
