"""The queries of the dashboards in the chart, as Grafana would send them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from charts.rendering import ROOT, Manifest, dashboards

METRIC = re.compile(r"\bgalvatron_[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel.

    Attributes:
        dashboard: file name of the dashboard, or of the document.
        panel: its title.
        expression: PromQL with Grafana's variables in it.
        legend: how its series are called, with Grafana's ``{{label}}`` in it.
        unit: of its values, as Grafana names it.
    """

    dashboard: str
    panel: str
    expression: str
    legend: str
    unit: str

    def __str__(self) -> str:
        return f"{self.dashboard.removesuffix('.json')}: {self.panel}: {self.expression}"

    @property
    def metrics(self) -> frozenset[str]:
        """Names of our metrics in it."""
        return frozenset(METRIC.findall(self.expression))

    def with_variables(self, values: Mapping[str, str]) -> str:
        """PromQL with the variables replaced."""
        return re.sub(r"\$(\w+)", lambda match: values[match[1]], self.expression)

    def name_of(self, labels: Mapping[str, str]) -> str:
        """What Grafana calls a series of it."""
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend)


def panels(dashboard: Manifest) -> Iterator[Manifest]:
    """Every panel, those inside of rows included."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def documented() -> tuple[Query, ...]:
    """The queries in docs/monitoring.md; the question above each stands for the panel."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    block = text.partition("```promql\n")[2].partition("```")[0]
    asked = (part.partition("\n") for part in block.strip().split("\n\n"))
    return tuple(Query("monitoring.md", question.removeprefix("# "), promql, "", "") for question, _, promql in asked)


def queries() -> tuple[Query, ...]:
    """Every query of every panel of every dashboard."""
    return tuple(
        Query(name, panel["title"], target["expr"], target["legendFormat"], panel["fieldConfig"]["defaults"]["unit"])
        for name, dashboard in dashboards().items()
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    )
