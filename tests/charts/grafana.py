"""Turns the tables in ``charts.boards`` into dashboards as Grafana loads them.

Grafana's own types (grafana-foundation-sdk) hold the shape; this module only places panels and fills in what is the
same everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, BigValueTextMode, VisibilityMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableRefresh,
    VariableSort,
)

COLUMNS = 24
"""Width of a dashboard in Grafana's units."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

AnyPanel = timeseries.Panel | stat.Panel | statetimeline.Panel


class Form(StrEnum):
    """How a panel shows its queries."""

    LINES = "lines"
    NUMBERS = "numbers"
    NAMES = "names"
    """The names of the series, as large as numbers."""
    STATES = "states"
    """A bar for each series, as long as it is there."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One query.

    Attributes:
        query: PromQL with Grafana's variables in it.
        legend: how its series are called; ``{{label}}`` is filled in.
    """

    query: str
    legend: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One panel.

    Attributes:
        title: of the panel.
        description: what it shows and what to make of it.
        unit: as Grafana names it: ``s``, ``bytes``, ``percentunit``.
        asked: its queries.
        width: of 24.
        height: in Grafana's units, 30 pixels each.
        form: how it shows them.
    """

    title: str
    description: str
    unit: str
    asked: tuple[Asked, ...]
    width: int
    height: int = 8
    form: Form = Form.LINES


def lines(title: str, description: str, unit: str, *asked: Asked, width: int = 12) -> Shown:
    """A panel of curves over time."""
    return Shown(title, description, unit, asked, width=width)


def number(title: str, description: str, unit: str, *asked: Asked, width: int = 6, height: int = 4) -> Shown:
    """A panel of the newest values, in large letters."""
    return Shown(title, description, unit, asked, width=width, height=height, form=Form.NUMBERS)


@dataclass(frozen=True, slots=True)
class Section:
    """A row with a title, and the panels below it from left to right, line after line."""

    title: str
    panels: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard.

    Attributes:
        name: as queries say it.
        label: as people read it.
        query: ``label_values(...)``.
        takes_many: whether several values, or all, can be chosen; queries then match with ``=~``.
    """

    name: str
    label: str
    query: str
    takes_many: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard.

    Attributes:
        uid: its fixed name in addresses; also of its file.
        title: as listed in Grafana.
        description: whom it serves.
        variables: beside the data source.
        sections: from top to bottom.
    """

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    sections: tuple[Section, ...]

    @property
    def file_name(self) -> str:
        """Of the file in the chart."""
        return f"{self.uid}.json"


def as_json(board: Board) -> str:
    """Write a dashboard as a file that Grafana's sidecar loads."""
    builder = (
        dashboards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["galvatron"])
        .timezone("browser")
        .editable()
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        builder.with_variable(_query_variable(variable))
    for part in _placed(board):
        if isinstance(part, dashboards.Row):
            builder.with_row(part)
        else:
            builder.with_panel(part)
    return JSONEncoder(indent=2).encode(builder.build()) + "\n"


def _query_variable(variable: Variable) -> dashboards.QueryVariable:
    return (
        dashboards.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(SOURCE)
        .query({"query": variable.query, "refId": variable.name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(variable.takes_many)
        .include_all(variable.takes_many)
    )


def _placed(board: Board) -> Iterator[dashboards.Row | AnyPanel]:
    """Give every panel its number and its place."""
    number, y = 0, 0
    for section in board.sections:
        number += 1
        yield dashboards.Row(section.title).id(number).grid_pos(GridPos(h=1, w=COLUMNS, x=0, y=y))
        x, y, tallest = 0, y + 1, 0
        for shown in section.panels:
            number += 1
            if x + shown.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(shown, number, GridPos(h=shown.height, w=shown.width, x=x, y=y))
            x, tallest = x + shown.width, max(tallest, shown.height)
        y += tallest


def _panel(shown: Shown, number: int, place: GridPos) -> AnyPanel:
    panel = _of_form(shown.form)
    panel.id(number).title(shown.title).description(shown.description).unit(shown.unit)
    panel.datasource(SOURCE).grid_pos(place)
    for index, asked in enumerate(shown.asked):
        query = prometheus.Dataquery().ref_id(chr(ord("A") + index)).datasource(SOURCE)
        panel.with_target(query.expr(asked.query).legend_format(asked.legend))
    return panel


def _of_form(form: Form) -> AnyPanel:
    match form:
        case Form.LINES:
            # A gap is news: the job trains at that time, or it does not.
            return timeseries.Panel().line_width(2).fill_opacity(8).show_points(VisibilityMode.NEVER).span_nulls(False)  # noqa: FBT003 -- the SDK's
        case Form.NUMBERS:
            return stat.Panel().graph_mode(BigValueGraphMode.NONE).text_mode(BigValueTextMode.AUTO)
        case Form.NAMES:
            return stat.Panel().graph_mode(BigValueGraphMode.NONE).text_mode(BigValueTextMode.NAME)
        case Form.STATES:
            return statetimeline.Panel().show_value(VisibilityMode.NEVER).row_height(0.8)
