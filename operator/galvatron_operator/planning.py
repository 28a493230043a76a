"""Searches for plans in processes of their own: a search takes a core for seconds to minutes, and may have to be ended.

A search is a pure function of its problem: jobs that ask the same share an answer, and an operator that starts again
searches again.
"""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from galvatron_operator.decide import SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.reconcile import JobKey
from galvatron_planner.documents import Digest
from galvatron_planner.errors import GalvatronError, InvalidPlan, NoFeasiblePlan
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.fixed import price_fixed
from galvatron_planner.search.optimizer import search

log = logging.getLogger(__name__)

KEPT_ANSWERS = 64
"""Searches whose answers are kept for other jobs that ask the same: some 100 KiB each."""
_FINAL = frozenset({None, SearchProblem.NO_FEASIBLE_PLAN, SearchProblem.INVALID_PLAN})
"""What a search would say again."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a search process sends back; texts, because errors and documents travel best as such."""

    plan: str = ""
    report: str = ""
    problem: SearchProblem | None = None
    message: str = ""


@dataclass(slots=True)
class _Search:
    digest: Digest
    task: asyncio.Task[None]
    outcome: SearchOutcome | None = None


class SearchProcesses:
    """The port ``Searches`` for real; it lives on one event loop.

    A class because searches outlive the rounds that order them: it holds one task, then one outcome, for each job.
    """

    def __init__(self, *, when_done: Callable[[JobKey, SearchOutcome], None], num_processes: int = 1) -> None:
        """Make the port.

        Args:
            when_done: is told of every search that has ended.
            num_processes: searches at the same time; the others wait.
        """
        self._when_done = when_done
        self._slots = asyncio.Semaphore(num_processes)
        self._searches: dict[JobKey, _Search] = {}
        self._answers: dict[Digest, SearchOutcome] = {}

    def start(self, key: JobKey, order: SearchOrder) -> None:
        """Search for a job, unless this very search is going on or has ended; the job's former search is dropped."""
        digest = order.digest
        known = self._searches.get(key)
        if known is not None and known.digest == digest:
            return
        self.forget(key)
        task = asyncio.create_task(self._run(key, order))
        self._searches[key] = _Search(digest, task)

    def outcome(self, key: JobKey) -> SearchOutcome | None:
        """Tell how the job's search ended; None while it goes on."""
        known = self._searches.get(key)
        return known.outcome if known is not None else None

    def forget(self, key: JobKey) -> None:
        """Drop the job's search and its outcome."""
        known = self._searches.pop(key, None)
        if known is not None:
            known.task.cancel()

    async def stop(self) -> None:
        """End every search."""
        tasks = [search.task for search in self._searches.values()]
        for key in tuple(self._searches):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: JobKey, order: SearchOrder) -> None:
        try:
            # Another job may have got the answer while this one waited for its turn.
            async with self._slots:
                outcome = self._answers.get(order.digest) or await _outcome(order)
        except OSError as error:
            # Ordered again in the job's next round.
            log.warning("a search cannot start", extra={"job": str(key), "error": str(error)})
            del self._searches[key]
            return
        self._keep(outcome)
        self._searches[key].outcome = outcome
        log.info(
            "search ended", extra={"job": str(key), "seconds": round(outcome.seconds, 3), "problem": outcome.problem}
        )
        self._when_done(key, outcome)

    def _keep(self, outcome: SearchOutcome) -> None:
        if outcome.problem in _FINAL:
            self._answers[outcome.digest] = outcome
        if len(self._answers) > KEPT_ANSWERS:
            del self._answers[next(iter(self._answers))]


async def _outcome(order: SearchOrder) -> SearchOutcome:
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await _search_in_process(order)
    return SearchOutcome(
        digest=order.digest,
        seconds=loop.time() - started,
        algorithm=order.problem.limits.algorithm,
        plan=Plan.from_json(answer.plan) if answer.plan else None,
        report=answer.report,
        problem=answer.problem,
        message=answer.message,
    )


async def _search_in_process(order: SearchOrder) -> _Answer:
    # Spawned, not forked: a fork would copy the locks of the operator's threads.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    fixed_plan = "" if order.fixed_plan is None else order.fixed_plan.to_json()
    process = context.Process(target=_answer, args=(order.problem.to_json(), fixed_plan, sender), daemon=True)
    process.start()
    sender.close()
    try:
        async with asyncio.timeout(order.timeout_seconds):
            return await asyncio.to_thread(_receive, receiver, process)
    except TimeoutError:
        message = f"the search took longer than {order.timeout_seconds:.0f} s"
        remedy = "raise spec.search.timeoutSeconds, or exclude dimensions in spec.search.excludedDimensions"
        return _Answer(problem=SearchProblem.TIMED_OUT, message=f"{message}; {remedy}")
    finally:
        # Ends the receiving thread too: the other end of its pipe closes.
        process.kill()


def _receive(receiver: Connection, process: SpawnProcess) -> _Answer:
    with receiver:
        try:
            answer = receiver.recv()
        except EOFError:
            process.join()
            answer = None
    if isinstance(answer, _Answer):
        return answer
    code = process.exitcode or 0
    remedy = "give the operator more memory" if code < 0 else "read the operator's log and report it"
    problem = f"the search process ended with code {code} and without an answer"
    return _Answer(problem=SearchProblem.FAILED, message=f"{problem}; {remedy}")


def _answer(problem: str, fixed_plan: str, sender: Connection) -> None:
    """Search, in the process of its own."""
    with sender:
        plan = Plan.from_json(fixed_plan) if fixed_plan else None
        sender.send(_search(PlanningProblem.from_json(problem), plan))


def _search(problem: PlanningProblem, fixed_plan: Plan | None) -> _Answer:
    try:
        solution = search(problem) if fixed_plan is None else price_fixed(problem, fixed_plan)
    except NoFeasiblePlan as error:
        return _Answer(problem=SearchProblem.NO_FEASIBLE_PLAN, message=str(error))
    except InvalidPlan as error:
        return _Answer(problem=SearchProblem.INVALID_PLAN, message=str(error))
    except GalvatronError as error:
        return _Answer(problem=SearchProblem.FAILED, message=str(error))
    return _Answer(plan=solution.plan.to_json(), report=solution.report.to_json())
