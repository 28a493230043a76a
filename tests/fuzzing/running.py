"""What becomes of a job that may be anything: refused, not accepted, or worked on until nothing more happens."""

import asyncio
import copy
from dataclasses import dataclass
from enum import StrEnum

from controller.bodies import Body
from fakes.operation import Operation, Stopped, StoppingCluster
from fakes.world import World
from fuzzing.schema import OBJECT, STATUS, as_received, refusals, with_defaults
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.decide import POD_GROUPS, Kind
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import JobKey, Ports, reconcile

MAX_ROUNDS = 60
"""Of a job: measuring, planning, starting and training take the fake world some fifteen."""
QUIET_ROUNDS = 8
"""Without a change, after which a job waits for somebody else; longer than anything takes in the fake world."""


class Verdict(StrEnum):
    """What became of a job."""

    REFUSED = "refused by the schema"
    NOT_ACCEPTED = "Accepted=False"
    COMPLETE = "Complete"
    FAILED = "Failed otherwise"
    WAITING = "waits"
    NOT_OURS = "left to another controller"
    DELETED = "deleted after its time to live"


@dataclass(frozen=True, slots=True)
class End:
    """How it ended: the verdict, the rounds that it took, and what the operator says."""

    verdict: Verdict
    rounds: int = 0
    reason: str = ""
    message: str = ""


class Endless(AssertionError):
    """A job about which the operator does not come to rest."""


def run(body: Body) -> End:
    """Give a job to the API server and the operator, in memory, and let time pass until nothing more happens.

    Raises:
        Endless: when something goes on happening.
        AssertionError: when a status is written that the CRD does not allow.
    """
    written = as_received(body, OBJECT)
    if any(refusals(written, OBJECT, "")):
        return End(Verdict.REFUSED)
    key = JobKey(body["metadata"]["namespace"], body["metadata"]["name"])
    stored = with_defaults(written, OBJECT) | {"metadata": {"namespace": key.namespace, "name": key.name}}
    operation = Operation(World(), key=key)
    operation.world.cluster.installed = set(POD_GROUPS)
    operation.create(stored)
    rounds = _until_quiet(operation)
    _check_silence(operation)
    return _end(operation, rounds)


def _until_quiet(operation: Operation) -> int:
    quiet, before = 0, _objects(operation)
    for number in range(1, MAX_ROUNDS + 1):
        operation.rounds(1)
        _check_status(operation)
        after = _objects(operation)
        quiet = quiet + 1 if after == before else 0
        if quiet == QUIET_ROUNDS:
            return number - QUIET_ROUNDS
        before = after
    raise Endless(f"something happens in each of {MAX_ROUNDS} rounds; {_status(operation)}")


def _check_silence(operation: Operation) -> None:
    """Run a round without news; it may not even write what is written already."""
    ports = Ports(StoppingCluster(operation.world.cluster, writes=0), operation.world, operation.searches)
    try:
        asyncio.run(reconcile(operation.key, ports, settings=operation.settings, now=operation.world.now))
    except Stopped as error:
        raise Endless(f"the operator writes without news; {_status(operation)}") from error


def _objects(operation: Operation) -> dict[tuple[Kind, str, str], Manifest]:
    """Everything that anybody has written; what kubelets say of running pods is not among it."""
    found = operation.world.cluster.objects
    return {key: copy.deepcopy(one) for key, one in found.items() if key[0] is not Kind.POD}


def _check_status(operation: Operation) -> None:
    written = operation.world.cluster.objects.get((Kind.GALVATRON_JOB, operation.key.namespace, operation.key.name), {})
    wrong = list(refusals(written.get("status", {}), STATUS, "status"))
    assert not wrong, wrong


def _status(operation: Operation) -> JobStatus | None:
    exists = (Kind.GALVATRON_JOB, operation.key.namespace, operation.key.name) in operation.world.cluster.objects
    return operation.status if exists else None


def _end(operation: Operation, rounds: int) -> End:
    if (Kind.GALVATRON_JOB, operation.key.namespace, operation.key.name) not in operation.world.cluster.objects:
        return End(Verdict.DELETED, rounds)
    status = operation.status
    if status is None:
        return End(Verdict.NOT_OURS, rounds)
    if status.is_true(ConditionType.COMPLETE):
        return End(Verdict.COMPLETE, rounds)
    accepted, failed = status.find(ConditionType.ACCEPTED), status.find(ConditionType.FAILED)
    assert accepted is not None
    assert failed is not None
    if accepted.status == "False":
        return End(Verdict.NOT_ACCEPTED, rounds, accepted.reason, accepted.message)
    if failed.status == "True":
        return End(Verdict.FAILED, rounds, failed.reason, failed.message)
    suspended = status.find(ConditionType.SUSPENDED) if status.is_true(ConditionType.SUSPENDED) else None
    waiting = suspended or next((one for one in status.conditions if one.status != "True" and one.message), failed)
    return End(Verdict.WAITING, rounds, waiting.reason, waiting.message)
