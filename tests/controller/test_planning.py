"""Searches in processes of their own: they end with a plan, or with a problem that says what to do."""

import asyncio

import pytest

import builders
from galvatron_operator.decide import SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.planning import SearchProcesses
from galvatron_operator.reconcile import JobKey
from galvatron_planner.problem import PlanningProblem

pytestmark = pytest.mark.slow

KEY = JobKey("team", "small")
DEADLINE_SECONDS = 120.0


def problem(device_memory_bytes: int = 1 << 32) -> PlanningProblem:
    return builders.problem(on=builders.cluster(4, num_nodes=2, device_memory_bytes=device_memory_bytes))


async def search(order: SearchOrder) -> SearchOutcome:
    done = asyncio.Event()
    searches = SearchProcesses(when_done=lambda *_: done.set())
    searches.start(KEY, order)
    assert searches.outcome(KEY) is None
    async with asyncio.timeout(DEADLINE_SECONDS):
        await done.wait()
    outcome = searches.outcome(KEY)
    await searches.stop()
    assert outcome is not None
    return outcome


def test_a_search_ends_with_a_plan_for_its_problem() -> None:
    wanted = problem()
    outcome = asyncio.run(search(SearchOrder(wanted, timeout_seconds=DEADLINE_SECONDS)))
    assert outcome.problem is None
    assert outcome.plan is not None
    assert outcome.plan.problem_digest == outcome.digest == wanted.digest()
    assert outcome.report


def test_a_problem_without_a_plan_says_what_would_help() -> None:
    outcome = asyncio.run(search(SearchOrder(problem(device_memory_bytes=1 << 10), timeout_seconds=DEADLINE_SECONDS)))
    assert outcome.problem is SearchProblem.NO_FEASIBLE_PLAN
    assert outcome.plan is None
    assert outcome.message


def test_a_plan_that_is_brought_is_priced_or_refused() -> None:
    for plan, expected in ((builders.plan("tp4"), None), (builders.plan("dp4", spec=builders.model(num_layers=3)), 3)):
        order = SearchOrder(problem(), timeout_seconds=DEADLINE_SECONDS, fixed_plan=plan)
        outcome = asyncio.run(search(order))
        assert outcome.digest == order.digest
        assert outcome.problem is (None if expected is None else SearchProblem.INVALID_PLAN)
        assert outcome.plan is None or outcome.plan.stages == plan.stages


def test_a_search_is_ended_at_its_timeout() -> None:
    outcome = asyncio.run(search(SearchOrder(problem(), timeout_seconds=0.01)))
    assert outcome.problem is SearchProblem.TIMED_OUT
    assert "spec.search.timeoutSeconds" in outcome.message


def test_a_job_that_is_forgotten_has_no_search() -> None:
    async def scenario() -> None:
        told: list[JobKey] = []
        searches = SearchProcesses(when_done=lambda key, _: told.append(key))
        searches.start(KEY, SearchOrder(problem(), timeout_seconds=DEADLINE_SECONDS))
        await asyncio.sleep(0)
        searches.forget(KEY)
        assert searches.outcome(KEY) is None
        await searches.stop()
        assert told == []

    asyncio.run(scenario())


def test_jobs_that_ask_the_same_share_one_search() -> None:
    async def scenario() -> None:
        told: asyncio.Queue[JobKey] = asyncio.Queue()
        searches = SearchProcesses(when_done=lambda key, _: told.put_nowait(key))
        keys = [JobKey("team", f"job-{number}") for number in range(3)]
        for key in keys:
            searches.start(key, SearchOrder(problem(), timeout_seconds=DEADLINE_SECONDS))
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert {await told.get() for _ in keys} == set(keys)
        first, *others = (searches.outcome(key) for key in keys)
        assert first is not None
        assert all(other is first for other in others)
        await searches.stop()

    asyncio.run(scenario())
