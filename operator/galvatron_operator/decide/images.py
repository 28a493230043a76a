"""Which images have run under a reference: what was measured under a tag is doubted once the tag names another image.

An image's digest is known only after a pod has run. So jobs keep what their trainers ran in their status, and whoever
comes later in the namespace is told by the newest of them.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from galvatron_operator import names
from galvatron_operator.decide.situation import Situation
from galvatron_operator.failures import parse_time
from galvatron_operator.manifests.metadata import Manifest

MAX_DIGESTS = 64
"""As many as the status holds."""
_CONTAINERS = (names.COMPONENT_TRAINER, names.COMPONENT_PROFILER)
_DIGEST = re.compile(r"^[a-z0-9]+:[0-9a-f]{32,128}$")


def digests_of(pods: Iterable[Manifest]) -> tuple[str, ...]:
    """Tell which images pods run, sorted: more than one where nodes hold different ones under a reference."""
    every = (status for pod in pods for status in pod.get("status", {}).get("containerStatuses", ()))
    # Not of containers that a mesh has added.
    ours = (status for status in every if status.get("name") in _CONTAINERS)
    # ``repository@sha256:...``, or the digest alone of an image that was never pulled.
    return known_digests(str(status.get("imageID", "")).rpartition("@")[2] for status in ours)


def known_digests(texts: Iterable[str]) -> tuple[str, ...]:
    """Select what is a digest, sorted and as many as the status holds."""
    return tuple(sorted({text for text in texts if _DIGEST.fullmatch(text)}))[:MAX_DIGESTS]


def say_images(situation: Situation) -> Situation:
    """Write down which images the trainers run, and since when."""
    pods = [pod for pod in situation.seen.pods(names.COMPONENT_TRAINER) if digests_of((pod,))]
    if not pods:
        return situation
    newest = max(parse_time(pod["metadata"]["creationTimestamp"]) for pod in pods)
    return situation.with_status(image_digests=digests_of(pods), image_time=newest)


def is_doubtful(situation: Situation, digests: tuple[str, ...], measured: datetime) -> bool:
    """Tell whether an image has run since that is not among those that measured.

    A job that has chosen its profile is told by its own trainers only: it would never come to an end if others could
    make it measure again.
    """
    status, image = situation.status, situation.image
    if not digests or _names_one_image(image):
        return False
    if status.profile is not None:
        since, ran = status.image_time, set(status.image_digests)
        return status.image == image and since is not None and since > measured and not ran <= set(digests)
    runs = [(parse_time(known["imageTime"]), set(known["imageDigests"])) for known in _runs(situation.seen.jobs, image)]
    later = [run for run in runs if run[0] > measured]
    return bool(later) and not max(later, key=lambda run: run[0])[1] <= set(digests)


def _names_one_image(reference: str) -> bool:
    return "@" in reference


def _runs(jobs: tuple[Manifest, ...], image: str) -> Iterable[Mapping[str, Any]]:
    """Select the statuses of jobs that say what ran under a reference."""
    statuses = (job.get("status") or {} for job in jobs)
    return (s for s in statuses if s.get("image") == image and s.get("imageDigests") and s.get("imageTime"))
