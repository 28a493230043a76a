"""What ``helm test`` runs: one job from its creation to its end, as a person would try an installation.

The chart hands the job over as JSON. Rights to make, read and remove jobs in its namespace are all that this needs.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from galvatron_operator import kube
from galvatron_operator.api import ConditionType, parse_status
from galvatron_operator.decide import reference
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Cluster, ClusterError

TIMEOUT_SECONDS = 280.0
"""``helm test`` itself gives up after 300 s."""
POLL_SECONDS = 1.0


async def problem_of(
    cluster: Cluster, job: Manifest, *, timeout_seconds: float = TIMEOUT_SECONDS, poll_seconds: float = POLL_SECONDS
) -> str | None:
    """Create a job, wait for its end, remove it, and say why it did not complete, or None when it did.

    Args:
        cluster: the API server.
        job: a GalvatronJob; its name gets a random end, so that one left by an earlier test is not mistaken for it.
        timeout_seconds: for the whole life of the job.
        poll_seconds: between two looks.

    Raises:
        ClusterError: when a request is refused.
    """
    name = f"{job['metadata']['name']}-{uuid4().hex[:6]}"
    created = reference(await cluster.apply({**job, "metadata": {**job["metadata"], "name": name}}))
    seen: Mapping[str, Any] = {}
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                seen = await cluster.get(created) or {}
                status = parse_status(seen)
                if status is not None and status.is_true(ConditionType.COMPLETE):
                    return None
                if status is not None and status.is_true(ConditionType.FAILED):
                    return f"{name} failed: {_conditions(seen)}"
                await asyncio.sleep(poll_seconds)
    except TimeoutError:
        return f"{name} has not ended within {timeout_seconds:.0f} s: {_conditions(seen) or 'no operator looks at it'}"
    finally:
        await cluster.delete(created)


def _conditions(job: Mapping[str, Any]) -> str:
    conditions = job.get("status", {}).get("conditions", [])
    return "; ".join(f"{each['type']}={each['status']} {each['reason']}: {each['message']}" for each in conditions)


def main() -> int:
    """Try the job given as the only argument; the exit code is the verdict."""
    try:
        problem = asyncio.run(problem_of(kube.KubernetesCluster(kube.connect()), json.loads(sys.argv[1])))
    except ClusterError as error:
        problem = str(error)
    print(problem or "the job is complete")  # noqa: T201 -- the log of the test's pod is where people look
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
