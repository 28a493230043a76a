"""``docs/licences.md``: what the images install, with versions and licences, as the packages themselves state them.

``make licences`` writes it anew from the locks, after ``make lock``: pip says what it would install, and this makes a
table of it. That downloads what the locks name, some gigabytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from architecture.reference import ROOT

DOCUMENT = ROOT / "docs" / "licences.md"
IMAGES = ("operator", "runtime")

_INTRODUCTION = """\
# Licences of dependencies

What the two images hold beside galvatron-operator itself (Apache-2.0) and Debian with Python: written by `make
licences` from `requirements-operator.lock` and `requirements-runtime.lock`, in the words of each package's metadata.
Names with `LicenseRef` are in no public list: NVIDIA's libraries come under its own terms. *not stated*: the
package's own pages say it.

| package | version | licence | image |
|---|---|---|---|
"""


def licence(metadata: dict[str, Any]) -> str:
    """Say a package's licence: by its expression, else by its classifiers, else by its free text if that is short."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    text = str(metadata.get("license") or "").strip()
    if text and len(text) <= 60 and "\n" not in text:
        return text
    named = [name for name in metadata.get("classifier", ()) if name.startswith("License ::")]
    return "; ".join(name.rpartition(" :: ")[2] for name in named) or "*not stated*"


def licences(reports: Path) -> str:
    """Write the document from what ``pip install --report`` says of each image."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for image in IMAGES:
        for package in json.loads((reports / f"{image}.json").read_text())["install"]:
            metadata = package["metadata"]
            row = (metadata["name"], metadata["version"], licence(metadata))
            rows.setdefault(row, []).append(image)
    ordered = sorted(rows.items(), key=lambda item: item[0][0].lower())
    return _INTRODUCTION + "".join(f"| {' | '.join(row)} | {', '.join(images)} |\n" for row, images in ordered)


if __name__ == "__main__":
    DOCUMENT.write_text(licences(Path(sys.argv[1])))
