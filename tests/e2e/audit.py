"""Which operator asked for what and when, as the test cluster's API server has it in its audit log."""

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

LOG = Path("/var/lib/galvatron-test-cluster/logs/audit.log")


@dataclass(frozen=True, slots=True)
class Request:
    """One request of an operator.

    Attributes:
        time: seconds since the epoch at which it was received.
        verb: such as ``patch``.
        address: of the pod that sent it.
        resource: what it is about, such as ``configmaps``.
        name: of the object; empty for lists.
        code: of the answer, as HTTP has it.
    """

    time: float
    verb: str
    address: str
    resource: str
    name: str
    code: int


CREATED = 201
READING = ("get", "list", "watch")


def requests(*, since: float) -> tuple[Request, ...]:
    """Every request of any operator, by time."""
    with LOG.open() as lines:
        found = [_request(json.loads(line)) for line in lines]
    return tuple(sorted((one for one in found if one.time >= since), key=lambda one: one.time))


def writes(*, since: float) -> tuple[Request, ...]:
    """Every request of any operator that changes something, those to Leases aside, by time."""
    return tuple(one for one in requests(since=since) if one.verb not in READING and one.resource != "leases")


def creations(*, since: float, name_begins: str) -> tuple[str, ...]:
    """Objects that operators have created, events aside, as ``resource/name``: twice what was created twice."""
    made = (one for one in writes(since=since) if one.code == CREATED and one.resource != "events")
    return tuple(f"{one.resource}/{one.name}" for one in made if one.name.startswith(name_begins))


def turns(of: tuple[Request, ...]) -> tuple[str, ...]:
    """Addresses in the order in which they wrote, each as often as its turn came."""
    return tuple(address for address, _ in groupby(write.address for write in of))


def time_of(text: str) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it."""
    return datetime.fromisoformat(text).timestamp()


def _request(entry: dict[str, Any]) -> Request:
    """Read an entry; requests that discover what there is are about no resource."""
    about = entry.get("objectRef", {})
    return Request(
        time=time_of(entry["requestReceivedTimestamp"]),
        verb=entry["verb"],
        address=entry["sourceIPs"][0],
        resource=about.get("resource", ""),
        name=about.get("name", ""),
        code=entry.get("responseStatus", {}).get("code", 0),
    )
