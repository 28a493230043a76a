"""The structural part of the API server's work: what a CRD's schema refuses, and the defaults that it fills in.

Rules in CEL are not looked at: everything that they refuse, the operator has to refuse as well.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

Schema = Mapping[str, Any]

_CRD = yaml.safe_load((Path(__file__).parents[2] / "crds" / "galvatronjobs.yaml").read_text())
OBJECT: Schema = _CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
"""Schema of a whole GalvatronJob."""
SPEC: Schema = OBJECT["properties"]["spec"]
STATUS: Schema = OBJECT["properties"]["status"]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}
_LARGEST = 2**63 - 1
_FORMATS = {"int32": 2**31 - 1, "int64": _LARGEST}
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVES = "x-kubernetes-preserve-unknown-fields"


def refusals(value: Any, schema: Schema, path: str) -> Iterator[str]:
    """List why a value does not follow a schema."""
    kinds = (int, str) if schema.get(_INT_OR_STRING) else _TYPES[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield f"{path} is {type(value).__name__}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is none of {schema['enum']}"
    match value:
        case str():
            yield from _text(value, schema, path)
        case int():
            lowest, highest = schema.get("minimum", -_LARGEST), schema.get("maximum", _LARGEST)
            if not lowest <= value <= highest or abs(value) > _FORMATS.get(schema.get("format", ""), _LARGEST):
                yield f"{path} is {value}"
        case list():
            yield from _list(value, schema, path)
        case dict():
            yield from _object(value, schema, path)


def as_received(value: Any, schema: Schema) -> Any:
    """Copy a value as the API server reads it: known fields that are null are absent, and 4.0 is the integer 4."""
    if isinstance(value, float) and value.is_integer() and schema.get("type") == "integer":
        return int(value)
    if isinstance(value, list) and "items" in schema:
        return [as_received(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return copy.deepcopy(value)
    fields = schema["properties"]
    kept = {name: child for name, child in value.items() if child is not None or name not in fields}
    return {name: as_received(child, fields.get(name, {})) for name, child in kept.items()}


def with_defaults(value: Any, schema: Schema) -> Any:
    """Copy a value that follows the schema, with every default that the API server would fill in."""
    if isinstance(value, list):
        return [with_defaults(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return copy.deepcopy(value)
    fields = schema["properties"]
    missing = {name: child["default"] for name, child in fields.items() if name not in value and "default" in child}
    return {name: with_defaults(child, fields[name]) for name, child in {**value, **missing}.items()}


def _text(value: str, schema: Schema, path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield f"{path} does not match"
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            yield f"{path} is no time"


def _list(value: list[Any], schema: Schema, path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{path} has {len(value)} items"
        return
    for index, item in enumerate(value):
        yield from refusals(item, schema["items"], f"{path}[{index}]")
    keys = schema.get("x-kubernetes-list-map-keys", ())
    identities = [repr([item.get(key) for key in keys] if keys and isinstance(item, dict) else item) for item in value]
    if schema.get("x-kubernetes-list-type") in ("set", "map") and len(set(identities)) < len(identities):
        yield f"{path} has an item twice"


def _object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[str]:
    yield from (f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value)
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path} has {len(value)} fields"
    of_all = schema.get("additionalProperties")
    if schema.get(_PRESERVES) or ("properties" not in schema and of_all is None):
        return
    for name, child in value.items():
        known = schema.get("properties", {}).get(name, of_all)
        if known is None:
            yield f"{path}.{name} is unknown"
        else:
            yield from refusals(child, known, f"{path}.{name}")
