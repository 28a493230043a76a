"""Draws what panels of the dashboards showed of a run: the picture in the documentation."""

import math
from collections.abc import Mapping

from charts.queries import Query, queries
from e2e.prometheus import Prometheus
from galvatron_planner.charts import Panel, Series, line_chart

PICTURED = (
    ("galvatron-job.json", "Throughput in tokens"),
    ("galvatron-job.json", "Step time: measured and predicted"),
    ("galvatron-job.json", "Memory of each rank against the budget"),
    ("galvatron-job.json", "Loss"),
    ("galvatron-job.json", "Time in steps"),
    ("galvatron-fleet.json", "GPUs requested and used"),
)
"""Dashboard and title of each panel."""
UNITS = {
    "suffix: tok/s": ("tokens/s", 1.0),
    "s": ("s", 1.0),
    "bytes": ("MiB", 2.0**-20),
    "percentunit": ("%", 100.0),
    "short": ("", 1.0),
}
"""What is written for a unit of Grafana, and what values are multiplied by."""
NUM_POINTS = 10
"""Of a curve: every time is written below the axis."""


def draw(metrics: Prometheus, variables: Mapping[str, str], *, since: float, until: float, title: str) -> str:
    """Draw the panels as SVG, over the seconds after ``since`` (both since the epoch)."""
    colours: dict[str, int] = {}
    step_seconds = math.ceil((until - since) / NUM_POINTS)
    drawn = []
    for place in PICTURED:
        asked = [query for query in queries() if (query.dashboard, query.panel) == place]
        curves: dict[str, list[tuple[float, float]]] = {}
        for query in asked:
            expression = query.with_variables(variables)
            for sample in metrics.over(expression, since=since, until=until, step_seconds=step_seconds):
                point = (round(sample.time - since), sample.value * UNITS[query.unit][1])
                curves.setdefault(query.name_of(sample.labels), []).append(point)
        for name in curves:
            colours.setdefault(name, len(colours))
        series = [Series(name, tuple(sorted(points)), colours[name]) for name, points in sorted(curves.items())]
        drawn.append(Panel(_headline(asked[0]), tuple(series)))
    return line_chart(
        title, drawn, x_title="seconds since the job was created", y_title="value", without_points="no data"
    )


def _headline(query: Query) -> str:
    unit = UNITS[query.unit][0]
    return f"{query.panel} ({unit})" if unit else query.panel
