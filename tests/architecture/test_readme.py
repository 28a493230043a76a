"""What the README says about the product is read from the product."""

import re
from pathlib import Path

from galvatron_runtime.metrics import METRICS

ROOT = Path(__file__).parents[2]


def metrics_table() -> str:
    rows = [f"| `{row.name}` | {row.type.value} | {row.help} |" for row in METRICS]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows])


def test_the_readme_lists_every_metric() -> None:
    readme = (ROOT / "README.md").read_text()
    listed = readme.partition("<!-- metrics:begin -->\n")[2].partition("\n<!-- metrics:end -->")[0]
    assert listed == metrics_table(), f"put this between the markers in README.md:\n{metrics_table()}"


def test_links_inside_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_make_target_of_the_readme_exists() -> None:
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert named <= targets
