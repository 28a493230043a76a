"""Kills the operator at moments that a seed chooses, in ways that leave it no time to say goodbye."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e.installation import RELEASE
from e2e.kubectl import Kubectl
from e2e.processes import first_process

LEASE = f"{RELEASE}-operator"
LONGEST_LIFE_SECONDS = 8.0
"""Of an operator after it has begun to lead; profiling, planning and starting each take a few."""


@dataclass(slots=True)
class Killer:
    """Ends one operator after another.

    A class because it remembers whom it has killed, and when the next one's time has come.

    Attributes:
        operator: the operator's namespace.
        chance: where moments and ways come from.
        kills: how many operators shall die.
        deaths: those that have, as lines for people.
    """

    operator: Kubectl
    chance: random.Random
    kills: int
    deaths: list[str] = field(default_factory=list)
    _killed: set[str] = field(default_factory=set)
    _leader: str = ""
    _end: float = 0.0

    def look(self) -> None:
        """Find out who leads, and kill it if its time has come."""
        if len(self.deaths) == self.kills:
            return
        lease = self.operator.get("lease", LEASE) or {}
        holder = lease.get("spec", {}).get("holderIdentity") or ""
        if not holder or holder in self._killed:
            return
        if holder != self._leader:
            self._leader = holder
            self._end = time.monotonic() + self.chance.uniform(0, LONGEST_LIFE_SECONDS)
        if time.monotonic() >= self._end:
            way = self.chance.choice(WAYS)
            way(self.operator, holder.rpartition("_")[0])
            self._killed.add(holder)
            self.deaths.append(f"{holder} by {way.__name__}")


def delete_pod(operator: Kubectl, pod: str) -> None:
    """Let the pod vanish: another one begins, on this node or another."""
    operator("delete", "pod", pod, "--grace-period=0", "--force")


def kill_process(operator: Kubectl, pod: str) -> None:
    """Let the process vanish: its container begins again in the same pod."""
    os.kill(first_process(operator.get("pod", pod) or {}), signal.SIGKILL)


WAYS: tuple[Callable[[Kubectl, str], None], ...] = (
    (delete_pod,) if os.environ.get("GALVATRON_KUBECONFIG") else (delete_pod, kill_process)
)
"""Processes are out of reach in a cluster of one's own."""
