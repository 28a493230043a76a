"""The CRD and the Python types say the same; what the API server makes of it is in ``test_api_server.py``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob, JobStatus, Spec, parse
from galvatron_operator.api.overlay import RESERVED_ENVIRONMENT
from galvatron_operator.api.status import ConditionType
from galvatron_planner.presets import PRESETS

Schema = dict[str, Any]

ROOT = Path(__file__).parents[2]
CRD: Schema = yaml.safe_load((ROOT / "crds" / "galvatronjobs.yaml").read_text())
(VERSION,) = CRD["spec"]["versions"]
OBJECT: Schema = VERSION["schema"]["openAPIV3Schema"]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))

ONLY_IN_A_CLUSTER = {"spec.checkpoint": {"volume"}, "spec.training.initialWeights": {"volume"}}
"""Fields that the CRD requires and the Python types do not: local runs have no volumes."""

COMPARED = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "maxItems", "maxProperties", "pattern")

WORDS = {
    *(*COMPARED, "format", "minItems", "minProperties", "description", "default", "nullable"),
    *("properties", "required", "items", "additionalProperties"),
}
"""What our schema may say (structural schemas of Kubernetes allow a little more)."""


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Walk all fields of a CRD's schema, items and values of maps included."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], path + suffix)


def described_by(model: type[BaseModel], path: str) -> dict[str, Schema]:
    """Write a pydantic model's schema as a CRD would: references and optional values resolved."""
    whole = model.model_json_schema(by_alias=True)

    def resolved(node: Schema) -> Schema:
        present: Schema = next((choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"), {})
        reference = {**node, **present}.get("$ref", "").rpartition("/")[2]
        merged = {**whole.get("$defs", {}).get(reference, {}), **present, **node}
        if "const" in merged:
            merged["enum"] = [merged["const"]]
        for key in ("items", "additionalProperties"):
            if isinstance(merged.get(key), dict):
                merged[key] = resolved(merged[key])
        merged["properties"] = {name: resolved(child) for name, child in merged.get("properties", {}).items()}
        return merged

    return dict(fields(resolved(whole), path))


TEMPLATE = "spec.runtime.template"
"""Its fields are those of pods: the types name what is allowed, the schema lets the operator say what is not."""

SPEC = {path: ours for path, ours in described_by(Spec, "spec").items() if not path.startswith(f"{TEMPLATE}.")}
CRD_SPEC = dict(fields(OBJECT["properties"]["spec"], "spec"))
STATUS = described_by(JobStatus, "status")
CRD_STATUS = dict(fields(OBJECT["properties"]["status"], "status"))


def complete(schema: Schema, default: Any) -> Any:
    """Fill the defaults within a default, as the API server does."""
    if not isinstance(default, dict) or "properties" not in schema:
        return default
    inner = {
        name: complete(child, default.get(name, child.get("default")))
        for name, child in schema["properties"].items()
        if name in default or "default" in child
    }
    return {**default, **inner}


def test_the_crd_is_the_one_that_the_operator_watches() -> None:
    assert CRD["metadata"]["name"] == f"{names.PLURAL}.{names.API_GROUP}"
    assert f"{CRD['spec']['group']}/{VERSION['name']}" == names.API_VERSION
    assert CRD["spec"]["names"]["kind"] == names.KIND


def test_the_schema_and_the_types_name_the_same_fields() -> None:
    assert CRD_SPEC.keys() == SPEC.keys()
    assert CRD_STATUS.keys() == STATUS.keys()


def test_the_schema_and_the_types_have_the_same_bounds() -> None:
    def bounds(schema: Schema) -> Schema:
        known = {key: schema[key] for key in COMPARED if key in schema}
        if schema.get("x-kubernetes-int-or-string"):
            known["type"] = "string"
        return known | ({"enum": set(known["enum"])} if "enum" in known else {})

    for path, ours in SPEC.items():
        assert bounds(CRD_SPEC[path]) == bounds(ours), path


def test_the_schema_and_the_types_require_the_same_fields() -> None:
    for path, ours in SPEC.items():
        required = set(CRD_SPEC[path].get("required", ())) - ONLY_IN_A_CLUSTER.get(path, set())
        assert required == set(ours.get("required", ())), path


MAPS = ("spec.runtime.nodeSelector", "spec.runtime.network.annotations")


def test_the_schema_and_the_types_have_the_same_defaults() -> None:
    # Pydantic makes a map anew each time and therefore shows no default for it.
    in_code = {path: ours.get("default") for path, ours in SPEC.items()} | {path: {} for path in MAPS}
    for path, ours in in_code.items():
        theirs = complete(CRD_SPEC[path], CRD_SPEC[path].get("default"))
        assert without_nulls(theirs) == without_nulls(ours), path


def without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(child) for name, child in value.items() if child is not None}


def test_the_status_has_the_types_of_the_schema() -> None:
    for path, ours in STATUS.items():
        kind = CRD_STATUS[path]["type"]
        assert ours.get("type", kind) == kind, path


def test_everything_is_described() -> None:
    undescribed = [
        path
        for path, schema in {**CRD_SPEC, **CRD_STATUS}.items()
        if not schema.get("description") and not path.endswith(("[]", "{}"))
    ]
    assert undescribed == []


def test_the_schema_has_only_words_that_kubernetes_knows() -> None:
    # A comma in a text without quotes makes a key of what follows it.
    for path, schema in fields(OBJECT, ""):
        assert [word for word in schema if word not in WORDS and not word.startswith("x-kubernetes-")] == [], path


def test_every_text_and_every_list_is_bounded() -> None:
    for path, schema in {**CRD_SPEC, **CRD_STATUS}.items():
        if schema.get("type") == "string" and "enum" not in schema and schema.get("format") != "date-time":
            assert "maxLength" in schema, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
            assert path.endswith("conditions") or "items" in schema


def test_what_pods_are_made_of_is_immutable() -> None:
    def is_immutable(schema: Schema) -> bool:
        return any(rule["rule"] == "self == oldSelf" for rule in schema.get("x-kubernetes-validations", ()))

    parts = OBJECT["properties"]["spec"]["properties"]
    mutable = {name for name, schema in parts.items() if not is_immutable(schema)}
    assert mutable == {"suspend", "lifecycle", "observability"}
    watching = parts["observability"]["properties"]
    assert {name for name, schema in watching.items() if not is_immutable(schema)} == {"statusPeriodSeconds"}


def test_the_schema_and_the_checks_reserve_the_same_variables() -> None:
    (rule,) = CRD_SPEC["spec.runtime.env[]"]["properties"]["name"]["x-kubernetes-validations"]
    assert f"'{RESERVED_ENVIRONMENT.pattern}'" in rule["rule"]


def test_the_schema_and_the_presets_agree_on_what_reads_images() -> None:
    rule = next(
        r["rule"] for r in OBJECT["properties"]["spec"]["x-kubernetes-validations"] if "preset.matches" in r["rule"]
    )
    pattern = re.search(r"matches\('(.*)'\)", rule)[1]  # type: ignore[index]
    for name, model in PRESETS.items():
        assert bool(re.match(pattern, name)) == bool(model.image_size), name


def test_the_schema_names_every_condition() -> None:
    text = CRD_STATUS["status.conditions[]"]["properties"]["type"]["description"]
    assert all(condition.value in text for condition in ConditionType)


@pytest.mark.parametrize("column", VERSION["additionalPrinterColumns"], ids=lambda column: column["name"])
def test_every_printer_column_shows_a_field(column: Schema) -> None:
    path = column["jsonPath"].removeprefix(".").replace('[?(@.type=="Failed")]', "[]")
    assert path in CRD_SPEC or path in CRD_STATUS or path == "metadata.creationTimestamp"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_job(path: Path) -> None:
    job = parse(yaml.safe_load(path.read_text()))
    assert isinstance(job, GalvatronJob)
    assert job.cluster.num_devices == job.spec.budget.gpus


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_writes_only_fields_of_the_schema(path: Path) -> None:
    written = yaml.safe_load(path.read_text())["spec"]
    assert undeclared(written, OBJECT["properties"]["spec"]) == []


def undeclared(value: Any, schema: Schema, path: str = "spec") -> list[str]:
    """List the fields that the API server would not know."""
    if isinstance(value, list):
        return [found for item in value for found in undeclared(item, schema["items"], f"{path}[]")]
    if not isinstance(value, dict) or {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & schema.keys():
        return []
    unknown = [f"{path}.{name}" for name in value if name not in schema["properties"]]
    known = (name for name in value if name in schema["properties"])
    return unknown + [
        found for name in known for found in undeclared(value[name], schema["properties"][name], f"{path}.{name}")
    ]


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "quickstart"], ids=lambda path: path.stem)
def test_every_example_for_a_cluster_has_its_volumes(path: Path) -> None:
    parse(yaml.safe_load(path.read_text())).check_for_cluster()
