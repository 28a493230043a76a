"""``docs/reference.md``: every field of a GalvatronJob as the CRD has it.

``make reference`` writes it anew, after a change of the CRD.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference.md"
PARTS = ("spec", "status")

_INTRODUCTION = """\
# Reference

Every field of a GalvatronJob (`galvatron.io/v1alpha1`), as `kubectl explain galvatronjob.spec` tells it too. Written
from `crds/galvatronjobs.yaml` by `make reference`; change it there. `[]` is an item of a list. A field without a
default may be left out, unless it is *required* (in the status: always there). The rules below a table are those by
which the API server refuses a job, in its words. The [user guide](user-guide.md) says what to do with all this.
"""
_HEAD = "| field | type | default | allowed | meaning |\n|---|---|---|---|---|"


@cache
def schema() -> Schema:
    """Read the schema of a GalvatronJob."""
    crd = yaml.safe_load((ROOT / "crds" / "galvatronjobs.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


def reference() -> str:
    """Write the document."""
    whole = schema()
    parts = (_part(name, whole["properties"][name]) for name in PARTS)
    return "\n".join([_INTRODUCTION, *_rules([whole]), *parts])


def field_at(path: str) -> Schema | None:
    """Find a field by its path, ``spec.failurePolicy.rules[].action`` or without the brackets; None when there is none.

    What lies in a field that keeps unknown fields is that field.
    """
    found = schema()
    for name in path.replace("[]", "").replace("{}", "").split("."):
        found = found.get("items", found)
        if found.get("x-kubernetes-preserve-unknown-fields"):
            break
        child = found.get("properties", {}).get(name, found.get("additionalProperties"))
        if child is None:
            return None
        found = child
    return found


def _part(name: str, part: Schema) -> str:
    """Write spec or status: fields without fields of their own in one table, the others in one table each."""
    plain = {key: child for key, child in part["properties"].items() if not _inner(child)}
    nested = {key: child for key, child in part["properties"].items() if _inner(child)}
    lines = [f"## {name}", "", _told(part), ""]
    lines += _table(_rows(name, {**part, "properties": plain})) + _rules([part, *plain.values()])
    for key, child in nested.items():
        lines += [f"### {name}.{key}", "", f"{_told(child)}{_presence(part, key, child)}", ""]
        lines += _table(_rows(f"{name}.{key}", child)) + _rules(_all(child))
    return "\n".join(lines)


def _inner(field: Schema) -> Schema | None:
    """Give the object whose fields a field has, if it has any: itself, or an item of the list."""
    inner: Schema = field.get("items", field)
    return inner if "properties" in inner else None


def _rows(path: str, parent: Schema) -> Iterator[str]:
    inner = _inner(parent) or {}
    prefix = f"{path}[]" if "items" in parent else path
    for name, child in inner.get("properties", {}).items():
        cells = (f"`{prefix}.{name}`", _type(child), _default(inner, name, child), _allowed(child), _told(child))
        yield f"| {' | '.join(cells)} |"
        yield from _rows(f"{prefix}.{name}", child)


def _all(field: Schema) -> Iterator[Schema]:
    """Walk a field and all fields in it."""
    yield field
    for child in (_inner(field) or {}).get("properties", {}).values():
        yield from _all(child)
    if "items" in field:
        yield field["items"]


def _table(rows: Iterator[str]) -> list[str]:
    written = list(rows)
    return [_HEAD, *written, ""] if written else []


def _rules(fields: Iterator[Schema] | list[Schema]) -> list[str]:
    told = [rule["message"] for field in fields for rule in field.get("x-kubernetes-validations", ())]
    return [*(f"- {_escaped(message)}" for message in dict.fromkeys(told)), ""] if told else []


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    match field.get("type"):
        case "array":
            return f"list of {_type(field['items'])}"
        case "object" if isinstance(field.get("additionalProperties"), dict):
            return f"map to {_type(field['additionalProperties'])}"
        case "string" if field.get("format") == "date-time":
            return "time"
        case other:
            return str(other)


def _default(parent: Schema, name: str, field: Schema) -> str:
    if name in parent.get("required", ()):
        return "*required*"
    default = field.get("default")
    # An object that is filled in by the defaults of its fields says nothing by its own.
    return "" if default is None or isinstance(default, dict) else f"`{_written(default)}`"


def _presence(parent: Schema, name: str, field: Schema) -> str:
    return " *Required.*" if _default(parent, name, field) == "*required*" else ""


def _allowed(field: Schema) -> str:
    """Write bounds, choices and pattern, of a field and of what a list holds."""
    told = []
    if "enum" in field:
        told.append(", ".join(f"`{choice}`" for choice in field["enum"]))
    if "minimum" in field or "maximum" in field:
        told.append(f"{field.get('minimum', '')}..{field.get('maximum', '')}")
    if "pattern" in field:
        # A bar would end the cell, also within code.
        told.append(f"`{field['pattern'].replace('|', chr(92) + '|')}`")
    for noun, least, most in (
        ("characters", "minLength", "maxLength"),
        ("items", "minItems", "maxItems"),
        ("entries", "minProperties", "maxProperties"),
    ):
        if most in field:
            bounds = f"{field.get(least, 0)}..{field[most]}" if field.get(least) != field[most] else field[most]
            told.append(f"{bounds} {noun}")
    inner = field.get("items", field.get("additionalProperties"))
    if isinstance(inner, dict) and (of_items := _allowed(inner)):
        told.append(f"each {of_items}")
    return "; ".join(told)


def _told(field: Schema) -> str:
    return _escaped(" ".join(field.get("description", "").split()))


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    """Keep Markdown from reading the text of the CRD as its own."""
    for sign in "|*<":
        text = text.replace(sign, f"\\{sign}")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(reference())
