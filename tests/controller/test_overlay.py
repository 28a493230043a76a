"""What users add to the pods arrives there, and nothing that they may add loosens what holds the pods together."""

import copy
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as generate

from controller.bodies import SMALLEST, job
from controller.objects import profilers, trainers
from galvatron_operator.api import GalvatronJob, parse
from galvatron_operator.api.overlay import OUR_PATHS, OUR_VOLUMES, RESERVED_ENVIRONMENT
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.manifests.rendering import render_job
from galvatron_operator.settings import Settings
from galvatron_planner.errors import InvalidInput

SETTINGS = Settings(runtime_image="runtime:test")


def job_with(template: Manifest | None, **runtime: Any) -> GalvatronJob:
    written = copy.deepcopy(SMALLEST)
    written["spec"]["runtime"] = runtime | ({} if template is None else {"template": template})
    return parse(written)


def pod_of(job: GalvatronJob) -> Manifest:
    # One request for all: names follow from it.
    rendered = render_job(job, request_of(job_with(None), SETTINGS), image="runtime:test", plan=None)
    (profilers,) = (one for one in rendered if one["kind"] == "Job")
    template: Manifest = profilers["spec"]["template"]
    return template


def container(**fields: Any) -> Manifest:
    return {"spec": {"containers": [{"name": "runtime", **fields}]}}


CODE: Manifest = {
    "metadata": {"labels": {"team": "vision"}, "annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"}},
    "spec": {
        "affinity": {"nodeAffinity": {}},
        "volumes": [{"name": "code", "configMap": {"name": "models"}}],
        "containers": [
            {
                "name": "runtime",
                "env": [
                    {"name": "PYTHONPATH", "value": "/opt/code"},
                    {"name": "OMP_NUM_THREADS", "value": "2"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                ],
                "volumeMounts": [{"name": "code", "mountPath": "/opt/code", "readOnly": True}],
                "resources": {"limits": {"rdma/hca": 1}},
            }
        ],
    },
}


def test_what_is_added_stands_beside_what_is_ours() -> None:
    plain, added = pod_of(job_with(None)), pod_of(job_with(CODE))
    assert added["metadata"]["labels"] == plain["metadata"]["labels"] | {"team": "vision"}
    assert added["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "ib0"
    assert added["spec"]["affinity"] == {"nodeAffinity": {}}
    assert added["spec"]["volumes"] == [*plain["spec"]["volumes"], {"name": "code", "configMap": {"name": "models"}}]
    (before,), (after,) = plain["spec"]["containers"], added["spec"]["containers"]
    assert after["volumeMounts"] == [
        *before["volumeMounts"],
        {"name": "code", "mountPath": "/opt/code", "readOnly": True},
    ]
    assert after["resources"]["limits"] == before["resources"].get("limits", {}) | {"rdma/hca": "1"}
    env = {variable["name"]: variable for variable in after["env"]}
    assert len(env) == len(after["env"])
    assert env["OMP_NUM_THREADS"]["value"] == "2"
    assert env["TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    changed = {"env", "volumeMounts", "resources"}
    assert {k: v for k, v in after.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}


def test_pods_with_other_resources_are_measured_apart() -> None:
    plain, added = (request_of(job_with(template), SETTINGS).digest() for template in (None, CODE))
    assert plain != added
    assert added == request_of(job_with(copy.deepcopy(CODE)), SETTINGS).digest()


def test_the_order_in_which_a_template_is_written_measures_nothing_again() -> None:
    affinity: Manifest = {"nodeAffinity": {}, "podAffinity": {}}
    digests = {
        request_of(job_with({"spec": {"affinity": dict(written)}}), SETTINGS).digest()
        for written in (affinity.items(), reversed(affinity.items()))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ({"spec": {"hostNetwork": True}}, "spec.runtime.template.spec.hostNetwork"),
        ({"spec": {"serviceAccountName": "admin"}}, "spec.runtime.template.spec.serviceAccountName"),
        ({"spec": {"securityContext": {"runAsUser": 0}}}, "spec.runtime.template.spec.securityContext"),
        ({"spec": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}}, "hostPath"),
        ({"spec": {"volumes": [{"name": "run", "emptyDir": {}}]}}, "has the name of a volume of ours"),
        ({"spec": {"volumes": [{"name": "both", "emptyDir": {}, "secret": {}}]}}, "has 2 sources"),
        (
            {"spec": {"volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}},
            "sources[0].serviceAccountToken",
        ),
        (
            {"spec": {"volumes": [{"name": "key", "projected": {"sources": [{"podCertificate": {}}]}}]}},
            "sources[0].podCertificate",
        ),
        ({"spec": {"volumes": [{"name": "none", "projected": {"sources": None}}]}}, "projected.sources"),
        ({"spec": {"volumes": [{"name": "code", "emptyDir": {}}] * 2}}, "has code twice"),
        (container(volumeMounts=[{"name": "a", "mountPath": path} for path in ("/x", "//x/")]), "has /x twice"),
        ({"metadata": {"labels": {"galvatron.io/job-uid": "x"}}}, "has galvatron.io/job-uid"),
        (
            {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}},
            "has container.apparmor",
        ),
        (container(command=["sh"]), "command"),
        (container(securityContext={"privileged": True}), "securityContext"),
        ({"spec": {"containers": [{"name": "sidecar"}]}}, "runtime"),
        (container(env=[{"name": "RANK", "value": "0"}]), "is set by the launcher itself"),
        (container(env=[{"name": "A"}, {"name": "A"}]), "is given twice"),
        (container(env=[{"name": "A", "valueFrom": {"execRef": {}}}]), "needs a value or one source"),
        (container(volumeMounts=[{"name": "checkpoints", "mountPath": "/x"}]), "is no volume of the template"),
        (container(resources={"limits": {"cpu": 1}}), "state it in spec.runtime.resources"),
        (container(resources={"limits": {"nvidia.com/gpu": 1}}), "state it in spec.budget"),
        ({"metadata": {"annotations": {f"a{n}": "é" * 4096 for n in range(10)}}}, "is larger than 64 KiB"),
    ],
)
def test_what_would_loosen_the_pods_is_refused_with_its_field(template: Manifest, problem: str) -> None:
    written = copy.deepcopy(SMALLEST)
    written["spec"]["budget"]["resourceName"] = "nvidia.com/gpu"
    written["spec"]["runtime"] = {"template": template}
    with pytest.raises(InvalidInput) as caught:
        parse(written)
    assert problem in str(caught.value)
    assert "spec.runtime.template" in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["/", "/run", "/dev/x", "/checkpoints/a", "/opt/../data", "/etc/galvatron", "//run/galvatron", "/opt", "/var/run"],
)
def test_a_mount_that_would_hide_what_is_ours_is_refused(path: str) -> None:
    template = container(volumeMounts=[{"name": "mine", "mountPath": path}])
    template["spec"]["volumes"] = [{"name": "mine", "emptyDir": {}}]
    with pytest.raises(InvalidInput, match="which is ours"):
        job_with(template)


def test_every_volume_and_path_of_ours_is_kept_from_templates() -> None:
    everything = job(
        {
            "spec.training.dataset": {"source": "Text", "path": "a", "volume": {"claimName": "data"}},
            "spec.training.initialWeights": {"path": "b", "volume": {"claimName": "weights"}},
            "spec.checkpoint": {"volume": {"claimName": "shared"}, "periodSteps": 5},
            "spec.model.vocabularySize": 256,
        }
    )
    specs = [made(everything)["spec"]["template"]["spec"] for made in (profilers, trainers)]
    assert {volume["name"] for spec in specs for volume in spec["volumes"]} == OUR_VOLUMES
    mounts = [mount for spec in specs for mount in spec["containers"][0]["volumeMounts"]]
    assert all(any(PurePosixPath(mount["mountPath"]).is_relative_to(ours) for ours in OUR_PATHS) for mount in mounts)


NAMES = generate.sampled_from([*sorted(OUR_VOLUMES), "mine", "code"])
PATHS = generate.one_of(
    generate.sampled_from(["/", "/opt", "/run", "/opt/..", *OUR_PATHS, *(f"{path}/x" for path in OUR_PATHS)]),
    generate.sampled_from([f"/{path}" for path in OUR_PATHS]),
    generate.from_regex(r"/[a-z]{1,6}(/[a-z.]{1,4})?", fullmatch=True),
)
VARIABLES = generate.sampled_from(["RANK", "PET_X", "GALVATRON_NODE_RANK", "PYTHONPATH", "NCCL_DEBUG", "WORLD_SIZE"])
KEYS = generate.sampled_from(["team", "galvatron.io/attempt", "app.kubernetes.io/component", "example.com/x"])
TEMPLATES = generate.fixed_dictionaries(
    {
        "metadata": generate.fixed_dictionaries(
            {},
            optional={
                "labels": generate.dictionaries(KEYS, generate.just("x"), max_size=2),
                "annotations": generate.dictionaries(KEYS, generate.just("x"), max_size=2),
            },
        ),
        "spec": generate.fixed_dictionaries(
            {},
            optional={
                "hostPID": generate.booleans(),
                "volumes": generate.lists(
                    generate.builds(
                        lambda name, kind: {"name": name, kind: {}},
                        NAMES,
                        generate.sampled_from(["emptyDir", "hostPath", "configMap", "nfs"]),
                    ),
                    max_size=2,
                ),
                "containers": generate.lists(
                    generate.fixed_dictionaries(
                        {"name": generate.sampled_from(["runtime", "trainer"])},
                        optional={
                            "image": generate.just("evil"),
                            "env": generate.lists(VARIABLES.map(lambda name: {"name": name, "value": "9"}), max_size=2),
                            "volumeMounts": generate.lists(
                                generate.builds(lambda n, p: {"name": n, "mountPath": p}, NAMES, PATHS), max_size=2
                            ),
                        },
                    ),
                    max_size=1,
                ),
            },
        ),
    }
)


@pytest.mark.parametrize("made", [profilers, trainers], ids=["profilers", "trainers"])
@given(template=TEMPLATES)
def test_no_accepted_template_changes_who_a_pod_is_what_it_runs_or_what_it_may_do(
    made: Callable[[GalvatronJob], Manifest], template: Manifest
) -> None:
    try:
        job = job_with(template)
    except InvalidInput:
        return
    plain, added = (made(one)["spec"]["template"] for one in (job_with(None), job))
    for kind in ("labels", "annotations"):
        assert plain["metadata"][kind].items() <= added["metadata"][kind].items()
    allowed = {"affinity", "schedulerName", "runtimeClassName", "volumes", "containers"}
    assert {k: v for k, v in added["spec"].items() if k not in allowed} == {
        k: v for k, v in plain["spec"].items() if k not in allowed
    }
    ours, (after,) = plain["spec"]["containers"][0], added["spec"]["containers"]
    for field in ("name", "image", "command", "securityContext", "ports", "livenessProbe", "readinessProbe"):
        assert after[field] == ours[field]
    before = {variable["name"]: variable for variable in ours["env"]}
    for variable in after["env"]:
        if RESERVED_ENVIRONMENT.match(variable["name"]):
            assert variable == before[variable["name"]]
    assert after["volumeMounts"][: len(ours["volumeMounts"])] == ours["volumeMounts"]
    for mount in after["volumeMounts"][len(ours["volumeMounts"]) :]:
        place = f"/{os.path.normpath(mount['mountPath']).lstrip('/')}/"
        assert not any(place.startswith(f"{path}/") or f"{path}/".startswith(place) for path in OUR_PATHS)
    assert all("hostPath" not in volume for volume in added["spec"]["volumes"])
    assert len({volume["name"] for volume in added["spec"]["volumes"]}) == len(added["spec"]["volumes"])
