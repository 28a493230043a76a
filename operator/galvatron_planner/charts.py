"""Charts as SVG: nothing but points in and text out, readable on light and dark pages, in colour and without.

Colours: the ten of Petroff (arXiv 2107.02270), chosen for colour-blind readers; markers say the same a second time.
Lengths are in SVG units, about a pixel each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree.ElementTree import Element, SubElement, indent, tostring

COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.paper { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.axis { stroke: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .paper { fill: #0d1117 } .grid { stroke: #3d444d } .axis { stroke: #9198a1 }
}
"""
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-3.5,-3.5h7v7h-7z", "M0,-5l5,5l-5,5l-5,-5z", "M0,-4.5l4.5,8h-9z",
    "M0,4.5l4.5,-8h-9z", "M-5,0h10M0,-5v10", "M-4,-4l8,8M4,-4l-8,8",
)  # fmt: skip
"""Circle, square, diamond, triangles, crosses; seven to ten colours, so that no two of 70 series share both."""
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH = 460, 400, 190
TITLE, LEFT, RIGHT, TOP, BOTTOM, INSET, LINE = 30, 66, 14, 34, 52, 14, 20
PANELS_PER_ROW = 2
NUM_TICKS = 7


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        name: for the legend.
        points: x and y, x rising; without any, the legend says so.
        colour: number of the colour, and of the marker.
        is_dashed: tells series of one colour apart.
        is_wide: draws the eye.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int = 0
    is_dashed: bool = False
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes; all panels of a chart share series and legend, by name."""

    title: str
    series: tuple[Series, ...]


def line_chart(title: str, panels: Sequence[Panel], *, x_title: str, y_title: str, without_points: str) -> str:
    """Draw panels side by side with one legend.

    Args:
        title: of the whole chart, also for screen readers.
        panels: at least one.
        x_title: name and unit of the horizontal axes.
        y_title: name and unit of the vertical axes, which start at 0.
        without_points: what it means that a series has no points.
    """
    columns = min(PANELS_PER_ROW, len(panels))
    legend = tuple({one.name: one for panel in panels for one in sorted(panel.series, key=_is_drawn)}.values())
    width = columns * PANEL_WIDTH + LEGEND_WIDTH
    height = TITLE + max(-(-len(panels) // columns) * PANEL_HEIGHT, TOP + LINE * len(legend) + BOTTOM)
    description = f"{y_title} over {x_title}. " + " ".join(map(_described, panels))
    root = _drawing(title, width, height, description=description)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        _draw_panel(_moved(root, column * PANEL_WIDTH, TITLE + row * PANEL_HEIGHT), panel, x_title, y_title)
    _draw_legend(_moved(root, columns * PANEL_WIDTH + 10, TITLE + TOP), legend, without_points)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True, slots=True)
class Dot:
    """One point of a scatter chart; its name shows when one points at it."""

    name: str
    x: float
    y: float
    is_wide: bool = False


def scatter_chart(title: str, dots: Sequence[Dot], *, x_title: str, y_title: str) -> str:
    """Draw points of two quantities of one unit, both axes from 0, and the diagonal on which they are equal.

    Args:
        title: of the chart, also for screen readers.
        dots: at least one; wide ones are drawn last, over the others.
        x_title: name and unit of the horizontal axis.
        y_title: name and unit of the vertical axis.
    """
    root = _drawing(title, PANEL_WIDTH, TITLE + PANEL_HEIGHT, description=f"{y_title} over {x_title}.")
    panel = _moved(root, 0, TITLE)
    scale = ticks(max(max(dot.x, dot.y) for dot in dots))
    axes = _Axes(scale, scale)
    _draw_axes(panel, axes, scale, x_title, y_title)
    _line(panel, "axis", axes.x(0), axes.y(0), axes.x(scale[-1]), axes.y(scale[-1]))
    for dot in sorted(dots, key=lambda one: one.is_wide):
        series = Series(dot.name, (), colour=2 if dot.is_wide else 0, is_wide=dot.is_wide)
        group = _drawn_as(panel, series)
        SubElement(group, "title").text = f"{dot.name}: {dot.y:.4g} against {dot.x:.4g}"
        _mark(group, series, axes.x(dot.x), axes.y(dot.y))
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def ticks(largest: float) -> tuple[float, ...]:
    """Give round numbers from 0 to the first one that is not below ``largest``, in steps of 1, 2 or 5."""
    if largest <= 0:
        return (0.0, 1.0)
    rough = largest / NUM_TICKS
    magnitude = 10.0 ** floor(log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * (1 - 1e-9))
    return tuple(step * i for i in range(ceil(largest / step - 1e-9) + 1))


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where points lie in a panel."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        share = (value - low) / (high - low) if high > low else 0.5
        return LEFT + INSET + share * (PANEL_WIDTH - LEFT - RIGHT - 2 * INSET)

    def y(self, value: float) -> float:
        return PANEL_HEIGHT - BOTTOM - value / self.y_ticks[-1] * (PANEL_HEIGHT - TOP - BOTTOM)


def _draw_panel(parent: Element, panel: Panel, x_title: str, y_title: str) -> None:
    points = [point for one in panel.series for point in one.points]
    xs = tuple(sorted({x for x, _ in points})) or (0.0,)
    axes = _Axes(xs, ticks(max((y for _, y in points), default=0.0)))
    _text(parent, panel.title, x=(LEFT + PANEL_WIDTH - RIGHT) / 2, y=TOP - 12)
    _draw_axes(parent, axes, xs, x_title, y_title)
    for one in panel.series:
        _draw_series(parent, one, [(axes.x(x), axes.y(y)) for x, y in one.points])


def _drawing(title: str, width: int, height: int, *, description: str) -> Element:
    root = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=str(width))
    root.set("role", "img")
    SubElement(root, "title").text = title
    SubElement(root, "desc").text = description
    SubElement(root, "style").text = STYLE
    SubElement(root, "rect", {"class": "paper", "width": "100%", "height": "100%"})
    _text(root, title, x=LEFT, y=TITLE - 8, anchor="start").set("class", "title")
    return root


def _draw_axes(parent: Element, axes: _Axes, xs: Sequence[float], x_title: str, y_title: str) -> None:
    bottom, right = axes.y(0), PANEL_WIDTH - RIGHT
    for y in axes.y_ticks:
        _line(parent, "grid" if y else "axis", LEFT, axes.y(y), right, axes.y(y))
        _text(parent, f"{y:g}", x=LEFT - 8, y=axes.y(y) + 4, anchor="end")
    for x in xs:
        _line(parent, "axis", axes.x(x), bottom, axes.x(x), bottom + 5)
        _text(parent, f"{x:.4g}", x=axes.x(x), y=bottom + 20)
    _text(parent, x_title, x=(LEFT + right) / 2, y=bottom + 40)
    label = _text(parent, y_title, x=0, y=0)
    label.set("transform", f"translate(14 {(TOP + bottom) / 2:.0f}) rotate(-90)")


def _draw_series(parent: Element, series: Series, places: Sequence[tuple[float, float]]) -> None:
    group = _drawn_as(parent, series)
    _join(group, series, places)
    for x, y in places:
        _mark(group, series, x, y)


def _draw_legend(parent: Element, legend: Iterable[Series], without_points: str) -> None:
    for index, one in enumerate(sorted(legend, key=_is_drawn, reverse=True)):
        y = index * LINE
        if one.points:
            group = _drawn_as(parent, one)
            _join(group, one, ((0, y), (32, y)))
            _mark(group, one, 16, y)
        _text(parent, one.name if one.points else f"{one.name}: {without_points}", x=42, y=y + 4, anchor="start")


def _drawn_as(parent: Element, series: Series) -> Element:
    width = "5" if series.is_wide else "1.5"
    return SubElement(
        parent, "g", {"stroke": COLOURS[series.colour % len(COLOURS)], "fill": "none", "stroke-width": width}
    )


def _join(group: Element, series: Series, places: Iterable[tuple[float, float]]) -> None:
    line = SubElement(group, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    if series.is_dashed:
        line.set("stroke-dasharray", "5 4")


def _mark(group: Element, series: Series, x: float, y: float) -> None:
    shape = MARKERS[series.colour % len(MARKERS)]
    # A wide series shows around those that lie on it.
    scale = " scale(1.7)" if series.is_wide else ""
    place = f"translate({x:.1f} {y:.1f}){scale}"
    marker = SubElement(group, "path", {"d": shape, "transform": place, "stroke-width": "1.5"})
    # Hollow where the line is dashed.
    marker.set(
        "class" if series.is_dashed else "fill", "paper" if series.is_dashed else COLOURS[series.colour % len(COLOURS)]
    )


def _is_drawn(series: Series) -> bool:
    return bool(series.points)


def _described(panel: Panel) -> str:
    """Say in words what a panel shows, for readers who cannot see it."""
    lines = (f"{one.name}: " + ", ".join(f"{y:.4g} at {x:.4g}" for x, y in one.points) for one in panel.series)
    return f"{panel.title}: {'; '.join(line for line in lines if not line.endswith(': '))}."


def _moved(parent: Element, x: float, y: float) -> Element:
    return SubElement(parent, "g", transform=f"translate({x} {y})")


def _line(parent: Element, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(parent, "line", {"class": style, **{name: f"{value:.1f}" for name, value in ends.items()}})


def _text(parent: Element, text: str, *, x: float, y: float, anchor: str = "middle") -> Element:
    element = SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    element.text = text
    return element
