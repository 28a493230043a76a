import csv
from xml.etree import ElementTree

import pytest

import builders
from galvatron_planner.charts import Panel, Series, line_chart, ticks
from galvatron_planner.problem import Algorithm
from galvatron_planner.search.report import Alternative
from galvatron_planner.units import GIB, MIB
from galvatron_planner.whatif import Answer, Result, answer, as_chart, as_csv, as_markdown, tables

SVG = "{http://www.w3.org/2000/svg}"
SMALL = builders.model(hidden_size=256, num_layers=4, num_heads=8, sequence_length=128, vocabulary_size=256)


def alternative(samples_per_second: float) -> Alternative:
    return Alternative(
        pipeline_degree=1,
        global_batch_size=8,
        num_micro_batches=1,
        step_seconds=8 / samples_per_second,
        samples_per_second=samples_per_second,
        peak_bytes=GIB,
        summary="pp1 m1: dp8 x34",
    )


def answered(num_devices: int = 8, memory: int = 8 * GIB, **speeds: float | None) -> Answer:
    """An answer in which what has no speed needs 9 GiB."""
    results = tuple(
        Result(name, alternative(speed), None) if speed else Result(name, None, 9 * GIB)
        for name, speed in speeds.items()
    )
    return Answer(num_devices, memory, results, None, "use another")


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 -- our own


def small_answer(memory: int, algorithm: Algorithm = Algorithm.OPTIMAL) -> Answer:
    on = builders.cluster(4, device_memory_bytes=memory)
    return answer(builders.problem(SMALL, on, batch=8), (algorithm,))


def test_a_budget_is_answered_by_algorithms_and_baselines() -> None:
    found = small_answer(GIB)
    names = [result.name for result in found.results]
    assert names[0] == "Optimal"
    assert {"DP", "SDP", "TP", "PP", "DP+TP", "DP+PP", "3D", "3D+CKPT"} <= set(names)
    best = max(result.plan.samples_per_second for result in found.results if result.plan)
    assert found.results[0].plan is not None
    assert found.results[0].plan.samples_per_second == best
    assert found.solution is not None
    assert found.advice == found.solution.plan.summary


@pytest.mark.parametrize("algorithm", [Algorithm.OPTIMAL, Algorithm.GALVATRON])
def test_a_budget_without_a_plan_says_what_is_needed_and_what_to_do(algorithm: Algorithm) -> None:
    found = small_answer(MIB, algorithm)
    assert found.solution is None
    assert all(result.plan is None for result in found.results)
    assert found.results[0].text.startswith("needs ")
    assert "spec.budget.memoryPerGPU" in found.advice


def test_budgets_stand_side_by_side_and_the_fastest_is_marked() -> None:
    (table,) = tables([answered(memory=8 * GIB, DP=None, TP=2.0), answered(memory=16 * GIB, DP=3.0, TP=2.5)])
    assert table.columns == ("8 GiB", "16 GiB")
    assert table.rows == (("DP", "needs 9 GiB", "3"), ("TP", "2", "2.5"))
    assert table.best == (frozenset({"TP"}), frozenset({"DP"}))


def test_every_number_of_devices_has_a_table_unless_it_has_a_single_budget() -> None:
    budgets = [answered(n, memory * GIB, DP=1.0) for n in (8, 16) for memory in (8, 16)]
    assert [table.title for table in tables(budgets)] == [
        "Samples per second on 8 devices",
        "Samples per second on 16 devices",
    ]
    (table,) = tables([budgets[0], budgets[2]])
    assert table.columns == ("8 x 8 GiB", "16 x 8 GiB")


def test_markdown_keeps_its_columns_and_names_what_to_do() -> None:
    lines = as_markdown([answered(DP=None, TP=2.0)]).splitlines()
    assert "| TP | **2** |" in lines
    assert "| DP | needs 9 GiB |" in lines
    assert lines[-1] == "- 8 x 8 GiB: no plan; use another"


def test_the_csv_holds_every_result_in_plain_numbers() -> None:
    rows = list(csv.DictReader(as_csv([answered(DP=None, TP=2.0)]).splitlines()))
    assert [(row["name"], row["samples_per_second"], row["needed_bytes"]) for row in rows] == [
        ("DP", "", str(9 * GIB)),
        ("TP", "2.0", ""),
    ]
    assert {row["memory_bytes"] for row in rows} == {str(8 * GIB)}


def test_the_chart_has_a_panel_for_each_number_of_devices_and_a_line_for_each_result() -> None:
    chart = as_chart([answered(n, memory * GIB, Optimal=2.0, DP=1.0) for n in (8, 16) for memory in (8, 16)], title="t")
    root = svg(chart)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"8 devices", "16 devices", "Optimal", "DP", "t"} <= set(texts)
    # In each panel both, and once more in the legend.
    assert len(list(root.iter(f"{SVG}polyline"))) == 6


def test_a_chart_says_in_words_what_it_shows_and_what_never_fits() -> None:
    lines = (Series("a<b", ((8.0, 1.5), (16.0, 3.0))), Series("c", ()))
    root = svg(line_chart("title", [Panel("left", lines)], x_title="x", y_title="y", without_points="never fits"))
    assert root.findtext(f"{SVG}title") == "title"
    assert "a<b: 1.5 at 8, 3 at 16" in (root.findtext(f"{SVG}desc") or "")
    assert "c: never fits" in [element.text for element in root.iter(f"{SVG}text")]


def test_points_lie_inside_the_axes_and_higher_values_higher() -> None:
    root = svg(
        line_chart(
            "t", [Panel("p", (Series("s", ((1, 10.0), (2, 30.0))),))], x_title="x", y_title="y", without_points=""
        )
    )
    (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in next(root.iter(f"{SVG}polyline")).attrib["points"].split())
    assert 0 < x1 < x2 < 460
    assert 0 < y2 < y1 < 400


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0.0, (0, 1)),
        (7.0, (0, 1, 2, 3, 4, 5, 6, 7)),
        (33.4, (0, 5, 10, 15, 20, 25, 30, 35)),
        (0.2, (0, 0.05, 0.1, 0.15, 0.2)),
    ],
)
def test_ticks_are_round_and_reach_the_largest_value(largest: float, expected: tuple[float, ...]) -> None:
    assert ticks(largest) == pytest.approx(expected)
