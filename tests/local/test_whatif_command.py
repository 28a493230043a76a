"""``galvatron plan`` with lists, as its users meet it."""

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

import builders
from command import GALVATRON, galvatron
from galvatron_operator.whatif import Lists, Question, parse_batch, problems, question
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, BatchRange
from galvatron_planner.profiles import Profile, ProfileRequest
from galvatron_planner.search.report import SearchReport
from galvatron_planner.units import GIB

ASKED = ("--cluster", "4xa100-40gb", "--batch", "8", "--memory", "1Gi,2Gi", "--output", "out")


def config(folder: Path) -> Path:
    """A small GPT-2 as Hugging Face writes it."""
    path = folder / "config.json"
    shape = {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 128, "vocab_size": 256}
    path.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **shape}))
    return path


def planned(*arguments: str | Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return galvatron("plan", *arguments, folder=folder, timeout=120)


def lists(*, memory: tuple[str, ...] = (), devices: tuple[str, ...] = (), algorithm: tuple[str, ...] = ()) -> Lists:
    return Lists.parse(memory=memory, devices=devices, algorithm=algorithm)


def measured(num_devices: int = 8, *, num_nodes: int = 1) -> Question:
    def refuse(_request: ProfileRequest) -> Profile:
        raise AssertionError("a measured profile is not made anew")

    return Question("job", builders.problem(on=builders.cluster(num_devices, num_nodes=num_nodes)), refuse)


@pytest.mark.slow
def test_without_a_job_every_budget_is_planned_shown_and_written(tmp_path: Path) -> None:
    answer = planned("--model", config(tmp_path), *ASKED, "--devices", "2,4", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "Samples per second on 4 devices" in answer.stdout
    assert "data sheets" in answer.stdout
    with (tmp_path / "out" / "whatif.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "Optimal"]
    assert [(row["devices"], row["memory_bytes"]) for row in rows] == [
        (str(n), str(memory * GIB)) for n in (2, 4) for memory in (1, 2)
    ]
    folder = tmp_path / "out" / "plans" / "4x2048Mi"
    plan = Plan.from_json((folder / "plan.json").read_text())
    report = SearchReport.from_json((folder / "report.json").read_text())
    assert plan.problem_digest == report.problem_digest
    assert f"`{plan.summary}`" in (tmp_path / "out" / "whatif.md").read_text()
    assert (tmp_path / "out" / "whatif.svg").read_text().startswith("<svg")
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.slow
def test_ctrl_c_keeps_the_budgets_that_are_answered(tmp_path: Path) -> None:
    memories = ",".join(f"{1000 + i}Mi" for i in range(5000))
    command = [*GALVATRON, "plan", "--model", str(config(tmp_path)), *ASKED, "--memory", memories]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    written, deadline = tmp_path / "out" / "whatif.csv", time.monotonic() + 60
    while not written.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in errors
    assert "Traceback" not in errors
    assert "Optimal" in written.read_text()


def test_a_place_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    answer = planned("--model", config(tmp_path), *ASKED, folder=tmp_path)
    assert answer.returncode == 1
    assert "cannot write to" in answer.stderr
    assert "--output" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--cluster"),
        (("--model", "bert-huge-32", "--cluster", "8xrtx-titan", "--batch", "8:4"), "8:128:8"),
        (("--model", "bert-huge-32", "--cluster", "8xrtx-titan", "--batch", "8", "--memory", "8Gb"), "--memory"),
        (("job.yaml", "--cluster", "8xrtx-titan"), "leave those options out"),
        (("job.yaml", "--sequence-parallel"), "leave those options out"),
    ],
)
def test_options_that_cannot_be_meant_are_answered_in_words(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    answer = planned(*arguments, folder=tmp_path)
    assert answer.returncode == 1
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr


def test_lists_may_be_repeated_or_hold_commas_and_are_asked_in_rising_order() -> None:
    parsed = lists(memory=("16Gi,8Gi", "12Gi"), devices=("16", "8"), algorithm=("galvatronbmw,Optimal",))
    assert parsed.memories == (8 * GIB, 12 * GIB, 16 * GIB)
    assert parsed.device_counts == (8, 16)
    assert parsed.algorithms == (Algorithm.GALVATRON_BMW, Algorithm.OPTIMAL)
    assert lists().is_empty


@pytest.mark.parametrize("wrong", [{"devices": ("12",)}, {"devices": ("-8",)}, {"algorithm": ("best",)}])
def test_an_item_of_a_list_that_means_nothing_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidInput):
        lists(**wrong)


@pytest.mark.parametrize(("text", "expected"), [("64", (64, 64, 1)), ("8:128", (8, 128, 1)), ("8:128:8", (8, 128, 8))])
def test_a_batch_is_a_size_or_a_range(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_batch(text) == BatchRange(minimum=expected[0], maximum=expected[1], step=expected[2])


@pytest.mark.parametrize("text", ["", "8:", "16:8", "8:16:0", "a", "8:16:2:1", "0"])
def test_what_is_no_batch_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--batch"):
        parse_batch(text)


def test_a_measured_profile_answers_for_fewer_devices_and_not_for_more() -> None:
    posed = problems(measured(8), lists(devices=("4,8",), memory=("1Gi,2Gi",)))
    assert [(p.cluster.num_devices, p.cluster.device_memory_bytes // GIB) for p in posed] == [
        (4, 1), (4, 2), (8, 1), (8, 2),
    ]  # fmt: skip
    assert len({p.profile.digest() for p in posed}) == 1
    with pytest.raises(InvalidInput, match="measured on 8 devices"):
        problems(measured(8), lists(devices=("16",)))


def test_sequence_parallelism_is_searched_where_it_is_asked_for(tmp_path: Path) -> None:
    path = str(config(tmp_path))
    plain, wide = (
        question(
            model=path, cluster="4xa100-40gb", batch="8", precision=Precision.BF16, sequence_parallel=wanted
        ).problem
        for wanted in (False, True)
    )
    assert (plain.limits.sequence_parallel, wide.limits.sequence_parallel) == (False, True)
    degrees = [{one.sequence_degree for one in posed.profile.layers} for posed in (plain, wide)]
    assert degrees == [{1}, {1, 2, 4}]


def test_fewer_devices_are_a_part_of_one_node_or_several_whole_ones() -> None:
    posed = problems(measured(8, num_nodes=4), lists(devices=("1,2,4,8",)))
    assert [(p.cluster.num_nodes, p.cluster.devices_per_node) for p in posed] == [(1, 1), (1, 2), (2, 2), (4, 2)]
