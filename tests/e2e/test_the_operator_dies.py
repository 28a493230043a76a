"""Operators are killed at random moments of one job, and the job comes to the end that it would have had."""

import os
import random
from collections import Counter

import pytest

from e2e import audit
from e2e.audit import time_of
from e2e.faulty_jobs import Space
from e2e.following import Observation, children, follow, is_complete
from e2e.killing import Killer
from e2e.kubectl import Kubectl, Manifest, condition

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

KILLS = 4
"""Each costs the 15 s of a Lease that nobody gives back."""
FEWEST_KILLS = 2
"""On a machine that is fast enough to be through before the last."""
NAME = "unshaken"


def test_a_job_that_fails_once_ends_as_it_should_although_operators_die_at_random(
    space: Space, operator: Kubectl
) -> None:
    kubectl, jobs = space
    seed = int(os.environ.get("GALVATRON_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"GALVATRON_SEED={seed}")
    killer = Killer(operator, random.Random(seed), KILLS)  # noqa: S311 -- moments, not secrets

    # Measured whatever other jobs have left in the cache, and long enough for kills to fall into training.
    jobs.start(NAME, "raise:2:12", steps=400, profiling={"policy": "Always"})
    seen = follow(kubectl, NAME, until=lambda job: goes_on(job, killer), seconds=600)

    print("\n".join(killer.deaths))
    assert len(killer.deaths) >= FEWEST_KILLS, "the job was through before operators had died"
    assert_undisturbed(seen, kubectl)
    assert jobs.saved_steps(NAME)[-1] == 400


def goes_on(job: Manifest, killer: Killer) -> bool:
    """Let an operator die if its time has come, and tell whether the job is complete."""
    killer.look()
    return is_complete(job)


def assert_undisturbed(seen: Observation, kubectl: Kubectl) -> None:
    """One profile, one plan, one restart over the fault alone, and nothing was made twice."""
    status = seen.job["status"]
    assert status["profile"]["source"] == "Measured"
    assert (status["attempt"], status["restarts"]["total"]) == (2, 1)
    (failure,) = status["failures"]
    assert (failure["reason"], failure["rank"]) == ("UserError", 2)
    plans = [child for child in children(kubectl, NAME) if child.startswith(f"ConfigMap/{NAME}-plan-")]
    assert plans == [f"ConfigMap/{status['plan']['configMapName']}"]
    assert condition(seen.job, "Failed")["status"] == "False"
    if not os.environ.get("GALVATRON_KUBECONFIG"):
        made = Counter(audit.creations(since=time_of(seen.job["metadata"]["creationTimestamp"]), name_begins=NAME))
        assert set(made.values()) == {1}, made
