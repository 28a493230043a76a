"""Keeps one process in the election of the leader: two threads around :mod:`galvatron_operator.lease`.

Threads of their own, because the event loop may be busy for longer than a Lease lasts. One seeks and renews the Lease;
the other only watches the time, because a request of the first may hang. Neither is what makes it safe, since the whole
process may have been stopped for a while: :meth:`Election.check` reads the clock before each write.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from galvatron_operator.lease import CLIENT_GO, NOBODY, Candidate, Lease, Timing
from galvatron_operator.reconcile import ClusterError, NotLeading

log = logging.getLogger(__name__)

WATCHES_PER_RETRY = 8


class Leases(Protocol):
    """The one Lease of an election; both methods block and raise :class:`ClusterError`."""

    def read(self) -> Lease | None:
        """Read the Lease; None when there is none."""

    def write(self, lease: Lease) -> Lease:
        """Replace the version that ``lease`` names, or create the Lease; ``Conflict`` when another was faster."""


class Election:
    """One candidate, from :meth:`start` to :meth:`leave`.

    A class because its threads, the guard of all writes, probes and metrics look at the same candidate.
    """

    def __init__(self, leases: Leases, me: str, *, when_lost: Callable[[], None], timing: Timing = CLIENT_GO) -> None:
        """Make a candidate that does not run yet.

        Args:
            leases: where the Lease is.
            me: name of this process, never used by another.
            when_lost: ends the process at once; called in a thread of the election.
            timing: of the election.
        """
        self._leases = leases
        self._when_lost = when_lost
        self._candidate = Candidate(me, timing)
        self._looked_at = -math.inf
        self._left = threading.Event()
        self._threads = [
            threading.Thread(target=self._seek, name="lease", daemon=True),
            threading.Thread(target=self._watch, name="lease-watch", daemon=True),
        ]

    def start(self) -> None:
        """Seek the Lease from now on, and keep it."""
        for thread in self._threads:
            thread.start()

    def leads(self) -> bool:
        """Tell whether this process may act at this moment."""
        return self._candidate.leads(time.monotonic())

    def check(self) -> None:
        """Let a write pass only while this process leads.

        Raises:
            NotLeading: when its time has ended, whether or not anybody has noticed.
        """
        if not self.leads():
            raise NotLeading("this operator does not lead", remedy="leave the job to the operator that holds the Lease")

    def check_heartbeat(self) -> None:
        """Tell whether this process takes part.

        Raises:
            RuntimeError: when it could not do so for as long as a Lease lasts, or has not done so yet.
        """
        seconds = time.monotonic() - self._looked_at
        if seconds > self._candidate.timing.lease_seconds:
            raise RuntimeError(f"the lease was neither read nor written for {seconds:.0f} s")

    def leave(self) -> None:
        """Stand down and let another candidate follow at once; nothing of this process may be acting any more."""
        self._left.set()
        for thread in self._threads:
            thread.join()
        released = self._candidate.released(now=time.monotonic())
        if released is None:
            return
        try:
            self._leases.write(released)
        except ClusterError as error:
            log.warning("the lease is not released and has to expire", extra={"error": str(error)})
        else:
            log.info("the lease is released")

    def _seek(self) -> None:
        while not self._left.is_set():
            try:
                self._look()
            except ClusterError as error:
                log.warning("the lease is neither read nor written", extra={"leads": self.leads(), "error": str(error)})
            self._left.wait(self._candidate.pause_seconds(now=time.monotonic()))

    def _look(self) -> None:
        """Read the Lease once, and write it where that is this candidate's turn."""
        lease = self._leases.read()
        self._say_who_leads(lease)
        self._candidate = self._candidate.saw(lease, now=time.monotonic())
        sent = time.monotonic()
        wanted = self._candidate.wanted(now=sent)
        if wanted is not None:
            written = self._leases.write(wanted)
            if not self.leads():
                log.info("this operator leads", extra={"operator": written.holder, "transitions": written.transitions})
            self._candidate = self._candidate.wrote(written, sent=sent)
        self._looked_at = time.monotonic()

    def _say_who_leads(self, lease: Lease | None) -> None:
        known = self._candidate.lease.holder if self._candidate.lease is not None else NOBODY
        if lease is not None and lease.holder not in (known, self._candidate.me, NOBODY):
            log.info("another operator leads", extra={"operator": lease.holder})

    def _watch(self) -> None:
        """Call the leader's end when it comes, whatever the other thread waits for."""
        while not self._left.wait(self._candidate.timing.retry_seconds / WATCHES_PER_RETRY):
            if self._candidate.has_ended(time.monotonic()):
                self._when_lost()
                return
