"""``docs/values.md``: every value of the chart, with the comment that stands above it in ``values.yaml``.

``make reference`` writes it anew, after a change of the values.
"""

import re
from collections.abc import Iterator

import yaml

from architecture.reference import ROOT

DOCUMENT = ROOT / "docs" / "values.md"
VALUES = ROOT / "charts" / "galvatron-operator" / "values.yaml"

_INTRODUCTION = """\
# Values of the chart

Every value of `charts/galvatron-operator`, written from its `values.yaml` by `make reference`; change it there. What is
not here does not exist: the chart refuses it. The [operations guide](operations.md) says which matter first.

| value | default | meaning |
|---|---|---|
"""


def values() -> str:
    """Write the document."""
    return _INTRODUCTION + "".join(f"| `{path}` | `{default}` | {told} |\n" for path, default, told in rows())


def rows() -> Iterator[tuple[str, str, str]]:
    """Find path, default and meaning of every value that has a comment of its own."""
    defaults = yaml.safe_load(VALUES.read_text())
    path: list[str] = []
    told = ""
    for line in VALUES.read_text().splitlines():
        if comment := re.match(r" *# -- (.*)", line):
            told = comment[1]
        elif key := re.match(r"( *)(\w+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            if told:
                yield ".".join(path), _written(_at(defaults, path)), told.replace("|", "\\|")
            told = ""


def _at(values: object, path: list[str]) -> object:
    for name in path:
        assert isinstance(values, dict)
        values = values[name]
    return values


def _written(value: object) -> str:
    """Write a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    DOCUMENT.write_text(values())
