"""Traces of running steps, asked for over HTTP."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch

from galvatron_planner.worker import WorkerState, WorkerStatus
from galvatron_runtime.endpoints import serve
from galvatron_runtime.recorder import NoTrace, TraceRecorder
from galvatron_runtime.reports import (
    RankReport,
    TraceRequest,
    request_trace,
    trace_file,
    trace_files,
    trace_request,
    write_atomically,
)
from galvatron_runtime.tracing import StepTracer
from rank_reports import report
from supervision import free_port

CPU = torch.device("cpu")


def status(state: WorkerState = WorkerState.RUNNING) -> WorkerStatus:
    return WorkerStatus(attempt=2, node_rank=0, state=state, progress=None, failure=None)


def with_ranks(directory: Path, *ranks: RankReport) -> None:
    (directory / "reports").mkdir()
    for one in ranks:
        write_atomically(directory / "reports" / f"rank-{one.rank:05d}.json", one.to_json())


def make_steps(tracer: StepTracer, num_steps: int) -> None:
    """What the training loop does, for one rank alone."""
    for _ in range(num_steps):
        torch.ones(8, 8) @ torch.ones(8, 8)
        tracer.step_finished(agreed_steps=tracer.requested_steps())


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.01)


def names(trace: bytes | NoTrace) -> list[str]:
    assert isinstance(trace, bytes)
    return [event["name"] for event in json.loads(trace)["traceEvents"]]


def test_as_many_steps_are_recorded_as_were_asked_for_and_once(tmp_path: Path) -> None:
    tracer = StepTracer(tmp_path, rank=3, stage_index=1, device=CPU)
    request_trace(tmp_path, TraceRequest(number=1, steps=2))
    make_steps(tracer, 6)
    (path,) = trace_files(tmp_path)
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event["name"] == "aten::matmul" for event in events) == 2
    assert "rank 3, stage 1" in [event["args"]["name"] for event in events if event["name"] == "process_name"]
    path.unlink()
    make_steps(tracer, 3)
    assert not trace_files(tmp_path)


def test_a_recording_that_training_outruns_holds_what_there_is(tmp_path: Path) -> None:
    tracer = StepTracer(tmp_path, rank=0, stage_index=0, device=CPU)
    request_trace(tmp_path, TraceRequest(number=1, steps=10))
    make_steps(tracer, 3)
    tracer.stop()
    assert "aten::matmul" in names(trace_file(tmp_path, 0).read_bytes())


def test_a_request_is_answered_with_the_traces_of_all_ranks_of_the_pod(tmp_path: Path) -> None:
    ranks = report(0), report(1)
    with_ranks(tmp_path, *ranks)
    answers: list[bytes | NoTrace] = []
    recorder = TraceRecorder(tmp_path, status)
    asking = Thread(target=lambda: answers.append(recorder.record(2)), daemon=True)
    asking.start()
    wait_until(lambda: trace_request(tmp_path) is not None)
    assert isinstance(recorder.record(1), NoTrace), "one at a time"
    for one in ranks:
        make_steps(StepTracer(tmp_path, rank=one.rank, stage_index=0, device=CPU), 4)
    asking.join(timeout=20)
    assert names(answers[0]).count("aten::matmul") == 4
    assert names(recorder.last()) == names(answers[0])
    assert trace_request(tmp_path) is None


def test_training_that_ends_first_leaves_no_one_waiting(tmp_path: Path) -> None:
    with_ranks(tmp_path, report(0))
    found = TraceRecorder(tmp_path, lambda: status(WorkerState.SUCCEEDED)).record(3)
    assert found == NoTrace("training ended before the steps were recorded")


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("", 409, "nothing was recorded yet"),
        ("?steps=3", 409, "no rank has made a training step"),
        ("?steps=0", 400, "from 1 to 20"),
        ("?steps=many", 400, "from 1 to 20"),
        ("?step=3", 400, "from 1 to 20"),
    ],
)
def test_what_cannot_be_recorded_is_told_in_words(tmp_path: Path, query: str, code: int, said: str) -> None:
    port = free_port()
    serve(address="127.0.0.1", port=port, run_directory=tmp_path, status=status)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/trace{query}", timeout=5)
    assert refused.value.code == code
    assert said in refused.value.read().decode()
