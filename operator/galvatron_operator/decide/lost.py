"""Pods that no kubelet ends: lost with their node, they keep their names, and so the next attempt from its start.

What a pod object says of its node is not enough to go by: the condition ``Ready`` is also false where a supervisor says
so, and only pods that nobody was deleting yet are marked when their node is evacuated.
"""

from galvatron_operator.api import ForceDeleteLostPods
from galvatron_operator.decide.observed import ObjectRef, reference
from galvatron_operator.decide.situation import Situation
from galvatron_operator.failures import parse_time
from galvatron_operator.manifests.metadata import Manifest


def lost_pods(situation: Situation, component: str) -> tuple[Manifest, ...]:
    """Select pods whose grace period has been over for ``nodeLostTimeoutSeconds``."""
    timeout = situation.job.spec.failure_policy.node_lost_timeout_seconds
    ending = (pod for pod in situation.seen.pods(component) if "deletionTimestamp" in pod["metadata"])
    # Kubernetes writes there when the grace period ends, not when somebody asked.
    ends = ((pod, parse_time(pod["metadata"]["deletionTimestamp"])) for pod in ending)
    return tuple(pod for pod, end in ends if situation.seconds_until(end, plus_seconds=timeout) <= 0)


def to_force(situation: Situation, lost: tuple[Manifest, ...]) -> tuple[ObjectRef, ...]:
    """Point at those lost pods that the job wants deleted without their kubelet."""
    forced = situation.job.spec.failure_policy.force_delete_lost_pods is ForceDeleteLostPods.AFTER_TIMEOUT
    return tuple(reference(pod) for pod in lost) if forced else ()


def lost_text(lost: tuple[Manifest, ...]) -> str:
    """Say which pods are lost, where, and what a person can do."""
    places = [f"{pod['metadata']['name']} on node {pod.get('spec', {}).get('nodeName', 'unknown')}" for pod in lost]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"no kubelet ends {', '.join(places[:3])}{more}; when the machine is off, delete its Node object or taint it"
        " node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; jobs with"
        " spec.failurePolicy.forceDeleteLostPods: AfterTimeout need neither"
    )
