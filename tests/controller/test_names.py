import re

from hypothesis import given
from hypothesis import strategies as generate

from galvatron_operator import names

job_names = generate.text("az-09", max_size=38).map(lambda middle: f"j{middle}0")
digests = generate.text("0123456789abcdef", min_size=64, max_size=64)

DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
LARGEST_ORDINAL = 4095


def owners(job_name: str, digest: str) -> tuple[str, ...]:
    return (
        names.stateful_set(job_name),
        names.placeholders(job_name, uid=digest),
        names.profiling_job(job_name, digest),
    )


@given(job_names, digests)
def test_every_name_of_a_job_is_a_dns_label(job_name: str, digest: str) -> None:
    made = (
        *owners(job_name, digest),
        names.request_config_map(job_name, digest),
        names.plan_config_map(job_name, digest),
        names.training_config_map(job_name, digest),
        names.profile_config_map(digest),
    )
    for name in made:
        assert len(name) <= 63
        assert DNS_LABEL.match(name)


@given(job_names, digests)
def test_names_leave_room_for_what_kubernetes_appends(job_name: str, digest: str) -> None:
    for owner in owners(job_name, digest):
        assert len(names.pod(owner, LARGEST_ORDINAL)) <= 63
    # The label controller-revision-hash of a StatefulSet's pods: its name, a dash and ten characters.
    for stateful_set in (names.stateful_set(job_name), names.placeholders(job_name, uid=digest)):
        assert len(stateful_set) + 11 <= 63


@given(job_names, digests)
def test_objects_of_one_job_and_kind_do_not_share_a_name(job_name: str, digest: str) -> None:
    config_maps = [
        names.request_config_map(job_name, digest),
        names.plan_config_map(job_name, digest),
        names.training_config_map(job_name, digest),
        names.profile_config_map(digest),
    ]
    assert len(set(config_maps)) == len(config_maps)
    # The first and the last also name a Service.
    assert len(set(owners(job_name, digest))) == 3


@given(job_names)
def test_every_label_fits_its_limit(job_name: str) -> None:
    labels = names.job_labels(job_name, uid="0" * 36, component=names.COMPONENT_TRAINER)
    assert all(len(value) <= 63 for value in labels.values())


def test_pods_are_selected_by_labels_that_all_of_them_have() -> None:
    labels = names.job_labels("job", uid="u", component=names.COMPONENT_TRAINER)
    assert names.pod_selector("job", names.COMPONENT_TRAINER).items() <= labels.items()
    assert names.owned_selector() == f"{names.LABEL_MANAGED_BY}={labels[names.LABEL_MANAGED_BY]},{names.LABEL_JOB_UID}"


def test_a_pod_is_found_under_its_owners_headless_service() -> None:
    assert names.pod_address("job", 0) == "job-0.job"
