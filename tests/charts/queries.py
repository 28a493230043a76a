"""The queries of the dashboards in the chart, as Grafana would send them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from charts.rendering import Manifest, dashboards

METRIC = re.compile(r"\bgalvatron_[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel.

    Attributes:
        panel: its title.
        expression: PromQL with Grafana's variables in it.
    """

    panel: str
    expression: str

    @property
    def metrics(self) -> frozenset[str]:
        """Names of our metrics in it."""
        return frozenset(METRIC.findall(self.expression))

    def with_variables(self, values: Mapping[str, str]) -> str:
        """PromQL with the variables replaced."""
        return re.sub(r"\$(\w+)", lambda match: values[match[1]], self.expression)


def panels(dashboard: Manifest) -> Iterator[Manifest]:
    """Every panel, those inside of rows included."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries() -> tuple[Query, ...]:
    """Every query of every panel of every dashboard."""
    return tuple(
        Query(panel["title"], target["expr"])
        for dashboard in dashboards().values()
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    )
