"""When a job is measured, and measured again: age, a user who asks for it, failures that may pass."""

from datetime import timedelta

import pytest

from fakes.operation import KEY, Operation, begin, body, known, message, reason
from fakes.world import Act, Scene, Script, World, all_goes_well, fails_with
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState

DAY_SECONDS = 24 * 3600
OUT_OF_MEMORY = {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}
CRASHED = {"containerStatuses": [{"state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}


def successor(operation: Operation, *, after_days: int = 0, **spec: object) -> Operation:
    """Begin another job of the same shape in the world of one that has ended, some days later."""
    operation.until_finished()
    operation.world.cluster.remove((Kind.GALVATRON_JOB, KEY.namespace, KEY.name))
    operation.searches.forget(KEY)
    operation.world.now += timedelta(days=after_days)
    operation.world.step()
    operation.create(body(**spec))
    operation.rounds(1)
    return operation


def ask_anew(operation: Operation, value: str) -> None:
    operation.job["metadata"].setdefault("annotations", {})[names.ANNOTATION_REPROFILE] = value


def profile_message(operation: Operation) -> str:
    return message(operation.status, ConditionType.PROFILE_READY)


def cached(operation: Operation) -> Manifest:
    [found] = [one for one in operation.all_of(Kind.CONFIG_MAP) if names.PROFILE_KEY in one["data"]]
    return found


def while_measuring(world: World, act: Act, *, attempts: int) -> Script:
    """Let profilers of the first attempts do something else than measure."""

    def script(scene: Scene) -> Act:
        jobs = [found for (kind, _, _), found in world.cluster.objects.items() if kind is Kind.JOB]
        attempt = min((int(job["metadata"]["annotations"][names.ANNOTATION_ATTEMPT]) for job in jobs), default=0)
        affected = scene.component == names.COMPONENT_PROFILER and attempt < attempts and scene.age > 0
        return act if affected else all_goes_well(scene)

    return script


def profilers_that(act: Act, *, attempts: int = 1000) -> Operation:
    operation = Operation(World())
    operation.world.script = while_measuring(operation.world, act, attempts=attempts)
    operation.create(body())
    return operation


def failed(reason_: ExitClass) -> Act:
    return Act(WorkerState.FAILED, failure=WorkerFailure(reason=reason_, message="it broke", exit_code=1, time=1.0))


def test_the_status_says_when_the_profile_was_measured() -> None:
    operation = begin()
    operation.until(ConditionType.PROFILE_READY)
    profile = known(operation).profile
    assert profile is not None
    assert profile.profile_time == operation.world.now
    assert f" at {profile.profile_time:%Y-%m-%dT%H:%M:%SZ}, kept in" in profile_message(operation)
    # The next job finds the same time, and says so for as long as it lives.
    successor(operation, after_days=3)
    later = known(operation).profile
    assert later is not None
    assert (later.source, later.profile_time) == ("Cache", profile.profile_time)
    assert "measured on" in profile_message(operation)


def test_a_profile_that_is_too_old_is_measured_anew_and_replaced() -> None:
    operation = begin()
    operation.until(ConditionType.PROFILE_READY)
    before = cached(operation)["metadata"]["annotations"][names.ANNOTATION_MEASURED_AT]
    successor(operation, after_days=31)
    assert reason(operation.status, ConditionType.PROFILE_READY) == "Profiling"
    status = operation.until_finished()
    assert status.profile is not None
    assert (status.phase, status.profile.source) == ("Complete", "Measured")
    assert cached(operation)["metadata"]["annotations"][names.ANNOTATION_MEASURED_AT] > before


@pytest.mark.parametrize(("days", "jobs"), [(1, 0), (3, 1)])
def test_a_job_says_how_old_a_profile_may_be(days: int, jobs: int) -> None:
    operation = successor(begin(), after_days=days, profiling={"maxAgeSeconds": 2 * DAY_SECONDS})
    assert len(operation.all_of(Kind.JOB)) == jobs


def test_a_profile_that_was_chosen_does_not_grow_too_old_before_the_plan_is_there() -> None:
    # Rounds are 10 s apart.
    status = begin(profiling={"maxAgeSeconds": 1}).until_finished()
    assert (status.phase, status.profiling.attempt) == ("Complete", 0)


def test_a_profile_of_an_earlier_version_is_as_old_as_its_config_map() -> None:
    operation = begin()
    operation.until(ConditionType.PROFILE_READY)
    cached(operation)["metadata"].pop("annotations")
    successor(operation, after_days=29)
    assert operation.all_of(Kind.JOB) == []
    assert operation.status is not None
    assert operation.status.profile is not None
    created = cached(operation)["metadata"]["creationTimestamp"]
    assert f"{operation.status.profile.profile_time:%Y-%m-%dT%H:%M:%SZ}" == created
    assert successor(operation, after_days=2).all_of(Kind.JOB) != []


def test_a_profile_whose_time_cannot_be_read_is_measured_anew() -> None:
    operation = begin()
    operation.until_finished()
    cached(operation)["metadata"]["annotations"][names.ANNOTATION_MEASURED_AT] = "yesterday"
    assert successor(operation).all_of(Kind.JOB) != []


def test_a_new_value_of_the_annotation_measures_again_once() -> None:
    operation = successor(begin())
    assert reason(operation.status, ConditionType.PROFILE_READY) == "CacheHit"
    ask_anew(operation, "1")
    operation.round()
    assert len(operation.all_of(Kind.JOB)) == 1
    status = operation.until_finished()
    assert status.profile is not None
    assert (status.phase, status.profile.source) == ("Complete", "Measured")
    assert (status.profiling.reprofile, status.profiling.attempt) == ("1", 1)


def test_what_was_being_measured_when_the_user_asked_anew_is_not_the_answer() -> None:
    operation = begin()
    operation.rounds(2)
    [first] = operation.all_of(Kind.JOB)
    ask_anew(operation, "after the new driver")
    uids = set()
    while not known(operation).is_true(ConditionType.PROFILE_READY):
        operation.rounds(1)
        uids |= {job["metadata"]["uid"] for job in operation.all_of(Kind.JOB)}
    assert len(uids - {first["metadata"]["uid"]}) == 1
    assert operation.until_finished().profiling.attempt == 1


def test_of_a_job_that_has_its_plan_the_annotation_waits_and_says_so() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 2)))
    operation.until(ConditionType.TRAINING)
    before = profile_message(operation)
    ask_anew(operation, "1")
    operation.rounds(1)
    assert profile_message(operation).startswith(before)
    assert "counts when the job is planned again" in profile_message(operation)
    assert known(operation).profiling.reprofile is None
    del operation.job["metadata"]["annotations"]
    operation.rounds(1)
    assert profile_message(operation) == before
    assert operation.until_finished().phase == "Complete"


@pytest.mark.parametrize("writes", range(8))
def test_a_job_that_is_planned_anew_heeds_the_annotation(writes: int) -> None:
    operation = begin(fails_with(ExitClass.OUT_OF_DEVICE_MEMORY, on_attempts=range(1, 2)))
    operation.until(ConditionType.TRAINING)
    first = known(operation).profile
    ask_anew(operation, "1")
    for _ in range(20):
        operation.round(writes=writes)
        operation.world.step()
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert (status.profiling.attempt, status.profiling.reprofile) == (1, "1")
    assert first is not None
    assert first.profile_time is not None
    assert status.profile is not None
    assert status.profile.profile_time is not None
    assert status.profile.profile_time > first.profile_time


def test_a_job_that_is_planned_anew_uses_its_profile_however_old() -> None:
    operation = begin(
        fails_with(ExitClass.OUT_OF_DEVICE_MEMORY, on_attempts=range(1, 2)), profiling={"maxAgeSeconds": 1}
    )
    operation.until(ConditionType.TRAINING)
    profile = known(operation).profile
    status = operation.until_finished()
    assert (status.phase, status.attempt, status.profile) == ("Complete", 2, profile)


def test_without_measurements_the_annotation_does_nothing() -> None:
    operation = begin(profiling={"policy": "Never", "device": "cpu-core"})
    ask_anew(operation, "1")
    status = operation.until_finished()
    assert (status.phase, status.profiling.attempt) == ("Complete", 0)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (failed(ExitClass.UNKNOWN), "Unknown"),
        (failed(ExitClass.COMMUNICATION), "CommunicationError"),
        (Act(None, pod_status=CRASHED), "SupervisorExited"),
        (Act(None, pod_status=OUT_OF_MEMORY), "HostOutOfMemory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_that_may_pass_is_measured_again(act: Act, why: str) -> None:
    operation = profilers_that(act, attempts=1)
    while not known(operation).profiling.retries if operation.status else True:
        operation.rounds(1)
    assert [(each.reason, each.count) for each in known(operation).profiling.retries] == [(why, 1)]
    assert f"retry 1 of 3: {why} x1" in profile_message(operation)
    assert reason(operation.status, ConditionType.PROFILE_READY) == "Profiling"
    operation.rounds(2)
    assert f"retry 1 of 3: {why} x1" in profile_message(operation)
    status = operation.until_finished()
    assert (status.phase, status.profiling.attempt, status.profiling.retries) == ("Complete", 1, ())
    # Restarts and failures are those of training.
    assert (status.restarts.total, status.restarts.without_progress, status.failures) == (0, 0, ())


@pytest.mark.parametrize(
    ("act", "retries"),
    [
        (failed(ExitClass.UNKNOWN), 3),
        (Act(None, pod_status=OUT_OF_MEMORY), 1),
        (failed(ExitClass.USER_ERROR), 0),
        (failed(ExitClass.DATA_ERROR), 0),
        (failed(ExitClass.OUT_OF_DEVICE_MEMORY), 0),
    ],
)
def test_failures_that_stay_fail_the_job_after_as_many_retries_as_their_reason_allows(act: Act, retries: int) -> None:
    operation = profilers_that(act)
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "ProfilingFailed"
    assert sum(each.count for each in status.profiling.retries) == status.profiling.attempt == retries
    assert (f"retry {retries} of 3" in profile_message(operation)) is (retries > 0)
    assert len(status.failures) == 1
    assert operation.all_of(Kind.JOB) == []


def test_a_job_of_profilers_that_failed_without_a_word_is_made_anew() -> None:
    operation = begin()
    operation.rounds(2)
    [first] = operation.all_of(Kind.JOB)
    first["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
    for pod in operation.all_of(Kind.POD):
        operation.world.cluster.remove((Kind.POD, KEY.namespace, pod["metadata"]["name"]))
    operation.round()
    assert "BackoffLimitExceeded" in profile_message(operation)
    assert operation.until_finished().phase == "Complete"


@pytest.mark.parametrize("writes", range(6))
@pytest.mark.parametrize("policy", ["IfNotCached", "Always"])
def test_an_operator_that_is_stopped_in_every_round_retries_and_remeasures_as_often(policy: str, writes: int) -> None:
    operation = successor(begin(), after_days=31, profiling={"policy": policy})
    operation.world.script = while_measuring(operation.world, failed(ExitClass.UNKNOWN), attempts=2)
    uids = set()
    for _ in range(30):
        operation.round(writes=writes)
        operation.world.step()
        uids |= {job["metadata"]["uid"] for job in operation.all_of(Kind.JOB)}
    status = operation.until_finished()
    assert status.profile is not None
    assert (status.phase, status.profile.source, status.profiling.attempt) == ("Complete", "Measured", 2)
    assert len(uids) <= 3
    assert (
        f"{status.profile.profile_time:%Y-%m-%dT%H:%M:%SZ}"
        == (cached(operation)["metadata"]["annotations"][names.ANNOTATION_MEASURED_AT])
    )


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_measures_once_for_each_value(writes: int) -> None:
    operation = successor(begin(), after_days=1)
    before = known(operation).profile
    ask_anew(operation, "1")
    for _ in range(20):
        operation.round(writes=writes)
        operation.world.step()
    status = operation.until_finished()
    assert (status.phase, status.profiling.attempt, status.profiling.reprofile) == ("Complete", 1, "1")
    assert before is not None
    assert before.profile_time is not None
    assert status.profile is not None
    assert status.profile.profile_time is not None
    assert status.profile.profile_time > before.profile_time


def test_profilers_that_an_operator_left_behind_do_not_keep_devices_from_trainers() -> None:
    operation = begin()
    # The status and the cached profile are written, the deletions are not.
    while not known(operation).is_true(ConditionType.PROFILE_READY) if operation.status else True:
        operation.world.step()
        operation.round(writes=2 if operation.all_of(Kind.JOB) else None)
    assert len(operation.all_of(Kind.JOB)) == 1
    operation.until(ConditionType.TRAINING)
    assert operation.all_of(Kind.JOB) == []
    trainers = [pod["metadata"]["labels"][names.LABEL_COMPONENT] for pod in operation.all_of(Kind.POD)]
    assert set(trainers) == {names.COMPONENT_TRAINER}
