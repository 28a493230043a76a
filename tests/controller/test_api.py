from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import yaml

from controller.bodies import ONLY_PLANNED, OWN, WRONG, Changes, job, job_body
from controller.objects import specification
from galvatron_operator.api import (
    ConditionStatus,
    ConditionType,
    Execution,
    FailureRecord,
    JobStatus,
    Phase,
    ProgressStatus,
    parse,
    parse_status,
)
from galvatron_operator.api.job import PIPELINE_SCHEDULES
from galvatron_operator.api.spec import PipelineSchedule
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.own import OwnModel
from galvatron_planner.presets import PRESETS
from galvatron_planner.problem import Schedule, SearchDimension
from galvatron_planner.training import ImageFolder, PythonDocs, SyntheticData, TextFiles, TokenFiles
from galvatron_planner.units import GIB

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def refusal(changes: Changes) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(job_body(changes))
    return caught.value


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused_with_its_field_and_a_remedy(case: str) -> None:
    field, changes = WRONG[case]
    error = refusal(changes)
    assert field in error.problem or error.problem.startswith(field)
    assert error.remedy


def test_a_misspelt_field_is_told_how_it_is_written() -> None:
    error = refusal({"spec.budget.gpuPerNode": 2})
    assert error.problem == "spec.budget.gpuPerNode is no field of a GalvatronJob"
    assert error.remedy == "write gpusPerNode"


def test_a_field_of_our_code_is_no_field_of_a_job() -> None:
    assert "spec.model.hidden_size" in refusal({"spec.model.hidden_size": 32}).problem


def test_a_field_in_a_list_is_named_by_its_place() -> None:
    error = refusal({"spec.runtime": {"tolerations": [{"key": "a"}, {"efect": "NoSchedule"}]}})
    assert error.problem.startswith("spec.runtime.tolerations[1].efect")
    assert error.remedy == "write effect"


def test_every_schedule_of_the_planner_has_a_name_for_users() -> None:
    assert set(PIPELINE_SCHEDULES) == set(Schedule)
    assert set(PIPELINE_SCHEDULES.values()) == set(PipelineSchedule)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput, match="apiVersion is missing"):
        parse({})


def test_a_job_may_come_from_yaml_or_from_the_api() -> None:
    text = yaml.safe_dump(job_body()) + "status: {phase: Pending}\n"
    written = yaml.safe_load(
        text.replace("uid:", "creationTimestamp: 2026-03-01T12:00:00Z\n  resourceVersion: '7'\n  uid:")
    )
    assert parse(written).metadata.creation_timestamp == NOW


def test_a_job_without_a_cluster_needs_only_a_name() -> None:
    assert parse({**job_body(), "metadata": {"name": "job"}}).namespace == "default"


def test_defaults_are_filled_in() -> None:
    spec = job().spec
    assert spec.execution is Execution.TRAIN
    assert not spec.suspend
    assert spec.training.optimizer.learning_rate == "3e-4"
    assert spec.failure_policy.max_restarts == 3
    assert spec.checkpoint is None


def transformer(changes: Changes | None = None) -> ModelSpec:
    model = job(changes or {}).model
    assert isinstance(model, ModelSpec)
    return model


def test_the_model_follows_from_the_spec() -> None:
    model = transformer({"spec.model.numKeyValueHeads": 2, "spec.model.feedForwardSize": 100})
    assert (model.num_heads, model.num_key_value_heads, model.feed_forward_size) == (4, 2, 100)


def test_without_grouped_queries_every_head_has_its_own_key() -> None:
    assert transformer().num_key_value_heads == 4


@pytest.mark.parametrize(
    ("family", "hidden_size", "feed_forward_size"),
    [
        ("gpt", 768, 3072),
        # 8/3 of 4096 is 10922.7; the next multiple of 256 is 11008, the size of Llama 7B.
        ("llama", 4096, 11008),
        # 8/3 of 5120 is 13653.3; Llama 13B has 13824.
        ("llama", 5120, 13824),
        # 8/3 of 768 is 2048 exactly.
        ("llama", 768, 2048),
    ],
)
def test_the_feed_forward_size_follows_the_family(family: str, hidden_size: int, feed_forward_size: int) -> None:
    chosen = transformer({"spec.model.family": family, "spec.model.hiddenSize": hidden_size})
    assert chosen.feed_forward_size == feed_forward_size


@pytest.mark.parametrize(
    ("profiling", "answer"),
    [
        ({"device": "a100"}, "a100-40gb, a100-80gb"),
        ({"device": "h100", "linkBetweenNodes": "infiniband"}, "infiniband-hdr"),
        ({"device": "rtx-titan"}, "FP32"),
        ({"device": "cpu-core"}, "name the device that the budget counts"),
    ],
)
def test_a_device_that_the_catalogue_cannot_stand_for_is_refused(profiling: dict[str, str], answer: str) -> None:
    with pytest.raises(InvalidInput, match=answer):
        job({"spec.profiling": {"policy": "Never", **profiling}})


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"spec.model": {"preset": "bert-huge-32"}}, PRESETS["bert-huge-32"]),
        ({"spec.model": {"preset": "t5-512-4-48"}}, PRESETS["t5-512-4-48"]),
        (
            {
                "spec.model": {
                    "family": "vit",
                    "hiddenSize": 1280,
                    "numLayers": 32,
                    "numAttentionHeads": 16,
                    "imageSize": 224,
                    "patchSize": 16,
                }
            },
            PRESETS["vit-huge-32"],
        ),
        (
            {
                "spec.model": {
                    "family": "swin",
                    "hiddenSize": 320,
                    "depths": [2, 2, 26, 2],
                    "numAttentionHeads": 8,
                    "imageSize": 224,
                    "patchSize": 4,
                    "windowSize": 7,
                }
            },
            PRESETS["swin-huge-32"],
        ),
    ],
)
def test_what_can_only_be_planned_is_a_job_when_it_is_only_planned(changes: Changes, model: ModelSpec) -> None:
    assert job({**ONLY_PLANNED, **changes}).model == model


def test_a_preset_takes_another_sequence_length() -> None:
    assert job({"spec.model": {"preset": "llama2-7b", "sequenceLength": 2048}}).model.sequence_length == 2048


def test_an_unknown_preset_is_answered_with_the_close_ones() -> None:
    assert "llama2-7b" in refusal({"spec.model": {"preset": "llama-7b"}}).remedy


def test_heads_may_be_wider_than_their_share() -> None:
    chosen = transformer(
        {"spec.model.family": "mistral", "spec.model.headSize": 16, "spec.model.rotaryBase": 1_000_000}
    )
    assert (chosen.head_size, chosen.rotary_base) == (16, 1_000_000)


@pytest.mark.parametrize(("family", "published"), [("gpt", True), ("llama", False)])
def test_embeddings_are_tied_as_published_or_as_written(family: str, published: bool) -> None:  # noqa: FBT001
    assert transformer({"spec.model.family": family}).tie_word_embeddings == published
    written = {"spec.model.family": family, "spec.model.tieWordEmbeddings": not published}
    assert transformer(written).tie_word_embeddings != published


def test_layers_of_ones_own_become_a_model() -> None:
    model = job({"spec.model": {"own": OWN, "sequenceLength": 8, "vocabularySize": 256}}).model
    assert isinstance(model, OwnModel)
    assert [layer.index for layer in model.layers] == [0, 1, 1, 3]
    assert [layer.inputs for layer in model.layers] == [(), ((8, 4),), ((8, 4),), ((8, 4),)]
    assert [layer.data.kind if layer.data else None for layer in model.layers] == ["tokens", None, None, "targets"]
    assert model.layers[1] == model.layers[2]
    assert model.layers[1].parameters[0].split_dim == 0


def test_layers_of_ones_own_are_measured() -> None:
    own = {"spec.model": {"own": OWN, "imageSize": 8, "vocabularySize": 10}}
    assert refusal({**ONLY_PLANNED, **own}).problem.startswith("spec.profiling.policy is Never")


def test_nodes_follow_from_the_budget() -> None:
    cluster = job({"spec.budget.gpus": 16, "spec.budget.gpusPerNode": 8}).cluster
    assert (cluster.num_nodes, cluster.devices_per_node, cluster.device_memory_bytes) == (2, 8, 4 * GIB)
    assert cluster.device_kind is DeviceKind.CUDA


def test_the_resource_cpu_makes_devices_of_processes() -> None:
    assert job({"spec.budget.resourceName": "cpu"}).cluster.device_kind is DeviceKind.CPU


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ({"value": 8}, (8,)),
        ({"min": 8, "max": 24}, (8, 16, 24)),
        ({"min": 8, "max": 20, "step": 4}, (8, 12, 16, 20)),
    ],
)
def test_a_range_of_batch_sizes_goes_in_steps_of_its_minimum(batch: dict[str, int], sizes: tuple[int, ...]) -> None:
    assert job({"spec.training.globalBatchSize": batch}).batch.sizes == sizes


def test_limits_of_the_search_do_not_depend_on_the_order_of_exclusions() -> None:
    first = job({"spec.search": {"excludedDimensions": ["TP", "CKPT"], "maxDegrees": {"pipeline": 2}}}).limits
    second = job({"spec.search": {"excludedDimensions": ["CKPT", "TP"], "maxDegrees": {"pipeline": 2}}}).limits
    assert first == second
    assert not first.allows(SearchDimension.TP)
    assert first.max_pipeline_degree == 2
    assert first.schedule is Schedule.ONE_F_ONE_B


def test_sequence_parallelism_is_searched_where_it_is_asked_for() -> None:
    assert not job().limits.sequence_parallel
    assert job({"spec.search": {"sequenceParallelism": True}}).limits.sequence_parallel


def test_precision_is_the_planners() -> None:
    assert job().precision is Precision.BF16


@pytest.mark.parametrize(
    ("dataset", "data"),
    [
        ({}, SyntheticData()),
        ({"source": "PythonDocs"}, PythonDocs()),
        ({"source": "Text", "path": "books/a.txt"}, TextFiles(path="/data/books/a.txt")),
        ({"source": "Text", "path": "."}, TextFiles(path="/data/.")),
        ({"source": "Tokens", "path": "a.npy"}, TokenFiles(path="/data/a.npy")),
        ({"source": "Tokens", "path": "a", "binType": "UInt32"}, TokenFiles(path="/data/a", bin_type="uint32")),
    ],
)
def test_data_lies_under_its_root(dataset: dict[str, Any], data: object) -> None:
    training = specification(job({"spec.training.dataset": dataset}))
    assert training.data == data


def test_images_lie_there_as_well() -> None:
    changes = {
        "spec.model": {"preset": "vit-huge-32"},
        "spec.training.dataset": {"source": "Images", "path": "photos"},
    }
    assert specification(job(changes)).data == ImageFolder(path="/data/photos")


def test_training_checkpoints_lie_in_a_directory_of_the_jobs_name() -> None:
    checkpoint = {"periodSteps": 5, "resume": "Never"}
    training = specification(job({"spec.checkpoint": checkpoint}))
    assert training.checkpoints is not None
    assert (training.checkpoints.directory, training.checkpoints.period_steps) == ("/checkpoints/job", 5)
    assert (training.checkpoints.keep_last, training.checkpoints.resume) == (2, False)


def test_training_checkpoints_belong_to_a_job_and_not_to_its_name() -> None:
    checkpoint = {"spec.checkpoint": {"periodSteps": 5}}
    owners = [
        specification(job(changes | checkpoint)).checkpoints
        for changes in ({"metadata.uid": "1-2"}, {"metadata.uid": "local"})
    ]
    assert [one.owner for one in owners if one is not None] == ["1-2", ""]


@pytest.mark.parametrize(
    ("mode", "resource", "in_background"),
    [
        ("Auto", "nvidia.com/gpu", True),
        ("Auto", "cpu", False),
        ("Async", "cpu", True),
        ("Sync", "nvidia.com/gpu", False),
    ],
)
def test_checkpoints_are_written_in_the_background_where_memory_allows(
    mode: str,
    resource: str,
    in_background: bool,  # noqa: FBT001 -- a case
) -> None:
    checkpoint = {"periodSteps": 5, "mode": mode}
    training = specification(job({"spec.checkpoint": checkpoint, "spec.budget.resourceName": resource}))
    assert training.checkpoints is not None
    assert training.checkpoints.in_background is in_background


def test_ranks_know_how_long_nothing_may_move() -> None:
    training = specification(job({"spec.failurePolicy": {"progressDeadlineSeconds": 77}}))
    assert training.progress_deadline_seconds == 77


def test_weights_lie_in_their_volume() -> None:
    weights = {"path": "llama/7b", "volume": {"claimName": "models"}}
    assert specification(job({"spec.training.initialWeights": weights})).initial_weights == "/weights/llama/7b"
    assert specification(job()).initial_weights is None


def test_decimal_text_becomes_a_number() -> None:
    optimizer = {"learningRate": "1e-3", "weightDecay": "0"}
    training = specification(job({"spec.training.optimizer": optimizer}))
    assert (training.optimizer.learning_rate, training.optimizer.weight_decay) == (0.001, 0.0)
    assert training.gradient_clip_norm == 1.0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spec.checkpoint.volume", {"spec.checkpoint": {"periodSteps": 5}}),
        ("spec.training.dataset.volume", {"spec.training.dataset": {"source": "Text", "path": "a"}}),
        ("spec.training.dataset.volume", {"spec.training.dataset": {"source": "Tokens", "path": "a"}}),
        ("spec.training.initialWeights.volume", {"spec.training.initialWeights": {"path": "a"}}),
    ],
)
def test_only_pods_need_volumes(field: str, changes: Changes) -> None:
    local = job(changes)
    with pytest.raises(InvalidInput, match=field):
        local.check_for_cluster()


def test_whole_amounts_of_cpu_need_no_quotes() -> None:
    resources = job({"spec.runtime": {"resources": {"requests": {"cpu": 4, "memory": "8Gi"}}}}).spec.runtime.resources
    assert (resources.requests.cpu, resources.requests.memory) == ("4", "8Gi")


def test_every_condition_is_set_on_the_first_visit() -> None:
    status = JobStatus.first(generation=3, now=NOW)
    assert [condition.type for condition in status.conditions] == list(ConditionType)
    assert all(condition.observed_generation == 3 for condition in status.conditions)
    assert status.observed_generation == 3
    assert not status.is_finished


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = JobStatus.first(generation=1, now=NOW)
    other_reason = first.with_condition(
        ConditionType.TRAINING, ConditionStatus.UNKNOWN, "Rendezvous", generation=1, now=LATER
    )
    true = other_reason.with_condition(
        ConditionType.TRAINING, ConditionStatus.TRUE, "Progressing", generation=2, now=LATER
    )
    times = [status.find(ConditionType.TRAINING) for status in (other_reason, true)]
    assert [condition and condition.last_transition_time for condition in times] == [NOW, LATER]


@pytest.mark.parametrize("final", [ConditionType.COMPLETE, ConditionType.FAILED])
def test_complete_and_failed_are_final(final: ConditionType) -> None:
    status = JobStatus.first(generation=1, now=NOW)
    assert status.with_condition(final, ConditionStatus.TRUE, "Ended", generation=1, now=NOW).is_finished


def test_a_long_message_is_cut() -> None:
    status = JobStatus.first(generation=1, now=NOW).with_condition(
        ConditionType.FAILED, ConditionStatus.TRUE, "Ended", "x" * 5000, generation=1, now=NOW
    )
    condition = status.find(ConditionType.FAILED)
    assert condition is not None
    assert len(condition.message) == 1024
    assert condition.message.endswith("...")


def test_the_newest_failures_are_kept() -> None:
    status = JobStatus()
    for attempt in range(1, 13):
        status = status.with_failure(FailureRecord(attempt=attempt, time=NOW, reason="UserError"))
    assert [failure.attempt for failure in status.failures] == list(range(12, 2, -1))


def test_a_status_is_written_without_nulls_in_camel_case() -> None:
    progress = ProgressStatus(step=1, total_steps=2, percent=50, peak_memory_per_gpu="1Gi", last_update_time=NOW)
    written = JobStatus(progress=progress, phase=Phase.TRAINING).dump()
    assert written["progress"] == {
        "step": 1,
        "totalSteps": 2,
        "percent": 50,
        "peakMemoryPerGPU": "1Gi",
        "lastCheckpointStep": 0,
        "lastUpdateTime": "2026-03-01T12:00:00Z",
    }
    assert "plan" not in written
    assert "completionTime" not in written


def test_a_status_reads_back_as_it_was_written() -> None:
    moment = datetime(2026, 3, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    failure = FailureRecord(attempt=1, time=moment, reason="UserError")
    status = JobStatus.first(generation=1, now=moment).with_failure(failure)
    status = status.model_copy(update={"phase": Phase.SEARCHING.value})
    assert parse_status({"status": status.dump()}) == status


@pytest.mark.parametrize("body", [{}, {"status": {}}, {"status": None}])
def test_a_status_that_was_never_written_is_none(body: dict[str, Any]) -> None:
    assert parse_status(body) is None


def test_conditions_and_fields_of_other_versions_are_left_out() -> None:
    status = JobStatus.first(generation=1, now=NOW)
    written = status.dump()
    written["conditions"].append({**written["conditions"][0], "type": "Elastic"})
    assert parse_status({"status": {**written, "rescaling": True}}) == status


def test_a_status_of_somebody_else_is_refused() -> None:
    with pytest.raises(InvalidInput, match="attempt"):
        parse_status({"status": {"attempt": "first"}})
