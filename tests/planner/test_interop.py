"""Plans of Hetu-Galvatron: files read as its runtime reads them, expressible plans there and back, the rest refused."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner import families
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import GalvatronError, InexpressiblePlan, InvalidDocument, InvalidPlan
from galvatron_planner.interop.plans import GalvatronPlan, from_galvatron, priced, to_galvatron
from galvatron_planner.model import Family
from galvatron_planner.plan import Plan
from galvatron_planner.presets import preset
from galvatron_planner.problem import Schedule, SearchLimits

EXAMPLE = Path(__file__).parent / "hetu_galvatron/galvatron_config_llama-7b_1nodes_8gpus_per_node_36GB_bf16.json"

# What their runtime reads: ``config2strategy`` (galvatron/utils/config_utils.py at 1d27a7a) and
# ``get_hybrid_parallel_configs_api`` (galvatron/core/runtime/hybrid_parallel_config.py at 38b79ad).
READ_ALWAYS = {
    "pp_deg", "tp_sizes_enc", "cp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "global_bsz", "chunks",
}  # fmt: skip
READ_IF_PRESENT = {
    "vtp", "vsp", "vcp", "use_sp", "checkpoint", "pp_division", "pipeline_type", "default_dp_type", "embed_sdp",
    "vocab_sdp",  # galvatron/core/runtime/args_schema.py at 0c28e91: the argument that embed_sdp became.
}  # fmt: skip


def written(**changed: object) -> GalvatronPlan:
    """A file as their search writes it: four blocks on two stages; keys changed to None are left out."""
    document = {
        "pp_deg": 2,
        "tp_sizes_enc": "2,2,1,1",
        "tp_consecutive_flags": "1,1,1,1",
        "dp_types_enc": "0,0,0,1",
        "use_sp": "0,0,0,0",
        "checkpoint": "1,0,0,0",
        "global_bsz": 16,
        "chunks": 4,
        "pp_division": "1,3",
        "pipeline_type": "pipedream_flush",
        "default_dp_type": "ddp",
        "vtp": 1,
        "vsp": 0,
        "embed_sdp": 1,
    }
    kept = {key: value for key, value in {**document, **changed}.items() if value is not None}
    return GalvatronPlan.from_json(json.dumps(kept))


def read(document: GalvatronPlan, *, num_devices: int = 4) -> list[str]:
    """The imported stages of a model of four blocks, each as one text."""
    imported = from_galvatron(document, model=builders.model(num_layers=4), cluster=builders.cluster(num_devices))
    return [" ".join(map(str, stage)) for stage in imported.stages]


def test_the_lists_are_for_blocks_and_the_rest_takes_vtp_and_embed_sdp() -> None:
    # The embedding goes to the stage of the first block, the head to that of the last.
    assert read(written()) == ["fsdp2 tp2-ckpt", "tp2 dp2 fsdp2 fsdp2"]


def test_batch_and_schedule_are_read() -> None:
    imported = from_galvatron(written(), model=builders.model(num_layers=4), cluster=builders.cluster())
    assert imported.split == BatchSplit(global_batch_size=16, num_micro_batches=4)
    assert imported.schedule is Schedule.ONE_F_ONE_B


def test_flag_zero_puts_the_data_axis_on_consecutive_ranks() -> None:
    document = written(tp_consecutive_flags="0,1,0,1")
    assert read(document, num_devices=8) == ["fsdp4 dp2-tp2-ckpt", "tp2-dp2 dp4 fsdp4 fsdp4"]


def test_what_a_file_leaves_out_is_what_their_runtime_assumes() -> None:
    left_out = READ_IF_PRESENT | {"cp_sizes_enc"}
    document = written(**dict.fromkeys(left_out))
    assert read(document) == ["dp2 tp2 tp2", "dp2 fsdp2 dp2"]
    assert document.pipeline_type == "gpipe"


def test_blocks_that_do_not_divide_leave_the_rest_to_the_last_stage() -> None:
    document = written(pp_deg=4, pp_division=None, tp_sizes_enc="1,1,1,1,1", tp_consecutive_flags="1,1,1,1,1",
                       dp_types_enc="0,0,0,0,0", use_sp=None, checkpoint=None)  # fmt: skip
    imported = from_galvatron(document, model=builders.model(num_layers=5), cluster=builders.cluster())
    assert [len(stage) for stage in imported.stages] == [2, 1, 1, 3]


@pytest.mark.parametrize(("theirs", "ours"), [("ddp", "dp2"), ("zero2", "gsdp2"), ("zero3", "fsdp2")])
def test_the_default_kind_is_that_of_all_layers_that_are_not_zero_3(theirs: str, ours: str) -> None:
    assert read(written(default_dp_type=theirs)) == ["fsdp2 tp2-ckpt", f"tp2 {ours} fsdp2 fsdp2"]


def test_two_defaults_in_one_plan_cannot_be_written() -> None:
    assert to_galvatron(builders.plan("gsdp4 gsdp4 fsdp4 gsdp4")).default_dp_type == "zero2"
    with pytest.raises(InexpressiblePlan, match=r"layer 0 \(gsdp4\) and layer 1 \(dp4\)"):
        to_galvatron(builders.plan("gsdp4 dp4 fsdp4 gsdp4"))


def test_sequence_parallelism_of_a_layer_cannot_be_written() -> None:
    plan = builders.plan("dp4 tp2-dp2 dp2-sptp2 dp4")
    with pytest.raises(InexpressiblePlan, match=r"layer 2 \(block, dp2-sptp2\).*whole run.*--sequence-parallel"):
        to_galvatron(plan)


def test_sharded_embeddings_have_two_names() -> None:
    document = json.loads(to_galvatron(builders.plan("fsdp4")).to_json())
    assert (document["embed_sdp"], document["vocab_sdp"]) == (1, 1)
    assert read(written(embed_sdp=None, vocab_sdp=1)) == read(written(embed_sdp=1))
    with pytest.raises(InvalidDocument, match="embed_sdp 1 and vocab_sdp 0"):
        written(vocab_sdp=0)


def test_a_file_of_a_real_model_is_read() -> None:
    spec = builders.model(Family.LLAMA, num_layers=32, num_heads=8)
    document = GalvatronPlan.from_json(EXAMPLE.read_text())
    stages = from_galvatron(document, model=spec, cluster=builders.cluster(8)).stages
    assert [str(s) for s in stages[0]] == ["tp2-fsdp2"] + ["tp2-gsdp2-ckpt"] * 8 + ["tp2-fsdp2-ckpt"] * 2 + [
        "tp2-fsdp2"
    ] * 6
    assert [str(s) for s in stages[1]] == ["tp2-fsdp2"] * 4 + ["fsdp4"] * 12 + ["tp2-fsdp2"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"use_sp": "0,1,0,0"}, "use_sp"),
        ({"vsp": 1}, "vsp"),
        ({"cp_sizes_enc": "1,1,2,1"}, "cp_sizes_enc"),
        ({"checkpoint": "0,0,2,0"}, "checkpoint is 2 for block 2"),
        ({"tp_sizes_enc": "2,2,1"}, "tp_sizes_enc lists 3 blocks, the model has 4"),
        ({"pp_division": "1,2"}, "pp_division"),
        ({"pp_division": "0,4"}, "pp_division leaves"),
        ({"pp_deg": 3, "pp_division": "1,1,2"}, "pp_deg 3 does not divide 4 devices"),
        ({"tp_sizes_enc": "4,2,1,1"}, "tp_sizes_enc 4 does not divide the 2 devices"),
        ({"tp_sizes_enc": "0,2,1,1"}, "tp_sizes_enc 0"),
        ({"chunks": 5}, "global_bsz 16 does not divide into 5 chunks"),
        ({"chunks": 16}, "layer 0 .* a micro-batch of 1 samples does not divide into 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_field(changed: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidPlan, match=named):
        read(written(**changed))


@pytest.mark.parametrize(
    "changed", [{"tp_sizes_enc": "2,x"}, {"ep_sizes_enc": "2,2,2,2"}, {"pp_deg": None}, {"pipeline_type": "zb"}]
)
def test_a_file_in_another_format_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(InvalidDocument, match=next(iter(changed))):
        written(**changed)


def test_an_exported_file_has_the_names_that_their_runtime_reads() -> None:
    keys = set(json.loads(to_galvatron(builders.plan("dp4")).to_json()))
    assert READ_ALWAYS <= keys <= READ_ALWAYS | READ_IF_PRESENT


def test_an_exported_list_is_one_text_with_a_number_for_each_block() -> None:
    plan = builders.plan("fsdp4 tp2-dp2-ckpt", "fsdp4 fsdp2-tp2 dp4 fsdp4", spec=builders.model(num_layers=4),
                         on=builders.cluster(8))  # fmt: skip
    document = json.loads(to_galvatron(plan).to_json())
    assert document["tp_sizes_enc"] == "2,1,2,1"
    assert document["tp_consecutive_flags"] == "1,1,0,1"
    assert document["dp_types_enc"] == "0,1,1,0"
    assert document["checkpoint"] == "1,0,0,0"
    assert (document["pp_division"], document["vtp"], document["embed_sdp"]) == ("1,3", 1, 1)


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        (["dp4 dp4 dp4 tp4"], r"layer 3 \(head, tp4\) differs from layer 0 \(embedding, dp4\); vtp and embed_sdp"),
        (["dp4 dp4 dp4 fsdp4"], r"layer 3 \(head, fsdp4\) differs from layer 0 \(embedding, dp4\)"),
        (["dp2-tp2"], r"layer 0 \(embedding, dp2-tp2\) has tp across its data axis; vtp"),
        (["dp2", "dp2 dp2 dp2"], r"layer 0 \(embedding\) is on stage 0 without .* pp_division .* stage 1"),
        (["dp2 dp2 dp2", "dp2"], r"layer 3 \(head\) is on stage 1 without .* stage 0"),
    ],
)
def test_a_plan_that_their_format_cannot_hold_is_refused(stages: list[str], named: str) -> None:
    with pytest.raises(InexpressiblePlan, match=named):
        to_galvatron(builders.plan(*stages))


def test_layers_between_blocks_take_vtp_and_the_stage_of_the_next_block() -> None:
    # 16 blocks of the encoder, then on stage 1 the decoder's embedding and its 16 blocks.
    spec, on = preset("t5-large-32"), builders.cluster(4)
    plan = builders.plan("fsdp2 " + "tp2 " * 16, "fsdp2 " + "dp2 " * 16 + "fsdp2", spec=spec, on=on)
    document = to_galvatron(plan)
    assert (document.pp_division, document.vtp, document.embed_sdp) == ((16, 16), 1, 1)
    assert from_galvatron(document, model=spec, cluster=on).stages == tuple(stage.layers for stage in plan.stages)


def test_a_merge_of_swin_is_no_block() -> None:
    spec, on = preset("swin-huge-32"), builders.cluster(4)
    merged = [index for index, layer in enumerate(families.layers(spec)) if layer.kind == "merge"]
    document = to_galvatron(builders.plan("dp4", spec=spec, on=on))
    assert len(document.tp_sizes_enc) == 32
    chosen = ["dp4"] * len(families.layers(spec))
    chosen[merged[0]] = "fsdp4"
    with pytest.raises(InexpressiblePlan, match=rf"layer {merged[0]} \(merge, fsdp4\) differs from layer 0"):
        to_galvatron(builders.plan(" ".join(chosen), spec=spec, on=on))


@generate.composite
def expressible_plans(draw: generate.DrawFn, num_devices: int = 8) -> Plan:
    """Plans of one kind besides ``fsdp`` whose embedding and head share one strategy and stay with their blocks."""
    spec = draw(generators.MODELS)
    blocks = range(1, spec.num_layers + 1)
    num_stages = draw(generate.sampled_from([d for d in (1, 2, 4) if d <= spec.num_layers]))
    cuts = draw(generate.sets(generate.sampled_from(blocks[:-1]) if spec.num_layers > 1 else generate.nothing(),
                              min_size=num_stages - 1, max_size=num_stages - 1))  # fmt: skip
    layers, per_stage = families.layers(spec), num_devices // num_stages
    default = draw(generate.sampled_from(["dp", "gsdp"]))
    chosen = [str(draw(generators.strategies(layer, per_stage, micro_batch_size=8))) for layer in layers]
    chosen = [re.sub(r"\bsptp", "tp", re.sub(r"\b(dp|gsdp)", default, text)) for text in chosen]
    tensor = draw(generate.sampled_from([d for d in (1, 2, 4, 8) if d <= per_stage]))
    kind = draw(generate.sampled_from([default, "fsdp"]))
    axes = [f"tp{tensor}"] * (tensor > 1) + [f"{kind}{per_stage // tensor}"] * (per_stage > tensor)
    chosen[0] = chosen[-1] = "-".join(axes) or "single"
    ends = [0, *(cut + 1 for cut in sorted(cuts)), len(layers)]
    num_micro_batches = draw(generate.integers(1, 4))
    return builders.plan(
        *(" ".join(chosen[i:j]) for i, j in pairwise(ends)),
        spec=spec,
        on=builders.cluster(num_devices),
        global_batch_size=8 * num_micro_batches,
        num_micro_batches=num_micro_batches,
        schedule=draw(generate.sampled_from(Schedule)),
    )


@settings(max_examples=50)
@given(expressible_plans())
def test_an_expressible_plan_goes_there_and_back_unchanged(plan: Plan) -> None:
    document = GalvatronPlan.from_json(to_galvatron(plan).to_json())
    imported = from_galvatron(document, model=plan.model, cluster=plan.cluster)
    assert imported.stages == tuple(stage.layers for stage in plan.stages)
    assert imported.split == BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    assert imported.schedule is plan.schedule


@settings(max_examples=50)
@given(generators.plans(8))
def test_any_plan_is_exported_faithfully_or_refused(plan: Plan) -> None:
    try:
        document = to_galvatron(plan)
    except InexpressiblePlan:
        return
    imported = from_galvatron(document, model=plan.model, cluster=plan.cluster)
    assert imported.stages == tuple(stage.layers for stage in plan.stages)


@settings(max_examples=25)
@given(expressible_plans())
def test_an_imported_plan_has_the_estimate_of_the_exported_one(plan: Plan) -> None:
    problem = builders.problem(plan.model, plan.cluster, limits=SearchLimits(schedule=plan.schedule))
    before = estimate(
        problem,
        tuple(stage.layers for stage in plan.stages),
        BatchSplit(plan.global_batch_size, plan.num_micro_batches),
    )
    imported = from_galvatron(to_galvatron(plan), model=plan.model, cluster=plan.cluster)
    again = priced(imported, builders.problem(plan.model, plan.cluster))
    assert again.estimate == before
    assert again.stages == plan.stages


@given(generate.fixed_dictionaries({
    "pp_deg": generate.integers(-1, 5), "vtp": generate.integers(0, 3), "chunks": generate.integers(0, 9),
    "tp_sizes_enc": generate.text("0124,x", max_size=8), "dp_types_enc": generate.text("012,", max_size=8),
}))  # fmt: skip
def test_a_damaged_file_is_refused_and_never_crashes(changed: dict[str, object]) -> None:
    try:
        stages = read(written(**changed))
    except GalvatronError:
        return
    assert len(stages) == changed["pp_deg"]
