from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

import builders
from controller.bodies import Changes, job
from controller.objects import IMAGE, PLAN, children, profilers, request, specification, trainers
from galvatron_operator import names
from galvatron_operator.manifests import profiling, training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.interop.plans import GalvatronPlan, to_galvatron
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import Profile, ProfileRequest

ON_CPU: Changes = {"spec.budget.resourceName": "cpu"}


def pod_spec(owner: Manifest) -> Manifest:
    spec: Manifest = owner["spec"]["template"]["spec"]
    return spec


def container(owner: Manifest) -> Manifest:
    (only,) = pod_spec(owner)["containers"]
    return dict(only)


def environment(owner: Manifest) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container(owner)["env"]}


def option(owner: Manifest, name: str) -> str:
    command = container(owner)["command"]
    return str(command[command.index(name) + 1])


@pytest.fixture(params=[trainers, profilers], ids=["trainers", "profilers"])
def owner(request: pytest.FixtureRequest) -> Manifest:
    manifest: Manifest = request.param(job())
    return manifest


def test_every_child_goes_with_its_job() -> None:
    owned = job()
    for child in children(owned):
        (reference,) = child["metadata"]["ownerReferences"]
        assert (reference["kind"], reference["name"], reference["uid"]) == ("GalvatronJob", "job", owned.metadata.uid)
        assert reference["controller"]
        assert reference["blockOwnerDeletion"]


def test_every_child_lies_beside_its_job_and_is_labelled() -> None:
    for child in children(job()):
        assert child["metadata"]["namespace"] == "team"
        labels = child["metadata"]["labels"]
        assert labels[names.LABEL_JOB_NAME] == "job"
        assert labels[names.LABEL_MANAGED_BY] == names.MANAGER


def test_no_two_children_share_kind_and_name() -> None:
    keys = [(child["kind"], child["metadata"]["name"]) for child in children(job())]
    assert len(set(keys)) == len(keys)


def test_documents_never_change_under_their_name() -> None:
    for child in children(job()):
        if child["kind"] == "ConfigMap":
            assert child["immutable"]


def test_another_document_has_another_name() -> None:
    one, other = job(), job({"spec.training.steps": 11})
    first, second = (training.training_config_map(j, specification(j)) for j in (one, other))
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_documents_arrive_as_they_were_written() -> None:
    plan = training.plan_config_map(job(), PLAN, report="{}")["data"]
    assert Plan.from_json(plan[names.PLAN_KEY]) == PLAN
    asked = profiling.request_config_map(job(), request(job()))["data"]
    assert ProfileRequest.from_json(asked[names.REQUEST_KEY]) == request(job())


def test_a_plan_comes_with_a_file_for_hetu_galvatron_where_that_can_hold_it() -> None:
    written = training.plan_config_map(job(), builders.plan("dp4"), report="{}")["data"]
    assert GalvatronPlan.from_json(written[names.GALVATRON_PLAN_KEY]) == to_galvatron(builders.plan("dp4"))
    beyond = training.plan_config_map(job(), builders.plan("dp4 dp4 dp4 tp4"), report="{}")["data"]
    assert set(beyond) == {names.PLAN_KEY, names.REPORT_KEY}


def test_pods_are_found_before_they_are_ready() -> None:
    for service in (training.service(job()), profiling.service(job(), request(job()))):
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"]


def test_a_service_selects_the_pods_of_its_owner() -> None:
    pairs = (
        (training.service(job()), trainers(job())),
        (profiling.service(job(), request(job())), profilers(job())),
    )
    for service, owner in pairs:
        assert service["metadata"]["name"] == owner["metadata"]["name"]
        labels = owner["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_pods_have_names_in_the_service_that_they_meet_by() -> None:
    assert trainers(job())["spec"]["serviceName"] == "job"
    assert option(trainers(job()), "--master-addr") == "job-0.job"
    name = profilers(job())["metadata"]["name"]
    assert pod_spec(profilers(job()))["subdomain"] == name
    assert option(profilers(job()), "--master-addr") == f"{name}-0.{name}"


def test_the_process_of_a_pod_is_the_supervisor_and_parks(owner: Manifest) -> None:
    assert container(owner)["command"][:3] == ["python", "-m", "galvatron_runtime.supervisor"]
    assert option(owner, "--when-finished") == "park"


def test_every_node_gets_its_rank_from_its_ordinal() -> None:
    for owner in (trainers(job()), profilers(job())):
        assert option(owner, "--node-rank") == "$(GALVATRON_NODE_RANK)"
    field = environment(trainers(job()))["GALVATRON_NODE_RANK"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['apps.kubernetes.io/pod-index']"
    field = environment(profilers(job()))["GALVATRON_NODE_RANK"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_trainers_read_the_documents_that_are_mounted() -> None:
    owner = trainers(job())
    (volume,) = (v for v in pod_spec(owner)["volumes"] if v["name"] == "documents")
    mounted = {source["configMap"]["name"]: source["configMap"]["items"] for source in volume["projected"]["sources"]}
    plan = training.plan_config_map(job(), PLAN, report="{}")["metadata"]["name"]
    document = training.training_config_map(job(), specification(job()))["metadata"]["name"]
    assert mounted == {
        plan: [{"key": "plan.json", "path": "plan.json"}],
        document: [{"key": "training.json", "path": "training.json"}],
    }
    assert option(owner, "--plan") == "/etc/galvatron/plan.json"
    assert option(owner, "--training") == "/etc/galvatron/training.json"


def test_profilers_leave_the_result_where_the_supervisor_looks() -> None:
    owner = profilers(job())
    assert option(owner, "--output") == f"{option(owner, '--run-directory')}/result.json"


def test_every_mount_has_its_volume(owner: Manifest) -> None:
    mounts = [mount["name"] for mount in container(owner)["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod_spec(owner)["volumes"]]
    assert len(set(mounts)) == len(mounts)


def test_what_a_pod_writes_is_its_own(owner: Manifest) -> None:
    writable = {m["mountPath"] for m in container(owner)["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/run/galvatron", "/tmp", "/dev/shm"}  # noqa: S108 -- paths in a pod
    (shared_memory,) = (v for v in pod_spec(owner)["volumes"] if v["name"] == "shared-memory")
    assert shared_memory["emptyDir"] == {"medium": "Memory"}


def test_pods_satisfy_the_restricted_level_of_pod_security(owner: Manifest) -> None:
    pod, security = pod_spec(owner)["securityContext"], container(owner)["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not security["allowPrivilegeEscalation"]
    assert security["readOnlyRootFilesystem"]
    kinds = {kind for volume in pod_spec(owner)["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "projected", "persistentVolumeClaim"}


def test_pods_carry_no_credentials(owner: Manifest) -> None:
    assert pod_spec(owner)["automountServiceAccountToken"] is False
    assert pod_spec(owner)["enableServiceLinks"] is False
    assert "serviceAccountName" not in pod_spec(owner)


def test_probes_ask_the_supervisor(owner: Manifest) -> None:
    (port,) = container(owner)["ports"]
    assert str(port["containerPort"]) == option(owner, "--port")
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container(owner)[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_pods_leave_a_lost_node_soon(owner: Manifest) -> None:
    tolerated = {t["key"]: t["tolerationSeconds"] for t in pod_spec(owner)["tolerations"]}
    assert tolerated == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


def test_trainers_and_profilers_spread_alike() -> None:
    constraints = [pod_spec(owner)["topologySpreadConstraints"][0] for owner in (trainers(job()), profilers(job()))]
    selectors = [constraint.pop("labelSelector")["matchLabels"] for constraint in constraints]
    assert constraints[0] == constraints[1]
    assert [selector[names.LABEL_COMPONENT] for selector in selectors] == ["trainer", "profiler"]


def test_a_pod_has_the_gpus_of_a_node(owner: Manifest) -> None:
    assert container(owner)["resources"] == {
        "requests": {"nvidia.com/gpu": "2"},
        "limits": {"nvidia.com/gpu": "2"},
    }


def test_devices_that_are_processes_take_no_resource() -> None:
    on_cpu = job({**ON_CPU, "spec.runtime": {"resources": {"requests": {"cpu": 2}}}})
    assert container(trainers(on_cpu))["resources"] == {"requests": {"cpu": "2"}}
    plain = job(ON_CPU)
    assert container(trainers(plain))["resources"] == {}


def test_a_gang_starts_at_once_and_changes_as_a_whole() -> None:
    spec = trainers(job())["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "OnDelete"}


def test_a_stopped_gang_differs_in_replicas_only() -> None:
    running, stopped = trainers(job()), trainers(job(), replicas=0)
    stopped["spec"]["replicas"] = running["spec"]["replicas"]
    assert running == stopped


def test_pods_of_two_attempts_differ_in_their_annotation_only() -> None:
    first, second = trainers(job(), attempt=1), trainers(job(), attempt=2)
    annotations = [m["spec"]["template"]["metadata"].pop("annotations") for m in (first, second)]
    assert [a[names.ANNOTATION_ATTEMPT] for a in annotations] == ["1", "2"]
    # Or a pod that stays for the second attempt would not be what a new one is.
    assert first["spec"] == second["spec"]


def test_a_trainer_reads_its_attempt_from_its_annotation() -> None:
    owner = trainers(job())
    (volume,) = (v for v in pod_spec(owner)["volumes"] if v["name"] == "attempt")
    (mount,) = (m for m in container(owner)["volumeMounts"] if m["name"] == "attempt")
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"] == {"fieldPath": "metadata.annotations['galvatron.io/attempt']"}
    assert option(owner, "--attempt-file") == f"{mount['mountPath']}/{item['path']}"
    # The kubelet never refreshes a file that is mounted alone.
    assert "subPath" not in mount
    assert "--attempt" not in container(owner)["command"]


def test_every_attempt_has_a_rendezvous_of_its_own() -> None:
    assert option(trainers(job()), "--rdzv-id").endswith("-{attempt}")
    assert option(profilers(job()), "--attempt") == "0"


def test_selectors_are_among_the_labels_of_their_pods() -> None:
    spec = trainers(job())["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_ranks_end_before_their_pod_is_killed() -> None:
    for owner in (trainers(job()), profilers(job())):
        ranks = int(option(owner, "--shutdown-timeout"))
        supervisor = int(option(owner, "--grace-seconds"))
        assert 0 < ranks < supervisor < pod_spec(owner)["terminationGracePeriodSeconds"]


def test_a_lost_profiler_ends_the_measurement() -> None:
    spec = profilers(job())["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_kubernetes_does_not_end_profilers_that_wait_with_a_result() -> None:
    assert "activeDeadlineSeconds" not in profilers(job())["spec"]


def test_text_is_mounted_read_only() -> None:
    dataset = {"source": "Text", "path": "a.txt", "volume": {"configMapName": "corpus"}}
    owner = trainers(job({"spec.training.dataset": dataset}))
    (mount,) = (m for m in container(owner)["volumeMounts"] if m["mountPath"] == "/data")
    assert mount["readOnly"]
    (volume,) = (v for v in pod_spec(owner)["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"] == {"name": "corpus"}


def test_published_weights_are_mounted_read_only_and_for_training_only() -> None:
    started = job({"spec.training.initialWeights": {"path": "gpt2", "volume": {"claimName": "models"}}})
    (mount,) = (m for m in container(trainers(started))["volumeMounts"] if m["mountPath"] == "/weights")
    assert mount["readOnly"]
    (volume,) = (v for v in pod_spec(trainers(started))["volumes"] if v["name"] == mount["name"])
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "/weights" not in [m["mountPath"] for m in container(profilers(started))["volumeMounts"]]


def test_training_checkpoints_go_to_their_claim_and_are_no_business_of_profilers() -> None:
    saving = job({"spec.checkpoint": {"volume": {"claimName": "shared"}, "periodSteps": 5}})
    claims = [
        [v["persistentVolumeClaim"]["claimName"] for v in pod_spec(owner)["volumes"] if "persistentVolumeClaim" in v]
        for owner in (trainers(saving), profilers(saving))
    ]
    assert claims == [["shared"], []]
    assert "/checkpoints" in [m["mountPath"] for m in container(trainers(saving))["volumeMounts"]]


def test_pods_are_placed_and_pulled_as_the_job_says() -> None:
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    runtime = {
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [toleration],
    }
    for owner in (trainers(job({"spec.runtime": runtime})), profilers(job({"spec.runtime": runtime}))):
        assert container(owner)["image"] == IMAGE
        assert container(owner)["imagePullPolicy"] == "Always"
        assert pod_spec(owner)["imagePullSecrets"] == [{"name": "registry"}]
        assert pod_spec(owner)["nodeSelector"] == {"gpu": "a100"}
        assert toleration in pod_spec(owner)["tolerations"]


def test_pods_have_the_priority_that_the_job_asks_for() -> None:
    urgent = job({"spec.scheduling": {"priorityClassName": "training-high"}})
    for owner in (trainers(urgent), profilers(urgent)):
        assert pod_spec(owner)["priorityClassName"] == "training-high"
    assert "priorityClassName" not in pod_spec(trainers(job()))


@pytest.mark.parametrize("component", ["trainer", "profiler"])
@pytest.mark.parametrize("mode", ["Preferred", "Required"])
def test_pods_of_a_gang_are_drawn_to_each_other(mode: str, component: str) -> None:
    near = job({"spec.scheduling": {"topology": {"key": "example.com/rack", "mode": mode}}})
    owner = trainers(near) if component == "trainer" else profilers(near)
    selector = names.pod_selector("job", component)
    term = {"topologyKey": "example.com/rack", "labelSelector": {"matchLabels": selector}}
    expected = {
        "Required": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
        "Preferred": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]},
    }
    assert pod_spec(owner)["affinity"] == {"podAffinity": expected[mode]}
    # A pod that does not match its own requirement could never be the first one.
    assert selector.items() <= owner["spec"]["template"]["metadata"]["labels"].items()


def test_measured_pods_have_the_network_that_training_pods_have() -> None:
    network = {"rdmaResourceName": "rdma/hca", "rdmaResourceCount": 8, "annotations": {"example.com/networks": "ib0"}}
    fast = job({"spec.runtime": {"network": network}})
    for owner in (trainers(fast), profilers(fast)):
        for kind in ("requests", "limits"):
            assert container(owner)["resources"][kind] == {"nvidia.com/gpu": "2", "rdma/hca": "8"}
        assert owner["spec"]["template"]["metadata"]["annotations"]["example.com/networks"] == "ib0"
    assert "affinity" not in pod_spec(trainers(fast))


def test_shared_memory_ends_where_the_job_says() -> None:
    limited = job({"spec.runtime": {"sharedMemory": {"sizeLimit": "64Gi"}}})
    for owner in (trainers(limited), profilers(limited)):
        [volume] = [v for v in pod_spec(owner)["volumes"] if v["name"] == "shared-memory"]
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}


def test_a_users_variable_wins_over_a_default_of_ours() -> None:
    chosen = job({**ON_CPU, "spec.runtime": {"env": [{"name": "OMP_NUM_THREADS", "value": "2"}]}})
    owner = profilers(chosen)
    assert environment(owner)["OMP_NUM_THREADS"] == "2"
    assert len(environment(owner)) == len(container(owner)["env"])


def test_a_cached_profile_outlives_its_job() -> None:
    measured: Profile = builders.profile(builders.model(), builders.cluster(2))
    cached = profiling.profile_config_map("team", measured, measured=datetime(2026, 1, 1, tzinfo=UTC))
    assert "ownerReferences" not in cached["metadata"]
    assert names.LABEL_JOB_NAME not in cached["metadata"]["labels"]
    assert cached["metadata"]["labels"][names.LABEL_MANAGED_BY] == names.MANAGER
    assert Profile.from_json(cached["data"][names.PROFILE_KEY]) == measured


def test_objects_can_be_written_as_yaml_without_aliases() -> None:
    for child in children(job()):
        text = yaml.safe_dump(child)
        assert "&id" not in text
        assert yaml.safe_load(text) == child


def test_equal_input_gives_equal_objects() -> None:
    assert children(job()) == children(job())
