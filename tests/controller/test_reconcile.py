"""Whole lives of jobs against an in-memory cluster: what happens, whatever happens to the operator meanwhile."""

import asyncio
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

import builders
from fakes.cluster import FakeCluster
from fakes.operation import KEY, SETTINGS, Operation, begin, body, reason
from fakes.world import Act, InstantSearches, Scene, Script, World, all_goes_well, fails_with
from galvatron_operator import names
from galvatron_operator.api import ConditionType, FailureReason, JobStatus, RestartCount, parse
from galvatron_operator.decide import Kind, SearchProblem
from galvatron_operator.failures import REACTIONS, Action
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Ports, Refused, Unreachable, reconcile
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState


def test_a_job_is_profiled_planned_and_trained() -> None:
    operation = begin()
    status = operation.until_finished()
    assert reason(status, ConditionType.COMPLETE) == "TrainingFinished"
    assert status.phase == "Complete"
    assert status.attempt == 1
    assert status.profile is not None
    assert status.profile.source == "Measured"
    assert status.plan is not None
    assert status.plan.summary == "pp1 m1: dp4 x4"
    assert status.plan.search_milliseconds == 1000
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent) == (100, 100)


def test_a_finished_job_holds_no_pods_and_keeps_its_documents() -> None:
    operation = begin()
    operation.until_finished()
    for kind in (Kind.POD, Kind.STATEFUL_SET, Kind.JOB, Kind.SERVICE):
        assert operation.all_of(kind) == []
    keys = {key for found in operation.all_of(Kind.CONFIG_MAP) for key in found["data"]}
    assert keys >= {names.PLAN_KEY, names.PROFILE_KEY, names.TRAINING_KEY}


def test_a_second_job_of_the_same_shape_takes_the_profile_from_the_cache() -> None:
    operation = begin()
    operation.until_finished()
    operation.world.cluster.remove((Kind.GALVATRON_JOB, KEY.namespace, KEY.name))
    operation.searches.forget(KEY)
    operation.world.step()
    operation.create(body())
    operation.rounds(1)
    assert operation.all_of(Kind.JOB) == []
    assert reason(operation.status, ConditionType.PROFILE_READY) == "CacheHit"
    assert operation.until_finished().phase == "Complete"


def test_the_policy_always_measures_again() -> None:
    operation = begin()
    operation.until_finished()
    operation.world.cluster.remove((Kind.GALVATRON_JOB, KEY.namespace, KEY.name))
    operation.searches.forget(KEY)
    operation.world.step()
    operation.create(body(profiling={"policy": "Always"}))
    operation.rounds(1)
    assert len(operation.all_of(Kind.JOB)) == 1
    assert operation.until_finished().phase == "Complete"


def test_the_policy_never_makes_no_profilers() -> None:
    operation = begin(profiling={"policy": "Never", "device": "cpu-core"})
    operation.rounds(1)
    assert operation.all_of(Kind.JOB) == []
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert reason(status, ConditionType.PROFILE_READY) == "AnalyticModel"
    assert status.profile is not None
    assert (status.profile.source, status.profile.config_map_name) == ("Analytic", None)


def test_a_job_that_only_plans_makes_no_trainers() -> None:
    operation = begin(execution="Plan")
    status = operation.until_finished()
    assert reason(status, ConditionType.COMPLETE) == "PlanOnly"
    assert status.plan is not None
    assert status.attempt == 0


def test_no_feasible_plan_says_what_would_fit() -> None:
    operation = Operation(World(), InstantSearches(SearchProblem.NO_FEASIBLE_PLAN))
    operation.create(body())
    status = operation.until_finished()
    assert reason(status, ConditionType.PLAN_READY) == reason(status, ConditionType.FAILED) == "NoFeasiblePlan"
    failed = status.find(ConditionType.FAILED)
    assert failed is not None
    assert failed.message == "raise the budget"


def test_an_invalid_job_fails_with_the_field_that_is_wrong() -> None:
    operation = begin(budget={"gpus": 3, "gpusPerNode": 1, "resourceName": "cpu", "memoryPerGPU": "1Gi"})
    operation.round()
    assert reason(operation.status, ConditionType.ACCEPTED) == "InvalidSpec"
    failed = operation.status.find(ConditionType.FAILED) if operation.status else None
    assert failed is not None
    assert "spec.budget.gpus" in failed.message


def test_a_suspended_job_stops_its_pods_and_resumes_under_another_attempt() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    operation.edit(suspend=True)
    operation.rounds(4)
    assert operation.all_of(Kind.POD) == []
    assert reason(operation.status, ConditionType.SUSPENDED) == "UserRequested"
    operation.edit(suspend=False)
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert status.attempt == 2
    assert status.restarts.total == 0


def test_a_job_that_begins_suspended_waits_without_pods() -> None:
    operation = begin(suspend=True)
    operation.rounds(3)
    assert operation.all_of(Kind.POD) == []
    operation.edit(suspend=False)
    assert operation.until_finished().attempt == 1


def test_a_failure_of_one_node_restarts_the_whole_gang() -> None:
    operation = begin(fails_with(ExitClass.USER_ERROR, on_attempts=range(1, 2)))
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert status.attempt == 2
    assert (status.restarts.total, status.restarts.counted_towards_max) == (1, 1)
    assert [record.reason for record in status.failures] == ["UserError"]
    assert status.failures[0].pod == "small-1"


def test_restarts_end_at_their_maximum() -> None:
    operation = begin(fails_with(ExitClass.UNKNOWN), failurePolicy={"maxRestarts": 2})
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "MaxRestartsExceeded"
    assert status.attempt == 3
    assert operation.all_of(Kind.POD) == []


def test_preemption_does_not_count_towards_the_maximum() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 4)), failurePolicy={"maxRestarts": 0})
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert (status.restarts.total, status.restarts.counted_towards_max) == (3, 0)
    assert status.restarts.by_reason == (RestartCount(reason="Preempted", count=3),)


def test_a_restart_loses_the_steps_since_the_newest_training_checkpoint() -> None:
    # The fake world keeps no training checkpoints: each of the two attempts that fail loses its 25 steps.
    operation = begin(fails_with(ExitClass.USER_ERROR, on_attempts=range(1, 3)))
    assert operation.until_finished().restarts.lost_steps == 50


def test_the_first_step_is_dated_once() -> None:
    operation = begin(fails_with(ExitClass.USER_ERROR, on_attempts=range(2, 3)))
    operation.until(ConditionType.TRAINING)
    assert operation.status is not None
    seen = operation.status.first_step_time
    assert seen is not None
    assert operation.until_finished().first_step_time == seen


@pytest.mark.parametrize("exit_class", list(ExitClass))
def test_every_exit_class_ends_in_a_new_attempt_or_a_final_state(exit_class: ExitClass) -> None:
    operation = begin(fails_with(exit_class, on_attempts=range(1, 2)))
    status = operation.until_finished()
    restarts = REACTIONS[FailureReason(exit_class.value)].action is not Action.FAIL
    assert status.phase == ("Complete" if restarts else "Failed")
    assert status.attempt == (2 if restarts else 1)


def killed_for_memory(scene: Scene) -> Act:
    if (scene.component, scene.attempt, scene.node_rank) != (names.COMPONENT_TRAINER, 1, 0) or scene.age < 2:
        return all_goes_well(scene)
    ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:01:00Z"}
    return Act(WorkerState.RUNNING, pod_status={"containerStatuses": [{"lastState": {"terminated": ended}}]})


def evicted(scene: Scene) -> Act:
    if (scene.component, scene.attempt, scene.node_rank) != (names.COMPONENT_TRAINER, 1, 1) or scene.age < 2:
        return all_goes_well(scene)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
    return Act(None, pod_status={"conditions": [condition]})


@pytest.mark.parametrize(
    ("script", "why", "counted"), [(killed_for_memory, "HostOutOfMemory", 1), (evicted, "Evicted", 0)]
)
def test_what_happens_to_a_pod_restarts_the_gang(script: Script, why: str, counted: int) -> None:
    status = begin(script).until_finished()
    assert status.phase == "Complete"
    assert [record.reason for record in status.failures] == [why]
    assert status.restarts.counted_towards_max == counted


def test_a_gang_that_makes_no_steps_is_restarted() -> None:
    def hangs(scene: Scene) -> Act:
        return Act(WorkerState.RUNNING, step=1) if scene.attempt == 1 else all_goes_well(scene)

    operation = begin(hangs, failurePolicy={"progressDeadlineSeconds": 60})
    status = operation.until_finished()
    assert [record.reason for record in status.failures] == ["Stalled"]
    assert status.phase == "Complete"


def test_a_job_is_ended_at_its_deadline() -> None:
    hangs: Script = lambda scene: Act(WorkerState.RUNNING, step=1) if scene.attempt else all_goes_well(scene)  # noqa: E731
    operation = begin(hangs, lifecycle={"activeDeadlineSeconds": 120})
    assert reason(operation.until_finished(), ConditionType.FAILED) == "DeadlineExceeded"


def test_pods_are_kept_for_their_logs_as_long_as_asked() -> None:
    operation = begin(lifecycle={"podRetentionSeconds": 50})
    operation.until(ConditionType.COMPLETE)
    operation.rounds(3)
    assert len(operation.all_of(Kind.POD)) == 2
    operation.rounds(5)
    assert operation.all_of(Kind.POD) == []


def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    operation = begin(lifecycle={"ttlSecondsAfterFinished": 40})
    operation.until(ConditionType.COMPLETE)
    operation.rounds(6)
    assert operation.all_of(Kind.GALVATRON_JOB) == []


def test_failed_profilers_fail_the_job_with_their_message() -> None:
    def breaks(_scene: Scene) -> Act:
        failure = WorkerFailure(reason=ExitClass.USER_ERROR, message="no such device", exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, failure=failure)

    status = begin(breaks).until_finished()
    assert reason(status, ConditionType.PROFILE_READY) == reason(status, ConditionType.FAILED) == "ProfilingFailed"
    failed = status.find(ConditionType.FAILED)
    assert failed is not None
    assert "no such device" in failed.message


def test_a_measurement_that_ends_while_the_operator_is_away_is_taken_however_late() -> None:
    operation = begin(profiling={"timeoutSeconds": 60})
    operation.rounds(1)
    for _ in range(20):
        operation.world.step()
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert status.profile is not None
    assert status.profile.source == "Measured"


def test_a_measurement_that_does_not_end_fails_the_job_after_its_time() -> None:
    operation = begin(lambda _scene: Act(WorkerState.RUNNING), profiling={"timeoutSeconds": 60})
    operation.rounds(6)
    assert reason(operation.status, ConditionType.PROFILE_READY) == "Profiling"
    status = operation.until_finished()
    assert reason(status, ConditionType.PROFILE_READY) == "ProfilingTimedOut"
    assert operation.all_of(Kind.POD) == []


def test_evicted_profilers_measure_again() -> None:
    first: list[str] = []

    def script(scene: Scene) -> Act:
        if scene.component == names.COMPONENT_PROFILER and scene.age == 1 and len(first) < 1:
            first.append("evicted")
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
            return Act(None, pod_status={"conditions": [condition]})
        return all_goes_well(scene)

    assert begin(script).until_finished().phase == "Complete"


def test_profilers_that_are_evicted_each_time_are_tried_at_ever_longer_intervals() -> None:
    def script(scene: Scene) -> Act:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        return Act(None, pod_status={"conditions": [condition]}) if scene.age else Act()

    operation, uids = begin(script), set[str]()
    for _ in range(60):
        operation.rounds(1)
        uids |= {job["metadata"]["uid"] for job in operation.all_of(Kind.JOB)}
    # 600 s: at once, then after 10, 20, 40, 80, 160 and 300 s.
    assert 5 <= len(uids) <= 7
    assert operation.status is not None
    assert not operation.status.is_finished
    operation.world.script = all_goes_well
    status = operation.until_finished()
    assert (status.phase, status.restarts.total, status.restarts.without_progress) == ("Complete", 0, 0)


def test_a_plan_that_is_brought_late_is_trained_under() -> None:
    operation = begin(search={"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}})
    operation.rounds(3)
    assert reason(operation.status, ConditionType.PLAN_READY) == "FixedPlanMissing"
    assert operation.all_of(Kind.POD) == []
    wanted = parse(operation.job)
    plan = builders.plan("tp2-dp2", spec=wanted.model, on=wanted.cluster)
    operation.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "mine", "namespace": KEY.namespace},
            "data": {"plan.json": plan.to_json()},
        }
    )
    status = operation.until_finished()
    assert reason(status, ConditionType.PLAN_READY) == "FixedPlan"
    assert status.plan is not None
    assert status.plan.summary == plan.summary


def test_an_object_of_somebody_else_is_not_taken_over() -> None:
    operation = Operation(World())
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "spec": {"ports": [{"port": 80}]},
    }
    operation.create(foreign)
    operation.create(body())
    status = operation.until_finished()
    assert status.phase == "Failed"
    [service] = operation.all_of(Kind.SERVICE)
    assert service["spec"] == foreign["spec"]


def test_what_a_later_operator_writes_otherwise_does_not_touch_a_running_attempt() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    key = (Kind.STATEFUL_SET, KEY.namespace, KEY.name)
    former = operation.world.cluster.objects[key]
    # As an earlier operator has written it.
    former["spec"]["serviceName"] = "earlier"
    former["spec"]["template"]["spec"]["enableServiceLinks"] = True
    operation.round()
    found = operation.world.cluster.objects[key]
    assert found["spec"]["template"]["spec"]["enableServiceLinks"]
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 1)


def test_a_field_that_cannot_change_makes_the_next_attempt_under_a_new_object() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 2)))
    operation.until(ConditionType.TRAINING)
    former = operation.world.cluster.objects[Kind.STATEFUL_SET, KEY.namespace, KEY.name]
    former["spec"]["podManagementPolicy"] = "OrderedReady"
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert [failure.reason for failure in status.failures] == ["Preempted"]


def test_an_unchangeable_service_of_a_running_job_is_made_anew() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    former = operation.world.cluster.objects[Kind.SERVICE, KEY.namespace, KEY.name]
    former["spec"]["clusterIP"] = "10.1.1.1"
    operation.round()
    operation.round()
    made = operation.world.cluster.objects[Kind.SERVICE, KEY.namespace, KEY.name]
    assert (made["spec"]["clusterIP"], made["metadata"]["uid"] != former["metadata"]["uid"]) == ("None", True)
    assert operation.until_finished().phase == "Complete"


def test_the_number_of_trainers_is_put_right_when_somebody_changes_it() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    trainers = operation.world.cluster.objects[Kind.STATEFUL_SET, KEY.namespace, KEY.name]
    trainers["spec"]["replicas"] = 3
    operation.round()
    trainers = operation.world.cluster.objects[Kind.STATEFUL_SET, KEY.namespace, KEY.name]
    assert trainers["spec"]["replicas"] == 2


def test_a_job_keeps_the_image_it_began_with_when_the_default_changes() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 2)))
    operation.until(ConditionType.TRAINING)
    operation.settings = replace(SETTINGS, runtime_image="localhost/galvatron-runtime:next")
    images = set()
    while operation.status is not None and not operation.status.is_finished:
        operation.rounds(1)
        images |= {pod["spec"]["containers"][0]["image"] for pod in operation.world.pods()}
    assert operation.status is not None
    assert (operation.status.phase, operation.status.attempt) == ("Complete", 2)
    assert images == {SETTINGS.runtime_image} == {operation.status.image}


def test_the_image_of_running_trainers_is_known_without_the_status() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    operation.job["status"].pop("image")
    operation.settings = replace(SETTINGS, runtime_image="localhost/galvatron-runtime:next")
    operation.round()
    assert operation.status is not None
    assert operation.status.image == SETTINGS.runtime_image


def test_every_change_of_state_is_one_event() -> None:
    operation = begin()
    operation.until_finished()
    reasons = [event["reason"] for event in operation.all_of(Kind.EVENT)]
    assert sorted(reasons) == ["PlanFound", "Profiled", "Progressing", "TrainingFinished"]


def test_a_round_without_news_writes_nothing() -> None:
    operation = begin(lambda scene: Act(WorkerState.RUNNING, step=1) if scene.attempt else all_goes_well(scene))
    operation.until(ConditionType.TRAINING)
    operation.round()
    operation.round(writes=0)
    before = {
        key: found["metadata"]["resourceVersion"]
        for key, found in operation.world.cluster.objects.items()
        if key[0] is not Kind.POD
    }
    operation.round()
    after = {
        key: found["metadata"]["resourceVersion"]
        for key, found in operation.world.cluster.objects.items()
        if key[0] is not Kind.POD
    }
    assert before == after


SCRIPTS = {
    "well": all_goes_well,
    "user error": fails_with(ExitClass.USER_ERROR, on_attempts=range(1, 3)),
    "always": fails_with(ExitClass.USER_ERROR),
    "preempted": fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 3)),
    "memory": killed_for_memory,
}


@cache
def undisturbed_end(script: str) -> JobStatus:
    return begin(SCRIPTS[script]).until_finished()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(script=generate.sampled_from(sorted(SCRIPTS)), writes=generate.lists(generate.integers(0, 6), max_size=12))
def test_an_operator_that_is_stopped_after_any_write_brings_the_job_to_the_same_end(
    script: str, writes: list[int]
) -> None:
    undisturbed = undisturbed_end(script)
    operation = begin(SCRIPTS[script])
    for number in writes:
        operation.round(writes=number)
        operation.world.step()
    status = operation.until_finished()
    assert status.phase == undisturbed.phase
    assert status.attempt == undisturbed.attempt
    for counted in ("total", "counted_towards_max", "without_progress"):
        assert getattr(status.restarts, counted) == getattr(undisturbed.restarts, counted)
    assert [record.reason for record in status.failures] == [record.reason for record in undisturbed.failures]
    assert operation.all_of(Kind.POD) == []


@pytest.mark.parametrize("writes", range(8))
def test_an_operator_that_is_stopped_in_every_round_goes_on_where_it_was(writes: int) -> None:
    operation = begin(SCRIPTS["preempted"])
    for _ in range(20):
        operation.round(writes=writes)
        operation.world.step()
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 3)


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_makes_unchangeable_trainers_anew(writes: int) -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 2)))
    operation.until(ConditionType.TRAINING)
    operation.world.cluster.objects[Kind.STATEFUL_SET, KEY.namespace, KEY.name]["spec"]["serviceName"] = "earlier"
    for _ in range(10):
        operation.round(writes=writes)
        operation.world.step()
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)


def test_a_running_job_outlives_a_field_that_this_version_does_not_know() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    operation.job["spec"]["profiling"] = {"fieldOfTheNextVersion": 1}
    operation.rounds(1)
    assert reason(operation.status, ConditionType.ACCEPTED) == "VersionSkew"
    assert operation.all_of(Kind.POD)
    del operation.job["spec"]["profiling"]
    assert operation.until_finished().phase == "Complete"


class OldSchemaCluster(FakeCluster):
    """An API server whose CRD does not know a field of the status."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        raise Refused(f"{manifest['metadata']['name']}: .status.nodes.members: field not declared in schema", remedy="")


def test_a_status_that_an_older_crd_refuses_fails_no_job() -> None:
    world = World(cluster=OldSchemaCluster())
    made = asyncio.run(world.cluster.apply(body()))
    with pytest.raises(Unreachable, match="not declared in schema"):
        asyncio.run(reconcile(KEY, Ports(world.cluster, world, InstantSearches()), settings=SETTINGS, now=world.now))
    assert "status" not in made
