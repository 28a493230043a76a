"""What the README and the documentation say about the product is read from the product."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from galvatron_operator.metrics import JobCollector, OperatorMetrics
from galvatron_runtime.metrics import METRICS

ROOT = Path(__file__).parents[2]


def metrics_table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = (f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in rows)
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *lines])


def of_operator() -> Iterator[tuple[str, str, str]]:
    """What the operator serves of itself and of jobs; what every process has is left out."""
    registry = CollectorRegistry()
    registry.register(JobCollector(lambda: ()))
    OperatorMetrics(registry)
    suffixes = {"counter": "_total", "info": "_info"}
    for family in registry.collect():
        if "_process_" not in family.name:
            yield family.name + suffixes.get(family.type, ""), family.type, family.documentation


@pytest.mark.parametrize(
    ("marker", "rows"),
    [
        ("metrics", [(row.name, row.type.value, row.help) for row in METRICS]),
        ("operator-metrics", list(of_operator())),
    ],
)
def test_the_documentation_lists_every_metric(marker: str, rows: list[tuple[str, str, str]]) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    listed = text.partition(f"<!-- {marker}:begin -->\n")[2].partition(f"\n<!-- {marker}:end -->")[0]
    assert listed == metrics_table(rows), f"put this between the markers:\n{metrics_table(rows)}"


def anchors(document: Path) -> set[str]:
    """Name the headings of a document as links do."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_inside_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"`[^`\n]*`", "", document.read_text())
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", prose):
            if "://" not in target:
                path = document.parent / target if target else document
                assert path.exists(), f"{document.name}: {target}"
                assert not anchor or anchor in anchors(path), f"{document.name}: {target}#{anchor}"


def test_every_make_target_of_the_readme_exists() -> None:
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert named <= targets
