"""Profiles that exist already: which of them a job may use, what it says of it, and what it keeps of it."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from galvatron_operator import names
from galvatron_operator.api import ConditionType, GalvatronJob, ProfileOrigin, ProfileStatus, ProfilingPolicy
from galvatron_operator.api.status import rfc3339
from galvatron_operator.decide.images import is_doubtful, known_digests
from galvatron_operator.decide.situation import TRUE, Situation
from galvatron_operator.failures import parse_time
from galvatron_operator.manifests import profiling
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner import catalogue
from galvatron_planner.analytic import analytic_profile
from galvatron_planner.errors import InvalidDocument
from galvatron_planner.profiles import Profile, ProfileRequest, ProfileSource

_MOVED = (
    "; it was measured with another image than the trainers run under this reference (status.imageDigests): the next"
    " job measures again"
)
_WAITS = f"; annotation {names.ANNOTATION_REPROFILE} has a new value, which counts when the job is planned again"


@dataclass(frozen=True, slots=True)
class Found:
    """A profile that a job may use.

    Attributes:
        profile: what was measured.
        config_map: in which it is kept; None for one from data sheets.
    """

    profile: Profile
    config_map: Manifest | None = None

    @property
    def measured(self) -> datetime | None:
        """When it was measured; None where that is not known."""
        return None if self.config_map is None else _measured_at(self.config_map)

    @property
    def image_digests(self) -> tuple[str, ...]:
        """What the pods ran that measured it, as far as that is known."""
        return () if self.config_map is None else _image_digests(self.config_map)

    @property
    def namespace(self) -> str | None:
        """Where it is kept; None for one from data sheets."""
        return None if self.config_map is None else str(self.config_map["metadata"]["namespace"])


def profile_from_catalogue(job: GalvatronJob, request: ProfileRequest) -> Profile:
    """Work a profile out from data sheets, for the policy ``Never``."""
    asked = job.spec.profiling
    if asked.device is None:
        raise AssertionError("policy Never without a device")  # checks.py has refused it
    return _analytic(request, asked.device, asked.link_within_node, asked.link_between_nodes)


# Kept, like requests: 30 ms for 16,384 devices.
@lru_cache(maxsize=128)
def _analytic(request: ProfileRequest, device_name: str, within_node: str | None, between_nodes: str | None) -> Profile:
    device = catalogue.device(device_name)
    links = catalogue.links(device, within_node=within_node, between_nodes=between_nodes)
    return analytic_profile(request, device, links)


def profile_at_hand(situation: Situation, request: ProfileRequest) -> Found | None:
    """Give the profile that this job may use without measuring, if there is one.

    A job that is to measure itself uses nothing older than what it has measured. A profile that cannot be read is
    measured again: caches outlive versions.
    """
    if situation.job.spec.profiling.policy is ProfilingPolicy.NEVER:
        return Found(profile_from_catalogue(situation.job, request))
    found = (_found(config_map) for config_map in situation.seen.cached_profiles if _may_use(situation, config_map))
    return next((one for one in found if one is not None and one.profile.request_digest == request.digest()), None)


def say_profile_ready(situation: Situation, found: Found) -> Situation:
    """Say which profile is used, and whether this job has measured it."""
    profile, known = found.profile, situation.status.profile
    if profile.source is ProfileSource.ANALYTIC:
        analytic = ProfileStatus(source=ProfileOrigin.ANALYTIC, digest=profile.digest())
        message = f"{profile.source.caveat}: {profile.device_name}"
        return situation.with_status(profile=analytic).say(ConditionType.PROFILE_READY, TRUE, "AnalyticModel", message)
    if known is not None and known.digest == profile.digest() and known.source is ProfileOrigin.MEASURED:
        return say_measured(situation, found)
    shared = bool(_shared_from(situation, found))
    return _say_ready(situation, found, ProfileOrigin.SHARED_CACHE if shared else ProfileOrigin.CACHE)


def say_measured(situation: Situation, found: Found) -> Situation:
    """Say which profile this job has measured."""
    return _say_ready(situation, found, ProfileOrigin.MEASURED)


def copy_to_keep(situation: Situation, found: Found) -> tuple[Manifest, ...]:
    """Write into the job's namespace what was found in another one: its users have no rights there, and it may go."""
    measured, namespace = found.measured, situation.job.namespace
    if measured is None or found.namespace in (None, namespace):
        return ()
    copy = profiling.profile_config_map(
        namespace,
        found.profile,
        measured=measured,
        image_digests=found.image_digests,
        shared_from=_shared_from(situation, found),
    )
    return (copy,)


def say_what_comes_later(situation: Situation) -> Situation:
    """Say of a job that has its plan what would be measured anew, but is not now."""
    known = situation.status.find(ConditionType.PROFILE_READY)
    profile = situation.status.profile
    if known is None or profile is None:
        return situation
    is_moved = profile.profile_time is not None and is_doubtful(situation, profile.image_digests, profile.profile_time)
    later = (_MOVED if is_moved else "") + (_WAITS if asks_anew(situation) else "")
    message = known.message.removesuffix(_WAITS).removesuffix(_MOVED) + later
    if message == known.message:
        return situation
    return situation.say(ConditionType.PROFILE_READY, known.status, known.reason, message)


def asks_anew(situation: Situation) -> bool:
    """Tell whether the job's annotation has a value that it was not measured for."""
    asked = situation.job.reprofile
    measures = situation.job.spec.profiling.policy is not ProfilingPolicy.NEVER
    return measures and asked is not None and asked != situation.status.profiling.reprofile


def _say_ready(situation: Situation, found: Found, source: ProfileOrigin) -> Situation:
    name, measured = names.profile_config_map(found.profile.request_digest), found.measured
    known = ProfileStatus(
        config_map_name=name,
        source=source,
        digest=found.profile.digest(),
        profile_time=measured,
        image_digests=found.image_digests,
    )
    # A date and no age: the status says the same until something happens.
    when = f" at {rfc3339(measured)}" if measured is not None else ""
    where = f", shared by namespace {_shared_from(situation, found)}" if source is ProfileOrigin.SHARED_CACHE else ""
    message = f"measured on {found.profile.device_name}{when}{where}, kept in ConfigMap {name}"
    # What was waited for is there: trainers begin with a back-off of their own.
    restarts = situation.status.restarts.model_copy(update={"without_progress": 0, "not_before": None})
    done = situation.status.profiling.model_copy(update={"retries": ()})
    ready = situation.with_status(profile=known, restarts=restarts, profiling=done)
    return ready.say(
        ConditionType.PROFILE_READY, TRUE, "Profiled" if source is ProfileOrigin.MEASURED else "CacheHit", message
    )


def _found(config_map: Manifest) -> Found | None:
    try:
        return Found(Profile.from_json(config_map.get("data", {}).get(names.PROFILE_KEY, "")), config_map)
    except InvalidDocument:
        return None


def _shared_from(situation: Situation, found: Found) -> str:
    """Name the namespace that shares a profile; empty for one that was measured in the job's own."""
    if found.namespace not in (None, situation.job.namespace):
        return str(found.namespace)
    return _annotation(found.config_map or {}, names.ANNOTATION_SHARED_FROM)


def _may_use(situation: Situation, config_map: Manifest) -> bool:
    """Tell whether the job may use a cached profile: for its age, and for what it was measured with."""
    measured = _measured_at(config_map)
    if measured is None or is_doubtful(situation, _image_digests(config_map), measured):
        return False
    known, asked = situation.status.profile, situation.job.spec.profiling
    if known is not None and known.profile_time is not None:
        # It does not grow too old while a plan is searched. An elder one is still in the cache when the operator was
        # stopped before it could put a new one there.
        return measured >= known.profile_time
    if asked.policy is ProfilingPolicy.ALWAYS or situation.status.profiling.reprofile is not None:
        # Without its time a profile was taken by an earlier version.
        return known is not None and known.source is ProfileOrigin.MEASURED
    return situation.seconds_until(measured, plus_seconds=asked.max_age_seconds) > 0


def _measured_at(config_map: Manifest) -> datetime | None:
    """Read when a cached profile was measured; None when somebody has written something else there."""
    # Earlier versions wrote no time.
    text = _annotation(config_map, names.ANNOTATION_MEASURED_AT) or config_map["metadata"].get("creationTimestamp")
    try:
        return None if text is None else parse_time(text)
    except ValueError:
        return None


def _image_digests(config_map: Manifest) -> tuple[str, ...]:
    """Read what the pods ran that measured; none where an earlier version has written the profile."""
    return known_digests(_annotation(config_map, names.ANNOTATION_IMAGE_DIGESTS).split(","))


def _annotation(config_map: Manifest, name: str) -> str:
    annotations = config_map.get("metadata", {}).get("annotations") or {}
    return str(annotations.get(name, ""))
