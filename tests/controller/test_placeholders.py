"""Pods that ask for room: placed as trainers are, and nothing else like them."""

import pytest

from controller.bodies import Changes, job
from controller.objects import trainers
from galvatron_operator import names
from galvatron_operator.manifests import placeholders
from galvatron_operator.manifests.metadata import Manifest

_TERM = {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["a"]}]}
_AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]}}}
CHOOSY: Changes = {
    "spec.checkpoint": {"volume": {"claimName": "kept"}, "periodSteps": 5},
    "spec.scheduling": {"priorityClassName": "high"},
    "spec.runtime": {
        "nodeSelector": {"pool": "training"},
        "tolerations": [{"key": "training", "operator": "Exists"}],
        "resources": {"requests": {"cpu": "4", "memory": "8Gi"}},
        "template": {"metadata": {"labels": {"team": "a"}}, "spec": {"affinity": _AFFINITY, "schedulerName": "mine"}},
    },
}


def pod_of(owner: Manifest) -> Manifest:
    spec: Manifest = owner["spec"]["template"]["spec"]
    return spec


def test_everything_by_which_a_node_is_chosen_is_that_of_trainers() -> None:
    of = job(CHOOSY)
    asking, training = pod_of(placeholders.stateful_set(of, trainers(of), replicas=1)), pod_of(trainers(of))
    for field in ("nodeSelector", "tolerations", "affinity", "schedulerName", "priorityClassName", "securityContext"):
        assert asking[field] == training[field]
    assert asking["containers"][0]["resources"] == training["containers"][0]["resources"]
    assert asking["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in asking["volumes"]] == ["kept"]


def test_placeholders_keep_away_from_trainers_and_from_each_other() -> None:
    of = job()
    made = placeholders.stateful_set(of, trainers(of), replicas=3)
    (constraint,) = pod_of(made)["topologySpreadConstraints"]
    selected = constraint["labelSelector"]["matchLabels"].items()
    for owner in (made, trainers(of)):
        assert selected <= owner["spec"]["template"]["metadata"]["labels"].items()
    assert made["spec"]["replicas"] == 3


def test_no_trainer_is_taken_for_a_placeholder_nor_the_other_way_round() -> None:
    of = job(CHOOSY)
    made = placeholders.stateful_set(of, trainers(of), replicas=1)
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert not trainers(of)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["team"] == "a"
    assert names.LABEL_PLAN_HASH not in labels
    assert "annotations" not in made["spec"]["template"]["metadata"]


@pytest.mark.parametrize("provider", ["Volcano", "Coscheduling"])
def test_a_placeholder_is_placed_by_itself_by_the_scheduler_of_the_gang(provider: str) -> None:
    of = job({"spec.scheduling": {"gang": {"provider": provider}}})
    trained = trainers(of)["spec"]["template"]
    marks = {**trained["metadata"]["labels"], **trained["metadata"]["annotations"]}
    made = placeholders.stateful_set(of, trainers(of), replicas=1)["spec"]["template"]
    assert made["spec"]["schedulerName"] == trained["spec"]["schedulerName"]
    groups = {key for key, value in marks.items() if value == names.trainers_group(of.name) and "group" in key}
    assert groups
    assert not groups & {*made["metadata"]["labels"], *made["metadata"].get("annotations", {})}


def test_a_placeholder_serves_nothing_and_reads_nothing() -> None:
    of = job(CHOOSY)
    (container,) = pod_of(placeholders.stateful_set(of, trainers(of), replicas=1))["containers"]
    assert not {"ports", "env", "volumeMounts", "readinessProbe", "livenessProbe", "startupProbe"} & container.keys()
