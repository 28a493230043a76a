"""Gangs: PodGroups, the pods that belong to them, and what a job says while a scheduler does not place it."""

from collections.abc import Callable
from typing import Any

import pytest

from controller.bodies import Changes, job
from controller.objects import IMAGE, PLAN, profilers, request, trainers
from fakes.operation import KEY, Operation, begin, reason
from fakes.world import Act, Scene, Script, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType, GangProvider
from galvatron_operator.decide import POD_GROUPS, Kind, pod_groups_to_look_up
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.manifests.rendering import render_job
from galvatron_planner.worker import WorkerState

VOLCANO, COSCHEDULING = GangProvider.VOLCANO, GangProvider.COSCHEDULING
PROVIDERS = [VOLCANO, COSCHEDULING]
CANNOT = "0/2 nodes are available: 2 Insufficient cpu."


def scheduled_by(provider: GangProvider, **fields: Any) -> Changes:
    return {"spec.scheduling": {"gang": {"provider": provider.value, **fields}}}


def start(provider: GangProvider, script: Script = all_goes_well, **spec: Any) -> Operation:
    """Create a job with a gang in a cluster that has its scheduler."""
    operation = begin(script, scheduling={"gang": {"provider": provider.value}}, **spec)
    operation.world.cluster.installed = set(POD_GROUPS)
    return operation


def groups(operation: Operation) -> dict[str, Manifest]:
    return {group["metadata"]["name"]: group for kind in POD_GROUPS for group in operation.all_of(kind)}


def unplaced(component: str, message: str | None) -> Script:
    """No pod of a component gets a node; the scheduler gives a reason, or has none."""
    told = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    status = {"phase": "Pending", "conditions": told if message else [], "containerStatuses": [], "podIP": None}

    def script(scene: Scene) -> Act:
        if scene.component != component:
            return all_goes_well(scene)
        return Act(state=None, pod_status=status)

    return script


def take_nodes_away(operation: Operation) -> None:
    for pod in operation.world.pods():
        if pod["status"]["phase"] == "Pending":
            pod["spec"].pop("nodeName", None)


def rounds_without_nodes(operation: Operation, number: int) -> None:
    for _ in range(number):
        operation.world.step()
        take_nodes_away(operation)
        operation.round()


@pytest.mark.parametrize("make", [trainers, profilers])
def test_pods_name_their_group_as_volcano_wants_it(make: Callable[..., Manifest]) -> None:
    template = make(job(scheduled_by(VOLCANO)))["spec"]["template"]
    assert template["spec"]["schedulerName"] == "volcano"
    group = "job" if make is trainers else "job.profilers"
    assert template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == group


@pytest.mark.parametrize("make", [trainers, profilers])
def test_pods_name_their_group_as_coscheduling_wants_it(make: Callable[..., Manifest]) -> None:
    template = make(job(scheduled_by(COSCHEDULING)))["spec"]["template"]
    assert template["spec"]["schedulerName"] == "scheduler-plugins-scheduler"
    group = "job" if make is trainers else "job.profilers"
    assert template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == group


@pytest.mark.parametrize("changes", [{}, scheduled_by(GangProvider.NONE)], ids=["not asked for", "None"])
def test_without_a_provider_nothing_is_different(changes: Changes) -> None:
    made = job(changes)
    assert trainers(made) == trainers(job())
    assert profilers(made) == profilers(job())
    assert gang.pod_groups(made, "job", names.COMPONENT_TRAINER, num_pods=2) == ()


def test_an_installation_may_have_given_its_scheduler_another_name() -> None:
    template = {"spec.runtime": {"template": {"spec": {"schedulerName": "gang-scheduler"}}}}
    made = job({**scheduled_by(VOLCANO), **template})
    assert trainers(made)["spec"]["template"]["spec"]["schedulerName"] == "gang-scheduler"


def test_a_group_has_as_many_members_as_there_are_nodes_and_belongs_to_the_job() -> None:
    changes = scheduled_by(VOLCANO, queue="team-a")
    changes["spec.scheduling"]["priorityClassName"] = "high"
    (group,) = gang.pod_groups(job(changes), "job", names.COMPONENT_TRAINER, num_pods=2)
    assert group["spec"] == {"minMember": 2, "queue": "team-a", "priorityClassName": "high"}
    assert group["metadata"]["ownerReferences"][0]["kind"] == "GalvatronJob"


def test_coscheduling_is_told_how_long_to_hold_nodes() -> None:
    changes = scheduled_by(COSCHEDULING, timeoutSeconds=90)
    changes["spec.scheduling"]["priorityClassName"] = "high"
    (group,) = gang.pod_groups(job(changes), "job", names.COMPONENT_TRAINER, num_pods=2)
    assert group["spec"] == {"minMember": 2, "scheduleTimeoutSeconds": 90}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_group_is_there_before_the_pods_and_gone_after_them(provider: GangProvider) -> None:
    operation = start(provider)
    while not operation.all_of(Kind.JOB):
        operation.rounds(1)
    assert groups(operation).keys() == {"small.profilers"}
    operation.until(ConditionType.TRAINING)
    assert groups(operation).keys() == {"small"}
    assert operation.until_finished().phase == "Complete"
    assert groups(operation) == {}


def test_a_suspended_job_has_no_group_and_a_resumed_one_has() -> None:
    operation = start(VOLCANO)
    operation.until(ConditionType.TRAINING)
    operation.edit(suspend=True)
    operation.rounds(3)
    assert groups(operation) == {}
    operation.edit(suspend=False)
    operation.rounds(3)
    assert groups(operation).keys() == {"small"}


def test_a_group_that_somebody_deletes_while_pods_wait_comes_back() -> None:
    operation = start(COSCHEDULING, unplaced(names.COMPONENT_TRAINER, CANNOT))
    operation.until(ConditionType.PLAN_READY)
    rounds_without_nodes(operation, 3)
    operation.world.cluster.remove((Kind.COSCHEDULING_POD_GROUP, KEY.namespace, "small"))
    rounds_without_nodes(operation, 2)
    assert groups(operation).keys() == {"small"}


def test_trainers_that_are_not_placed_say_so_in_the_words_of_the_scheduler() -> None:
    operation = start(VOLCANO, unplaced(names.COMPONENT_TRAINER, CANNOT))
    operation.until(ConditionType.PLAN_READY)
    rounds_without_nodes(operation, 3)
    words = {"type": "Unschedulable", "status": "True", "message": "2/2 tasks in gang unschedulable"}
    groups(operation)["small"]["status"] = {"phase": "Pending", "conditions": [words]}
    rounds_without_nodes(operation, 1)
    assert operation.status is not None
    told = operation.status.find(ConditionType.PODS_READY)
    assert told is not None
    assert told.reason == "WaitingForGang"
    assert told.message == f"small-0: {CANNOT} (PodGroup small: Pending; 2/2 tasks in gang unschedulable)"


def test_profilers_that_are_not_placed_say_so() -> None:
    operation = start(COSCHEDULING, unplaced(names.COMPONENT_PROFILER, CANNOT))
    rounds_without_nodes(operation, 4)
    assert operation.status is not None
    told = operation.status.find(ConditionType.PROFILE_READY)
    assert told is not None
    assert "(WaitingForGang: small-profile-" in told.message
    assert told.message.endswith(f"{CANNOT})")


def test_pods_that_no_scheduler_looks_at_name_the_one_that_should() -> None:
    operation = start(COSCHEDULING, unplaced(names.COMPONENT_TRAINER, None))
    operation.until(ConditionType.PLAN_READY)
    rounds_without_nodes(operation, 1)
    assert reason(operation.status, ConditionType.PODS_READY) != "WaitingForGang"
    rounds_without_nodes(operation, 6)
    assert operation.status is not None
    told = operation.status.find(ConditionType.PODS_READY)
    assert told is not None
    assert told.reason == "WaitingForGang"
    assert "no scheduler named scheduler-plugins-scheduler" in told.message


def test_a_gang_that_holds_no_nodes_is_left_in_peace_after_it_has_trained() -> None:
    def waits_after_a_failure(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt == 1:
            return all_goes_well(scene)
        return unplaced(names.COMPONENT_TRAINER, CANNOT)(scene)

    operation = start(VOLCANO, waits_after_a_failure, failurePolicy={"progressDeadlineSeconds": 60})
    operation.until(ConditionType.TRAINING)
    for rank in (0, 1):
        operation.world.cluster.remove((Kind.POD, KEY.namespace, f"small-{rank}"))
    operation.round()
    rounds_without_nodes(operation, 40)
    assert operation.status is not None
    assert (operation.status.attempt, len(operation.status.failures)) == (2, 1)
    operation.world.script = all_goes_well
    for rank in (0, 1):
        operation.world.cluster.remove((Kind.POD, KEY.namespace, f"small-{rank}"))
    assert operation.until_finished().phase == "Complete"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_cluster_without_the_scheduler_is_told_by_the_condition_and_heals(provider: GangProvider) -> None:
    operation = start(provider)
    operation.world.cluster.installed = set()
    operation.rounds(5)
    assert operation.status is not None
    told = operation.status.find(ConditionType.PROFILE_READY)
    assert told is not None
    assert told.reason == "GangSchedulerMissing"
    scheduler = gang.SCHEDULERS[provider]
    assert scheduler.api_version in told.message
    assert scheduler.installation in told.message
    assert operation.all_of(Kind.POD) == []
    operation.world.cluster.installed = set(POD_GROUPS)
    assert operation.until_finished().phase == "Complete"


def test_a_scheduler_that_is_missing_is_said_once() -> None:
    operation = start(VOLCANO)
    operation.world.cluster.installed = set()
    operation.rounds(3)
    version = operation.job["metadata"]["resourceVersion"]
    operation.rounds(5)
    assert operation.job["metadata"]["resourceVersion"] == version


def test_a_group_of_somebody_else_is_not_taken_over_nor_deleted() -> None:
    operation = start(VOLCANO)
    theirs = {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "metadata": {"name": "small.profilers", "namespace": KEY.namespace},
        "spec": {"minMember": 7},
    }
    operation.create(theirs)
    status = operation.until_finished()
    told = status.find(ConditionType.FAILED)
    assert told is not None
    assert told.reason == "InvalidSpec"
    assert "team/small.profilers exists and is not ours" in told.message
    assert groups(operation)["small.profilers"]["spec"] == {"minMember": 7}


@pytest.mark.parametrize("writes", range(5))
def test_an_operator_that_is_stopped_in_every_round_leaves_no_group_behind(writes: int) -> None:
    operation = start(COSCHEDULING)
    for _ in range(30):
        operation.round(writes=writes)
        operation.rounds(1)
    assert operation.until_finished().phase == "Complete"
    assert groups(operation) == {}


def test_a_running_gang_costs_no_request_for_its_group() -> None:
    operation = start(
        VOLCANO, lambda scene: Act(WorkerState.RUNNING, step=1) if scene.attempt else all_goes_well(scene)
    )
    operation.rounds(1)
    assert [ref.name for ref in pod_groups_to_look_up(operation.job, ())] == ["small.profilers"]
    operation.until(ConditionType.TRAINING)
    operation.rounds(2)
    made = tuple(operation.world.cluster.objects.values())
    assert pod_groups_to_look_up(operation.job, made) == ()
    operation.edit(suspend=True)
    assert [ref.name for ref in pod_groups_to_look_up(operation.job, made)] == ["small"]


def test_people_who_look_before_they_apply_see_the_groups() -> None:
    made = job(scheduled_by(VOLCANO))
    rendered = render_job(made, request(made), image=IMAGE, plan=PLAN)
    kinds = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered]
    assert kinds.index(("PodGroup", "job.profilers")) < kinds.index(("Job", profilers(made)["metadata"]["name"]))
    assert kinds.index(("PodGroup", "job")) < kinds.index(("StatefulSet", "job"))
