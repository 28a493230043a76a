"""The Lease of an election in memory, as several processes share it; it passes the real one's contract tests."""

import threading
from dataclasses import replace

from galvatron_operator.lease import Lease
from galvatron_operator.reconcile import Conflict, NotFound, Unreachable


class FakeLeases:
    """The port ``Leases`` in memory.

    Attributes:
        lease: as it is.
        is_away: whether the API server answers nothing.
        answers: cleared, requests hang.
    """

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.is_away = False
        self.answers = threading.Event()
        self.answers.set()
        self._version = 0
        self._one_at_a_time = threading.Lock()

    def read(self) -> Lease | None:
        self._reach()
        return self.lease

    def write(self, lease: Lease) -> Lease:
        self._reach()
        with self._one_at_a_time:
            if lease.version and self.lease is None:
                raise NotFound("there is no lease", remedy="create it")
            if lease.version != (self.lease.version if self.lease is not None else ""):
                raise Conflict("the lease has changed", remedy="read it again")
            self._version += 1
            self.lease = replace(lease, acquired=lease.acquired or "now", version=str(self._version))
            return self.lease

    def _reach(self) -> None:
        self.answers.wait(timeout=30)
        if self.is_away:
            raise Unreachable("the API server is away", remedy="wait")
