"""Which trainers stay where they are when another attempt begins, and which are made anew.

A pod that stays keeps its devices, its volumes and its place on a node; its supervisor starts the command again as soon
as the pod's annotation names the new attempt.
"""

from galvatron_operator import names
from galvatron_operator.decide.observed import Observed
from galvatron_operator.decide.situation import attempt_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.worker import ExitClass, WorkerStatus


def staying_pods(seen: Observed, stateful_set: Manifest, *, attempt: int) -> tuple[Manifest, ...]:
    """Select trainers of earlier attempts that can take part in this one as they are.

    Args:
        seen: what exists.
        stateful_set: what trainers of this attempt are made from.
        attempt: that begins.
    """
    wanted = _template(stateful_set["spec"]["template"])
    return (
        ()
        if wanted is None
        else tuple(
            pod
            for pod in seen.pods(names.COMPONENT_TRAINER)
            if attempt_of(pod) < attempt
            and _template(pod) == wanted
            and _is_undisturbed(pod)
            and _obeys(seen.reports.get(pod["metadata"]["name"]))
        )
    )


def _template(made: Manifest) -> str | None:
    """Tell what a pod was made from: another plan, image or version of the operator makes something else."""
    template: str | None = (made["metadata"].get("annotations") or {}).get(names.ANNOTATION_TEMPLATE)
    return template


def _is_undisturbed(pod: Manifest) -> bool:
    """Tell whether nothing has happened to a pod but the failure of its command."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses", ())
    # What a container died of stays in the status for ever, and would count against every further attempt.
    never_died = all(not c.get("restartCount") and not c.get("lastState", {}).get("terminated") for c in containers)
    runs = bool(containers) and all("running" in c.get("state", {}) for c in containers)
    is_taken = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in status.get("conditions", ()))
    return runs and never_died and not is_taken and "deletionTimestamp" not in pod["metadata"]


def _obeys(report: WorkerStatus | None) -> bool:
    """Tell whether a supervisor will begin another attempt: it answers, and nobody has told it to stop."""
    if report is None:
        return False
    return report.failure is None or report.failure.reason is not ExitClass.PREEMPTED
