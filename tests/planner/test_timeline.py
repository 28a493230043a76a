import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings

import builders
import generators
from galvatron_planner.cost.simulator import PASSES, EventKind
from galvatron_planner.insight import Insight, insight
from galvatron_planner.perfetto import chrome_trace
from galvatron_planner.plan import Plan
from galvatron_planner.timeline import WIDTHS, Canvas, drawing
from galvatron_planner.timeline_html import timeline_html
from galvatron_planner.units import format_bytes

SVG = "{http://www.w3.org/2000/svg}"
PLAN = builders.plan("tp2 tp2-ckpt", "fsdp2 dp2", num_micro_batches=4)


def seen(plan: Plan) -> Insight:
    return insight(plan, builders.profile(plan.model, plan.cluster))


def svg(plan: Plan) -> ET.Element:
    canvas = Canvas.of(seen(plan).timeline, budget_bytes=plan.cluster.device_memory_bytes)
    return ET.fromstring(drawing(canvas))  # noqa: S314 -- our own text


def titles(element: ET.Element) -> list[str]:
    return [title.text or "" for title in element.iter(f"{SVG}title")]


def bars(element: ET.Element, name: str) -> list[ET.Element]:
    return [bar for bar in element.iter(f"{SVG}rect") if bar.get("class") == name]


def test_every_pass_is_drawn_with_start_duration_and_what_it_is_made_of() -> None:
    told = titles(svg(PLAN))
    for kind in PASSES:
        for stage in range(2):
            for number in range(4):
                assert any(t.startswith(f"{kind} of micro-batch {number}, stage {stage}\nstarts at") for t in told)
    assert any("recomputation:" in t for t in told)


def test_the_budget_is_a_line_in_every_memory_chart() -> None:
    assert len([line for line in svg(PLAN).iter(f"{SVG}line") if line.get("class") == "budget"]) == 2


def test_hovering_over_memory_tells_bytes_by_use() -> None:
    told = [title for title in titles(svg(PLAN)) if title.startswith("up to ")]
    assert len(told) == 2 * 8
    assert all("activations:" in title and "working memory:" in title for title in told)


@settings(max_examples=30, deadline=None)
@given(generators.plans(8, max_micro_batches=6))
def test_nothing_is_drawn_outside_the_drawing(plan: Plan) -> None:
    drawn = svg(plan)
    width, height = float(drawn.get("width", 0)), float(drawn.get("height", 0))
    assert WIDTHS[0] <= width <= WIDTHS[1] + 1
    for bar in drawn.iter(f"{SVG}rect"):
        x, y, wide, high = (float(bar.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width + 1
        assert 0 <= y <= y + high <= height


def test_thousands_of_passes_are_drawn_together() -> None:
    plan = builders.plan("dp2 dp2", "dp2 dp2", global_batch_size=8192, num_micro_batches=4096)
    drawn = svg(plan)
    assert bars(drawn, "mixed")
    assert len(titles(drawn)) < 4096


class _Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.loaded += [tag] if tag in ("script", "link", "iframe") else []


def test_the_page_loads_nothing_and_names_plan_peaks_and_colours() -> None:
    one = seen(PLAN)
    page = timeline_html(PLAN, one.timeline)
    reader = _Links()
    reader.feed(page)
    assert reader.loaded == []
    assert "url(http" not in page
    assert "@import" not in page
    for text in (
        PLAN.summary,
        format_bytes(PLAN.cluster.device_memory_bytes),
        "waiting (bubble)",
        "prefers-color-scheme",
    ):
        assert text in page


def traced(plan: Plan) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(chrome_trace(plan, seen(plan).timeline))["traceEvents"]
    return events


@settings(max_examples=30, deadline=None)
@given(generators.plans(4, max_micro_batches=6))
def test_slices_of_a_trace_nest_and_never_cross(plan: Plan) -> None:
    # Perfetto drops a slice that begins inside another one of its track and ends behind it.
    tracks = defaultdict(list)
    for event in traced(plan):
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():
        for (start, end), (other_start, other_end) in pairwise(sorted(spans, key=lambda span: (span[0], -span[1]))):
            assert start <= other_start
            assert other_end <= end + 1e-6 or other_start >= end - 1e-6


def test_a_trace_has_every_transfer_on_its_receiver_and_memory_that_returns() -> None:
    events = traced(PLAN)
    for stage, kind in enumerate((EventKind.GRADIENT, EventKind.ACTIVATION)):
        transfers = [event for event in events if event["name"] in (EventKind.GRADIENT, EventKind.ACTIVATION)]
        assert [event["name"] for event in transfers if event["pid"] == stage] == [kind] * 4
    for stage in range(2):
        held = [event["args"]["total"] for event in events if event["ph"] == "C" and event["pid"] == stage]
        assert held[0] == held[-1] == min(held)


def test_a_trace_lasts_as_long_as_the_step() -> None:
    ends = [event["ts"] + event["dur"] for event in traced(PLAN) if event["ph"] == "X"]
    assert max(ends) == pytest.approx(seen(PLAN).timeline.step_seconds * 1e6)
