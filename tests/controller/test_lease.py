"""At most one candidate leads at any moment, whatever requests and processes are delayed; and one leads soon."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

from fakes.lease import FakeLeases
from galvatron_operator.lease import CLIENT_GO, NOBODY, Candidate, Lease, Timing
from galvatron_operator.reconcile import ClusterError

HELD = Lease("other", seconds=15, transitions=3, acquired="then", version="7")


def test_the_first_candidate_makes_the_lease() -> None:
    assert Candidate("me").saw(None, now=0).wanted(now=0) == Lease("me", seconds=15)


def test_a_lease_that_does_not_change_is_free_after_its_own_duration() -> None:
    seen = Candidate("me").saw(replace(HELD, seconds=4), now=100).saw(replace(HELD, seconds=4), now=103)
    assert seen.wanted(now=103.9) is None
    assert seen.wanted(now=104) == Lease("me", seconds=15, transitions=4, version="7")


def test_a_lease_that_changes_is_waited_for_anew() -> None:
    seen = Candidate("me").saw(HELD, now=100).saw(replace(HELD, version="8"), now=114)
    assert seen.wanted(now=128.9) is None
    assert seen.wanted(now=129) is not None


def test_a_lease_that_was_given_back_is_free_at_once() -> None:
    assert Candidate("me").saw(replace(HELD, holder=NOBODY), now=5).wanted(now=5) is not None


def test_a_leader_counts_from_before_its_request() -> None:
    leader = Candidate("me").saw(None, now=100).wrote(Lease("me", 15, version="1"), sent=100)
    assert leader.leads(109.9)
    assert not leader.leads(110)
    assert leader.has_ended(110)


def test_a_leader_keeps_what_others_wrote_when_it_renews() -> None:
    mine = Lease("me", 15, transitions=4, acquired="then", version="8")
    leader = Candidate("me").wrote(mine, sent=100).saw(mine, now=102)
    assert leader.wanted(now=102) == mine


@pytest.mark.parametrize("found", [None, HELD], ids=["deleted", "taken"])
def test_a_leader_whose_lease_is_not_its_own_ends_at_once_and_for_good(found: Lease | None) -> None:
    ended = Candidate("me").wrote(Lease("me", 15, version="1"), sent=100).saw(found, now=102)
    assert not ended.leads(102)
    assert ended.has_ended(102)
    assert ended.wanted(now=1000) is None


def test_a_lease_that_was_deleted_is_made_anew_when_its_leader_must_have_ended() -> None:
    seen = Candidate("me").saw(HELD, now=100).saw(None, now=102).saw(None, now=104)
    assert seen.wanted(now=116.9) is None
    assert seen.wanted(now=117) == Lease("me", seconds=15)


def test_only_a_leader_gives_back() -> None:
    mine = Lease("me", 15, version="1")
    assert Candidate("me").wrote(mine, sent=0).released(now=9) == replace(mine, holder=NOBODY)
    assert Candidate("me").wrote(mine, sent=0).released(now=10) is None
    assert Candidate("me").saw(HELD, now=0).released(now=0) is None


def test_the_next_look_is_not_later_than_the_moment_at_which_the_lease_is_free() -> None:
    seen = Candidate("me").saw(HELD, now=100)
    assert seen.pause_seconds(now=100) == CLIENT_GO.retry_seconds
    assert seen.pause_seconds(now=114.5) == 0.5


@pytest.mark.parametrize("timing", [(15, 15, 2), (15, 10, 10), (15, 10, 0)])
def test_a_timing_without_reserve_is_refused(timing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="does not fall"):
        Timing(*timing)


class Died(Exception):
    """A process does nothing any more."""


@dataclass
class Process:
    """A candidate in simulated time, with a clock of its own; it is stopped and delayed as its script says.

    Attributes:
        name: of the process.
        clock: true seconds to seconds of its own clock.
        delays: true seconds of each request, each answer, and each time it is stopped; it dies at the end.
        num_writes: after which it stands down.
        died: when.
    """

    name: str
    clock: Callable[[float], float]
    delays: Iterable[float]
    num_writes: int = -1
    died: float = math.inf
    candidate: Candidate = field(init=False)

    def __post_init__(self) -> None:
        self.candidate = Candidate(self.name)
        self.delays = iter(self.delays)

    def leads(self, time: float) -> bool:
        return self.candidate.leads(self.clock(time))

    def live(self, leases: FakeLeases, time: Callable[[], float]) -> Iterator[float]:
        """Do what ``Election`` does, and yield the seconds until the next step."""
        while not self.candidate.has_ended(self.clock(time())):
            yield self._delay()
            lease = leases.read()
            yield self._delay()
            self.candidate = self.candidate.saw(lease, now=self.clock(time()))
            yield from self._write(leases, time)
            if self.num_writes == 0:
                yield from self._leave(leases, time)
                return
            yield self.candidate.pause_seconds(now=self.clock(time()))

    def _write(self, leases: FakeLeases, time: Callable[[], float]) -> Iterator[float]:
        sent = self.clock(time())
        wanted = self.candidate.wanted(now=sent)
        yield self._delay()
        if wanted is not None and (written := try_to_write(leases, wanted)) is not None:
            self.num_writes -= 1
            yield self._delay()
            self.candidate = self.candidate.wrote(written, sent=sent)

    def _leave(self, leases: FakeLeases, time: Callable[[], float]) -> Iterator[float]:
        released = self.candidate.released(now=self.clock(time()))
        self.candidate = Candidate(self.name)
        yield self._delay()
        if released is not None:
            try_to_write(leases, released)

    def _delay(self) -> float:
        for delay in self.delays:
            return delay
        raise Died


def try_to_write(leases: FakeLeases, lease: Lease) -> Lease | None:
    try:
        return leases.write(lease)
    except ClusterError:
        return None


def simulate(processes: list[Process], *, starts: list[float], seconds: float) -> Iterator[tuple[float, list[str]]]:
    """Run processes against one Lease, and yield after each step the true time and who leads."""
    leases, now = FakeLeases(), 0.0
    lives = [process.live(leases, lambda: now) for process in processes]
    due = list(zip(starts, range(len(lives)), strict=True))
    heapq.heapify(due)
    while due and now < seconds:
        now, index = heapq.heappop(due)
        try:
            heapq.heappush(due, (now + next(lives[index]), index))
        except (Died, StopIteration):
            processes[index].died = now
        yield now, [process.name for process in processes if process.leads(now)]


def steady(offset: float, rate: float) -> Callable[[float], float]:
    return lambda time: offset + rate * time


def troubled(chance: random.Random) -> Iterator[float]:
    """Delays of a process that is mostly quick, is stopped now and then, and dies in the end."""
    for _ in range(chance.randint(5, 200)):
        yield chance.choice((0, 0.1, 0.3, 2 * chance.random(), 12 * chance.random(), 20 * chance.random()))


@settings(max_examples=500)
@given(generate.integers(0, 2**32), generate.integers(2, 4))
def test_never_do_two_lead_whatever_is_delayed_and_however_clocks_go(seed: int, number: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- reproducible, no secret
    processes = [
        Process(
            f"process-{index}",
            steady(chance.uniform(-1e3, 1e3), chance.uniform(0.9, 1.1)),
            troubled(chance),
            num_writes=chance.choice((-1, chance.randint(1, 9))),
        )
        for index in range(3 * number)
    ]
    # The later ones take the places of those that have ended.
    starts = [chance.uniform(0, 20) + 100 * (index // number) for index in range(len(processes))]
    for time, leaders in simulate(processes, starts=starts, seconds=600):
        assert len(leaders) <= 1, f"at {time}: {leaders}"


@given(generate.integers(4, 60), generate.floats(0, 0.3), generate.floats(0, 2))
def test_another_leads_within_20_seconds_of_a_leaders_death(steps: int, request: float, start: float) -> None:
    dies = Process("dies", steady(0, 1), itertools.repeat(request, steps))
    stands_by = Process("stands-by", steady(500, 1), itertools.repeat(request))
    times = simulate([dies, stands_by], starts=[0, 1 + start], seconds=500)
    taken = next(time for time, leaders in times if leaders == ["stands-by"])
    assert 10 < taken - dies.died < 20


@given(generate.floats(0, 0.3))
def test_another_leads_within_4_seconds_when_the_leader_gives_back(request: float) -> None:
    leaves = Process("leaves", steady(0, 1), itertools.repeat(request), num_writes=5)
    stands_by = Process("stands-by", steady(500, 1), itertools.repeat(request))
    times = simulate([leaves, stands_by], starts=[0, 1], seconds=500)
    taken = next(time for time, leaders in times if leaders == ["stands-by"])
    assert taken - leaves.died < 4
