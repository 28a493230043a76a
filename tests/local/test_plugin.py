"""What ``kubectl galvatron`` prints, and what it says where there is no cluster; tests/e2e has it on a real one."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from galvatron_operator.api import FailureRecord, JobStatus, ProgressStatus
from galvatron_operator.terminal import failure_text, log_line, top_table

NOW = datetime(2026, 9, 1, 8, tzinfo=UTC)


def shown(bodies: list[dict[str, object]]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(top_table(bodies))
    return capture.get()


def body(name: str, namespace: str, status: JobStatus | None) -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"budget": {"memoryPerGPU": "80Gi"}},
        "status": status.dump() if status else {},
    }


def training() -> JobStatus:
    progress = ProgressStatus(
        step=42,
        total_steps=100,
        percent=42,
        estimated_remaining_seconds=116,
        tokens_per_second=171_000,
        step_milliseconds=2000,
        peak_memory_per_gpu="66Gi",
        loss="2.1234",
        last_update_time=NOW,
    )
    first = JobStatus.first(generation=1, now=NOW)
    return first.model_copy(update={"attempt": 2, "progress": progress, "phase": "Training"})


def test_top_shows_how_far_jobs_are_and_names_namespaces_where_there_are_several() -> None:
    one = shown([body("llama", "a", training())])
    assert "a/llama" not in one
    assert {"llama", "Training", "42/100", "2.1234", "171,000", "66Gi", "80Gi"} <= set(one.replace("│", " ").split())
    both = shown([body("llama", "a", training()), body("new", "b", None)])
    assert "a/llama" in both
    assert "not seen yet" in both


def test_a_failure_is_told_with_its_place_and_the_words_of_the_rank() -> None:
    failure = FailureRecord(attempt=1, time=NOW, reason="UserError", message="Traceback: boom", pod="llama-1", rank=9)
    assert failure_text(failure) == (
        "attempt 1 failed at 2026-09-01 08:00:00 UTC: UserError (pod llama-1, rank 9)\nTraceback: boom\n"
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("printed by the user's code", "printed by the user's code"),
        ("[1, 2]", "[1, 2]"),
        ('{"no": "time"}', '{"no": "time"}'),
        (
            json.dumps(
                {"time": "2026-09-01T08:00:00.123+00:00", "level": "INFO", "message": "step finished", "step": 3}
            ),
            "2026-09-01T08:00:00 INFO    step finished step=3",
        ),
        (
            json.dumps({"time": "2026-09-01T08:00:00", "message": "failed", "rank": 3, "traceback": "boom"}),
            "2026-09-01T08:00:00         failed rank=3\nboom",
        ),
    ],
)
def test_log_lines_of_ours_are_made_readable_and_others_are_left_alone(line: str, text: str) -> None:
    assert log_line(line) == text


@pytest.mark.parametrize("command", [("top",), ("explain", "llama"), ("plan", "llama"), ("logs", "llama")])
def test_without_kubectl_it_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "galvatron_operator.plugin", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "there is no kubectl here" in done.stderr
    assert "Traceback" not in done.stderr
