import pytest

from galvatron_operator.settings import Candidacy, ProfileCache, Settings
from galvatron_planner.errors import InvalidInput

CANDIDACY = {"POD_NAMESPACE": "system", "GALVATRON_LEASE_NAME": "galvatron", "POD_NAME": "galvatron-0"}


def test_only_the_runtime_image_must_be_set() -> None:
    settings = Settings.from_environment({"GALVATRON_RUNTIME_IMAGE": "registry/runtime:1"})
    assert settings == Settings(runtime_image="registry/runtime:1", watch_namespaces=(), log_level="INFO")


def test_an_empty_list_of_namespaces_means_all_of_them() -> None:
    settings = Settings.from_environment({"GALVATRON_RUNTIME_IMAGE": "r", "GALVATRON_WATCH_NAMESPACES": ""})
    assert settings.watch_namespaces == ()


def test_namespaces_are_separated_by_commas() -> None:
    settings = Settings.from_environment(
        {"GALVATRON_RUNTIME_IMAGE": "r", "GALVATRON_WATCH_NAMESPACES": "team-b, team-a,"}
    )
    assert settings.watch_namespaces == ("team-a", "team-b")


def test_secrets_of_all_jobs_are_separated_by_commas() -> None:
    named = {"GALVATRON_RUNTIME_IMAGE": "r", "GALVATRON_IMAGE_PULL_SECRETS": "ml,mirror"}
    assert Settings.from_environment(named).image_pull_secrets == ("mirror", "ml")


def test_profiles_are_shared_only_where_a_namespace_for_them_is_named() -> None:
    named = {"GALVATRON_RUNTIME_IMAGE": "r", "GALVATRON_PROFILE_CACHE_CONTRIBUTORS": "team-b,team-a"}
    assert Settings.from_environment(named | {"GALVATRON_PROFILE_CACHE_NAMESPACE": ""}).profile_cache is None
    sharing = Settings.from_environment(named | {"GALVATRON_PROFILE_CACHE_NAMESPACE": "system"})
    assert sharing.profile_cache == ProfileCache("system", contributors=("team-a", "team-b"))


def test_there_is_no_election_unless_it_is_asked_for() -> None:
    named = {"GALVATRON_RUNTIME_IMAGE": "r", **CANDIDACY}
    assert Settings.from_environment(named).candidacy is None
    assert Settings.from_environment(named | {"GALVATRON_LEADER_ELECTION": "false"}).candidacy is None
    elected = Settings.from_environment(named | {"GALVATRON_LEADER_ELECTION": "true"})
    assert elected.candidacy == Candidacy(namespace="system", lease_name="galvatron", pod_name="galvatron-0")


@pytest.mark.parametrize("variable", CANDIDACY)
def test_an_election_needs_to_know_who_and_where(variable: str) -> None:
    environment = {"GALVATRON_RUNTIME_IMAGE": "r", "GALVATRON_LEADER_ELECTION": "true", **CANDIDACY, variable: ""}
    with pytest.raises(InvalidInput, match=variable):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GALVATRON_RUNTIME_IMAGE", ""),
        ("GALVATRON_IMAGE_PULL_SECRETS", "My_Secret"),
        ("GALVATRON_LOG_LEVEL", "LOUD"),
        ("GALVATRON_LEADER_ELECTION", "yes"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_variable(variable: str, value: str) -> None:
    environment = {"GALVATRON_RUNTIME_IMAGE": "r"} | {variable: value}
    with pytest.raises(InvalidInput, match=variable):
        Settings.from_environment(environment)
