import pytest

from galvatron_operator.settings import Settings
from galvatron_planner.errors import InvalidInput


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


@pytest.mark.parametrize(("variable", "value"), [("GALVATRON_RUNTIME_IMAGE", ""), ("GALVATRON_LOG_LEVEL", "LOUD")])
def test_a_wrong_setting_is_refused_with_its_variable(variable: str, value: str) -> None:
    environment = {"GALVATRON_RUNTIME_IMAGE": "r"} | {variable: value}
    with pytest.raises(InvalidInput, match=variable):
        Settings.from_environment(environment)
