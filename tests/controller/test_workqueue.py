"""The work queue: what is added gets done, once at a time, and failures come back later and later."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from galvatron_operator.workqueue import Backoff, TryAgain, WorkQueue

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.004)
DEADLINE_SECONDS = 5.0


async def run_until(queue: WorkQueue[str], done: asyncio.Event) -> None:
    """Run the queue until ``done``, at most for the deadline."""
    running = asyncio.create_task(queue.run())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await done.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def drive(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    async def scenario() -> None:
        seen: list[str] = []
        done = asyncio.Event()

        async def work(key: str) -> None:
            seen.append(key)
            if key == "last":
                done.set()

        queue = WorkQueue(work, num_workers=1)
        for key in ("first", "first", "first", "last"):
            queue.add(key)
        await run_until(queue, done)
        assert seen == ["first", "last"]

    drive(scenario)


def test_a_key_added_while_it_is_worked_on_makes_one_more_round() -> None:
    async def scenario() -> None:
        rounds: list[str] = []
        at_once: list[int] = []
        done = asyncio.Event()

        async def work(key: str) -> None:
            at_once.append(1)
            assert len(at_once) == 1, "the same key is worked on twice at the same time"
            rounds.append(key)
            if len(rounds) == 1:
                queue.add(key)
                queue.add(key)
            await asyncio.sleep(0)
            at_once.pop()
            if len(rounds) == 2:
                done.set()

        queue = WorkQueue(work, num_workers=3)
        queue.add("job")
        await run_until(queue, done)
        assert rounds == ["job", "job"]

    drive(scenario)


def test_different_keys_are_worked_on_at_the_same_time() -> None:
    async def scenario() -> None:
        both = asyncio.Barrier(2)
        done = asyncio.Event()

        async def work(_key: str) -> None:
            await both.wait()
            done.set()

        queue = WorkQueue(work, num_workers=2)
        queue.add("one")
        queue.add("two")
        await run_until(queue, done)

    drive(scenario)


def test_work_that_asks_to_see_its_key_again_does() -> None:
    async def scenario() -> None:
        rounds: list[str] = []
        done = asyncio.Event()

        async def work(key: str) -> float | None:
            rounds.append(key)
            if len(rounds) == 3:
                done.set()
                return None
            return 0.001

        queue = WorkQueue(work)
        queue.add("job")
        await run_until(queue, done)
        assert rounds == ["job"] * 3

    drive(scenario)


def test_an_earlier_request_beats_a_later_one() -> None:
    async def scenario() -> None:
        done = asyncio.Event()

        async def work(_key: str) -> None:
            done.set()

        queue = WorkQueue(work)
        queue.add("job", after_seconds=3600)
        queue.add("job")
        await run_until(queue, done)

    drive(scenario)


def test_failed_work_is_repeated_until_it_succeeds() -> None:
    async def scenario() -> None:
        rounds: list[str] = []
        done = asyncio.Event()

        async def work(key: str) -> None:
            rounds.append(key)
            if len(rounds) < 4:
                raise TryAgain("not yet")
            done.set()

        queue = WorkQueue(work, backoff=QUICK)
        queue.add("job")
        await run_until(queue, done)
        assert len(rounds) == 4

    drive(scenario)


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_seconds=1.0, longest_seconds=5.0)
    # By hand: 1, 2, 4, then 8 is cut to 5.
    assert [backoff.delay_seconds(n) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_an_unknown_failure_ends_the_queue() -> None:
    async def scenario() -> None:
        async def work(key: str) -> None:
            raise KeyError(key)

        queue = WorkQueue(work)
        queue.add("job")
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(ExceptionGroup, match="unhandled errors"):
                await queue.run()
        assert queue.stuck_seconds() is None

    drive(scenario)


def test_the_depth_counts_what_is_due_and_waits() -> None:
    async def scenario() -> None:
        async def work(_key: str) -> None:
            return None

        queue = WorkQueue(work)
        queue.add("now")
        queue.add("later", after_seconds=3600)
        assert queue.depth == 1

    drive(scenario)


def test_a_running_queue_without_work_is_not_stuck() -> None:
    async def scenario() -> None:
        done = asyncio.Event()
        stuck: list[float | None] = []

        async def work(_key: str) -> None:
            stuck.append(queue.stuck_seconds())
            done.set()

        queue = WorkQueue(work)
        queue.add("job")
        assert queue.stuck_seconds() is None
        await run_until(queue, done)
        assert stuck[0] is not None
        assert stuck[0] < DEADLINE_SECONDS

    drive(scenario)


def test_the_time_for_which_a_key_was_due_is_told() -> None:
    async def scenario() -> None:
        waits: list[float] = []
        done = asyncio.Event()

        async def work(key: str) -> None:
            if key == "first":
                await asyncio.sleep(0.05)
            else:
                done.set()

        queue = WorkQueue(work, num_workers=1, waited=waits.append)
        queue.add("first")
        queue.add("second")
        await run_until(queue, done)
        assert waits[0] < 0.05 <= waits[1]

    drive(scenario)


def test_keys_are_taken_in_the_order_in_which_they_fell_due() -> None:
    async def scenario() -> None:
        seen: list[str] = []
        done = asyncio.Event()

        async def work(key: str) -> None:
            seen.append(key)
            if len(seen) == 4:
                done.set()

        queue = WorkQueue(work, num_workers=1)
        for key, after_seconds in (("third", 0.02), ("fourth", 0.03), ("first", 5.0), ("second", 0.01)):
            queue.add(key, after_seconds=after_seconds)
        queue.add("first")
        await run_until(queue, done)
        assert seen == ["first", "second", "third", "fourth"]

    drive(scenario)


def test_a_key_that_waits_for_long_and_changes_often_takes_no_more_room() -> None:
    async def scenario() -> None:
        rounds: list[str] = []
        done = asyncio.Event()

        async def work(key: str) -> float:
            rounds.append(key)
            if len(rounds) == 200:
                done.set()
            else:
                queue.add(key)
            return 3600.0

        queue = WorkQueue(work)
        queue.add("job")
        await run_until(queue, done)
        assert len(queue._order) < 20

    drive(scenario)
