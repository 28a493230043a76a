"""Who may act: what one candidate knows of the Lease by which operators elect a leader. Pure; ``election`` acts on it.

No clocks of two machines are ever compared. A candidate takes over a Lease that has not changed for its duration by
the candidate's own clock; a leader counts its time from before the request that renewed the Lease, and gives up earlier
than anybody else may take over. All times are seconds of such an own clock that never jumps back.

Source: the rules of client-go's leader election (k8s.io/client-go/tools/leaderelection), except that a Lease that
vanishes ends its holder's leadership, and is made anew only when its time has passed for everybody who saw it.
"""

import math
from dataclasses import dataclass, replace

NOBODY = ""
"""Holder of a Lease that was released."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take in an election; the defaults are those of client-go.

    Attributes:
        lease_seconds: for which a Lease must not have changed before another candidate takes it; whole seconds on a
            real cluster.
        leading_seconds: for which a leader acts after a renewal. The rest of ``lease_seconds`` is for requests that
            are on their way when it ends.
        retry_seconds: between two looks at the Lease.

    Raises:
        ValueError: when a leader would have no time to renew, or another could act before it has ended.
    """

    lease_seconds: float = 15.0
    leading_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_seconds > self.leading_seconds > self.retry_seconds > 0:
            raise ValueError(f"{self} does not fall from top to bottom")


CLIENT_GO = Timing()
"""The timing of Kubernetes' own controllers."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A Lease object, as far as the election knows it.

    Attributes:
        holder: who leads, or :data:`NOBODY`.
        seconds: for which it lasts without a change.
        transitions: how often it went from one holder to another.
        acquired: when the holder got it, as the API server writes it; empty for now.
        version: its resource version; empty before it exists. What is written replaces this version and no other.
    """

    holder: str
    seconds: float
    transitions: int = 0
    acquired: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one process knows of the election; a process leads once at most.

    Attributes:
        me: name of the process, never used by another.
        timing: of the election.
        lease: as it was read last; None when there was none.
        free_at: from when on the candidate may take it, unless it changes before.
        leads_until: end of the candidate's own leadership; before the beginning of time while it has not led.
    """

    me: str
    timing: Timing = CLIENT_GO
    lease: Lease | None = None
    free_at: float = -math.inf
    leads_until: float = -math.inf

    def leads(self, now: float) -> bool:
        """Tell whether the process may act."""
        return now < self.leads_until

    def has_ended(self, now: float) -> bool:
        """Tell whether the process has led and must not act any more."""
        return -math.inf < self.leads_until <= now

    def saw(self, lease: Lease | None, *, now: float) -> "Candidate":
        """Take note of the Lease.

        Args:
            lease: that was read.
            now: after the answer, when the Lease was surely as it is.
        """
        before = self.lease
        is_mine = lease is not None and lease.holder == self.me
        leads_until = self.leads_until if is_mine else min(self.leads_until, now)
        if (lease and lease.version) == (before and before.version):
            free_at = self.free_at
        elif lease is None:
            # Deleted under its holder, who has not noticed yet.
            free_at = now + (before.seconds if before is not None else 0)
        else:
            free_at = now if lease.holder == NOBODY else now + lease.seconds
        return replace(self, lease=lease, free_at=free_at, leads_until=leads_until)

    def wanted(self, *, now: float) -> Lease | None:
        """Say what to write in place of the Lease that was read, or None to wait."""
        if self.has_ended(now):
            return None
        seconds = self.timing.lease_seconds
        if self.lease is not None and self.lease.holder == self.me:
            return replace(self.lease, seconds=seconds)
        if now < self.free_at:
            return None
        if self.lease is None:
            return Lease(self.me, seconds)
        return Lease(self.me, seconds, transitions=self.lease.transitions + 1, version=self.lease.version)

    def wrote(self, lease: Lease, *, sent: float) -> "Candidate":
        """Take note of a Lease that was written as wanted: the process leads.

        Args:
            lease: as the API server has stored it.
            sent: before the request: nobody can have seen this version of the Lease earlier.
        """
        return replace(self, lease=lease, leads_until=sent + self.timing.leading_seconds)

    def released(self, *, now: float) -> Lease | None:
        """Say what to write so that the next leader need not wait, or None when there is nothing to give back."""
        if self.lease is None or not self.leads(now):
            return None
        return replace(self.lease, holder=NOBODY)

    def pause_seconds(self, *, now: float) -> float:
        """Tell how long to wait before the next look: not beyond the moment at which the Lease is free."""
        until_free = self.free_at - now
        return until_free if 0 < until_free < self.timing.retry_seconds else self.timing.retry_seconds
