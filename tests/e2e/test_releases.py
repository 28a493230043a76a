"""A release is tried, upgraded, removed and installed again, and jobs do not notice."""

from collections.abc import Iterator, Mapping

import pytest

from e2e.following import COMPONENT_LABEL, JOB_LABEL, Observation, follow, is_complete
from e2e.installation import RELEASE, ROOT, bring_up_to_date, fresh_namespace, helm
from e2e.kubectl import Kubectl, Manifest, is_true, progress

pytestmark = [pytest.mark.k8s, pytest.mark.helm, pytest.mark.slow]

PREVIOUS = ROOT / "tests" / "charts" / "previous" / "galvatron-operator-0.1.0.tgz"
"""What `helm package` made of the chart before this version: its CRD, its rights, its Deployment."""
NAME = "long-lived"


@pytest.fixture
def previous_release(installed: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The environment of a cluster in which the previous chart is installed instead; this one comes back afterwards."""
    helm(installed, "uninstall", RELEASE, "--wait")
    # Without --wait: it is this version's image that runs, and it may ask for rights that the old chart does not give.
    helm(installed, "install", RELEASE, str(PREVIOUS))
    yield installed
    bring_up_to_date(installed)


@pytest.fixture
def long_job(example: Manifest) -> Manifest:
    """The example, with steps enough for an upgrade and a removal to fall into them."""
    spec = example["spec"]
    return {**example, "metadata": {"name": NAME}, "spec": {**spec, "training": {**spec["training"], "steps": 600}}}


def test_helm_test_completes_a_job_and_leaves_only_its_profile(installed: Mapping[str, str], operator: Kubectl) -> None:
    result = helm(installed, "test", RELEASE, "--timeout", "4m")
    assert "Phase:          Succeeded" in result.stdout
    assert not operator.items("galvatronjobs")
    assert not operator.items("pods,serviceaccounts,roles,rolebindings", f"{COMPONENT_LABEL}=test")


def test_a_job_outlives_an_upgrade_a_removal_and_a_new_installation(
    previous_release: Mapping[str, str], kubectl: Kubectl, long_job: Manifest
) -> None:
    kubectl.apply(long_job)
    made = uid_of(kubectl)

    bring_up_to_date(previous_release)
    seen = follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 0, seconds=240)
    trainers = uids_of_trainers(kubectl)
    bring_up_to_date(previous_release)
    assert_untouched(kubectl, made, trainers)

    helm(previous_release, "uninstall", RELEASE, "--wait")
    assert_untouched(kubectl, made, trainers)

    # What a job of this namespace has measured is now for all others as well.
    bring_up_to_date(previous_release, f"profileCache.namespace={kubectl.namespace}")
    with fresh_namespace(previous_release) as other:
        assert_spared_of_measuring(other, long_job)
    follow(kubectl, NAME, until=is_complete, seconds=180, seen=seen)
    assert_one_attempt(seen, made)


def assert_spared_of_measuring(other: Kubectl, job: Manifest) -> None:
    """In a namespace without profiles the same job has its plan at once, and keeps the profile that was shared."""
    other.apply({**job, "spec": {**job["spec"], "execution": "Plan"}})
    seen = follow(other, NAME, until=is_complete, seconds=60)
    profile = seen.job["status"]["profile"]
    assert (profile["source"], "profiler" in seen.nodes) == ("SharedCache", False)
    assert other.get("configmap", profile["configMapName"]) is not None


def uid_of(kubectl: Kubectl) -> str:
    """Of the job."""
    return str((kubectl.get("galvatronjob", NAME) or {})["metadata"]["uid"])


def uids_of_trainers(kubectl: Kubectl) -> set[str]:
    """Of the pods that train, all of which must be running."""
    pods = kubectl.items("pods", f"{JOB_LABEL}={NAME},{COMPONENT_LABEL}=trainer")
    assert [pod["status"]["phase"] for pod in pods] == ["Running", "Running"]
    return {pod["metadata"]["uid"] for pod in pods}


def assert_untouched(kubectl: Kubectl, made: str, trainers: set[str]) -> None:
    """The same job trains in the same pods and is not finished: what was done to the release fell into its training."""
    assert uid_of(kubectl) == made
    assert not is_true(kubectl.get("galvatronjob", NAME), "Complete")
    assert uids_of_trainers(kubectl) == trainers


def assert_one_attempt(seen: Observation, made: str) -> None:
    """The first attempt went all the way."""
    assert seen.job["metadata"]["uid"] == made
    assert seen.job["status"]["attempt"] == 1
    assert seen.job["status"]["restarts"]["total"] == 0
