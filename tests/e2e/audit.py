"""Who wrote what and when, as the test cluster's API server has it in its audit log."""

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

LOG = Path("/var/lib/galvatron-test-cluster/logs/audit.log")


@dataclass(frozen=True, slots=True)
class Write:
    """One request of an operator that changes something.

    Attributes:
        time: seconds since the epoch at which it was received.
        address: of the pod that sent it.
        resource: what it is about, such as ``configmaps``.
    """

    time: float
    address: str
    resource: str


def writes(*, since: float) -> tuple[Write, ...]:
    """Every write of any operator, those to Leases aside, by time."""
    found = (_write(json.loads(line)) for line in LOG.read_text().splitlines())
    return tuple(sorted((w for w in found if w.time >= since and w.resource != "leases"), key=lambda w: w.time))


def turns(of: tuple[Write, ...]) -> tuple[str, ...]:
    """Addresses in the order in which they wrote, each as often as its turn came."""
    return tuple(address for address, _ in groupby(write.address for write in of))


def time_of(text: str) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it."""
    return datetime.fromisoformat(text).timestamp()


def _write(entry: dict[str, object]) -> Write:
    match entry:
        case {
            "requestReceivedTimestamp": str(time),
            "sourceIPs": [str(address), *_],
            "objectRef": {"resource": str(resource)},
        }:
            return Write(time_of(time), address, resource)
        case _:
            raise AssertionError(f"not an entry on a write: {entry}")
