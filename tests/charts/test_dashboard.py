"""The Grafana dashboards ask only for metrics that exist, in a form that Grafana's sidecar can load."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from charts.boards import BOARDS
from charts.grafana import as_json
from charts.queries import METRIC, Query, documented, panels, queries
from charts.rendering import NAMESPACE, Manifest, dashboards, render, the_only
from galvatron_operator.metrics import JobCollector, OperatorMetrics
from galvatron_runtime.metrics import scrape

SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
"""What Prometheus appends to the name of a metric, by its type."""
EVERY_DASHBOARD = pytest.mark.parametrize("dashboard", dashboards().values(), ids=dashboards().keys())


@pytest.mark.parametrize("query", queries() + documented(), ids=str)
def test_a_query_names_only_metrics_that_exist(query: Query) -> None:
    assert query.metrics
    assert query.metrics <= exported()


def test_the_chart_has_the_dashboards_of_the_tables() -> None:
    made = {board.file_name: json.loads(as_json(board)) for board in BOARDS}
    assert made == dashboards(), "run `make dashboards`"


def test_addresses_of_dashboards_stay() -> None:
    # Links and bookmarks hold them.
    assert {board.uid for board in BOARDS} == {"galvatron-job", "galvatron-fleet", "galvatron-operator"}


@EVERY_DASHBOARD
def test_variables_are_read_from_metrics_that_exist(dashboard: Manifest) -> None:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        assert METRIC.findall(str(variable["query"]))
        assert set(METRIC.findall(str(variable["query"]))) <= exported()


@EVERY_DASHBOARD
def test_grafana_can_load_it_from_a_file(dashboard: Manifest) -> None:
    assert dashboard["uid"]
    assert not {"id", "__inputs", "__requires"} & set(dashboard)
    assert sources(dashboard) == {"${datasource}"}


@EVERY_DASHBOARD
def test_panels_say_what_they_show_and_do_not_overlap(dashboard: Manifest) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels(dashboard)}) == len(tuple(panels(dashboard)))


@pytest.mark.helm
def test_the_sidecar_finds_every_dashboard_whole() -> None:
    config_map = the_only(render(), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["metadata"]["namespace"] == NAMESPACE
    assert {name: json.loads(text) for name, text in config_map["data"].items()} == dashboards()


@pytest.mark.helm
def test_dashboards_go_where_grafana_looks() -> None:
    values = {"namespace": "monitoring", "label": "dash", "labelValue": "yes", "annotations": {"grafana_folder": "ML"}}
    metadata = the_only(render({"grafana": {"dashboards": values}}), "ConfigMap")["metadata"]
    assert metadata["namespace"] == "monitoring"
    assert metadata["labels"]["dash"] == "yes"
    assert metadata["annotations"] == {"grafana_folder": "ML"}


def exported() -> set[str]:
    """Names of all series of the runtime and of the operator."""
    registry = CollectorRegistry()
    OperatorMetrics(registry)
    registry.register(JobCollector(lambda: ()))
    of_operator = {name for metric in registry.collect() for name in series_names(metric)}
    of_runtime = {
        name for metric in text_string_to_metric_families(scrape(()).decode()) for name in series_names(metric)
    }
    return of_operator | of_runtime


def series_names(metric: Metric) -> set[str]:
    """Names under which a metric is queried."""
    return {metric.name + suffix for suffix in SUFFIXES.get(metric.type, ("",))}


def sources(part: Any) -> set[str]:
    """Uids of every data source that a dashboard names."""
    if isinstance(part, list):
        return {uid for item in part for uid in sources(item)}
    if not isinstance(part, dict):
        return set()
    own = {part["datasource"]["uid"]} if "datasource" in part else set()
    return own | {uid for item in part.values() for uid in sources(item)}
