"""Single decisions, each a sentence: what is seen -> what is decided. Whole lives are in test_reconcile.py."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import builders
from fakes.operation import KEY, SETTINGS, body
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus, parse
from galvatron_operator.decide import (
    FORBIDDEN,
    Decision,
    Kind,
    Observed,
    SearchOutcome,
    SearchProblem,
    decide,
    hinder,
    profiles_to_look_up,
)
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.decide.restarting import back_off_seconds
from galvatron_operator.decide.situation import TRUE
from galvatron_operator.manifests import profiling, training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Forbidden
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import ProfileSource
from galvatron_planner.units import GIB

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(status: JobStatus | None = None, **spec: Any) -> Manifest:
    wanted = body(**spec)
    wanted["metadata"] |= {"uid": "u-1", "generation": 1, "resourceVersion": "1"}
    return wanted | ({"status": status.dump()} if status is not None else {})


def look(wanted: Manifest, *, now: datetime = NOW, **seen: Any) -> Decision:
    return decide(wanted, Observed(**seen), now=now, settings=SETTINGS)


def cached(wanted: Manifest, *, measured_at: datetime = NOW) -> Manifest:
    read = parse(wanted)
    measured = builders.profile(read.model, read.cluster)
    digest = request_of(read, SETTINGS).digest()
    return profiling.profile_config_map(
        "team", measured.model_copy(update={"request_digest": digest}), measured=measured_at
    )


def kept_plan(wanted: Manifest) -> Manifest:
    read = parse(wanted)
    plan = builders.plan("dp4", spec=read.model, on=read.cluster)
    return training.plan_config_map(read, plan, report="{}")


def reasons(decision: Decision) -> dict[ConditionType, str]:
    assert decision.status is not None
    return {condition.type: condition.reason for condition in decision.status.conditions}


def kinds(decision: Decision) -> list[str]:
    return [manifest["kind"] for manifest in decision.apply]


def test_a_new_job_has_every_condition_and_is_measured() -> None:
    decision = look(job())
    assert set(reasons(decision)) == set(ConditionType)
    assert reasons(decision)[ConditionType.ACCEPTED] == "Valid"
    assert reasons(decision)[ConditionType.PROFILE_READY] == "Profiling"
    assert kinds(decision) == ["ConfigMap", "Service", "Job"]
    assert decision.status is not None
    assert decision.status.phase == "Profiling"


def test_what_exists_already_is_not_applied_again() -> None:
    first = look(job())
    assert look(job(first.status), children=first.apply).apply == ()


def test_nothing_new_leaves_the_status_alone() -> None:
    first = look(job())
    second = look(job(first.status), children=first.apply, now=NOW + timedelta(seconds=30))
    assert second.status is None
    assert second.events == ()


def test_a_job_with_a_cached_profile_is_searched() -> None:
    decision = look(job(), cached_profiles=(cached(job()),))
    assert decision.apply == ()
    assert decision.search is not None
    assert reasons(decision)[ConditionType.PROFILE_READY] == "CacheHit"
    assert reasons(decision)[ConditionType.PLAN_READY] == "Searching"


def test_a_cached_profile_that_cannot_be_read_is_measured_again() -> None:
    broken = cached(job())
    broken["data"][names.PROFILE_KEY] = "{}"
    assert "Job" in kinds(look(job(), cached_profiles=(broken,)))


def test_a_job_that_is_never_measured_is_searched_by_data_sheets() -> None:
    wanted = job(profiling={"policy": "Never", "device": "cpu-core"})
    decision = look(wanted)
    assert decision.apply == ()
    assert decision.search is not None
    assert decision.search.problem.profile.source is ProfileSource.ANALYTIC
    assert reasons(decision)[ConditionType.PROFILE_READY] == "AnalyticModel"
    assert profiles_to_look_up(wanted, (), settings=SETTINGS) == ()


def test_the_links_of_a_job_that_is_never_measured_can_be_named() -> None:
    fast, slow = (
        look(job(profiling={"policy": "Never", "device": "cpu-core", "linkBetweenNodes": link})).search
        for link in ("infiniband-ndr", "ethernet-10g")
    )
    assert fast is not None
    assert slow is not None
    assert fast.problem.profile.links != slow.problem.profile.links


def test_jobs_on_other_nodes_share_no_profile() -> None:
    there = job(runtime={"nodeSelector": {"gpu": "h200"}})
    here, elsewhere = (profiles_to_look_up(wanted, (), settings=SETTINGS) for wanted in (job(), there))
    assert here != elsewhere
    assert "Job" in kinds(look(there, cached_profiles=(cached(job()),)))


def test_secrets_of_the_installation_come_after_those_of_the_job() -> None:
    settings = replace(SETTINGS, image_pull_secrets=("all", "own"))
    own = job(runtime={"imagePullSecrets": [{"name": "own"}, {"name": "mine"}]})
    trained = job(runtime=own["spec"]["runtime"])
    decisions = (
        decide(own, Observed(), now=NOW, settings=settings),
        decide(trained, Observed(children=(kept_plan(trained),)), now=NOW, settings=settings),
    )
    for decision, kind in zip(decisions, ("Job", "StatefulSet"), strict=True):
        [owner] = [one for one in decision.apply if one["kind"] == kind]
        secrets = [secret["name"] for secret in owner["spec"]["template"]["spec"]["imagePullSecrets"]]
        assert secrets == ["own", "mine", "all"]


def test_a_plan_that_was_found_is_kept_before_anything_rests_on_it() -> None:
    searched = look(job(), cached_profiles=(cached(job()),))
    assert searched.search is not None
    problem = searched.search.problem
    plan = builders.plan("dp4", spec=problem.model, on=problem.cluster)
    outcome = SearchOutcome(problem.digest(), 1.5, plan=plan, report="{}")
    decision = look(job(searched.status), cached_profiles=(cached(job()),), search=outcome)
    assert kinds(decision) == ["ConfigMap"]
    assert names.PLAN_KEY in decision.apply[0]["data"]
    assert decision.requeue_after_seconds == 0


def test_the_outcome_of_another_problem_is_not_used() -> None:
    outcome = SearchOutcome(builders.NO_DIGEST, 1.0, problem=SearchProblem.NO_FEASIBLE_PLAN, message="?")
    decision = look(job(), cached_profiles=(cached(job()),), search=outcome)
    assert decision.search is not None


@pytest.mark.parametrize("problem", list(SearchProblem))
def test_a_search_without_a_plan_fails_the_job_with_its_reason(problem: SearchProblem) -> None:
    order = look(job(), cached_profiles=(cached(job()),)).search
    assert order is not None
    outcome = SearchOutcome(order.problem.digest(), 1.0, problem=problem, message="too small; use 8 GPUs")
    decision = look(job(), cached_profiles=(cached(job()),), search=outcome)
    assert reasons(decision)[ConditionType.FAILED] == reasons(decision)[ConditionType.PLAN_READY] == problem
    assert reasons(decision)[ConditionType.COMPLETE] == "DidNotComplete"


def test_memory_that_is_kept_free_is_not_searched_and_is_named_where_it_lacks() -> None:
    budget = {"gpus": 4, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "4Gi", "memoryReservePercent": 25}
    wanted = job(budget=budget)
    order = look(wanted, cached_profiles=(cached(wanted),)).search
    assert order is not None
    assert order.problem.cluster.device_memory_bytes == 3 * GIB
    outcome = SearchOutcome(order.digest, 1.0, problem=SearchProblem.NO_FEASIBLE_PLAN, message="nothing fits")
    failed = look(wanted, cached_profiles=(cached(wanted),), search=outcome).status
    condition = failed.find(ConditionType.FAILED) if failed else None
    assert condition is not None
    assert condition.message == "nothing fits (25 % of spec.budget.memoryPerGPU stay free: memoryReservePercent)"


def test_a_plan_says_its_stages_and_the_strategies_of_its_layers() -> None:
    wanted = job()
    read = parse(wanted)
    plan = builders.plan("dp2 dp2 tp2", "tp2", spec=read.model, on=read.cluster)
    config_map = training.plan_config_map(read, plan, report="{}")
    status = look(wanted, children=(config_map,)).status
    told = status.plan if status else None
    assert told is not None
    assert told.pipeline is not None
    assert (told.pipeline.degree, told.pipeline.division, told.pipeline.schedule) == (2, (3, 1), "OneFOneB")
    assert [(group.layers, group.strategy) for group in told.layer_groups] == [("0-1", "dp2"), ("2-3", "tp2")]


def test_a_plan_says_what_its_training_costs() -> None:
    budget = {"gpus": 4, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "4Gi", "costPerGPUHour": "2.50"}
    training_ = {"globalBatchSize": {"value": 8}, "steps": 3600, "precision": "FP32"}
    for cost in (budget, {name: value for name, value in budget.items() if name != "costPerGPUHour"}):
        wanted = job(budget=cost, training=training_)
        plan = kept_plan(wanted)
        status = look(wanted, children=(plan,)).status
        assert status is not None
        assert status.plan is not None
        # By hand: every step is an hour of one device times 4 devices / 3600 steps an hour and second.
        hours = 4 * Plan.from_json(plan["data"][names.PLAN_KEY]).estimate.step_seconds
        assert status.plan.estimates.gpu_hours == f"{hours:.2f}"
        assert status.plan.estimates.cost == (f"{2.5 * hours:.2f}" if "costPerGPUHour" in cost else None)


FIXED = {"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}}


def brought(text: str, key: str = "plan.json") -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": "team"}} | {
        "data": {key: text}
    }


@pytest.mark.parametrize(
    ("config_map", "message"),
    [(None, "ConfigMap mine does not exist"), (brought("{}", key="other"), "ConfigMap mine has no key plan.json")],
)
def test_a_job_waits_for_the_plan_that_its_user_brings(config_map: Manifest | None, message: str) -> None:
    decision = look(job(search=FIXED), fixed_plan=config_map)
    assert reasons(decision)[ConditionType.PLAN_READY] == "FixedPlanMissing"
    assert decision.apply == ()
    assert decision.requeue_after_seconds is not None
    assert decision.requeue_after_seconds >= 10
    [event] = [event for event in decision.events if event.reason == "FixedPlanMissing"]
    assert event.message.startswith(message)
    assert "kubectl create configmap mine --from-file=plan.json=plan.json" in event.message


def test_a_plan_that_cannot_be_read_fails_the_job_before_anything_is_measured() -> None:
    decision = look(job(search=FIXED), fixed_plan=brought("{}"))
    assert reasons(decision)[ConditionType.FAILED] == reasons(decision)[ConditionType.PLAN_READY] == "InvalidPlan"
    assert decision.apply == ()


def test_the_plan_of_the_user_is_priced_and_another_one_in_its_place_anew() -> None:
    wanted = job(search=FIXED)
    read = parse(wanted)
    plans = [builders.plan(text, spec=read.model, on=read.cluster) for text in ("dp4", "tp4")]
    orders = [look(wanted, cached_profiles=(cached(wanted),), fixed_plan=brought(p.to_json())).search for p in plans]
    assert [order.fixed_plan for order in orders if order is not None] == plans
    first, second = (order.digest for order in orders if order is not None)
    assert first != second


def test_what_the_plan_of_the_user_needs_is_measured_without_being_asked_for() -> None:
    wanted = job(search=FIXED)
    read = parse(wanted)
    plan = builders.plan("sptp4", spec=read.model, on=read.cluster)
    request = request_of(read, SETTINGS, plan)
    assert (request_of(read, SETTINGS).sequence_degrees, request.sequence_degrees) == ((), (4,))
    decision = look(wanted, fixed_plan=brought(plan.to_json()))
    assert names.profiling_job(read.name, request.digest()) in {one["metadata"]["name"] for one in decision.apply}
    [known] = profiles_to_look_up(wanted, (), settings=SETTINGS, fixed_plan=brought(plan.to_json()))
    assert known.name == names.profile_config_map(request.digest())
    # What cannot be read is told by the decision.
    assert profiles_to_look_up(wanted, (), settings=SETTINGS, fixed_plan=brought("{}")) == ()


def test_a_kept_plan_of_the_user_is_announced_as_such() -> None:
    wanted = job(search=FIXED)
    decision = look(wanted, children=(kept_plan(wanted),))
    assert reasons(decision)[ConditionType.PLAN_READY] == "FixedPlan"


def test_a_job_with_a_plan_is_trained_under_attempt_one() -> None:
    decision = look(job(), children=(kept_plan(job()),))
    assert kinds(decision) == ["ConfigMap", "Service", "StatefulSet"]
    assert decision.apply[2]["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == "1"
    assert decision.status is not None
    assert decision.status.attempt == 1


def test_a_plan_stays_although_the_profile_behind_it_changes() -> None:
    decision = look(job(), children=(kept_plan(job()),), cached_profiles=())
    assert "Job" not in kinds(decision)
    assert profiles_to_look_up(job(), (kept_plan(job()),), settings=SETTINGS) == ()


def test_the_attempt_is_recovered_from_objects_when_the_status_is_lost() -> None:
    first = look(job(), children=(kept_plan(job()),))
    stateful_set = first.apply[2]
    stateful_set["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] = "7"
    decision = look(job(), children=(kept_plan(job()), stateful_set))
    assert decision.status is not None
    assert decision.status.attempt == 7


def pod(attempt: int, node_rank: int) -> Manifest:
    labels = names.job_labels(KEY.name, uid="u-1", component=names.COMPONENT_TRAINER)
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"small-{node_rank}",
            "namespace": KEY.namespace,
            "uid": f"p-{attempt}-{node_rank}",
            "labels": labels | {names.LABEL_POD_INDEX: str(node_rank)},
            "annotations": {names.ANNOTATION_ATTEMPT: str(attempt)},
        },
        "status": {"phase": "Running"},
    }


def test_pods_of_another_attempt_are_deleted_by_their_uid() -> None:
    first = look(job(), children=(kept_plan(job()),))
    assert first.status is not None
    second = first.status.model_copy(update={"attempt": 2})
    decision = look(job(second), children=(kept_plan(job()), *first.apply, pod(1, 0), pod(2, 1)))
    assert [(ref.kind, ref.uid) for ref in decision.delete] == [(Kind.POD, "p-1-0")]
    assert kinds(decision) == ["StatefulSet"]


def test_the_back_off_doubles_up_to_five_minutes_and_never_overflows() -> None:
    assert [back_off_seconds(number) for number in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert back_off_seconds(10**6) == 300


def test_profilers_that_are_seen_once_more_after_they_were_given_up_are_counted_once() -> None:
    first = look(job())
    evicted = pod(0, 0)
    evicted["metadata"]["labels"][names.LABEL_COMPONENT] = names.COMPONENT_PROFILER
    evicted["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    children = (*first.apply, evicted)
    second = look(job(first.status), children=children)
    assert second.status is not None
    third = look(job(second.status), children=children)
    assert third.status is not None
    fourth = look(job(third.status), children=children)
    # The Job is of a former attempt by then, although its restart comes at once.
    assert (third.status.restarts, fourth.status) == (second.status.restarts, None)
    assert third.status.restarts.without_progress == 1


def test_a_pod_is_lost_only_when_its_grace_period_has_long_been_over() -> None:
    first = look(job(), children=(kept_plan(job()),))
    assert first.status is not None
    ending = pod(1, 0)
    # Kubernetes writes the end of the grace period here: 60 s after somebody asked.
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    forced = job(first.status.model_copy(update={"attempt": 2}), failurePolicy={"forceDeleteLostPods": "AfterTimeout"})
    for seconds, expected in ((179, []), (180, ["p-1-0"])):
        decision = look(forced, children=(kept_plan(job()), ending), now=NOW + timedelta(seconds=seconds))
        assert [ref.uid for ref in decision.force_delete] == expected
        assert decision.delete == ()


def test_what_is_forbidden_is_told_by_the_condition_that_waits_for_it() -> None:
    error = Forbidden("no right", remedy="grant it")
    status = look(job(), children=(kept_plan(job()),)).status
    assert status is not None
    assert reasons(hinder(job(status), FORBIDDEN, error, now=NOW))[ConditionType.PODS_READY] == "Forbidden"
    ready = status.with_condition(ConditionType.PODS_READY, TRUE, "AllPodsReady", generation=1, now=NOW)
    assert hinder(job(ready), FORBIDDEN, error, now=NOW) == Decision()
    assert hinder(job(), FORBIDDEN, error, now=NOW) == Decision()


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    leaving = job()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert look(leaving) == Decision()


def test_a_misspelt_field_is_named_with_its_remedy() -> None:
    decision = look(job(budget={"gpu": 4}))
    assert decision.status is not None
    accepted = decision.status.find(ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.reason == "InvalidSpec"
    assert "spec.budget" in accepted.message


def test_a_finished_job_stays_finished_whatever_a_later_version_thinks_of_it() -> None:
    completed = look(job(execution="Plan"), children=(kept_plan(job()),)).status
    assert completed is not None
    assert completed.is_finished
    decision = look(job(completed, budget={"gpu": 4}))
    assert decision.status is None


def test_an_unreadable_status_ends_the_job_instead_of_training_it_again() -> None:
    foreign = job() | {"status": {"attempt": "many"}}
    decision = look(foreign, children=(kept_plan(job()),))
    assert reasons(decision)[ConditionType.FAILED] == "InvalidSpec"
    assert decision.apply == ()


def test_every_decision_can_be_written_down() -> None:
    decision = look(job())
    assert decision.status is not None
    assert JobStatus.model_validate_json(decision.status.model_dump_json(by_alias=True)) == decision.status
