"""The annotation ``galvatron.io/replan``: another plan for a job that trains, once for each value."""

import pytest

import builders
from fakes.operation import KEY, Operation, body, known, message, plans_while_stopped, reason
from fakes.world import Act, InstantSearches, Scene, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType, ReplanRequest, parse
from galvatron_operator.decide import Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.reconcile import JobKey
from galvatron_planner.worker import WorkerState


def trains_on(scene: Scene) -> Act:
    """Profilers come to an end, trainers of the first attempt never do."""
    if scene.component == names.COMPONENT_TRAINER and scene.attempt == 1:
        return Act(WorkerState.RUNNING, step=min(scene.age, 50))
    return all_goes_well(scene)


class ChangingSearches(InstantSearches):
    """Searches that find another plan, or none, from some search on."""

    def __init__(self, later: str | SearchProblem = "tp2-dp2") -> None:
        super().__init__()
        self._later = later
        self.asked = 0

    def start(self, key: JobKey, order: SearchOrder) -> None:
        self.asked += 1
        super().start(key, order)
        if self.asked == 1:
            return
        if isinstance(self._later, SearchProblem):
            self._outcomes[key] = SearchOutcome(order.digest, 1.0, problem=self._later, message="raise the budget")
            return
        plan = builders.plan(
            self._later,
            spec=order.problem.model,
            on=order.problem.cluster,
            global_batch_size=order.problem.batch.minimum,
        )
        self._outcomes[key] = SearchOutcome(order.digest, 1.0, plan=plan, report="{}")


def training(searches: InstantSearches | None = None, **spec: object) -> Operation:
    """A job that trains, whose operator has forgotten its first search."""
    operation = Operation(World(trains_on), searches or ChangingSearches())
    operation.create(body(**spec))
    operation.until(ConditionType.TRAINING)
    operation.searches.forget(KEY)
    return operation


def ask(operation: Operation, value: str = "1") -> None:
    operation.job["metadata"].setdefault("annotations", {})[names.ANNOTATION_REPLAN] = value


def plan_message(operation: Operation) -> str:
    return message(operation.status, ConditionType.PLAN_READY)


def test_a_job_trains_on_while_another_plan_is_searched() -> None:
    operation = training()
    ask(operation)
    operation.round()
    assert (known(operation).attempt, known(operation).replan_request) == (1, None)
    assert known(operation).is_true(ConditionType.TRAINING)
    assert known(operation).is_true(ConditionType.PLAN_READY)
    assert plan_message(operation).endswith("; annotation galvatron.io/replan: another plan is searched")


def test_another_plan_begins_another_attempt_that_counts_for_nothing() -> None:
    operation = training()
    ask(operation)
    status = operation.until_finished()
    assert (status.phase, status.attempt, status.restarts.total) == ("Complete", 2, 0)
    assert status.replan_request is not None
    assert (status.replan_request.value, status.replan_request.result) == ("1", "NewPlan")
    assert status.plan is not None
    assert "tp2-dp2" in status.plan.summary
    assert status.failures == ()
    events = [event["reason"] for event in operation.all_of(Kind.EVENT)]
    assert events.count("NewPlan") == 1


def test_trainers_of_the_former_plan_are_told_to_end_and_keep_their_attempt() -> None:
    # A greater number would end their ranks before these have saved.
    operation = training()
    ask(operation)
    while known(operation).attempt == 1:
        operation.round()
    operation.round()
    pods = operation.all_of(Kind.POD)
    assert len(pods) == 2
    assert {pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] for pod in pods} == {"1"}
    assert all("deletionTimestamp" in pod["metadata"] for pod in pods)


def test_a_job_of_a_queue_gets_a_new_stateful_set_for_its_new_plan() -> None:
    operation = Operation(World(trains_on), ChangingSearches())
    queued = body()
    queued["metadata"]["labels"] = {names.LABEL_QUEUE: "team-queue"}
    operation.create(queued)
    operation.until(ConditionType.TRAINING)
    operation.searches.forget(KEY)
    (before,) = operation.all_of(Kind.STATEFUL_SET)
    ask(operation)
    while known(operation).attempt == 1:
        operation.rounds(1)
    operation.rounds(4)
    (after,) = operation.all_of(Kind.STATEFUL_SET)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert operation.until_finished().attempt == 2


def test_the_same_plan_changes_nothing_and_is_told() -> None:
    operation = training(InstantSearches())
    ask(operation)
    operation.rounds(4)
    assert known(operation).attempt == 1
    assert known(operation).replan_request == ReplanRequest(
        value="1", result="SamePlan", message="the search finds the same plan, there is nothing to do"
    )
    assert plan_message(operation).endswith(
        "; annotation galvatron.io/replan: the search finds the same plan, there is nothing to do"
    )


def test_a_value_is_answered_once_and_a_new_one_again() -> None:
    searches = ChangingSearches("dp4")
    operation = training(searches)
    ask(operation)
    operation.rounds(6)
    assert searches.asked == 2
    ask(operation, "2")
    operation.searches.forget(KEY)
    operation.rounds(6)
    assert searches.asked == 3
    assert known(operation).attempt == 1
    answer = known(operation).replan_request
    assert answer is not None
    assert (answer.value, answer.result) == ("2", "SamePlan")


def test_a_plan_of_the_user_is_not_replaced_and_the_job_goes_on() -> None:
    operation = Operation(World(trains_on))
    operation.create(body(search={"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}}))
    wanted = parse(operation.job)
    operation.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "mine", "namespace": KEY.namespace},
            "data": {"plan.json": builders.plan("dp4", spec=wanted.model, on=wanted.cluster).to_json()},
        }
    )
    operation.until(ConditionType.TRAINING)
    ask(operation)
    operation.rounds(3)
    answer = known(operation).replan_request
    assert answer is not None
    assert (answer.result, known(operation).attempt) == ("ReplanRefused", 1)
    assert "spec.search.algorithm is Fixed" in plan_message(operation)
    assert known(operation).is_true(ConditionType.TRAINING)


def test_without_a_profile_the_job_goes_on_and_says_why() -> None:
    operation = training()
    for found in operation.all_of(Kind.CONFIG_MAP):
        if names.PROFILE_KEY in found["data"]:
            operation.world.cluster.remove((Kind.CONFIG_MAP, KEY.namespace, found["metadata"]["name"]))
    ask(operation)
    operation.rounds(2)
    answer = known(operation).replan_request
    assert answer is not None
    assert (answer.result, known(operation).attempt) == ("ReplanRefused", 1)
    assert "no profile is at hand" in answer.message


def test_a_search_without_a_plan_leaves_the_job_its_own() -> None:
    operation = training(ChangingSearches(SearchProblem.NO_FEASIBLE_PLAN))
    ask(operation)
    operation.rounds(4)
    answer = known(operation).replan_request
    assert answer is not None
    assert (answer.result, known(operation).attempt) == ("NoFeasiblePlan", 1)
    assert not known(operation).is_true(ConditionType.FAILED)
    assert reason(known(operation), ConditionType.PLAN_READY) == "PlanFound"


def test_a_lost_status_does_not_bring_the_former_plan_back() -> None:
    operation = training()
    ask(operation)
    while known(operation).attempt == 1:
        operation.rounds(1)
    operation.rounds(2)
    hash_ = known(operation).plan
    del operation.job["status"]
    operation.searches.forget(KEY)
    operation.round()
    after = known(operation).plan
    assert hash_ is not None
    assert after is not None
    assert after.hash == hash_.hash


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_replaces_the_plan_all_the_same(writes: int) -> None:
    operation = training()
    ask(operation)
    trained = plans_while_stopped(operation, writes=writes)
    assert all(len(hashes) == 1 for hashes in trained.values())
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert status.plan is not None
    assert "tp2-dp2" in status.plan.summary


def test_a_job_that_asks_from_the_start_trains_under_its_first_plan() -> None:
    operation = Operation(World(), InstantSearches())
    asking = body()
    asking["metadata"]["annotations"] = {names.ANNOTATION_REPLAN: "0"}
    operation.create(asking)
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 1)
