"""From a job to its profile: taken from the cache, or measured by an Indexed Job and then cached.

Attempts to measure are numbered like those to train: a failure that may pass, or a user who asks anew, raises the
number in the status, which makes the Job of a former attempt outdated. So nothing is counted twice, and no result of a
former attempt is taken, wherever the operator is stopped.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from galvatron_operator import names
from galvatron_operator.api import (
    ConditionType,
    FailureReason,
    GalvatronJob,
    ProfilingStatus,
)
from galvatron_operator.api.status import count_one_more
from galvatron_operator.decide.images import digests_of
from galvatron_operator.decide.keeping import Found, asks_anew, say_measured
from galvatron_operator.decide.lost import lost_pods, lost_text, to_force
from galvatron_operator.decide.observed import POD_GROUPS, Decision, Kind, Observed
from galvatron_operator.decide.queueing import hindrance
from galvatron_operator.decide.restarting import back_off, seconds_to_wait
from galvatron_operator.decide.situation import (
    AT_ONCE_SECONDS,
    FALSE,
    POLL_SECONDS,
    Situation,
    attempt_of,
    brief,
    fail,
    missing,
    record,
    references,
)
from galvatron_operator.failures import REACTIONS, Action, Failure, cause, failure_of, parse_time
from galvatron_operator.manifests import profiling
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import quota_awaited
from galvatron_operator.settings import Settings
from galvatron_planner.cluster import Cluster
from galvatron_planner.errors import InvalidDocument
from galvatron_planner.model import Model, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, SearchLimits
from galvatron_planner.profiles import Profile, ProfileRequest
from galvatron_planner.search.request import covering, profile_request
from galvatron_planner.worker import WorkerState, WorkerStatus

MAX_RETRIES = 3
"""Measurements that follow failures which may pass, until one succeeds; those that the cluster ends do not count."""
_MAY_PASS = frozenset(
    {
        FailureReason.SUPERVISOR_EXITED,
        FailureReason.COMMUNICATION,
        FailureReason.UNKNOWN,
        FailureReason.OUT_OF_HOST_MEMORY,
    }
)
"""Failures after which the same measurement may succeed; of the others it is known that it cannot."""
_ELSEWHERE = ("env", "network", "template", "tolerations")
"""Fields of ``spec.runtime`` that can change what is measured, or where, in a way that only their users know."""


def request_of(job: GalvatronJob, settings: Settings, fixed_plan: Plan | None = None) -> ProfileRequest:
    """Write document 1, for a search or for the plan that the user brings."""
    place = _place_of_measurement(job, settings)
    request = _request(job.model, job.cluster, job.precision, job.batch, job.limits, place)
    return request if fixed_plan is None else covering(request, fixed_plan)


# Kept, because every round until the plan is found asks twice: 40 ms for 4 devices, 250 ms for 512 (2 shared cores).
@lru_cache(maxsize=128)
def _request(
    model: Model, cluster: Cluster, precision: Precision, batch: BatchRange, limits: SearchLimits, place: str
) -> ProfileRequest:
    return profile_request(model, cluster, precision=precision, batch=batch, limits=limits, runtime_version=place)


def heed_reprofile(situation: Situation) -> Situation:
    """Begin another measurement when the job's annotation asks for it, once for each value."""
    if not asks_anew(situation):
        return situation
    profiling_ = ProfilingStatus(attempt=situation.status.profiling.attempt + 1, reprofile=situation.job.reprofile)
    return situation.with_status(profiling=profiling_, profile=None)


def without_profilers(decision: Decision, seen: Observed) -> Decision:
    """Delete what has measured, if anything is left: an operator that was stopped may not have come to it.

    Parked profilers hold the devices that trainers wait for.
    """
    # A PodGroup is looked up as long as there is a Job, which therefore goes last.
    kinds = (*POD_GROUPS, Kind.SERVICE)
    around = (child for kind in kinds for child in seen.of_component(kind, names.COMPONENT_PROFILER))
    return replace(decision, delete=(*decision.delete, *references((*around, *seen.of_kind(Kind.JOB)))))


def measure(situation: Situation, request: ProfileRequest) -> Decision:
    """Have the profile measured, and take the result when it is there."""
    current = names.profiling_job(situation.job.name, request.digest())
    jobs = situation.seen.of_kind(Kind.JOB)
    attempt = situation.status.profiling.attempt
    job = next((j for j in jobs if j["metadata"]["name"] == current and attempt_of(j) == attempt), None)
    # Of a former attempt, or an upgrade of the operator has changed what is asked for.
    outdated = references(tuple(j for j in jobs if j is not job))
    if job is not None and situation.seen.result is not None:
        return _take(situation, request, situation.seen.result)
    if job is not None and (ended := _ended(situation, job)) is not None:
        return ended
    if job is None and (outdated or situation.seen.pods(names.COMPONENT_PROFILER)):
        # The host names of ending pods are still published; new pods of the same names would meet the wrong ones.
        lost = lost_pods(situation, names.COMPONENT_PROFILER)
        message = f"former profilers are ending{': ' + lost_text(lost) if lost else ''}"
        waiting = situation.say(ConditionType.PROFILE_READY, FALSE, "Profiling", message + _retries_text(situation))
        return waiting.decide(delete=outdated, force_delete=to_force(situation, lost), after_seconds=POLL_SECONDS)
    if job is None and (seconds := seconds_to_wait(situation)):
        return situation.decide(after_seconds=min(POLL_SECONDS, seconds))
    wanted = (
        profiling.request_config_map(situation.job, request),
        profiling.service(situation.job, request),
        *profiling.pod_groups(situation.job, request),
        profiling.indexed_job(situation.job, request, attempt=attempt, image=situation.image),
    )
    # A Job never changes: what exists is left alone, also when a later version would write it otherwise.
    new = missing(situation.seen, *(wanted if job is None else wanted[:-1]))
    return _say_profiling(situation).decide(apply=new, delete=outdated, after_seconds=POLL_SECONDS)


def _place_of_measurement(job: GalvatronJob, settings: Settings) -> str:
    """Write down everything about the pods that measurements depend on: elsewhere is another profile."""
    runtime, budget = job.spec.runtime, job.spec.budget
    selector = (f"{key}={value}" for key, value in sorted(runtime.node_selector.items()))
    limits = (f"limits.cpu={runtime.resources.limits.cpu}",) if runtime.resources.limits.cpu is not None else ()
    topology = job.spec.scheduling.topology
    near = (f"topology={topology.mode}:{topology.key}",) if topology is not None else ()
    written = runtime.model_dump(mode="json", exclude_defaults=True)
    parts = (f"{name}={_digest(written[name])}" for name in _ELSEWHERE if name in written)
    return " ".join((runtime.image or settings.runtime_image, budget.resource_name, *selector, *limits, *near, *parts))


def _digest(part: Any) -> str:
    # Sorted: the order of fields is the API server's in a cluster, and the user's without one.
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]


def _take(situation: Situation, request: ProfileRequest, result: str) -> Decision:
    try:
        profile = Profile.from_json(result)
    except InvalidDocument as error:
        return fail(
            situation.say(ConditionType.PROFILE_READY, FALSE, "ProfilingFailed", str(error)),
            "ProfilingFailed",
            f"the profilers' result cannot be read: {error}",
        )
    if profile.request_digest != request.digest():
        # The answer of a former Job, whose pods are ending.
        return _say_profiling(situation).decide(after_seconds=POLL_SECONDS)
    job, ran = situation.job, digests_of(situation.seen.pods(names.COMPONENT_PROFILER))
    kept = profiling.profile_config_map(job.namespace, profile, measured=situation.now, image_digests=ran)
    decision = say_measured(situation, Found(profile, kept)).decide(
        # First, since this comes by here no more once the job has its profile.
        share=_to_share(situation, profile, ran),
        apply=(kept,),
        after_seconds=AT_ONCE_SECONDS,
    )
    return without_profilers(decision, situation.seen)


def _to_share(situation: Situation, profile: Profile, image_digests: tuple[str, ...]) -> tuple[Manifest, ...]:
    """Write the profile for other namespaces too, where the installation says so.

    It is what the profilers have answered, never what lies in the job's namespace, where users may have changed it.
    """
    job, cache = situation.job, situation.settings.profile_cache
    if cache is None or cache.namespace == job.namespace or not cache.takes_from(job.namespace):
        return ()
    shared = profiling.profile_config_map(
        cache.namespace,
        profile,
        measured=situation.now,
        image_digests=image_digests,
        measured_by=f"{job.namespace}/{job.name}",
    )
    return (shared,)


def _ended(situation: Situation, job: Manifest) -> Decision | None:
    """React to profilers that will bring no result."""
    conditions = job.get("status", {}).get("conditions", ())
    # The first of the two comes before the Job's other pods have ended.
    failed = next((c for c in conditions if c["type"] in ("FailureTarget", "Failed") and c["status"] == "True"), None)
    if (failure := _failure(situation)) is not None:
        return _react(situation, job, failure)
    if failed is not None:
        # The pods are gone that could have said why.
        message = f"{failed.get('reason', 'Failed')}: {failed.get('message', '')}"
        return _react(
            situation, job, Failure(FailureReason.UNKNOWN, message, situation.now, pod=job["metadata"]["name"])
        )
    if not _is_overdue(situation, job):
        return None
    seconds = situation.job.spec.profiling.timeout_seconds
    message = f"no profile after {seconds} s{_obstacle_text(situation)}; raise spec.profiling.timeoutSeconds"
    return _give_up(situation, "ProfilingTimedOut", message)


def _is_overdue(situation: Situation, job: Manifest) -> bool:
    """Tell whether the time for measuring is over, and the profiler that has the result is not waiting with it."""
    if any(report.node_rank == 0 and report.state is WorkerState.SUCCEEDED for report in _reports(situation)):
        return False
    started = job.get("status", {}).get("startTime")
    seconds = situation.job.spec.profiling.timeout_seconds
    return started is not None and situation.seconds_until(parse_time(started), plus_seconds=seconds) <= 0


def _react(situation: Situation, job: Manifest, failure: Failure) -> Decision:
    """Begin another attempt, unless it would fail in the same way or there have been enough."""
    known = situation.status.profiling
    problem = f"{failure.pod}: {failure.reason}: {brief(failure.message)}"
    retries = known.retries
    if REACTIONS[failure.reason].action is not Action.RESTART_UNCOUNTED:
        if not _may_retry(failure, known):
            return _end(situation, failure, problem)
        retries = count_one_more(retries, failure.reason)
    restarts = situation.status.restarts
    restarts = back_off(restarts, furthest_step=restarts.furthest_step, now=situation.now)
    begun = known.model_copy(update={"attempt": known.attempt + 1, "retries": retries})
    again = situation.with_status(restarts=restarts, profiling=begun)
    message = f"measuring again from {restarts.not_before:%Y-%m-%dT%H:%M:%SZ} on{_retries_text(again)}, after {problem}"
    return again.say(ConditionType.PROFILE_READY, FALSE, "Profiling", message).decide(
        delete=references((job,)), after_seconds=POLL_SECONDS
    )


def _may_retry(failure: Failure, known: ProfilingStatus) -> bool:
    counts = {each.reason: each.count for each in known.retries}
    most = REACTIONS[failure.reason].most
    is_used_up = most is not None and counts.get(failure.reason, 0) >= most
    return failure.reason in _MAY_PASS and not is_used_up and sum(counts.values()) < MAX_RETRIES


def _end(situation: Situation, failure: Failure, problem: str) -> Decision:
    recorded = situation.with_status(failures=situation.status.with_failure(record(situation, failure)).failures)
    message = f"{problem}{_retries_text(situation)}; {REACTIONS[failure.reason].advice}"
    return _give_up(recorded, "ProfilingFailed", message)


def _retries_text(situation: Situation) -> str:
    retries = situation.status.profiling.retries
    if not retries:
        return ""
    number = sum(each.count for each in retries)
    return f" (retry {number} of {MAX_RETRIES}: {', '.join(f'{each.reason} x{each.count}' for each in retries)})"


def _failure(situation: Situation) -> Failure | None:
    seen = situation.seen
    found = (
        failure_of(pod, seen.reports.get(pod["metadata"]["name"]), now=situation.now)
        for pod in seen.pods(names.COMPONENT_PROFILER)
    )
    return cause((failure for failure in found if failure is not None), now=situation.now)


def _give_up(situation: Situation, reason: str, message: str) -> Decision:
    return fail(situation.say(ConditionType.PROFILE_READY, FALSE, reason, message), "ProfilingFailed", message)


def _say_profiling(situation: Situation) -> Situation:
    doing = next(map(_doing, _reports(situation)), "profilers are starting")
    return situation.say(
        ConditionType.PROFILE_READY, FALSE, "Profiling", doing + _retries_text(situation) + _obstacle_text(situation)
    )


def _reports(situation: Situation) -> Iterator[WorkerStatus]:
    """What the profilers say, of those that answer."""
    for pod in situation.seen.pods(names.COMPONENT_PROFILER):
        report = situation.seen.reports.get(pod["metadata"]["name"])
        if report is not None:
            yield report


def _doing(report: WorkerStatus) -> str:
    if report.progress is None:
        return "profilers are meeting"
    return f"{report.progress.activity}, {report.progress.step} of {report.progress.total_steps}"


def _obstacle_text(situation: Situation) -> str:
    pods = situation.seen.pods(names.COMPONENT_PROFILER)
    found = quota_awaited(situation.seen.of_kind(Kind.JOB)) or hindrance(
        situation, pods, group=names.profilers_group(situation.job.name)
    )
    return f" ({found.reason}: {found.message})" if found is not None else ""
