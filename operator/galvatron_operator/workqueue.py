"""A queue of keys that are worked on until nothing is left to do for them; it knows nothing of jobs.

A key is worked on by one worker at a time, however often it is added; what is added while it is being worked on makes
one more round. Failures come back with exponential back-off, and work may ask to see its key again later, so that
deadlines and polls need no timers of their own.
"""

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

MOST_UNTRUE = 8
"""Entries of the order for each key that waits, before those that are no longer true are dropped."""

Key = TypeVar("Key")


class TryAgain(Exception):
    """Work on a key failed and shall be repeated after a back-off; anything else that work raises ends the queue."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between failures of one key: ``first_seconds``, doubling, at most ``longest_seconds``."""

    first_seconds: float = 1.0
    longest_seconds: float = 300.0

    def delay_seconds(self, num_failures: int) -> float:
        """Tell how long to wait after the ``num_failures``-th failure in a row, counted from 1."""
        # Beyond 2**32 doublings make no difference, and float overflow would.
        return min(self.first_seconds * 2.0 ** min(num_failures - 1, 32), self.longest_seconds)


class WorkQueue(Generic[Key]):
    """Keys with the time at which each is due.

    A class because the queue is state shared by whoever adds keys and the workers; all of it lives on one event loop.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        *,
        num_workers: int = 16,
        backoff: Backoff = Backoff(),
        waited: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Make a queue; nothing runs before :meth:`run`.

        Args:
            work: works on a key; returns the seconds after which to see it again, or None for not before it is added.
            num_workers: keys worked on at the same time; they mostly wait for answers.
            backoff: delays after :class:`TryAgain`.
            waited: is told for how many seconds a key was due before a worker took it.
        """
        self._work = work
        self._num_workers = num_workers
        self._backoff = backoff
        self._waited = waited
        self._due: dict[Key, float] = {}
        # A heap of keys that nobody works on; an entry that is no longer true stays until it is met.
        self._order: list[tuple[float, int, Key]] = []
        self._count = itertools.count()
        self._started: dict[Key, float] = {}
        self._num_failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._running = False

    def add(self, key: Key, *, after_seconds: float = 0.0) -> None:
        """Ask for work on ``key``; the earliest of several requests counts."""
        due = time.monotonic() + after_seconds
        if due < self._due.get(key, math.inf):
            self._due[key] = due
            self._line_up(key)

    async def run(self) -> None:
        """Work until cancelled, or until work raises something other than :class:`TryAgain`."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._num_workers):
                    workers.create_task(self._run_worker())
        finally:
            self._running = False

    @property
    def depth(self) -> int:
        """Number of keys that are due now and wait for a worker."""
        now = time.monotonic()
        # A copy: metrics ask from a thread of their own.
        return sum(due <= now and key not in self._started for key, due in tuple(self._due.items()))

    def stuck_seconds(self) -> float | None:
        """Tell for how long the longest round has been going on, or None when the queue does not run."""
        if not self._running:
            return None
        now = time.monotonic()
        return max((now - started for started in self._started.values()), default=0.0)

    async def _run_worker(self) -> None:
        while True:
            key = await self._take()
            try:
                after_seconds = await self._work(key)
            except TryAgain as error:
                after_seconds = self._count_failure(key, error)
            else:
                self._num_failures.pop(key, None)
            finally:
                del self._started[key]
            self._line_up(key)
            if after_seconds is not None:
                self.add(key, after_seconds=after_seconds)

    def _line_up(self, key: Key) -> None:
        """Let workers see a key, if it is due some time and nobody works on it."""
        if key in self._due and key not in self._started:
            heapq.heappush(self._order, (self._due[key], next(self._count), key))
            self._changed.set()
        if len(self._order) > MOST_UNTRUE * (len(self._due) + 1):
            # A job that waits for days and changes meanwhile leaves an entry with every change.
            true = [(due, next(self._count), key) for key, due in self._due.items() if key not in self._started]
            self._order = true
            heapq.heapify(self._order)

    async def _take(self) -> Key:
        """Wait for the key that has been due for longest, and mark it as being worked on."""
        while True:
            # Nothing is awaited between clearing and waiting, so no change goes unseen.
            self._changed.clear()
            due, key = self._first()
            now = time.monotonic()
            if key is not None and due <= now:
                del self._due[key]
                self._started[key] = now
                self._waited(now - due)
                return key
            await self._wait_for_change(until=None if key is None else due)

    def _first(self) -> tuple[float, Key | None]:
        """Find the key that is due first."""
        while self._order:
            due, _, key = self._order[0]
            if self._due.get(key) == due and key not in self._started:
                return due, key
            heapq.heappop(self._order)
        return math.inf, None

    async def _wait_for_change(self, *, until: float | None) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._changed.wait()
        except TimeoutError:
            return

    def _count_failure(self, key: Key, error: TryAgain) -> float:
        num_failures = self._num_failures[key] = self._num_failures.get(key, 0) + 1
        delay_seconds = self._backoff.delay_seconds(num_failures)
        log.warning(
            "work failed and will be repeated",
            extra={"key": str(key), "failures": num_failures, "delay_seconds": delay_seconds, "error": str(error)},
        )
        return delay_seconds
