"""Where pods lie in the network, beside what the template of pods says of it."""

from typing import Any

import pytest

from controller.bodies import job
from controller.objects import profilers
from galvatron_planner.errors import InvalidInput

RACK = {"topology": {"key": "rack"}}
WITH_DEVICE = {"spec": {"containers": [{"name": "runtime", "resources": {"limits": {"rdma/hca": 1}}}]}}
NETWORK = {"rdmaResourceName": "rdma/hca", "annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"}}


def test_a_topology_leaves_other_kinds_of_affinity_to_the_template() -> None:
    template = {"spec": {"affinity": {"nodeAffinity": {"a": 1}, "podAntiAffinity": {"b": 2}}}}
    near = job({"spec.scheduling": RACK, "spec.runtime": {"template": template}})
    affinity = profilers(near)["spec"]["template"]["spec"]["affinity"]
    assert affinity.keys() == {"nodeAffinity", "podAntiAffinity", "podAffinity"}
    assert affinity["nodeAffinity"] == {"a": 1}


def test_the_template_and_the_network_add_up() -> None:
    template = {
        "metadata": {"annotations": {"team": "a"}},
        "spec": {"containers": [{"name": "runtime", "resources": {"limits": {"example.com/nic": 1}}}]},
    }
    template_of_pods = profilers(job({"spec.runtime": {"network": NETWORK, "template": template}}))["spec"]["template"]
    assert template_of_pods["metadata"]["annotations"] == {"team": "a", "k8s.v1.cni.cncf.io/networks": "ib0"}
    limits = template_of_pods["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"example.com/nic": "1", "nvidia.com/gpu": "2", "rdma/hca": "1"}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (
            "spec.scheduling.topology",
            {"spec.scheduling": RACK, "spec.runtime": {"template": {"spec": {"affinity": {"podAffinity": {}}}}}},
        ),
        (
            "spec.runtime.network.annotations",
            {"spec.runtime": {"network": NETWORK, "template": {"metadata": {"annotations": NETWORK["annotations"]}}}},
        ),
        (
            "spec.runtime.network.rdmaResourceName",
            {"spec.runtime": {"network": NETWORK, "template": WITH_DEVICE}},
        ),
        (
            "spec.runtime.network.annotations",
            {"spec.runtime": {"network": {"annotations": {"galvatron.io/attempt": "9"}}}},
        ),
        (
            "spec.runtime.network.annotations",
            {
                "spec.runtime": {
                    "network": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}
                }
            },
        ),
    ],
    ids=["two affinities", "an annotation twice", "a device twice", "an annotation of ours", "weaker security"],
)
def test_what_is_said_twice_or_reserved_is_refused_with_a_remedy(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        job(changes)
    assert field in refused.value.problem
    assert refused.value.remedy
